"""The scan: one pass over one file, for everything that has to be known before its rows are read.

Rows, columns, byte offsets of text formats, a fingerprint, repeated ids, counts of labels. A scan is a pure function of
one file, so that tasks of a cluster do it and the driver reads listings and results alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from bertray.config import Columns, TextFormat
from bertray.errors import BertrayError
from bertray.execution.executor import Executor, Progress, in_order
from bertray.execution.on_demand import ExecutorFor
from bertray.io.tables import parquet_bytes
from bertray.reviews.file_access import REMOTE_SCHEMES, content_digest, open_bytes, reading, scheme_of, stamp
from bertray.reviews.formats import acl_imdb, delimited, jsonl, parquet
from bertray.reviews.labels import canonical, value_counts
from bertray.reviews.reader import column_type_fits, label_is_readable
from bertray.reviews.rows import BadFile, FileEntry, InputFile, Period, RawRows
from bertray.reviews.screening import id_text, utf8_or_empty
from bertray.schema import Reason

log = logging.getLogger(__name__)

FINGERPRINT_BYTES = 1 << 16  # at either end of a file
_BATCH_FILES, _BATCH_BYTES = 16, 32 << 20  # scanned by one task
_ID_BYTES = 16  # of the digest of an id: so many that equal digests are equal ids


@dataclass(frozen=True)
class ScanSettings:
    """Figures wanted of a file besides its rows and columns.

    Attributes:
        reader: how text files are read.
        columns: names of the columns.
        ids: find rows whose id stands earlier in the file.
        id_digests: return digests of all ids, to find those that stand in another file.
        labels: count rows by label.
        period: count rows, and labels, on both sides of its moment.
    """

    reader: TextFormat = field(default_factory=TextFormat)
    columns: Columns = field(default_factory=Columns)
    ids: bool = False
    id_digests: bool = False
    labels: bool = False
    period: Period | None = None


@dataclass(frozen=True)
class RowCounts:
    """Rows of a file, or those on one side of a moment.

    Attributes:
        rows: that can be read as rows, where they were looked at one by one; else all of the file.
        labels: rows by canonical label value, without nulls.
    """

    rows: int
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FileScan:
    """Findings of the scan of a file that can be read.

    Attributes:
        file: rows, columns, offsets and fingerprint.
        repeated_ids: rows whose id stands earlier in the file, ascending.
        id_digests: 16 bytes for each of `id_rows`, where `ScanSettings.id_digests` asks for them.
        id_rows: row numbers of those that have an id, little-endian int64.
        counts: all rows; with a period, those before its moment.
        later: with a period, the rows from its moment on.
        without_time: rows before the moment because they have no time.
        odd_time: a value of the time column that is no time.
    """

    file: InputFile
    repeated_ids: tuple[int, ...] = ()
    id_digests: bytes = b""
    id_rows: bytes = b""
    counts: RowCounts = RowCounts(0)
    later: RowCounts = RowCounts(0)
    without_time: int = 0
    odd_time: str | None = None

    def of(self, period: Period | None) -> RowCounts:
        """Counts of all rows, or of a period.

        Raises:
            DataRefused: a value of the time column is no time in ISO form.
        """
        if period is None:
            return self.counts
        if self.odd_time is not None:
            raise period.refusal(self.odd_time)
        return self.later if period.after else self.counts


_SCAN = TypeAdapter(FileScan)
_SETTINGS = TypeAdapter(ScanSettings)


def scan_file(entry: FileEntry, settings: ScanSettings) -> FileScan | BadFile:
    """Scan one file in one pass; of Parquet, the footer and the columns that are counted. Bad data never raises.

    Raises:
        InfrastructureError: the storage failed, or the file is gone since it was listed.
        ConfigError: reading it is not permitted.
    """
    if entry.refused:
        return entry.bad(Reason.PATH_REFUSED, entry.refused)
    if entry.size_bytes == 0:
        return entry.bad(Reason.FILE_EMPTY, "0 bytes", 0)
    tally = _Tally(settings, entry.format)
    match entry.format:
        case "parquet":
            file = parquet.scan(entry, tally)
        case "csv":
            file = delimited.scan(entry, settings.reader, tally)
        case "jsonl":
            file = jsonl.scan(entry, settings.reader, tally)
        case acl_imdb.FORMAT:
            file = acl_imdb.inspect(entry)
        case _:
            raise AssertionError(f"unknown format {entry.format!r}")
    if isinstance(file, BadFile):
        return file
    fingerprint, digest = fingerprint_of(entry)
    return tally.result(replace(file, fingerprint=fingerprint, digest=file.digest or digest))


def scan_files(entries: Sequence[FileEntry], settings: ScanSettings, executor: Executor) -> list[FileScan | BadFile]:
    """Scans in the order of the entries; what a person should know of a file is logged."""
    if not entries:
        return []
    progress = Progress("scanning", "batch of files", lambda batch: str(batch[0].path))
    batches = in_order(executor, _batches(entries), partial(_scan_batch, settings=settings), progress)
    scans = list(chain.from_iterable(batches))
    schemas: dict[bytes, bytes] = {}  # most files share one
    for number, scan in enumerate(scans):
        if isinstance(scan, FileScan):
            schema = schemas.setdefault(scan.file.arrow_schema, scan.file.arrow_schema)
            scans[number] = replace(scan, file=replace(scan.file, arrow_schema=schema))
            for note in scan.file.notes:
                log.warning("%s: %s", scan.file.path, note)
    return scans


def _batches(entries: Sequence[FileEntry]) -> list[list[FileEntry]]:
    """Small files together, so that ten thousand of them are not ten thousand tasks."""
    batches: list[list[FileEntry]] = []
    num_bytes = 0
    for entry in entries:
        if not batches or len(batches[-1]) == _BATCH_FILES or num_bytes + entry.size_bytes > _BATCH_BYTES:
            batches.append([])
            num_bytes = 0
        batches[-1].append(entry)
        num_bytes += entry.size_bytes
    return batches


def _scan_batch(entries: Sequence[FileEntry], settings: ScanSettings) -> list[FileScan | BadFile]:
    """Scans of some files; those that wait for a remote store wait at the same time."""
    if len(entries) == 1 or scheme_of(entries[0].path) not in REMOTE_SCHEMES:
        return [scan_file(entry, settings) for entry in entries]
    with ThreadPoolExecutor(len(entries)) as pool:
        return list(pool.map(partial(scan_file, settings=settings), entries))


def scans_to_bytes(scans: Sequence[FileScan], settings: ScanSettings) -> bytes:
    """Scans as a Parquet file; `scans_from_bytes` reads them."""
    plain = [replace(scan, id_digests=b"", id_rows=b"", file=replace(scan.file, arrow_schema=b"")) for scan in scans]
    table = pa.table(
        {
            "scan": pa.array([_SCAN.dump_json(scan) for scan in plain], pa.large_binary()),
            "id_digests": pa.array([scan.id_digests for scan in scans], pa.large_binary()),
            "id_rows": pa.array([scan.id_rows for scan in scans], pa.large_binary()),
            "arrow_schema": pa.array([scan.file.arrow_schema for scan in scans], pa.binary()),
        }
    )
    return parquet_bytes(table.replace_schema_metadata({"settings": _SETTINGS.dump_json(settings)}))


def scans_from_bytes(content: bytes, settings: ScanSettings) -> list[FileScan]:
    """Scans of a file; none where they were made with other settings, or by another version of this code."""
    try:
        table = pq.read_table(io.BytesIO(content))
        if (table.schema.metadata or {}).get(b"settings") != _SETTINGS.dump_json(settings):
            return []
        rows = table.to_pylist()
        scans = [_SCAN.validate_json(row["scan"]) for row in rows]
    except (pa.ArrowException, OSError, ValidationError, KeyError):
        log.info("kept scans cannot be read: files are scanned again")
        return []
    return [
        replace(
            scan,
            id_digests=row["id_digests"],
            id_rows=row["id_rows"],
            file=replace(scan.file, arrow_schema=row["arrow_schema"]),
        )
        for scan, row in zip(scans, rows, strict=True)
    ]


def total_counts(counts: Iterable[RowCounts]) -> RowCounts:
    """Counts of several files together."""
    num_rows, labels = 0, Counter[str]()
    for one in counts:
        num_rows += one.rows
        labels.update(one.labels)
    return RowCounts(num_rows, dict(labels))


# --- identity of a file ----------------------------------------------------------------------------------------------


def fingerprint_of(entry: FileEntry) -> tuple[str, str | None]:
    """(fingerprint, digest of the content where that has been read as a whole).

    Files of one size with different fingerprints are different. That of a folder is made from names and sizes.
    """
    if entry.format == acl_imdb.FORMAT:
        return acl_imdb.fingerprint(entry.path), None
    digest = hashlib.sha256()
    with reading(entry.path), open_bytes(entry.path) as stream:
        digest.update(stream.read(FINGERPRINT_BYTES))
        start_of_tail = max(FINGERPRINT_BYTES, entry.size_bytes - FINGERPRINT_BYTES)
        if start_of_tail < entry.size_bytes:
            stream.seek(start_of_tail)
            digest.update(stream.read(FINGERPRINT_BYTES))
    is_whole = entry.size_bytes <= 2 * FINGERPRINT_BYTES
    return digest.hexdigest(), digest.hexdigest() if is_whole else None


def digest_file(file: FileEntry | InputFile) -> str:
    """sha256 of the whole content of a file."""
    return (acl_imdb.content_digest if file.format == acl_imdb.FORMAT else content_digest)(file.path)


def with_digests_where_alike(
    files: Sequence[InputFile], executor_for: ExecutorFor, others: Iterable[tuple[int, str]] = ()
) -> list[InputFile]:
    """The files, each with the digest of its content where another file has the same size and fingerprint.

    Args:
        files: some scanned files.
        executor_for: where contents are read.
        others: sizes and fingerprints of further files.
    """
    distinct = {(file.path, file.size_bytes, file.fingerprint) for file in files}
    alike = Counter((size, fingerprint) for _, size, fingerprint in distinct)
    alike.update(set(others))
    wanted = {file.path: file for file in files if file.digest is None and alike[file.size_bytes, file.fingerprint] > 1}
    digests = digests_of(list(wanted.values()), executor_for)
    found = dict(zip(wanted, digests, strict=True))
    return [replace(file, digest=file.digest or found.get(file.path)) for file in files]


def is_unchanged(entry: FileEntry, fingerprint: str | None) -> bool:
    """Whether a file is still there as it was listed and scanned; only a listing is read for it."""
    try:
        if entry.format == acl_imdb.FORMAT:
            return acl_imdb.fingerprint(entry.path) == fingerprint
        return stamp(entry.path) == (entry.size_bytes, entry.modified)
    except BertrayError:
        return False


def digests_of(files: Sequence[FileEntry | InputFile], executor_for: ExecutorFor) -> list[str]:
    """sha256 of the whole content of each file."""
    if not files:
        return []
    executor = executor_for(sum(file.size_bytes for file in files))
    return in_order(executor, files, digest_file, Progress("comparing", "file", lambda file: str(file.path)))


# --- one file --------------------------------------------------------------------------------------------------------


class _Tally:
    """Counts what `ScanSettings` asks for, from the rows of one file as they are read."""

    def __init__(self, settings: ScanSettings, file_format: str) -> None:
        self._settings, self._format = settings, file_format
        self._id_rows: list[np.ndarray] = []
        self._id_digests = bytearray()
        self._counts, self._later = _Side(), _Side()
        self._without_time = 0
        self._odd_time: str | None = None

    def wanted(self, columns: Mapping[str, str] | None) -> list[str]:
        """Columns to read, of those that a file has; None: they are not known yet."""
        settings = self._settings
        period = settings.period
        named = [
            ("columns.id", settings.columns.id, settings.ids or settings.id_digests),
            ("columns.label", settings.columns.label, settings.labels),
            ("data.time", period.column if period else "", period is not None),
        ]
        asked = [(key, name) for key, name, is_asked in named if is_asked]
        fitting = [name for key, name in asked if columns is None or self._fits(columns, key, name)]
        return list(dict.fromkeys(fitting))

    @staticmethod
    def _fits(columns: Mapping[str, str], key: str, name: str) -> bool:
        stored = columns.get(name, "repeated")
        return stored != "repeated" and column_type_fits(key, stored)

    def visit(self, rows: RawRows) -> None:
        """Count some rows."""
        settings = self._settings
        if (settings.ids or settings.id_digests) and settings.columns.id in rows.columns:
            self._add_ids(rows)
        labels = canonical(rows.columns[settings.columns.label]) if self._has_labels(rows) else None
        period = settings.period
        if period is None or period.column not in rows.columns:
            self._counts.add(len(rows.row_nos), labels)
            return
        times = period.times(rows.columns[period.column])
        self._without_time += times.null_count
        odd = period.odd_times(times)
        if len(odd):
            self._odd_time = self._odd_time or odd[0].as_py()
            return
        is_later = replace(period, after=True).mask(times)
        num_later = pc.sum(is_later).as_py() or 0
        self._later.add(num_later, None if labels is None else labels.filter(is_later))
        self._counts.add(len(rows.row_nos) - num_later, None if labels is None else labels.filter(pc.invert(is_later)))

    def _has_labels(self, rows: RawRows) -> bool:
        return self._settings.labels and self._settings.columns.label in rows.columns

    def _add_ids(self, rows: RawRows) -> None:
        """Nulls, empty ids and those that are no valid Unicode repeat nothing."""
        ids, invalid_N = utf8_or_empty(id_text(rows.columns[self._settings.columns.id]))
        has_id_N = pc.fill_null(pc.not_equal(ids, ""), False).to_numpy(zero_copy_only=False) & ~invalid_N
        self._id_rows.append(rows.row_nos[has_id_N])
        for value in ids.filter(pa.array(has_id_N)).view(pa.binary()).to_pylist():
            self._id_digests += hashlib.blake2b(value, digest_size=_ID_BYTES).digest()

    def result(self, file: InputFile) -> FileScan:
        """The scan of a file whose rows have all been shown."""
        settings = self._settings
        counts, later = self._counts.counts(), self._later.counts()
        if file.format == acl_imdb.FORMAT:  # the folder's name is the label of every file in it
            counts = RowCounts(file.num_rows, {file.path.rstrip("/").rpartition("/")[2]: file.num_rows})
        elif settings.period is None:
            is_readable = label_is_readable(file, settings.columns)
            counts = RowCounts(file.num_rows, counts.labels if is_readable else {})
        rows_N = np.concatenate([np.empty(0, np.int64), *self._id_rows])
        digests_N = np.frombuffer(bytes(self._id_digests), [("a", "<u8"), ("b", "<u8")])
        return FileScan(
            file,
            tuple(rows_N[repeats(digests_N)].tolist()),
            bytes(self._id_digests) if settings.id_digests else b"",
            rows_N.astype("<i8").tobytes() if settings.id_digests else b"",
            counts,
            later,
            self._without_time,
            self._odd_time,
        )


class _Side:
    def __init__(self) -> None:
        self._rows, self._labels = 0, Counter[str]()

    def add(self, num_rows: int, labels: pa.Array | None) -> None:
        self._rows += num_rows
        if labels is not None:
            self._labels.update(value_counts(labels))

    def counts(self) -> RowCounts:
        return RowCounts(self._rows, dict(self._labels))


def repeats(digests_N: np.ndarray) -> np.ndarray:
    """Positions, ascending, of digests that stand at an earlier position, too."""
    _, first_U = np.unique(digests_N, return_index=True)
    if len(first_U) == len(digests_N):
        return np.empty(0, np.int64)
    is_first_N = np.zeros(len(digests_N), bool)
    is_first_N[first_U] = True
    return np.flatnonzero(~is_first_N)


def repeated_across(scans: Sequence[FileScan]) -> list[tuple[int, ...]]:
    """For each file its rows whose id stands in an earlier row of it, or in a file before it.

    Args:
        scans: made with `ScanSettings.id_digests`.
    """
    kind = [("a", "<u8"), ("b", "<u8")]
    digests = [np.frombuffer(scan.id_digests, kind) for scan in scans]
    starts = np.cumsum([0, *map(len, digests)])
    repeated = repeats(np.concatenate([np.empty(0, kind), *digests]))
    found = []
    for scan, lo, hi in zip(scans, starts[:-1], starts[1:], strict=True):
        inside = repeated[np.searchsorted(repeated, lo) : np.searchsorted(repeated, hi)]
        found.append(tuple(np.frombuffer(scan.id_rows, "<i8")[inside - lo].tolist()))
    return found
