"""From `input` and `data.*` paths to checked files and shards, before any cluster work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bertray.config import Common
from bertray.errors import DataRefused
from bertray.execution.on_demand import ExecutorFor
from bertray.io.store import Store, open_store
from bertray.reviews.clean import Cleaning
from bertray.reviews.kept_scans import keep_scans, kept_scans
from bertray.reviews.listing import list_inputs, sidecar_remedy
from bertray.reviews.locations import output_that_holds
from bertray.reviews.reader import check_columns, plan_shards, work_units
from bertray.reviews.rows import Aspects, BadFile, InputFile, ReadSpec, Shard, WorkUnit
from bertray.reviews.scan import FileScan, RowCounts, ScanSettings, scan_files, total_counts
from bertray.wording import counted

SCANS = "control/scans"


@dataclass(frozen=True)
class Inputs:
    """Readable files of one input, the shards over them, and how to read them.

    Attributes:
        counts: of all files together, where a scan counted them: rows of the spec's period, rows by label.
        without_time: rows that a period puts before its moment because they have no time.
        scanned: where they come from.
    """

    files: list[InputFile]
    spec: ReadSpec
    file_nos: Sequence[int] | None = None  # of each file in a plan that also holds files which cannot be read
    counts: RowCounts | None = None
    without_time: int = 0
    scanned: ScannedFiles | None = None

    def keep_scan(self, store: Store) -> None:
        """Store the scan in the output of the run that it belongs to, which then need not scan again."""
        if self.scanned is not None:
            keep_scans(store, self.scanned.kept_at, self.scanned.good, self.scanned.settings)

    @property
    def num_rows(self) -> int:
        """Rows of the spec's period, or of the files."""
        return sum(file.num_rows for file in self.files) if self.counts is None else self.counts.rows

    @property
    def label_counts(self) -> dict[str, int]:
        """Rows by canonical label value, without nulls, where they were counted."""
        return self.counts.labels if self.counts else {}

    @property
    def identity(self) -> list[tuple[str, int, str, str, int]]:
        """Identity of the files, another one after a change."""
        return [(f.path, f.size_bytes, f.digest or f.modified, f.fingerprint, f.num_rows) for f in self.files]

    def cleaned_as(self, cleaning: Cleaning, max_chars: int) -> Inputs:
        """The same rows, cleaned otherwise."""
        return replace(self, spec=replace(self.spec, cleaning=cleaning, max_chars=max_chars))

    def work_units(self, rows_per_shard: int) -> list[WorkUnit]:
        return work_units(self.shards(rows_per_shard), rows_per_shard)

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
    trained_for: Mapping[str, str] | None = None,
    text_columns: Sequence[str] = (),
) -> ReadSpec:
    """Settings for reading an input; `cleaning` and `max_chars` are those of training, whoever reads.

    Args:
        trained_for: aspects of the model with their label columns, where the config names none.
        text_columns: that the model was trained on, where it reads several and the config names none.
    """
    return ReadSpec(
        columns=config.columns.trained_for(text_columns),
        reader=config.reader,
        keep_columns=tuple(keep_columns),
        wants_label=wants_label,
        cleaning=cleaning,
        max_chars=max_chars,
        unique_ids=unique_ids,
        aspects=Aspects.of(config, trained_for),
    )


@dataclass(frozen=True)
class ScannedFiles:
    """All files of one input with their scans; what cannot be read is a `BadFile`, in the order of the listing."""

    key: str  # of the config, for messages
    scans: list[FileScan | BadFile]
    settings: ScanSettings

    @property
    def kept_at(self) -> str:
        """Place in the output."""
        return f"{SCANS}/{self.key}.parquet"

    @property
    def bad(self) -> list[BadFile]:
        return [scan for scan in self.scans if isinstance(scan, BadFile)]

    @property
    def good(self) -> list[FileScan]:
        return [scan for scan in self.scans if isinstance(scan, FileScan)]

    @property
    def files(self) -> list[InputFile]:
        return [scan.file for scan in self.good]

    def inputs(self, spec: ReadSpec, file_nos: Sequence[int] | None = None) -> Inputs:
        """Those that can be read, checked.

        Raises:
            ConfigError: a column is missing.
            DataRefused: there is no row at all, or a time that is none.
        """
        check_columns(self.files, spec)
        counts = total_counts(scan.of(spec.period) for scan in self.good)
        inputs = Inputs(self.files, spec, file_nos, counts, sum(scan.without_time for scan in self.good), self)
        if inputs.num_rows == 0:
            period = f" {spec.period}" if spec.period else ""
            raise DataRefused(
                f"{self.key}: expected reviews, found {counted(len(inputs.files), 'file')} and no row{period}.",
                "Give files that hold reviews.",
            )
        return inputs

    def refuse_bad(self) -> None:
        """Raise DataRefused where a file cannot be read; for commands that refuse bad files altogether."""
        paths = [scan.path if isinstance(scan, BadFile) else scan.file.path for scan in self.scans]
        refuse_bad_files(self.key, self.bad, paths, "Repair or remove them.")


def settings_for(spec: ReadSpec, *, labels: bool | None = None) -> ScanSettings:
    """Scan for what a spec needs.

    Args:
        spec: how rows will be read.
        labels: count them; by default where the spec wants them.
    """
    return ScanSettings(
        reader=spec.reader,
        columns=spec.columns,
        ids=spec.unique_ids,
        labels=spec.wants_label if labels is None else labels,
        period=spec.period and replace(spec.period, after=False),
        aspects=spec.aspects,
    )


def scan_inputs(
    key: str, paths: Sequence[str], config: Common, settings: ScanSettings, executor_for: ExecutorFor
) -> ScannedFiles:
    """List the files behind some paths and scan each, but for those whose scan an earlier run has kept in the output.

    Raises:
        ConfigError, DataRefused: as `list_inputs`; the paths and the output of the config must lie apart.
    """
    entries = list_inputs(paths, config.reader, key=key, output=config.output)
    found = ScannedFiles(key, [], settings)
    kept = kept_scans(open_store(config.output), [found.kept_at], settings)
    return replace(found, scans=scan_files(entries, settings, executor_for, kept))


def open_inputs(key: str, paths: Sequence[str], config: Common, spec: ReadSpec, executor_for: ExecutorFor) -> Inputs:
    """Readable files with the columns that are needed; for commands that refuse bad files altogether.

    Raises:
        ConfigError: a path or a column is missing.
        DataRefused: a file cannot be read, or there is no row at all.
    """
    scanned = scan_inputs(key, paths, config, settings_for(spec), executor_for)
    scanned.refuse_bad()
    return scanned.inputs(spec)


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
