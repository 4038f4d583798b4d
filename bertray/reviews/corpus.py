"""From `input` and `data.*` paths to checked files and shards, before any cluster work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bertray.config import Common
from bertray.errors import DataRefused
from bertray.reviews.clean import Cleaning
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
    """Settings for reading an input; `cleaning` and `max_chars` are those of training, whoever reads."""
    return ReadSpec(
        columns=config.columns,
        reader=config.reader,
        keep_columns=tuple(keep_columns),
        wants_label=wants_label,
        cleaning=cleaning,
        max_chars=max_chars,
        unique_ids=unique_ids,
    )


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
