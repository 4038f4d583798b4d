"""CSV, TSV and their kin: columns by header or position, rows by the rules of Python's csv module.

A row becomes a fault in `_raw_rows`, for its number of fields or for what `text_records.csv_records` found wrong with
its quotes or length. `plain_csv` finds the same rows fast for the scan, and refuses none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa

from bertray.config import TextFormat
from bertray.reviews.formats import dialects, text_records
from bertray.reviews.formats.byte_window import ByteWindow, keeps_ascii, open_window
from bertray.reviews.formats.plain_csv import PlainCsv
from bertray.reviews.formats.text_records import CsvRecord, Head
from bertray.reviews.formats.text_scan import NotReadable, scan_text
from bertray.reviews.rows import ROWS_PER_OFFSET, BadFile, Dialect, FileEntry, InputFile, RawRows, RowVisitor, Shard
from bertray.schema import Reason

_NULL = "\\N"  # as MySQL, Hive and PostgreSQL write it


def _rows(path: str, reader: TextFormat, dialect: Dialect, start_byte: int | None = None) -> Iterator[CsvRecord]:
    """Rows from a byte on, or of the whole file; headers that stand again are no rows."""
    lines = text_records.open_lines(path, reader.encoding, start_byte or 0)
    if start_byte is not None:
        found = text_records.csv_records(lines, dialect)
    else:
        found = text_records.csv_records(islice(lines, dialect.skip_lines, None), dialect)
        if reader.header:
            next(found, None)
    return (record for record in found if not record.is_header)


def scan(entry: FileEntry, reader: TextFormat, visitor: RowVisitor) -> InputFile | BadFile:
    """Dialect, column names, exact number of rows and the row index, in one pass that shows rows to a visitor."""
    return scan_text(entry, reader, partial(_counted, entry, reader, visitor))


def _counted(entry: FileEntry, reader: TextFormat, visitor: RowVisitor, head: Head) -> InputFile:
    decision = dialects.decide(entry.path, reader, head)
    dialect, first = decision.dialect, decision.first
    if first is None:
        raise NotReadable(Reason.FILE_EMPTY, "no row and no header")
    if first.fields is None:
        raise NotReadable(Reason.FILE_CORRUPT, f"the first row cannot be read: {first.problem}")
    columns = _column_names(first.fields[: dialect.width], reader.header)
    names = list(columns)
    positions = {name: names.index(name) for name in visitor.wanted(columns)}
    digest = None
    counter = _Counter(dialect, reader.encoding, positions, visitor)
    if keeps_ascii(reader.encoding):
        with open_window(entry.path, reader.encoding) as window:
            counter.count(window, has_header=reader.header)
            digest = window.digest()
    else:
        counter.count_exactly(_rows_and_headers(entry.path, reader, dialect))
    again = counter.num_headers
    notes = (f"the header stands {again + 1} times; below the first row it is no review",) if again else ()
    return entry.readable(
        counter.num_rows,
        columns,
        row_offsets=tuple(counter.offsets),
        digest=digest,
        dialect=dialect,
        notes=decision.notes + notes,
    )


def _rows_and_headers(path: str, reader: TextFormat, dialect: Dialect) -> Iterator[CsvRecord]:
    lines = text_records.open_lines(path, reader.encoding)
    found = text_records.csv_records(islice(lines, dialect.skip_lines, None), dialect)
    return islice(found, 1 if reader.header else 0, None)


_FIRST_BLOCK, _LARGEST_BLOCK = 1 << 16, 1 << 23
_FEWEST_EXACT, _MOST_EXACT = 16, 4096  # records read by the exact rules before the fast way is tried again


class _Counter:
    """Counts the rows of a file and shows their values.

    Args:
        positions: of the columns that the visitor wants.
    """

    def __init__(self, dialect: Dialect, encoding: str, positions: dict[str, int], visitor: RowVisitor) -> None:
        self._dialect, self._encoding, self._positions, self._visitor = dialect, encoding, positions, visitor
        self.num_rows, self.num_headers = 0, 0
        self.offsets: list[int] = []

    def count(self, window: ByteWindow, *, has_header: bool) -> None:
        """Blocks of bytes where records are by the book, the exact rules elsewhere; both find the same rows."""
        self._skip(window, self._dialect.skip_lines)
        if has_header:
            self._exact(window, 1)
        plain = PlainCsv(self._dialect, self._encoding)
        size, num_exact = _FIRST_BLOCK, _FEWEST_EXACT
        while True:
            block, is_last = window.block(size)
            if not block:
                return
            found = plain.records(block, is_last)
            if found.end:
                self._take(plain, block[: found.end], window.offset, found.starts_R)
                window.advance(found.end)
            if found.stopped or (not found.end and size == _LARGEST_BLOCK):
                is_worth_it = len(found.starts_R) > num_exact
                num_exact = _FEWEST_EXACT if is_worth_it else min(2 * num_exact, _MOST_EXACT)
                size = max(_FIRST_BLOCK, size // 4)
                records = self._exact(window, num_exact)
                if not records:  # blank lines at most
                    return
                self.add(records)
            else:
                size = min(2 * size, _LARGEST_BLOCK)

    def count_exactly(self, records: Iterator[CsvRecord]) -> None:
        while part := list(islice(records, _MOST_EXACT)):
            self.add(part)

    def add(self, records: Sequence[CsvRecord]) -> None:
        """Count records of the exact rules; headers are no rows."""
        rows = [record for record in records if not record.is_header]
        self.num_headers += len(records) - len(rows)
        self._add_offsets(np.array([row.offset for row in rows], np.int64))
        if self._positions and rows:
            self._visitor.visit(_raw_rows(self.num_rows, rows, self._dialect, self._positions, self._encoding))
        self.num_rows += len(rows)

    def _add_offsets(self, offsets_R: np.ndarray) -> None:
        self.offsets += offsets_R[-self.num_rows % ROWS_PER_OFFSET :: ROWS_PER_OFFSET].tolist()

    def _take(self, plain: PlainCsv, block: bytes, offset: int, starts_R: np.ndarray) -> None:
        """Count records by the book."""
        if self._positions and len(starts_R):
            values = plain.values(block, list(self._positions.values()))
            if values is None or len(values[0]) != len(starts_R):
                lines = text_records.byte_lines(io.BytesIO(block), self._encoding, offset)
                self.add(list(text_records.csv_records(lines, self._dialect)))
                return
            row_nos = np.arange(self.num_rows, self.num_rows + len(starts_R), dtype=np.int64)
            named = dict(zip(self._positions, map(_as_string, values), strict=True))
            self._visitor.visit(RawRows(row_nos, named))
        self._add_offsets(offset + starts_R)
        self.num_rows += len(starts_R)

    def _exact(self, window: ByteWindow, limit: int) -> list[CsvRecord]:
        ends: dict[int, int] = {}
        records = list(islice(text_records.csv_records(window.lines(ends), self._dialect), limit))
        if records:
            window.advance(ends[records[-1].lines[-1].offset] - window.offset)
        return records

    def _skip(self, window: ByteWindow, num_lines: int) -> None:
        ends: dict[int, int] = {}
        for line in islice(window.lines(ends), num_lines):
            last = ends[line.offset]
        if ends:
            window.advance(last - window.offset)


def _as_string(values: pa.Array) -> pa.Array:
    """Bytes as strings, where all of them are UTF-8."""
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        return values


def _column_names(first: list[str], header: bool) -> dict[str, str]:
    """Names in order of position. A name that stands twice keeps its first position and is marked."""
    if not header:
        return {str(position): "string" for position in range(len(first))}
    columns: dict[str, str] = {}
    for position, name in enumerate(first):
        name = name.strip().encode("utf-8", "replace").decode()
        if name in columns:
            columns[name] = "repeated"
            name = f"{name} (column {position})"
        columns[name] = "string"
    return columns


def read(shard: Shard, columns: Sequence[str], reader: TextFormat) -> Iterator[RawRows]:
    """Rows [lo, hi) of the named columns, as text; rows with another number of fields become faults."""
    names = list(shard.file.columns)
    positions = {name: names.index(name) for name in columns}
    dialect = shard.file.dialect
    assert dialect is not None

    def rows() -> Iterator[CsvRecord]:
        return _rows(shard.file.path, reader, dialect, shard.start_byte)

    def raw_rows(first: int, part: list[CsvRecord]) -> RawRows:
        return _raw_rows(first, part, dialect, positions, reader.encoding)

    return text_records.read_range(shard, rows, raw_rows, lambda row: sum(len(line.text) for line in row.lines))


def _raw_rows(first: int, part: list[CsvRecord], dialect: Dialect, positions: dict[str, int], encoding: str) -> RawRows:
    row_nos, good, faults = [], [], []
    width = dialect.width
    for row_no, record in enumerate(part, first):
        fields = record.fields
        if fields is not None and (
            len(fields) == width or (dialect.extra_empty and len(fields) > width and not any(fields[width:]))
        ):
            row_nos.append(row_no)
            good.append(fields)
            continue
        problem = record.problem or f"expected {width} fields, found {len(fields or [])}"
        faults.append(text_records.malformed(row_no, problem, record.lines, encoding))
    values = {name: text_records.as_text([_value(row[at]) for row in good], encoding) for name, at in positions.items()}
    return RawRows(np.array(row_nos, np.int64), values, tuple(faults))


def _value(field: str) -> str | None:
    return None if field == _NULL else field
