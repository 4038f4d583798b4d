"""Arrow tables as bytes, and columns in one piece."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_ipc(table: pa.Table) -> bytes:
    """A table as the bytes of an Arrow IPC file with one record batch."""
    content: bytes = ipc_buffer(table).to_pybytes()
    return content


def ipc_buffer(table: pa.Table) -> pa.Buffer:
    """`to_ipc` without the copy into Python's bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def from_ipc(content: bytes | pa.Buffer) -> pa.Table:
    """The table of an Arrow IPC file, without a copy: the table keeps `content` alive."""
    return pa.ipc.open_file(pa.py_buffer(content) if isinstance(content, bytes) else content).read_all()


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet as bertray writes it everywhere: zstd, with a checksum on every page."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def csv_bytes(table: pa.Table) -> bytes:
    """CSV for spreadsheets: UTF-8 with its mark, null as nothing, and no cell that a spreadsheet takes for a formula.

    A cell that starts with one of = + - @, a tab or a carriage return gets an apostrophe in front, which spreadsheets
    do not show.
    """
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(table.column_names)
    for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        writer.writerow([_cell(value) for value in row])
    return sink.getvalue().encode("utf-8-sig", "replace")


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as a single array; copied only when it had several chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
