"""The scan: one pass over one file, for everything that has to be known before its rows are read.

Rows, columns, byte offsets of text formats, a fingerprint, repeated ids, counts of labels. A scan is a pure function of
one file, so that tasks of a cluster do it and the driver reads listings and results alone.
"""

from __future__ import annotations

import hashlib
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

from bertray.config import Columns, TextFormat
from bertray.execution.executor import Progress, in_order
from bertray.execution.on_demand import ExecutorFor
from bertray.reviews.aspects import expanded, rows_of_lists
from bertray.reviews.file_access import is_remote
from bertray.reviews.file_identity import FINGERPRINT_BYTES, fingerprint_of
from bertray.reviews.formats import acl_imdb, delimited, jsonl, parquet
from bertray.reviews.labels import canonical, value_counts
from bertray.reviews.reader import LABELS_OF_ASPECTS, column_type_fits, label_is_readable
from bertray.reviews.rows import Aspects, BadFile, Expansion, FileEntry, InputFile, Period, RawRows
from bertray.reviews.screening import row_ids
from bertray.schema import Reason

log = logging.getLogger(__name__)

_BATCH_FILES, _BATCH_BYTES = 16, 32 << 20  # scanned by one task
_SHORT_COLUMNS = 64  # of as many bytes of a Parquet file, one is read for ids, labels and times: texts are longer
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
        aspects: count a row for each of them, in place of each row of the file.
    """

    reader: TextFormat = field(default_factory=TextFormat)
    columns: Columns = field(default_factory=Columns)
    ids: bool = False
    id_digests: bool = False
    labels: bool = False
    period: Period | None = None
    aspects: Aspects | None = None

    @property
    def counts_columns(self) -> bool:
        """Whether columns are read for it."""
        lists = self.aspects is not None and self.aspects.column is not None
        return self.ids or self.id_digests or self.labels or self.period is not None or lists

    def covers(self, wanted: ScanSettings) -> bool:
        """Whether a scan with these settings holds all that one with others would."""
        both = (self.ids or wanted.ids, self.id_digests or wanted.id_digests, self.labels or wanted.labels)
        return self == replace(wanted, ids=both[0], id_digests=both[1], labels=both[2])


@dataclass(frozen=True)
class RowCounts:
    """Rows of a file, or those on one side of a moment.

    Attributes:
        rows: that can be read as rows, where they were looked at one by one; else all of the file.
        labels: rows by canonical label value, without nulls.
        aspects: rows with a label by aspect, where all reviews have the same aspects.
    """

    rows: int
    labels: dict[str, int] = field(default_factory=dict)
    aspects: dict[str, int] = field(default_factory=dict)


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
    visitor = _WithGiven(tally, entry)
    match entry.format:
        case "parquet":
            file = parquet.scan(entry, visitor)
        case "csv":
            file = delimited.scan(entry, settings.reader, visitor)
        case "jsonl":
            file = jsonl.scan(entry, settings.reader, visitor)
        case acl_imdb.FORMAT:
            file = acl_imdb.inspect(entry)
        case _:
            raise AssertionError(f"unknown format {entry.format!r}")
    if isinstance(file, BadFile):
        return file
    visitor.finish(file)
    if file.digest is not None and entry.size_bytes <= 2 * FINGERPRINT_BYTES:  # both ends are all of it
        return tally.result(replace(file, fingerprint=file.digest))
    fingerprint, digest = fingerprint_of(entry)
    return tally.result(replace(file, fingerprint=fingerprint, digest=file.digest or digest))


def scan_files(
    entries: Sequence[FileEntry],
    settings: ScanSettings,
    executor_for: ExecutorFor,
    kept: Mapping[FileEntry, FileScan] | None = None,
) -> list[FileScan | BadFile]:
    """Scans in the order of the entries; what a person should know of a file is logged.

    Args:
        kept: scans that exist; a file that is listed as it was then is not scanned.
    """
    known = dict(kept or {})
    # A column that a table got since is no part of a scan that was kept.
    missing = [entry for entry in entries if entry not in known or entry.table]
    made = dict(zip(missing, _scanned(missing, settings, executor_for), strict=True))
    return [made.get(entry) or known[entry] for entry in entries]


def _scanned(
    entries: Sequence[FileEntry], settings: ScanSettings, executor_for: ExecutorFor
) -> list[FileScan | BadFile]:
    if not entries:
        return []
    executor = executor_for(bytes_to_scan(entries, settings))
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


def bytes_to_scan(entries: Sequence[FileEntry], settings: ScanSettings) -> int:
    """Bytes that scanning some files will read, about: Parquet gives its footer and the columns that are counted."""
    share = _SHORT_COLUMNS if settings.counts_columns else 0

    def of_parquet(num_bytes: int) -> int:
        return min(num_bytes, 2 * FINGERPRINT_BYTES + (num_bytes // share if share else 0))

    return sum(of_parquet(e.size_bytes) if e.format == "parquet" else e.size_bytes for e in entries)


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
    if len(entries) == 1 or not is_remote(entries[0].path):
        return [scan_file(entry, settings) for entry in entries]
    with ThreadPoolExecutor(len(entries)) as pool:
        return list(pool.map(partial(scan_file, settings=settings), entries))


def total_counts(counts: Iterable[RowCounts]) -> RowCounts:
    """Counts of several files together."""
    num_rows, labels, aspects = 0, Counter[str](), Counter[str]()
    for one in counts:
        num_rows += one.rows
        labels.update(one.labels)
        aspects.update(one.aspects)
    return RowCounts(num_rows, dict(labels), dict(aspects))


# --- one file --------------------------------------------------------------------------------------------------------


class _Tally:
    """Counts what `ScanSettings` asks for, from the rows of one file as they are read."""

    def __init__(self, settings: ScanSettings, file_format: str) -> None:
        self._settings, self._format = settings, file_format
        self._id_rows: list[np.ndarray] = []
        self._ids: list[pa.Array] = []
        self._counts, self._later = _Side(), _Side()
        self._without_time = 0
        self._odd_time: str | None = None
        self._expanding = None if settings.aspects is None else _Expanding(settings.aspects, settings)

    def wanted(self, columns: Mapping[str, str] | None) -> list[str]:
        """Columns to read, of those that a file has; None: they are not known yet."""
        settings = self._settings
        period = settings.period
        named = [
            ("columns.id", settings.columns.id, settings.ids or settings.id_digests),
            ("columns.label", settings.columns.label, settings.labels and settings.aspects is None),
            ("data.time", period.column if period else "", period is not None),
        ]
        if (aspects := settings.aspects) is not None and aspects.column is not None:
            named += [("columns.aspects", aspects.column, True)]
            named += [(LABELS_OF_ASPECTS, settings.columns.label, settings.labels)]
        elif aspects is not None:
            named += [("columns.label", name, settings.labels) for name in aspects.label_columns.values()]
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
        if self._expanding is not None:
            rows = self._expanding.expanded(rows)
        if (settings.ids or settings.id_digests) and settings.columns.id in rows.columns:
            self._add_ids(rows)
        labels = self._labels_of(rows)
        period = settings.period
        if period is None or period.column not in rows.columns:
            self._counts.add(len(rows.row_nos), labels, self._aspects_of(rows))
            return
        times = period.times(rows.columns[period.column])
        self._without_time += times.null_count
        odd = period.odd_times(times)
        if len(odd):
            self._odd_time = self._odd_time or odd[0].as_py()
            return
        is_later = replace(period, after=True).mask(times)
        for side, mask in ((self._later, is_later), (self._counts, pc.invert(is_later))):
            some = rows.where(mask.to_numpy(zero_copy_only=False))
            side.add(len(some.row_nos), None if labels is None else labels.filter(mask), self._aspects_of(some))

    def _labels_of(self, rows: RawRows) -> pa.Array | None:
        if rows.aspects is not None:
            return rows.aspects.labels
        column = self._settings.columns.label
        return canonical(rows.columns[column]) if self._settings.labels and column in rows.columns else None

    def _aspects_of(self, rows: RawRows) -> pa.Array | None:
        """Aspects of the rows that have a label, where all reviews have the same."""
        found, aspects = rows.aspects, self._settings.aspects
        if found is None or found.labels is None or aspects is None or aspects.column is not None:
            return None
        return found.names.filter(found.labels.is_valid())

    def _add_ids(self, rows: RawRows) -> None:
        """Nulls, empty ids and those that are no valid Unicode repeat nothing."""
        ids, invalid_N = row_ids(rows, "", self._settings.columns.id)
        has_id_N = pc.fill_null(pc.not_equal(ids, ""), False).to_numpy(zero_copy_only=False) & ~invalid_N
        self._id_rows.append(rows.row_nos[has_id_N])
        self._ids.append(ids.filter(pa.array(has_id_N)).cast(pa.large_string()))  # of a file: more than 2 GiB

    def result(self, file: InputFile) -> FileScan:
        """The scan of a file whose rows have all been shown."""
        settings = self._settings
        counts, later = self._counts.counts(), self._later.counts()
        if self._expanding is not None:
            expansion = self._expanding.whole(file.num_rows)
            file = replace(file, num_rows=expansion.end, expansion=expansion)
        if (
            file.format == acl_imdb.FORMAT and settings.aspects is None
        ):  # the folder's name is the label of every file in it
            counts = RowCounts(file.num_rows, {file.path.rstrip("/").rpartition("/")[2]: file.num_rows})
        elif settings.period is None:
            is_readable = label_is_readable(file, settings.columns, settings.aspects)
            counts = (
                RowCounts(file.num_rows, counts.labels, counts.aspects) if is_readable else RowCounts(file.num_rows)
            )
        rows_N = np.concatenate([np.empty(0, np.int64), *self._id_rows])
        ids = pa.chunked_array(self._ids, pa.large_string())
        return FileScan(
            file,
            tuple(rows_N[repeats(ids)].tolist()),
            _digests(ids) if settings.id_digests else b"",
            rows_N.astype("<i8").tobytes() if settings.id_digests else b"",
            counts,
            later,
            self._without_time,
            self._odd_time,
        )


class _WithGiven:
    """Shows a tally the columns that a file is given by its folders or its table, beside those that it holds."""

    def __init__(self, tally: _Tally, entry: FileEntry) -> None:
        self._tally, self._entry = tally, entry
        self._given: list[tuple[str, str | None]] = []  # those that the tally wants
        self._has_seen = False

    def wanted(self, columns: Mapping[str, str] | None) -> list[str]:
        """Columns to read from the file."""
        given = dict(self._entry.given)
        kinds = {name: "null" if value is None else "string" for name, value in given.items()}
        names = self._tally.wanted(None if columns is None else {**columns, **kinds})
        self._given = [(name, given[name]) for name in names if name in given]
        return [name for name in names if name not in given]

    def visit(self, rows: RawRows) -> None:
        """Count some rows."""
        self._has_seen = True
        self._tally.visit(rows.beside(self._given))

    def finish(self, file: InputFile) -> None:
        """Count the rows of a file of which nothing had to be read."""
        if self._given and not self._has_seen:
            self._tally.visit(RawRows(np.arange(file.num_rows), {}).beside(self._given))


class _Expanding:
    """Rows of a file to rows of aspects, batch after batch; counts them where each review lists its own."""

    def __init__(self, aspects: Aspects, settings: ScanSettings) -> None:
        self._aspects, self._settings = aspects, settings
        self._counts: list[np.ndarray] = []  # of the stored rows so far
        self._so_far = Expansion(0, 0, width=len(aspects.label_columns))

    def expanded(self, rows: RawRows) -> RawRows:
        """The rows of the next batch."""
        settings, column = self._settings, self._aspects.column
        within = self._so_far
        if column is not None:
            lo, hi = self._so_far.hi, int(rows.row_nos[-1]) + 1 if len(rows.row_nos) else self._so_far.hi
            counts = np.ones(hi - lo, "<u2")  # of rows that cannot be read, too
            if column in rows.columns:
                counts[rows.row_nos - lo] = rows_of_lists(rows.columns[column])
            within = Expansion(lo, hi, self._so_far.end, counts=counts.tobytes())
            self._counts.append(counts)
            self._so_far = Expansion(hi, hi, within.end, counts=b"")
        return expanded(
            replace(rows, faults=()), self._aspects, within, settings.columns.label, wants_label=settings.labels
        )

    def whole(self, num_stored: int) -> Expansion:
        """Expansion of all rows of the file."""
        if self._so_far.width:
            return Expansion(0, num_stored, width=self._so_far.width)
        counts = np.concatenate([np.ones(0, "<u2"), *self._counts])
        rest = np.ones(num_stored - len(counts), "<u2")
        return Expansion(0, num_stored, counts=np.concatenate([counts, rest]).astype("<u2").tobytes())


class _Side:
    def __init__(self) -> None:
        self._rows, self._labels, self._aspects = 0, Counter[str](), Counter[str]()

    def add(self, num_rows: int, labels: pa.Array | None, aspects: pa.Array | None) -> None:
        self._rows += num_rows
        if labels is not None:
            self._labels.update(value_counts(labels))
        if aspects is not None:
            self._aspects.update(value_counts(aspects))

    def counts(self) -> RowCounts:
        return RowCounts(self._rows, dict(self._labels), dict(self._aspects))


def repeats(values: pa.ChunkedArray) -> np.ndarray:
    """Positions, ascending, of values that stand at an earlier position, too; they are compared, not their hashes."""
    codes_N = np.concatenate(
        [np.empty(0, np.int32), *(c.indices.to_numpy() for c in values.dictionary_encode().chunks)]
    )
    # Codes count values by first appearance: one that is no higher than all before it has been there.
    return 1 + np.flatnonzero(codes_N[1:] <= np.maximum.accumulate(codes_N)[:-1])


def _digests(ids: pa.ChunkedArray) -> bytes:
    """Digests end to end, `_ID_BYTES` each."""
    values = chain.from_iterable(chunk.to_pylist() for chunk in ids.chunks)
    return b"".join(hashlib.blake2b(value.encode(), digest_size=_ID_BYTES).digest() for value in values)


def repeated_across(scans: Sequence[FileScan]) -> list[tuple[int, ...]]:
    """For each file its rows whose id stands in an earlier row of it, or in a file before it.

    Args:
        scans: made with `ScanSettings.id_digests`.
    """
    kind = pa.binary(_ID_BYTES)
    digests = [
        pa.FixedSizeBinaryArray.from_buffers(
            kind, len(scan.id_digests) // _ID_BYTES, [None, pa.py_buffer(scan.id_digests)]
        )
        for scan in scans
    ]
    starts = np.cumsum([0, *map(len, digests)])
    repeated = repeats(pa.chunked_array(digests, kind))
    found = []
    for scan, lo, hi in zip(scans, starts[:-1], starts[1:], strict=True):
        inside = repeated[np.searchsorted(repeated, lo) : np.searchsorted(repeated, hi)]
        found.append(tuple(np.frombuffer(scan.id_rows, "<i8")[inside - lo].tolist()))
    return found
