"""Parquet files: what the footer says, and row ranges read in memory that does not grow with the row group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bertray.reviews.file_access import DATA_ERRORS, is_store_failure, open_random_access, reading, short
from bertray.reviews.formats.parquet_footer import RowGroup, parse_footer
from bertray.reviews.rows import BadFile, FileEntry, InputFile, RawRows, RowFault, RowVisitor, Shard
from bertray.reviews.screening import as_plain
from bertray.schema import Reason

MAX_COMPRESSION_RATIO = 200  # above it, and above the floor, a column chunk is taken for a decompression bomb
BOMB_FLOOR_BYTES = 64 << 20
MAX_ROW_GROUP_BYTES = 16 << 30
_MAX_ROWS_PER_READ = 4096
_READ_BYTES = 64 << 20  # uncompressed bytes of one read, by the footer's average
_MAX_DECODED_BYTES = 1 << 30  # of one column in one read; values of a dictionary may repeat beyond all memory
_BUFFERED_ABOVE_BYTES = 64 << 20  # larger column chunks are streamed instead of fetched whole
_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_TAIL_BYTES = 8  # length of the footer, then the magic
_STRINGS = (pa.string(), pa.large_string())


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str, num_rows: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.num_rows = reason, detail, num_rows


class _Bomb(ValueError):
    """A dictionary whose values would fill memory if each row got its own."""


def scan(entry: FileEntry, visitor: RowVisitor) -> InputFile | BadFile:
    """Rows and columns by the footer, and the columns that a visitor wants; others are not read."""
    file = inspect(entry)
    if isinstance(file, InputFile) and file.num_rows and (names := visitor.wanted(file.columns)):
        for rows in read(Shard(file, 0, 0, file.num_rows), names, []):
            if rows.columns:
                visitor.visit(rows)
    return file


def inspect(entry: FileEntry) -> InputFile | BadFile:
    """Rows and columns by the footer; a damaged, encrypted or explosive file is a BadFile."""
    try:
        with reading(entry.path), open_random_access(entry.path) as source:
            footer = _footer(source)
            try:
                schema = _in_utc(_opened(source).schema_arrow, entry.utc_columns)
                columns = _columns(schema)
            except DATA_ERRORS as error:
                if is_store_failure(error):
                    raise
                raise _Refused(_reason_of(error), f"the footer cannot be read: {short(error)}"[:200]) from error
            rows = _check_footer(footer[:-_TAIL_BYTES])
    except _Refused as refused:
        return entry.bad(refused.reason, refused.detail, refused.num_rows)
    return entry.readable(rows, columns, arrow_schema=schema.remove_metadata().serialize().to_pybytes())


def _opened(source: Any, **options: Any) -> pq.ParquetFile:
    # INT96 timestamps of Spark and Hive reach from year 1 to 9999; nanoseconds, the default, end in 2262.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="us", **options)


def _in_utc(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """The schema with the zone UTC for some columns of times that have none."""
    for name in names:
        if (number := schema.get_field_index(name)) >= 0 and pa.types.is_timestamp(kind := schema.field(number).type):
            schema = schema.set(number, schema.field(number).with_type(pa.timestamp(kind.unit, "UTC")))
    return schema


def _footer(source: Any) -> bytes:
    """The footer with its length and magic; refuses what is not whole Parquet."""
    size = source.size()
    head = source.read_at(4, 0)
    tail = source.read_at(min(_TAIL_BYTES, size), max(0, size - _TAIL_BYTES))
    if head == _ENCRYPTED_MAGIC or tail[-4:] == _ENCRYPTED_MAGIC:
        raise _Refused(Reason.FILE_UNSUPPORTED, "encrypted Parquet")
    if head != _MAGIC:
        raise _Refused(Reason.FILE_NOT_PARQUET, "does not start with PAR1")
    if size < 12 or tail[4:] != _MAGIC:
        raise _Refused(Reason.FILE_CORRUPT, "starts as Parquet and does not end as Parquet: truncated?")
    length = int.from_bytes(tail[:4], "little")
    if length + 12 > size:
        raise _Refused(Reason.FILE_CORRUPT, "the footer would be longer than the file")
    return bytes(source.read_at(length + _TAIL_BYTES, size - length - _TAIL_BYTES))


def _columns(schema: pa.Schema) -> dict[str, str]:
    columns: dict[str, str] = {}
    for field in schema:
        columns[field.name] = "repeated" if field.name in columns else str(field.type)
    return columns


def _check_footer(content: bytes) -> int:
    """Refuse what a footer gives away: encryption, counts that disagree, bombs, unknown codecs. Returns the rows."""
    try:
        footer = parse_footer(content)
    except ValueError as error:
        raise _Refused(Reason.FILE_CORRUPT, f"the footer cannot be read: {error}") from error
    rows = footer.num_rows
    if footer.encrypted:
        raise _Refused(Reason.FILE_UNSUPPORTED, "encrypted columns", rows)
    group_rows = [group.num_rows for group in footer.row_groups]
    if sum(group_rows) != rows or min(group_rows, default=0) < 0:
        raise _Refused(
            Reason.FILE_CORRUPT, f"the footer says {rows} rows, its row groups hold {sum(group_rows)} together"
        )
    for number, group in enumerate(footer.row_groups):
        if group.total_bytes > MAX_ROW_GROUP_BYTES:
            raise _Refused(
                Reason.ROW_GROUP_TOO_BIG,
                f"row group {number} holds {group.total_bytes >> 30} GiB; write row groups below "
                f"{MAX_ROW_GROUP_BYTES >> 30} GiB",
                rows,
            )
        for chunk in group.chunks:
            if chunk.codec != "UNCOMPRESSED" and not _codec_is_built_in(chunk.codec):
                raise _Refused(Reason.FILE_UNSUPPORTED, f"compression {chunk.codec} is not built in", rows)
            stored = max(1, chunk.compressed_bytes)
            if chunk.uncompressed_bytes > max(BOMB_FLOOR_BYTES, MAX_COMPRESSION_RATIO * stored):
                raise _Refused(
                    Reason.FILE_BOMB,
                    f"a column of row group {number} grows {chunk.uncompressed_bytes // stored} times on reading",
                    rows,
                )
    return rows


def _codec_is_built_in(compression: str) -> bool:
    try:
        return bool(pa.Codec.is_available("lz4_raw" if compression.startswith("LZ4") else compression.lower()))
    except ValueError:
        return False


def read(shard: Shard, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[RawRows]:
    """Rows [lo, hi) of the named columns; rows that damage makes unreadable become faults.

    The text columns come dictionary-encoded: a text that stands a million times is in memory once.
    """
    row = shard.lo
    try:
        with reading(shard.file.path), open_random_access(shard.file.path) as source:
            for rows in _row_groups(source, shard, columns, text_columns):
                row = _end_of(rows, row)
                yield _with_zones(rows, shard.file)
    except DATA_ERRORS as error:
        yield _unreadable(row, shard.hi, error)


def _with_zones(rows: RawRows, file: InputFile) -> RawRows:
    """The rows with the zone of times that the file is listed with, see `_in_utc`."""
    changed = {
        name: values.cast(pa.timestamp(values.type.unit, "UTC"))
        for name, values in rows.columns.items()
        if pa.types.is_timestamp(values.type) and not values.type.tz and file.columns[name].endswith("tz=UTC]")
    }
    return replace(rows, columns=rows.columns | changed) if changed else rows


def _end_of(rows: RawRows, row: int) -> int:
    values_end = int(rows.row_nos[-1]) + 1 if len(rows.row_nos) else row
    return max([values_end, *(fault.row_no + 1 for fault in rows.faults)])


def _unreadable(lo: int, hi: int, error: BaseException | None) -> RawRows:
    message = short(error) if error else "the row group holds fewer rows than the footer says"
    faults = tuple(RowFault(row, _reason_of(error), message[:200]) for row in range(lo, hi))
    return RawRows(np.empty(0, np.int64), {}, faults)


def _reason_of(error: BaseException | None) -> Reason:
    if _is_not_implemented(error):
        return Reason.FILE_UNSUPPORTED
    if isinstance(error, _Bomb):
        return Reason.FILE_BOMB
    return Reason.PAGE_CHECKSUM if "CRC" in str(error) or "checksum" in str(error) else Reason.FILE_CORRUPT


def _is_not_implemented(error: BaseException | None) -> bool:
    # What Parquet's own C++ classes cannot do comes as an OSError of these words.
    return isinstance(error, pa.ArrowNotImplementedError) or str(error).startswith("Not yet implemented")


def _row_groups(source: Any, shard: Shard, columns: Sequence[str], text_columns: Sequence[str]) -> Iterator[RawRows]:
    """One row group after the other, so that damage in one leaves the next readable."""
    metadata = pq.read_metadata(source)
    groups = parse_footer(_footer(source)[:-_TAIL_BYTES]).row_groups
    first = 0
    for number, group in enumerate(groups):
        lo, hi = max(shard.lo, first), min(shard.hi, first + group.num_rows)
        row, dense, error = lo, False, None
        while row < hi and error is None:
            try:
                for rows in _row_group(source, metadata, group, number, first, row, hi, columns, text_columns, dense):
                    row = _end_of(rows, row)
                    yield rows
                break
            except DATA_ERRORS as failure:
                if is_store_failure(failure):
                    raise
                if _is_not_implemented(failure) and not dense:
                    dense = True  # pages of an encoding that the footer does not list
                else:
                    error = failure
        if row < hi:
            yield _unreadable(row, hi, error)
        first += group.num_rows


def _row_group(
    source: Any,
    metadata: pq.FileMetaData,
    group: RowGroup,
    number: int,
    first: int,
    lo: int,
    hi: int,
    columns: Sequence[str],
    text_columns: Sequence[str],
    dense: bool,
) -> Iterator[RawRows]:
    """Rows [lo, hi) of the file that stand in row group `number`, whose first row is `first`.

    Args:
        dense: read no column as a dictionary.
    """
    wanted = [chunk for chunk in group.chunks if chunk.path.split(".")[0] in columns]
    stored = max((chunk.compressed_bytes for chunk in wanted), default=0)
    average = sum(chunk.uncompressed_bytes for chunk in wanted) // max(1, group.num_rows)
    rows_per_read = int(np.clip(_READ_BYTES // max(1, average), 16, _MAX_ROWS_PER_READ))
    # The footer does not say how large the strings of a dictionary get, one for each row. DELTA_BYTE_ARRAY, which
    # writes what a value shares with the one before it as a number, hides that too, and has to be read densely: there
    # a read takes few enough rows, for no value is larger than its chunk.
    strings = {field.name for field in _opened(source, metadata=metadata).schema_arrow if field.type in _STRINGS}
    unbounded = [chunk for chunk in wanted if chunk.has_delta_text or dense]
    dictionaries = [
        chunk.path
        for chunk in wanted
        if chunk not in unbounded and (chunk.path in text_columns or (chunk.has_dictionary and chunk.path in strings))
    ]
    largest = max((chunk.uncompressed_bytes for chunk in unbounded), default=0)
    rows_at_once = min(rows_per_read, max(16, _MAX_DECODED_BYTES // max(1, largest)))
    streamed = stored > _BUFFERED_ABOVE_BYTES
    file = _opened(
        source,
        metadata=metadata,
        read_dictionary=dictionaries,
        page_checksum_verification=True,
        pre_buffer=not streamed,
        buffer_size=8 << 20 if streamed else 0,
    )
    batches = file.iter_batches(batch_size=rows_at_once, row_groups=[number], columns=list(columns), use_threads=False)
    if rows_at_once < rows_per_read:
        batches = _together(batches, rows_per_read)
    row = first
    for batch in batches:
        start, row = row, row + batch.num_rows
        if row <= lo:
            continue
        cut_lo, cut_hi = max(lo, start), min(hi, row)
        if cut_lo < cut_hi:
            part = batch.slice(cut_lo - start, cut_hi - cut_lo)
            values = {name: _checked(part.column(name)) for name in columns}
            for name in set(columns) - set(text_columns):
                _check_decoded_size(name, values[name])
            yield RawRows(np.arange(cut_lo, cut_hi, dtype=np.int64), values)
        if row >= hi:
            return


def _together(batches: Iterator[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Small batches joined to larger ones, as long as their values take little memory."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(b.num_rows for b in waiting) >= num_rows or sum(b.nbytes for b in waiting) > _READ_BYTES:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _check_decoded_size(name: str, values: pa.Array) -> None:
    """Raises _Bomb when the values, one for each row, take more than the limit."""
    if pa.types.is_dictionary(values.type) and len(values):
        lengths = pc.binary_length(values.dictionary).take(values.indices)
        num_bytes = pc.sum(lengths.cast(pa.int64())).as_py() or 0
        if num_bytes > _MAX_DECODED_BYTES:
            raise _Bomb(f"column {name!r} grows to {num_bytes >> 20} MiB in {len(values)} rows")


def _checked(values: pa.Array) -> pa.Array:
    """Values that are safe to compute with, whatever damage left of them.

    Raises:
        pa.ArrowInvalid: an index of a dictionary leads out of it; pyarrow reads such pages without a word.
    """
    if pa.types.is_dictionary(values.type):
        indices = pc.min_max(values.indices).as_py()
        if indices["max"] is not None and not 0 <= indices["min"] <= indices["max"] < len(values.dictionary):
            raise pa.ArrowInvalid(f"a dictionary of {len(values.dictionary)} values is asked for another")
    if pa.types.is_string_view(values.type):  # bytes that are no UTF-8 stay
        return values.cast(pa.binary_view()).cast(pa.binary()).view(pa.string())
    if pa.types.is_binary_view(values.type) or pa.types.is_nested(values.type):
        return as_plain(values)
    return values


def schema_of(file: InputFile) -> pa.Schema:
    """Arrow schema of a Parquet file; that of a shard's file is read again."""
    if file.arrow_schema:
        return pa.ipc.read_schema(pa.py_buffer(file.arrow_schema))
    with reading(file.path), open_random_access(file.path) as source:
        return _opened(source).schema_arrow
