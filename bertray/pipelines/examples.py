"""Labelled reviews, checked and tokenized once, and the examples that learning is done on: of `train` and `tune`."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bertray.config import TrainConfig
from bertray.console import Ticker
from bertray.errors import DataRefused
from bertray.pipelines.cluster import Resources
from bertray.pipelines.inputs import Inputs, open_inputs, read_spec
from bertray.pipelines.shards import ReadSettings, write_token_shards
from bertray.reviews.label_counts import count_labels
from bertray.reviews.labels import LabelMap
from bertray.reviews.sources import Period, check_slices
from bertray.reviews.split import joined_groups, validation_mask
from bertray.storage.store import LocalStore, Store, open_store
from bertray.training.loop import Examples
from bertray.training.token_shards import TokenShards, cache_key

log = logging.getLogger(__name__)

TOKENS = "control/tokens"
ROWS_PER_SHARD = 4096


@dataclass(frozen=True)
class LabelledData:
    """The checked inputs of a run."""

    train: Inputs
    validation: Inputs | None
    test: Inputs | None
    labels: LabelMap
    fingerprint: str


def open_data(config: TrainConfig) -> LabelledData:
    columns = [*config.report.slices]
    group = [config.data.group] if config.data.group else []
    label_spec = read_spec(
        config, config.cleaning, config.max_chars, wants_label=True, keep_columns=[*dict.fromkeys(columns + group)]
    )
    report_spec = read_spec(config, config.cleaning, config.max_chars, wants_label=True, keep_columns=columns)
    assert config.data.train is not None
    before, after = _periods(config)
    train = open_inputs("data.train", config.data.train, config, replace(label_spec, period=before))
    validation = config.data.validation and open_inputs("data.validation", config.data.validation, config, label_spec)
    test_key, test_paths = ("data.test_from", config.data.train) if after else ("data.test", config.data.test)
    test = test_paths and open_inputs(test_key, test_paths, config, replace(report_spec, period=after))
    for inputs in (train, validation, test):
        if inputs:
            check_slices(inputs.files, inputs.spec, config.report.slices)
    seen = count_labels(train.files, train.spec)
    labels = LabelMap.from_config(config.labels, seen)
    labels.check(seen, "data.train")
    for key, inputs in (("data.validation", validation), (test_key, test)):
        if inputs:
            labels.check(count_labels(inputs.files, inputs.spec), key, needs_all_classes=False)
    pinned = [
        [(f.path, f.size_bytes, f.digest, f.num_rows) for f in inputs.files] if inputs else None
        for inputs in (train, validation, test)
    ]
    return LabelledData(train, validation or None, test or None, labels, cache_key({"files": pinned}))


def _periods(config: TrainConfig) -> tuple[Period | None, Period | None]:
    """What of data.train is learned from and what is the test, with data.test_from."""
    time, moment = config.data.time, config.data.test_from
    if time is None or moment is None:
        return None, None
    return Period(time, moment, after=False), Period(time, moment, after=True)


def check_splits(examples: Examples, labels: LabelMap) -> None:
    if not len(examples.validation):
        raise DataRefused(
            f"data.train: {len(examples.train)} examples, of which none could be put aside for validation; identical "
            "texts stay in one split.",
            "Give reviews with more different texts, or name data.validation.",
        )
    counts = np.bincount(examples.label_ids_N[examples.train], minlength=len(labels.names))
    missing = [name for name, count in zip(labels.names, counts, strict=True) if count == 0]
    if missing:
        raise DataRefused(
            f"data.train: no example of {', '.join(missing)} in the train split ({int(counts.sum())} examples).",
            "Give more reviews of these classes, or leave them out of `labels`.",
        )


# --- token shards ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedData:
    """Where token shards lie and how their rows are split: every process opens the same examples from it.

    Args:
        output: that holds them.
        train_keys: of the token shards, in the order of the rows.
        validation_keys: None: a share of train is held out.
        labels: label values of the input to class names.
        validation_fraction: of train, without `validation_keys`.
        seed: of the split.
    """

    output: str
    train_keys: list[str]
    validation_keys: list[str] | None
    labels: LabelMap
    validation_fraction: float
    seed: int

    @property
    def keys(self) -> list[str]:
        return [*self.train_keys, *(self.validation_keys or [])]

    def examples(self) -> Examples:
        """Token shards with labels and splits; fetched copies of their files stay mapped when the files are removed."""
        store, held_out = open_store(self.output), self.validation_keys
        with _local_copies(store, self.train_keys) as train, _local_copies(store, held_out or []) as validation:
            return _load_examples(
                train, None if held_out is None else validation, self.labels, self.validation_fraction, self.seed
            )


def tokenize(config: TrainConfig, data: LabelledData, base: str, store: Store, resources: Resources) -> TokenizedData:
    """Write the token shards of train and validation; those that are there and unchanged are used.

    Args:
        base: digest of the model that the tokenizer belongs to.
    """
    train_keys = _token_shards(config, data.train, base, store, resources, "train")
    validation_keys = data.validation and _token_shards(config, data.validation, base, store, resources, "validation")
    return TokenizedData(
        store.root, train_keys, validation_keys or None, data.labels, config.data.validation_fraction, config.seed
    )


def _token_shards(
    config: TrainConfig, inputs: Inputs, base: str, store: Store, resources: Resources, split: str
) -> list[str]:
    """Keys of the token shards of an input, in the order of its rows; reused when nothing changed."""
    # Training sees one window of a long review; scoring pools several.
    long_text = "head" if config.long_text == "windows" else config.long_text
    settings = ReadSettings(inputs.spec, config.model, config.max_length, long_text, config.data.group)
    key = cache_key(
        {
            "files": [(f.path, f.size_bytes, f.digest) for f in inputs.files],
            "columns": inputs.spec.columns.model_dump(),
            "cleaning": config.cleaning.model_dump(),
            "max_chars": config.max_chars,
            "model": base,
            "max_length": config.max_length,
            "long_text": long_text,
            "group": config.data.group,
            "period": inputs.spec.period and asdict(inputs.spec.period),
        }
    )
    folder = f"{TOKENS}/{key}"
    manifest = f"{folder}/manifest.json"
    if not store.exists(manifest):
        work = inputs.work_items(ROWS_PER_SHARD)
        summaries = []
        with Ticker(f"tokenizing {split}", inputs.num_rows, "reviews") as ticker:
            done = 0
            for summary in write_token_shards(work, settings, config.output, folder, resources):
                summaries.append(summary)
                done += summary["rows"]
                ticker.update(done)
        keys = sorted(summary["key"] for summary in summaries if summary["key"])
        refused = sum(summary["refused"] for summary in summaries)
        if not keys:
            raise DataRefused(f"data.{split}: none of {inputs.num_rows} rows is usable.", "Look at the file.")
        if refused:
            log.warning("%s: %d of %d rows cannot be used (no text or no id)", split, refused, done)
        store.put(manifest, json.dumps({"keys": keys, "rows": done, "refused": refused}).encode())
    keys = json.loads(store.get(manifest))["keys"]
    return [str(key) for key in keys]


@contextlib.contextmanager
def _local_copies(store: Store, keys: Sequence[str]) -> Iterator[list[Path]]:
    """Local paths of token shards; those of an object store are fetched, and go when the block ends."""
    if isinstance(store, LocalStore):
        yield [Path(store.uri(key)) for key in keys]
        return
    with tempfile.TemporaryDirectory(prefix="bertray-tokens-") as folder:
        paths = [Path(folder) / key.rpartition("/")[2] for key in keys]
        for key, path in zip(keys, paths, strict=True):
            path.write_bytes(store.get(key))
        yield paths


def _load_examples(
    train_paths: Sequence[Path],
    validation_paths: Sequence[Path] | None,
    labels: LabelMap,
    validation_fraction: float,
    seed: int,
) -> Examples:
    shards = TokenShards([*train_paths, *(validation_paths or [])])
    label_ids_N = labels.ids(shards.labels.combine_chunks())
    usable_N = label_ids_N >= 0
    if validation_paths is None:
        held_out_N = np.zeros(len(shards), bool)
        usable = np.flatnonzero(usable_N)
        groups = joined_groups(shards.text_hash_N[usable], shards.group_hash_N[usable])
        mask = validation_mask(groups, label_ids_N[usable], validation_fraction, seed)
        held_out_N[usable[mask]] = True
    else:
        held_out_N = np.arange(len(shards)) >= len(TokenShards(train_paths))
    return Examples(
        shards,
        label_ids_N,
        train=np.flatnonzero(usable_N & ~held_out_N),
        validation=np.flatnonzero(usable_N & held_out_N),
    )


def rows_by_file(examples: Examples, members: np.ndarray) -> dict[int, np.ndarray]:
    """Input rows behind some examples: file_no -> ascending row numbers."""
    file_no, row_no = examples.shards.file_no_N[members], examples.shards.row_no_N[members]
    return {int(number): np.sort(row_no[file_no == number]) for number in np.unique(file_no)}
