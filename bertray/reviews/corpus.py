"""From `input` and `data.*` paths to checked files and shards, before any cluster work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from bertray.config import Cleaning, Common, EmbedConfig, EvaluateConfig, NightConfig, TrainConfig
from bertray.errors import ConfigError, DataRefused
from bertray.model.bundle import (
    INFO_FILE,
    BundleInfo,
    read_info,
    resolve_model,
    weights_digest,
)
from bertray.model.pretrained import check_tokenizer, longest_input
from bertray.reviews.labels import LabelMap
from bertray.reviews.listing import sidecar_remedy
from bertray.reviews.locations import output_that_holds
from bertray.reviews.reader import (
    BadFile,
    InputFile,
    ReadSpec,
    Shard,
    WorkItem,
    check_columns,
    count_rows,
    inspect_all,
    list_inputs,
    plan_shards,
    with_digests,
    work_items,
)
from bertray.wording import counted


@dataclass(frozen=True)
class Inputs:
    """Readable files of one input, the shards over them, and how to read them."""

    files: list[InputFile]
    spec: ReadSpec
    file_nos: Sequence[int] | None = None  # of each file in a plan that also holds files which cannot be read

    @cached_property
    def num_rows(self) -> int:
        """Rows of the spec's period, or of the files."""
        return count_rows(self.files, self.spec)

    def work_items(self, rows_per_shard: int) -> list[WorkItem]:
        return work_items(self.shards(rows_per_shard), rows_per_shard)

    def shards(self, rows_per_shard: int) -> list[Shard]:
        shards = plan_shards(self.files, rows_per_shard)
        if self.file_nos is None:
            return shards
        return [replace(shard, file_no=self.file_nos[shard.file_no]) for shard in shards]


def read_spec(
    config: Common,
    cleaning: Cleaning,
    max_chars: int,
    *,
    wants_label: bool,
    keep_columns: Sequence[str] = (),
    unique_ids: bool = False,
) -> ReadSpec:
    """How to read an input; `cleaning` and `max_chars` are those of training, whoever reads."""
    return ReadSpec(
        columns=config.columns,
        reader=config.reader,
        keep_columns=tuple(keep_columns),
        wants_label=wants_label,
        cleaning=cleaning,
        max_chars=max_chars,
        unique_ids=unique_ids,
    )


def check_installed(verb: str, packages: Iterable[str]) -> None:
    """Whether what the extra of a verb brings is there; nothing is imported.

    Raises:
        ConfigError: a package is not installed.
    """
    for name in packages:
        if find_spec(name) is None:
            raise ConfigError(f"{verb}: {name} is not installed.", f"Run `pip install 'bertray[{verb}]'`.")


def inspect_inputs(key: str, paths: Sequence[str], config: Common) -> list[InputFile | BadFile]:
    """Every file behind the paths, looked at; what cannot be read is a `BadFile`, in the order of the listing.

    Raises:
        ConfigError, DataRefused: as `list_inputs`; the paths and the output of the config must lie apart.
    """
    return inspect_all(list_inputs(paths, config.reader, key=key, output=config.output), config.reader)


def open_inputs(key: str, paths: Sequence[str], config: Common, spec: ReadSpec) -> Inputs:
    """Readable files with the columns that are needed; for commands that refuse bad files altogether.

    Raises:
        ConfigError: a path or a column is missing.
        DataRefused: a file cannot be read, or there is no row at all.
    """
    looked_at = inspect_inputs(key, paths, config)
    bad = [file for file in looked_at if isinstance(file, BadFile)]
    refuse_bad_files(key, bad, [file.path for file in looked_at], "Repair or remove them.")
    files = [file for file in looked_at if isinstance(file, InputFile)]
    check_columns(files, spec)
    inputs = Inputs(with_digests(files), spec)
    if inputs.num_rows == 0:
        period = f" {spec.period}" if spec.period else ""
        raise DataRefused(
            f"{key}: expected reviews, found {counted(len(files), 'file')} and no row{period}.",
            "Give files that hold reviews.",
        )
    return inputs


def open_model(config: EvaluateConfig | NightConfig) -> BundleInfo:
    """The bundle that a config names, checked against what the config asks of it.

    Raises:
        ConfigError: there is no such bundle, it sees fewer tokens than `max_length`, or it was trained on pairs of
            texts and `columns.text_pair` names none, or the other way about. What a classifier of the hub was trained
            on is not known.
    """
    folder = resolve_model(config.model)
    info = read_info(folder, model=config.model)
    if config.max_length:
        check_length(config.max_length, config.model, folder)
    if info.text_pair and config.columns.text_pair is None:
        raise ConfigError(
            f"columns.text_pair: {config.model} was trained on pairs of texts, and no second column is named.",
            "Set `columns.text_pair` to the column that holds the second text.",
        )
    if config.columns.text_pair is not None and not info.text_pair and (folder / INFO_FILE).is_file():
        raise ConfigError(
            f"columns.text_pair={config.columns.text_pair}: {config.model} was trained on single texts.",
            "Leave `columns.text_pair` out, or give a model that was trained on pairs.",
        )
    return info


def open_encoder(config: EmbedConfig) -> BundleInfo:
    """The encoder that a config names: of a bundle, which says how its reviews are read, or as it was pretrained.

    Raises:
        ConfigError: there is no such model, it sees fewer tokens than `max_length`, or vectors of tokens are asked for
            where reviews are read in windows.
    """
    folder = resolve_model(config.model)
    if (folder / INFO_FILE).is_file():
        info = open_model(config)
    else:
        defaults = TrainConfig.model_fields
        length = config.max_length or defaults["max_length"].default
        check_length(length, config.model, folder)
        check_tokenizer(folder, config.model)
        info = BundleInfo(
            labels=(),
            label_values={},
            max_length=length,
            long_text=config.long_text or defaults["long_text"].default,
            cleaning=Cleaning(),
            max_chars=defaults["max_chars"].default,
            model_version=weights_digest(folder),
        )
    if config.pooling == "tokens" and (config.long_text or info.long_text) == "windows":
        raise ConfigError(
            f"pooling=tokens: long_text=windows{'' if config.long_text else f' of {config.model}'} would give a token "
            "that stands in several windows several vectors.",
            "Set long_text=head, tail or head_tail.",
        )
    return replace(
        info,
        labels=(),
        label_values={},
        cleaning=config.cleaning or info.cleaning,
        max_chars=config.max_chars or info.max_chars,
    )


def label_map(labels: Sequence[str] | Mapping[str, str | None] | None, info: BundleInfo) -> LabelMap:
    """How the input's label values read: as the config says, else as the model was trained.

    Raises:
        ConfigError: the config names a class that the model does not have.
    """
    if labels is None:
        return LabelMap(info.labels, dict(info.label_values))
    found = LabelMap.from_config(labels)
    strangers = [name for name in found.names if name not in info.labels]
    if strangers:
        raise ConfigError(
            f"labels: expected classes of the model ({', '.join(info.labels)}), found {', '.join(strangers)}.",
            "Map the values of the input to the model's classes.",
        )
    return found


def check_length(max_length: int, model: str, folder: Path) -> None:
    """Refuse a `max_length` beyond what a model sees.

    Raises:
        ConfigError: as said.
    """
    longest = longest_input(folder)
    if longest is not None and max_length > longest:
        raise ConfigError(
            f"max_length={max_length}: {model} sees at most {longest} tokens.",
            f"Set `max_length={longest}` or less; `long_text=head_tail` or `long_text=windows` reaches "
            "further into long reviews.",
        )


def refuse_bad_files(key: str, bad: Sequence[BadFile], paths: Sequence[str], remedy: str) -> None:
    """Raises DataRefused that names the first file which cannot be read, if there is one.

    Args:
        key: of the config.
        bad: files that cannot be read.
        paths: of all files.
        remedy: for files of reviews; what a ledger needs is never to be removed.
    """
    if bad:
        remedy = sidecar_remedy(bad[0].path, paths) or remedy
        if output := output_that_holds(bad[0].path):
            remedy = f"It is of the output {output}: restore it from a backup, and remove nothing there."
        raise DataRefused(
            f"{key}: {len(bad)} of {counted(len(paths), 'file')} cannot be read, first {bad[0].path}: {bad[0].reason} "
            f"({bad[0].detail}).",
            remedy,
        )
