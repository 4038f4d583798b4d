"""JSON Lines: objects, one a line or end to end; columns are the keys of all rows, null where a row has none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from bertray.config import TextFormat
from bertray.reviews.formats import text_records
from bertray.reviews.formats.byte_window import ByteWindow, open_window
from bertray.reviews.formats.text_records import Line
from bertray.reviews.formats.text_scan import NotReadable, scan_text
from bertray.reviews.rows import ROWS_PER_OFFSET, BadFile, FileEntry, InputFile, RawRows, RowFault, RowVisitor, Shard
from bertray.schema import Reason

_ROWS_LOOKED_AT = 1000
_KINDS = {str: "string", bool: "bool", int: "int64", float: "double", type(None): "null", list: "json", dict: "json"}
_AS_LINES = "write one JSON object a line: pandas' to_json(..., orient='records', lines=True)"


def _open(path: str, reader: TextFormat, start_byte: int = 0) -> Iterator[Line]:
    lines = text_records.open_lines(path, reader.encoding, start_byte)
    return text_records.json_records(lines, text_records.codec_name(reader.encoding))


def scan(entry: FileEntry, reader: TextFormat, visitor: RowVisitor) -> InputFile | BadFile:
    """Keys, exact number of rows and the row index, in one pass that shows rows to a visitor."""
    return scan_text(entry, reader, lambda _head: _counted(entry, reader, visitor))


def _counted(entry: FileEntry, reader: TextFormat, visitor: RowVisitor) -> InputFile:
    first = list(islice(_open(entry.path, reader), _ROWS_LOOKED_AT))
    if not first:
        raise NotReadable(Reason.FILE_EMPTY, "no row")
    wrong = _other_form(first)
    if wrong is not None:
        raise NotReadable(*wrong)
    digest = None
    counter = _Counter(reader.encoding, visitor)
    if text_records.is_wide(reader.encoding):
        counter.add_lines(text_records.open_lines(entry.path, reader.encoding))
    else:
        with open_window(entry.path, reader.encoding) as window:
            counter.count(window)
            digest = window.digest()
    counter.show()
    return entry.readable(counter.num_rows, counter.columns(), row_offsets=tuple(counter.offsets), digest=digest)


_FIRST_BLOCK, _LARGEST_BLOCK = 1 << 16, 1 << 22
_ROWS_SHOWN = 4096


class _Counter:
    """Counts rows, learns their keys with the kinds of their values, and shows some of the values.

    A line that is one JSON object is a row, and a strict parser finds most of them; others are for the exact rules.
    """

    def __init__(self, encoding: str, visitor: RowVisitor) -> None:
        self._encoding, self._visitor = text_records.codec_name(encoding), visitor
        self._kinds: dict[str, set[type]] = {}
        self._shapes: set[tuple[Any, ...]] = set()
        self._row_nos: list[int] = []
        self._values: dict[str, list[str | None]] = {name: [] for name in visitor.wanted(None)}
        self.num_rows = 0
        self.offsets: list[int] = []

    def count(self, window: ByteWindow) -> None:
        size = _FIRST_BLOCK
        while True:
            block, is_last = window.block(size)
            if not block:
                return
            end = len(block) if is_last else block.rfind(b"\n") + 1
            if end:
                self._add_block(block[:end], window.offset)
                window.advance(end)
            elif size == _LARGEST_BLOCK:
                ends: dict[int, int] = {}
                self.add_lines(islice(window.lines(ends), 1))
                window.advance(ends[window.offset] - window.offset)
            size = min(2 * size, _LARGEST_BLOCK)

    def _add_block(self, block: bytes, offset: int) -> None:
        """Count the rows of whole lines."""
        decode, is_utf8 = msgspec.json.decode, self._encoding == "utf-8"
        for line in block.split(b"\n"):
            try:
                value = decode(line) if is_utf8 else None
            except (msgspec.DecodeError, RecursionError):
                value = None
            if type(value) is dict:
                self._add(value, offset)
            elif line:
                self.add_lines(iter([Line(offset, f"{line.decode(self._encoding, 'surrogateescape')}\n")]))
            offset += len(line) + 1

    def add_lines(self, lines: Iterator[Line]) -> None:
        """Count the rows of lines that may hold no object, or several."""
        for record in text_records.json_records(lines, self._encoding):
            value, _ = _parse(record)
            self._add(value, record.offset)

    def _add(self, value: Any, offset: int) -> None:
        if self.num_rows % ROWS_PER_OFFSET == 0:
            self.offsets.append(offset)
        if isinstance(value, dict):
            shape = (*value, *map(type, value.values()))
            if shape not in self._shapes:
                self._shapes.add(shape)
                for key, found in value.items():
                    self._kinds.setdefault(key, set()).add(type(found))
            if self._values:
                self._row_nos.append(self.num_rows)
                for name, values in self._values.items():
                    values.append(_text(value.get(name)))
                if len(self._row_nos) == _ROWS_SHOWN:
                    self.show()
        self.num_rows += 1

    def show(self) -> None:
        """Show the values that are waiting."""
        if self._row_nos:
            arrays = {name: text_records.as_text(found, self._encoding) for name, found in self._values.items()}
            self._visitor.visit(RawRows(np.array(self._row_nos, np.int64), arrays))
            self._row_nos, self._values = [], {name: [] for name in self._values}

    def columns(self) -> dict[str, str]:
        """Kinds by key, in order of first appearance; several kinds are joined by `|`."""
        return {key: "|".join(sorted({_KINDS[kind] for kind in kinds})) for key, kinds in self._kinds.items()}


def _other_form(lines: list[Line]) -> tuple[Reason, str] | None:
    """Why a file of JSON is no JSON Lines, from its first records."""
    text = lines[0].text.lstrip()
    values = [value for line in lines if isinstance(value := _parse(line)[0], dict)]
    if text.startswith("[") and (not values[1:] or _parse(lines[0])[0] is None):  # its rows may stand on lines
        return Reason.FILE_UNSUPPORTED, f"a JSON array; {_AS_LINES}, or `jq -c '.[]'`"
    if not values:
        if text.startswith("{"):
            return Reason.FILE_UNSUPPORTED, f"a JSON object over several lines; {_AS_LINES}, or `jq -c .`"
        return Reason.FILE_CORRUPT, f"none of the first {len(lines)} lines is a JSON object"
    if len(lines) == 1 and values[0] and all(isinstance(value, dict | list) for value in values[0].values()):
        return Reason.FILE_UNSUPPORTED, f"one JSON object for all rows, as pandas' to_json writes; {_AS_LINES}"
    return None


def _parse(line: Line) -> tuple[Any, str]:
    """The value of a line, and what is wrong with it."""
    if line.too_long:
        return None, f"longer than {text_records.MAX_RECORD_CHARS} characters"
    try:
        value = json.loads(line.text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or line.text[error.pos :].strip() != ",":  # as rows of an array
            return None, f"not JSON: {error.msg} at character {error.pos}"
        value = json.loads(line.text[: error.pos])
    except (RecursionError, ValueError):  # a number of ten thousand digits, a thousand brackets
        return None, "not JSON that can be read"
    return value, "" if isinstance(value, dict) else "not a JSON object"


def read(
    shard: Shard, columns: Sequence[str], reader: TextFormat, text_columns: Sequence[str] = ()
) -> Iterator[RawRows]:
    """Rows [lo, hi) of the named keys, as text; a value of a text column that is no string makes its row a fault.

    Numbers and booleans become their JSON text, lists and objects compact JSON; an absent key is null.
    """
    return text_records.read_range(
        shard,
        lambda: _open(shard.file.path, reader, shard.start_byte or 0),
        lambda first, part: _raw_rows(first, part, columns, text_columns, reader.encoding),
        lambda line: len(line.text),
    )


def _raw_rows(
    first: int, part: list[Line], columns: Sequence[str], text_columns: Sequence[str], encoding: str
) -> RawRows:
    row_nos: list[int] = []
    values: dict[str, list[str | None]] = {name: [] for name in columns}
    faults: list[RowFault] = []
    for row_no, line in enumerate(part, first):
        value, problem = _parse(line)
        if not problem:
            kinds = {name: _KINDS[type(value.get(name))] for name in text_columns}
            wrong = [name for name, kind in kinds.items() if kind not in ("string", "null")]
            problem = f"expected a string under {wrong[0]!r}, found {kinds[wrong[0]]}" if wrong else ""
        if problem:
            faults.append(text_records.malformed(row_no, problem, [line], encoding))
            continue
        row_nos.append(row_no)
        for name in columns:
            values[name].append(_text(value.get(name)))
    arrays = {name: text_records.as_text(found, encoding) for name, found in values.items()}
    return RawRows(np.array(row_nos, np.int64), arrays, tuple(faults))


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
