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
import json
import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa

from bertray.errors import ConfigError
from bertray.reviews.file_access import DATA_ERRORS, is_store_failure, open_bytes, reading, short
from bertray.reviews.rows import Dialect, RawRows, RowFault, Shard
from bertray.schema import Reason

# A quote that is never closed, or a line that never ends, costs at most this much memory.
MAX_RECORD_CHARS = 32 << 20
_ROWS_PER_READ = 2048
_CHARS_PER_READ = 32 << 20
BYTE_ORDER_MARK = "\ufeff"
_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 1 << 20


Row = TypeVar("Row")


class Line(NamedTuple):
    """One line with its line end. Bytes that the encoding does not know are lone surrogates in `text`."""

    offset: int
    text: str
    too_long: bool = False


class CsvRecord(NamedTuple):
    """One row of a delimited file: its fields, or why it has none."""

    offset: int
    fields: list[str] | None
    lines: list[Line]
    problem: str = ""
    lenient: bool = False  # read although a quote stands inside an enclosed field
    is_header: bool = False  # the names of the columns, first or again


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


@dataclass(frozen=True)
class Head:
    """First bytes of a text file."""

    raw: bytes  # decompressed
    gzipped: bool
    whole: bool  # the file is no longer than this


def read_head(path: str) -> Head:
    """The first megabyte of a text file.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged or the storage failed.
    """
    with open_bytes(path) as stream:
        gzipped = is_gzip(stream)
        raw = (gzip.GzipFile(fileobj=stream) if gzipped else stream).read(_HEAD_BYTES)
        return Head(raw, gzipped, len(raw) < _HEAD_BYTES)


def head_lines(head: Head, encoding: str) -> list[Line]:
    """Whole lines of a head, with their numbers as offsets."""
    errors = "replace" if is_wide(encoding) else "surrogateescape"
    text = codecs.getincrementaldecoder(codec_name(encoding))(errors).decode(head.raw)
    lines = [Line(number, line) for number, line in enumerate(io.StringIO(text, newline="\n"))]
    return lines if head.whole or len(lines) < 2 else lines[:-1]


def is_gzip(stream: IO[bytes]) -> bool:
    """Does a stream at its start hold gzip data, whatever the file is called?"""
    return cast("io.BufferedReader", stream).peek(len(_GZIP))[: len(_GZIP)] == _GZIP


def is_wide(encoding: str) -> bool:
    """Is a newline more than the byte 0x0A, or does a byte depend on those before it?"""
    return codec_name(encoding).startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz"))


def can_seek(head: Head, encoding: str) -> bool:
    """May reading start in the middle? Not in compressed files, nor where a newline is more than the byte 0x0A."""
    return not head.gzipped and not is_wide(encoding)


def open_lines(path: str, encoding: str, start_byte: int = 0) -> Iterator[Line]:
    """Lines from `start_byte` (a record's start) to the end of the file, in one streaming pass.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged or the storage failed.
    """
    with open_bytes(path, start_byte) as raw:
        zipped = start_byte == 0 and is_gzip(raw)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if zipped else raw
        if is_wide(encoding):
            text = io.TextIOWrapper(stream, codec_name(encoding), errors="surrogateescape", newline="\n")
            yield from _decoded_lines(text)
        else:
            yield from byte_lines(stream, codec_name(encoding), start_byte)


def _decoded_lines(stream: io.TextIOWrapper) -> Iterator[Line]:
    while text := stream.readline(MAX_RECORD_CHARS):
        whole = text
        while len(whole) >= MAX_RECORD_CHARS and not whole.endswith("\n"):
            whole = stream.readline(MAX_RECORD_CHARS)
            if not whole:
                break
        yield Line(0, text, too_long=whole is not text)


def byte_lines(stream: IO[bytes], encoding: str, offset: int) -> Iterator[Line]:
    """Lines of a stream whose first byte stands at `offset` of the file; of a longer one than fits, its beginning."""
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
    """Gives lines to csv.reader, remembers those of the record in progress, and takes lines back.

    A byte order mark before a record is no part of it: files that were put together bring theirs along.
    """

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._waiting: deque[Line] = deque()
        self.taken: list[Line] = []
        self._size = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines, None)
        if line is None:
            raise StopIteration
        if not self.taken and line.text.startswith(BYTE_ORDER_MARK):
            line = line._replace(text=line.text[1:])
        self.taken.append(line)
        self._size += len(line.text)
        if line.too_long or self._size > MAX_RECORD_CHARS:
            raise _RecordTooLong
        return line.text

    def start_record(self) -> None:
        self.taken = []
        self._size = 0

    def give_back_all_but_first(self) -> None:
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


class _RecordTooLong(Exception):
    pass


def csv_records(lines: Iterator[Line], dialect: Dialect) -> Iterator[CsvRecord]:
    """Records of a delimited file, header rows among them; blank lines are no records.

    A quote encloses a field when it stands right after a delimiter or line end, up to the one right before a delimiter
    or line end (RFC 4180). Python's csv module finds the records; a second rule judges those of several lines, because
    a stray quote makes one record of many rows: a quote that closes inside a field, that is never closed, or around
    lines that are rows of their own (`holds_rows`). Then one line is given up and reading goes on with the line after
    it, so that a stray quote costs one row, is counted, and hides none.
    """
    csv.field_size_limit(MAX_RECORD_CHARS + 1)  # the module's own limit is 128 KiB a field
    feed = _Feed(lines)
    texts: Iterator[str] = map(dialect.unescaped, feed) if dialect.escape else feed
    reader = csv.reader(texts, strict=True, **_csv_options(dialect))
    while True:
        feed.start_record()
        problem, fields, lenient = "", None, False
        try:
            fields = next(reader)
        except StopIteration:
            if not feed.taken:
                return
            problem = _NEVER_CLOSED
        except _RecordTooLong:
            problem = f"longer than {MAX_RECORD_CHARS} characters; a quote that is never closed?"
        except csv.Error as error:
            problem = _problem(str(error), feed, dialect)
            if problem == _QUOTE_INSIDE:
                fields = _read_alone(feed.taken[0].text, dialect)
                problem, lenient = ("", True) if fields else (problem, False)
        if fields and len(feed.taken) > 1 and dialect.marks and holds_rows(fields, dialect):
            problem = f"a quote is closed {len(feed.taken) - 1} lines below, and lines between are rows of their own"
        if problem:
            fields = None
            feed.give_back_all_but_first()
        if problem or fields:
            is_header = fields is not None and _is_header(fields, dialect)
            yield CsvRecord(feed.taken[0].offset, fields, feed.taken, problem, lenient, is_header)


_NEVER_CLOSED = "a quote is opened and never closed"
_QUOTE_INSIDE = "a quote inside an enclosed field"


def _csv_options(dialect: Dialect) -> dict[str, Any]:
    return {
        "delimiter": dialect.delimiter,
        "quoting": csv.QUOTE_MINIMAL if dialect.quoting else csv.QUOTE_NONE,
        "escapechar": dialect.escape or None,
        "skipinitialspace": dialect.spaces_before_quotes,
    }


def _problem(said: str, feed: _Feed, dialect: Dialect) -> str:
    """Complaint of the csv module, in words of the file."""
    if "new-line character" in said:
        return "a carriage return outside quotes"
    if "unexpected end of data" in said:
        return _NEVER_CLOSED
    if " expected after " not in said:
        return said
    if not dialect.escape and '\\"' in feed.taken[-1].text:
        return "a quote behind a backslash: `reader.escape='\\'` reads such rows"
    if len(feed.taken) > 1:
        return f"a quote is opened, and closed inside a field {len(feed.taken) - 1} lines below"
    return _QUOTE_INSIDE


def _read_alone(text: str, dialect: Dialect) -> list[str] | None:
    """Fields of a line with a quote inside an enclosed field; None where one of them goes on in the next line."""
    lines = iter([dialect.unescaped(text) if dialect.escape else text, ""])
    try:
        fields = next(csv.reader(lines, strict=False, **_csv_options(dialect)), None)
    except csv.Error:
        return None
    return fields if fields and next(lines, None) is not None else None


def _is_header(fields: list[str], dialect: Dialect) -> bool:
    """Is a row the header? It stands again where files were put together, maybe in other case or with spaces."""
    header = dialect.header
    if not header or fields[0].strip().casefold() != header[0]:
        return False
    if len(header) == 1:  # a review may well be the name of the only column in other letters
        return fields == list(dialect.header_as_written)
    return tuple(field.strip().casefold() for field in fields) == header


def holds_rows(fields: list[str], dialect: Dialect) -> bool:
    """Are lines inside an enclosed field rows of their own, as a stray quote far above its partner makes them?

    Reviews of several lines have to pass, also with delimiters in them: a line is a row only with as many fields as
    the file has columns, and values in the columns of numbers, codes and labels that look like those of the first rows
    (`Dialect.marks`), rising where those rise. Half of the lines inside have to be such rows; where the field has two
    lines, the first has to end like a row and the second to begin like one.
    """
    at = next((at for at, field in enumerate(fields) if "\n" in field), None)
    if at is None:
        return False
    lines = fields[at].split("\n")
    inner = [line for line in lines[1:-1] if line and line != "\r"]
    if inner:
        columns = dialect.columns_marked()
        num_rows, before = 0, fields if dialect.rising is not None and dialect.rising < at else None
        for line in inner:
            if line.count(dialect.delimiter) + 1 == dialect.width:
                found = line.rstrip("\r").split(dialect.delimiter)
                if dialect.matches(found, columns, before=before):
                    num_rows, before = num_rows + 1, found
        return 2 * num_rows >= len(inner) and num_rows > 0
    begins, ends = dialect.columns_marked(hi=at), dialect.columns_marked(lo=at + 1)
    above, below = (line.rstrip("\r").split(dialect.delimiter) for line in (lines[0], lines[-1]))
    is_end = not ends or (len(above) == dialect.width - at and dialect.matches(above, ends, first=at))
    is_begin = not begins or (len(below) == at + 1 and dialect.matches(below, begins, before=fields))
    return bool(begins or ends) and is_end and is_begin


# --- JSON ------------------------------------------------------------------------------------------------------------

_BETWEEN_OBJECTS = re.compile(r"\}\s*,?\s*\{")
_SPACE, _BEHIND = re.compile(r"\s*"), re.compile(r"\s*,?\s*")
_DECODER = json.JSONDecoder()


def json_records(lines: Iterator[Line], encoding: str) -> Iterator[Line]:
    """JSON texts: one a line, or several objects end to end. Lines that hold nothing are no records."""
    for line in lines:
        if line.text.startswith(BYTE_ORDER_MARK):
            line = Line(line.offset + len(BYTE_ORDER_MARK.encode(encoding)), line.text[1:], line.too_long)
        if line.too_long or not line.text.isspace():
            is_one = line.too_long or _BETWEEN_OBJECTS.search(line.text) is None
            yield from [line] if is_one else _objects(line, encoding)


def _objects(line: Line, encoding: str) -> Iterator[Line]:
    """The texts of a line that may hold several objects, each with its own offset.

    Where one is no JSON, it goes up to the next `}{` or `},{`, so that those after it are read.
    """
    text, start, offset = line.text, 0, line.offset
    bounds = [match.end() - 1 for match in _BETWEEN_OBJECTS.finditer(text)] + [len(text)]
    while start < len(text):
        at = bisect_right(bounds, start)
        end = bounds[at]
        try:
            start_of_value = cast("re.Match[str]", _SPACE.match(text, start)).end()
            stop = cast("re.Match[str]", _BEHIND.match(text, _DECODER.raw_decode(text, start_of_value)[1])).end()
        except (ValueError, RecursionError):
            stop = end
        if stop > end and bounds[bisect_left(bounds, stop)] == stop:
            end = stop
        yield Line(offset, text[start:end])
        offset += len(text[start:end].encode(encoding, "surrogateescape"))
        start = end


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
