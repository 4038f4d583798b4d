"""Arrow tables as bytes, and columns in one piece."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from bertray.errors import ConfigError
from bertray.wording import visible

T = TypeVar("T")

# A cell that a spreadsheet takes for a formula; full-width signs are formulas where East Asian text is typed, and a
# spreadsheet that reads another delimiter cuts a cell at its semicolons, tabs and line breaks.
_STARTS, _CUTS = r"=+\-@＝＋－＠", r";\t\r\n"
_FORMULA = re.compile(rf"^(?=[\t\r\n])|(^|[{_CUTS}]\"*)(?=[{_STARTS}])")
_GUARDED = re.compile(rf"(^|[{_CUTS}]\"*)'(?=[{_STARTS}\t\r\n])")


def to_ipc(table: pa.Table) -> bytes:
    """A table as the bytes of an Arrow IPC file with one record batch."""
    content: bytes = ipc_buffer(table).to_pybytes()
    return content


def ipc_buffer(table: pa.Table, compression: str | None = None) -> pa.Buffer:
    """`to_ipc` without the copy into Python's bytes; with a compression, such as `zstd`, it cannot be memory-mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def from_ipc(content: bytes | pa.Buffer) -> pa.Table:
    """The table of an Arrow IPC file, without a copy: the table keeps `content` alive."""
    return pa.ipc.open_file(pa.py_buffer(content) if isinstance(content, bytes) else content).read_all()


def read_if_there(file: Path, from_bytes: Callable[[bytes], T], what: str) -> T | None:
    """Content of a file of a bundle that earlier bundles lack; None where it is not there.

    Args:
        what: it holds, for the message.

    Raises:
        ConfigError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        return from_bytes(file.read_bytes())
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{file}: expected {what} ({error}).", "Copy the bundle again.") from error


def stream_buffer(tables: Sequence[pa.Table]) -> pa.Buffer:
    """Tables as Arrow IPC streams, end to end."""
    sink = pa.BufferOutputStream()
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    return sink.getvalue()


def from_streams(content: pa.Buffer) -> list[pa.Table]:
    """The tables of `stream_buffer`, without a copy: they keep `content` alive."""
    reader, tables = pa.BufferReader(content), []
    while reader.tell() < content.size:
        tables.append(pa.ipc.open_stream(reader).read_all())
    return tables


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet as bertray writes it everywhere: zstd, with a checksum on every page."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are bytes, which need be no text."""
    types = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_type(kind) for is_type in types)


def csv_bytes(table: pa.Table, *, exact: bool = False) -> bytes:
    """CSV for spreadsheets: UTF-8 with its mark, null as nothing, and no cell that a spreadsheet takes for a formula.

    Where a cell, or what follows a semicolon, tab or line break in it, starts with one of = + - @, an apostrophe is put
    in front; so is one before a cell that starts with a tab or line break.

    Args:
        exact: keep control characters, as in ids that bertray reads again, which a terminal obeys.
    """
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow([_cell(name, exact) for name in table.column_names])
    for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        writer.writerow([_cell(value, exact) for value in row])
    return sink.getvalue().encode("utf-8-sig", "replace")


def _cell(value: object, exact: bool) -> object:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    return _FORMULA.sub(r"\1'", value if exact else visible(value))


def unguarded(cell: str) -> str:
    """A cell of `csv_bytes` without its guards against formulas."""
    return _GUARDED.sub(r"\1", cell)


def decoded(values: pa.Array) -> pa.Array:
    """Values of an extension type as they are stored, and of a dictionary as themselves."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as a single array; copied only when it had several chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
