"""Records of delimited text and JSON Lines, each with the byte offset where it starts.

A record can be read again from its offset alone, whatever came before: that is what lets a shard of a large file
start in the middle and still see the same rows as one whole read.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from bertray.config import TextFormat
from bertray.errors import ConfigError
from bertray.reviews.files import DATA_ERRORS, is_store_failure, open_bytes, reading, short
from bertray.reviews.inputs import ROWS_PER_OFFSET, RawRows, RowFault, Shard
from bertray.schema import Reason

# A quote that is never closed, or a line that never ends, costs at most this much memory.
MAX_RECORD_CHARS = 32 << 20
_ROWS_PER_READ = 2048
_CHARS_PER_READ = 32 << 20
_UTF8_BOM = b"\xef\xbb\xbf"


Row = TypeVar("Row")


@dataclass(frozen=True)
class Line:
    """One line with its line end. Bytes that the encoding does not know are lone surrogates in `text`."""

    offset: int
    text: str
    too_long: bool = False


@dataclass(frozen=True)
class CsvRecord:
    """One row of a delimited file: its fields, or why it has none."""

    offset: int
    fields: list[str] | None
    lines: list[Line]
    problem: str = ""


def codec_name(encoding: str) -> str:
    """Python's name of an encoding.

    Raises:
        ConfigError: there is no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(
            f"reader.encoding: expected a text encoding, found {encoding!r}.", "Common ones: utf-8, cp1252, gb18030."
        ) from error
    return "utf-8" if name == "utf-8-sig" else name


def can_seek(path: str, encoding: str) -> bool:
    """May reading start in the middle? Not in compressed files, nor where a newline is more than the byte 0x0A."""
    wide_or_stateful = codec_name(encoding).startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz"))
    return not path.lower().endswith(".gz") and not wide_or_stateful


def open_lines(path: str, encoding: str, start_byte: int = 0) -> Iterator[Line]:
    """Lines from `start_byte` (a line start) to the end of the file, in one streaming pass.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged or the storage failed.
    """
    name = codec_name(encoding)
    with open_bytes(path, start_byte) as raw:
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if path.lower().endswith(".gz") else raw
        if name.startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz")):
            yield from _decoded_lines(io.TextIOWrapper(stream, name, errors="surrogateescape", newline="\n"))
        else:
            yield from _byte_lines(stream, name, start_byte)


def _decoded_lines(stream: io.TextIOWrapper) -> Iterator[Line]:
    while text := stream.readline(MAX_RECORD_CHARS):
        whole = text
        while len(whole) >= MAX_RECORD_CHARS and not whole.endswith("\n"):
            whole = stream.readline(MAX_RECORD_CHARS)
            if not whole:
                break
        yield Line(0, text.removeprefix("\ufeff"), too_long=whole is not text)


def _byte_lines(stream: IO[bytes], encoding: str, offset: int) -> Iterator[Line]:
    if offset == 0 and encoding == "utf-8":
        head = stream.readline(MAX_RECORD_CHARS)
        skipped = len(_UTF8_BOM) if head.startswith(_UTF8_BOM) else 0
        raw = head[skipped:]
        if skipped and not raw:
            return
        offset = skipped
    else:
        raw = stream.readline(MAX_RECORD_CHARS)
    while raw:
        size, too_long = len(raw), False
        if size >= MAX_RECORD_CHARS and not raw.endswith(b"\n"):
            too_long = True
            while rest := stream.readline(MAX_RECORD_CHARS):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
        yield Line(offset, raw.decode(encoding, "surrogateescape"), too_long)
        offset += size
        raw = stream.readline(MAX_RECORD_CHARS)


def malformed(row_no: int, problem: str, lines: list[Line], encoding: str) -> RowFault:
    """A refused row with the digest of the bytes it stands on, without its line end."""
    text = "".join(line.text for line in lines).rstrip("\r\n")
    raw = text.encode(codec_name(encoding), "surrogateescape")
    return RowFault(row_no, Reason.ROW_MALFORMED, problem[:200], hashlib.sha256(raw).hexdigest(), len(text))


def as_text(values: list[str | None], encoding: str) -> pa.Array:
    """Strings; where one is no valid Unicode, bytes that are no UTF-8, so that screening refuses that row.

    In a UTF-8 file these are the bytes that stand there; of another encoding, or of an escape in JSON, the surrogate.
    """
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if value is None else _broken(value, encoding) for value in values], pa.binary())


def _broken(text: str, encoding: str) -> bytes:
    is_escaped_byte = all(not "\ud800" <= char <= "\udfff" or "\udc80" <= char <= "\udcff" for char in text)
    handler = "surrogateescape" if is_escaped_byte and codec_name(encoding) == "utf-8" else "surrogatepass"
    return text.encode("utf-8", handler)


class _Feed:
    """Gives lines to csv.reader, remembers those of the record in progress, and takes lines back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._waiting: deque[Line] = deque()
        self.taken: list[Line] = []
        self._size = 0
        self.at_end = False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines, None)
        if line is None:
            self.at_end = True
            raise StopIteration
        self.taken.append(line)
        self._size += len(line.text)
        if line.too_long or self._size > MAX_RECORD_CHARS:
            raise _RecordTooLong
        return line.text

    def start_record(self) -> None:
        self.taken = []
        self._size = 0
        self.at_end = False

    def give_back_all_but_first(self) -> None:
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


class _RecordTooLong(Exception):
    pass


def csv_records(lines: Iterator[Line], delimiter: str, quoting: bool) -> Iterator[CsvRecord]:
    """Records as Python's csv module reads them; blank lines are no records.

    Where a quote is opened and never closed, one line is given up and reading goes on with the line after it, so that
    a stray quote costs one row and not the rest of the file.
    """
    csv.field_size_limit(MAX_RECORD_CHARS + 1)  # the module's own limit is 128 KiB a field
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE)
    while True:
        feed.start_record()
        problem, fields = "", None
        try:
            fields = next(reader)
        except StopIteration:
            if not feed.taken:
                return
        except _RecordTooLong:
            problem = f"longer than {MAX_RECORD_CHARS} characters; a quote that is never closed?"
        except csv.Error as error:
            new_line = "new-line character" in str(error)
            problem = "a carriage return outside quotes" if new_line else str(error)
        if feed.at_end and not problem:
            problem, fields = "a quote is opened and never closed", None
        if problem:
            feed.give_back_all_but_first()
        if problem or fields:
            yield CsvRecord(feed.taken[0].offset, fields, feed.taken, problem)


def json_records(lines: Iterator[Line]) -> Iterator[Line]:
    """Lines that hold something."""
    return (line for line in lines if line.too_long or not line.text.isspace())


def index(records: Iterator[Any], *, seekable: bool) -> tuple[int, tuple[int, ...]]:
    """Number of records, and the byte offset of every 4096th (none where reading cannot start in the middle)."""
    offsets: list[int] = []
    count = 0
    for record in records:
        if seekable and count % ROWS_PER_OFFSET == 0:
            offsets.append(record.offset)
        count += 1
    return count, tuple(offsets)


def read_range(
    shard: Shard,
    open_rows: Callable[[], Iterator[Row]],
    raw_rows: Callable[[int, list[Row]], RawRows],
    num_chars: Callable[[Row], int],
) -> Iterator[RawRows]:
    """Rows [lo, hi) of a shard, a few thousand and some ten million characters at a time.

    Args:
        shard: where to read.
        open_rows: the records from the shard's start on.
        raw_rows: (number of the first, records) to values and faults.
        num_chars: size of a record.

    Where the file turns out to be damaged, every row from there on is a fault; where the storage failed, it raises.
    """
    row = shard.start_row
    try:
        with reading(shard.file.path):
            rows = open_rows()
            for _ in range(shard.start_row, shard.lo):
                next(rows, None)
            row = shard.lo
            while part := _take(rows, shard.hi - row, num_chars):
                yield raw_rows(row, part)
                row += len(part)
    except DATA_ERRORS as error:
        if is_store_failure(error):
            raise
        row = max(row, shard.lo)
        faults = tuple(RowFault(no, Reason.FILE_CORRUPT, short(error)) for no in range(row, shard.hi))
        yield RawRows(np.empty(0, np.int64), {}, faults)


def _take(rows: Iterator[Row], limit: int, num_chars: Callable[[Row], int]) -> list[Row]:
    part: list[Row] = []
    chars = 0
    for row in islice(rows, max(0, min(limit, _ROWS_PER_READ))):
        part.append(row)
        chars += num_chars(row)
        if chars > _CHARS_PER_READ:
            break
    return part


def delimiter_of(path: str, reader: TextFormat) -> str:
    """The configured field separator, else a comma, or a tab for .tsv and .tab."""
    if reader.delimiter is not None:
        return reader.delimiter
    name = path.lower().removesuffix(".gz")
    return "\t" if reader.format == "tsv" or name.endswith((".tsv", ".tab")) else ","
