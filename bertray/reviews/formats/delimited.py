"""CSV, TSV and their kin: columns by header or position, rows by the rules of Python's csv module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from bertray.config import TextFormat
from bertray.reviews.file_access import DATA_ERRORS, is_store_failure, reading, short
from bertray.reviews.formats import dialects
from bertray.reviews.formats import text_records as records
from bertray.reviews.rows import BadFile, Dialect, FileEntry, InputFile, RawRows, Shard
from bertray.schema import Reason

_NULL = "\\N"  # as MySQL, Hive and PostgreSQL write it


def _rows(
    path: str,
    reader: TextFormat,
    dialect: Dialect,
    start_byte: int | None = None,
    headers: list[records.CsvRecord] | None = None,
) -> Iterator[records.CsvRecord]:
    """Rows from a byte on, or of the whole file; headers that stand again are no rows, and added to `headers`."""
    lines = records.open_lines(path, reader.encoding, start_byte or 0)
    if start_byte is not None:
        found = records.csv_records(lines, dialect)
    else:
        found = records.csv_records(islice(lines, dialect.skip_lines, None), dialect)
        if reader.header:
            next(found, None)
    for record in found:
        if not record.is_header:
            yield record
        elif headers is not None:
            headers.append(record)


def inspect(entry: FileEntry, reader: TextFormat) -> InputFile | BadFile:
    """Dialect, column names, exact number of rows and the row index, in one streaming pass."""
    try:
        with reading(entry.path):
            head = records.read_head(entry.path)
            other = dialects.other_content(head.raw, reader.encoding)
            if other is not None:
                return entry.bad(Reason.FILE_UNSUPPORTED, other)
            decision = dialects.decide(entry.path, reader, head)
            dialect, first = decision.dialect, decision.first
            if first is None:
                return entry.bad(Reason.FILE_EMPTY, "no row and no header")
            if first.fields is None:
                return entry.bad(Reason.FILE_CORRUPT, f"the first row cannot be read: {first.problem}")
            columns = _column_names(first.fields[: dialect.width], reader.header)
            again: list[records.CsvRecord] = []
            rows = _rows(entry.path, reader, dialect, headers=again)
            num_rows, offsets = records.index(rows, seekable=records.can_seek(head, reader.encoding))
    except DATA_ERRORS as error:
        if is_store_failure(error):
            raise
        return entry.bad(Reason.FILE_CORRUPT, short(error))
    return InputFile(
        entry.path,
        entry.relative_path,
        "csv",
        entry.size_bytes,
        entry.modified,
        num_rows,
        columns,
        offsets,
        dialect=dialect,
        notes=decision.notes
        + ((f"the header stands {len(again) + 1} times; below the first row it is no review",) if again else ()),
    )


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

    def rows() -> Iterator[records.CsvRecord]:
        return _rows(shard.file.path, reader, dialect, shard.start_byte)

    def raw_rows(first: int, part: list[records.CsvRecord]) -> RawRows:
        return _raw_rows(first, part, dialect, positions, reader.encoding)

    return records.read_range(shard, rows, raw_rows, lambda row: sum(len(line.text) for line in row.lines))


def _raw_rows(
    first: int, part: list[records.CsvRecord], dialect: Dialect, positions: dict[str, int], encoding: str
) -> RawRows:
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
        faults.append(records.malformed(row_no, problem, record.lines, encoding))
    values = {name: records.as_text([_value(row[at]) for row in good], encoding) for name, at in positions.items()}
    return RawRows(np.array(row_nos, np.int64), values, tuple(faults))


def _value(field: str) -> str | None:
    return None if field == _NULL else field
