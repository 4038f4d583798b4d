"""CSV, TSV and their kin: columns by header or position, rows by the rules of Python's csv module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np

from bertray.config import TextFormat
from bertray.reviews import records
from bertray.reviews.files import DATA_ERRORS, is_store_failure, reading, short
from bertray.reviews.inputs import BadFile, FileEntry, InputFile, RawRows, Shard
from bertray.schema import Reason


def _open(path: str, reader: TextFormat, start_byte: int = 0) -> Iterator[records.CsvRecord]:
    lines = records.open_lines(path, reader.encoding, start_byte)
    return records.csv_records(lines, records.delimiter_of(path, reader), reader.quoting)


def inspect(entry: FileEntry, reader: TextFormat) -> InputFile | BadFile:
    """Column names, exact number of rows and the row index, in one streaming pass."""
    seekable = records.can_seek(entry.path, reader.encoding)
    try:
        with reading(entry.path):
            rows = _open(entry.path, reader)
            first = next(rows, None)
            if first is None:
                return entry.bad(Reason.FILE_EMPTY, "no row and no header")
            if first.fields is None:
                return entry.bad(Reason.FILE_CORRUPT, f"the first row cannot be read: {first.problem}")
            columns = _column_names(first.fields, reader.header)
            num_rows, offsets = records.index(rows if reader.header else chain([first], rows), seekable=seekable)
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

    def rows() -> Iterator[records.CsvRecord]:
        found = _open(shard.file.path, reader, shard.start_byte or 0)
        return islice(found, 1, None) if shard.start_byte is None and reader.header else found

    def raw_rows(first: int, part: list[records.CsvRecord]) -> RawRows:
        return _raw_rows(first, part, len(names), positions, reader.encoding)

    return records.read_range(shard, rows, raw_rows, lambda row: sum(len(line.text) for line in row.lines))


def _raw_rows(
    first: int, part: list[records.CsvRecord], width: int, positions: dict[str, int], encoding: str
) -> RawRows:
    row_nos, good, faults = [], [], []
    for row_no, record in enumerate(part, first):
        if record.fields is not None and len(record.fields) == width:
            row_nos.append(row_no)
            good.append(record.fields)
            continue
        problem = record.problem or f"expected {width} fields, found {len(record.fields or [])}"
        faults.append(records.malformed(row_no, problem, record.lines, encoding))
    values = {name: records.as_text([row[at] for row in good], encoding) for name, at in positions.items()}
    return RawRows(np.array(row_nos, np.int64), values, tuple(faults))
