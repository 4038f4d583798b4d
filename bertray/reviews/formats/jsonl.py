"""JSON Lines: objects, one a line or end to end; columns are the keys of all rows, null where a row has none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from bertray.config import TextFormat
from bertray.reviews.file_access import DATA_ERRORS, is_store_failure, reading, short
from bertray.reviews.formats import dialects
from bertray.reviews.formats import text_records as records
from bertray.reviews.rows import BadFile, FileEntry, InputFile, RawRows, RowFault, Shard
from bertray.schema import Reason

_ROWS_LOOKED_AT = 1000
_KINDS = {str: "string", bool: "bool", int: "int64", float: "double", type(None): "null", list: "json", dict: "json"}
_AS_LINES = "write one JSON object a line: pandas' to_json(..., orient='records', lines=True)"


def _open(path: str, reader: TextFormat, start_byte: int = 0) -> Iterator[records.Line]:
    lines = records.open_lines(path, reader.encoding, start_byte)
    return records.json_records(lines, records.codec_name(reader.encoding))


def inspect(entry: FileEntry, reader: TextFormat) -> InputFile | BadFile:
    """Keys, exact number of rows and the row index, in one streaming pass."""
    try:
        with reading(entry.path):
            head = records.read_head(entry.path)
            other = dialects.other_content(head.raw, reader.encoding)
            if other is not None:
                return entry.bad(Reason.FILE_UNSUPPORTED, other)
            rows = _open(entry.path, reader)
            first = list(islice(rows, _ROWS_LOOKED_AT))
            if not first:
                return entry.bad(Reason.FILE_EMPTY, "no row")
            wrong = _other_form(first)
            if wrong is not None:
                return entry.bad(*wrong)
            keys = _Keys()
            counted = (keys.see(line) for line in chain(first, rows))
            num_rows, offsets = records.index(counted, seekable=records.can_seek(head, reader.encoding))
    except DATA_ERRORS as error:
        if is_store_failure(error):
            raise
        return entry.bad(Reason.FILE_CORRUPT, short(error))
    return InputFile(
        entry.path,
        entry.relative_path,
        "jsonl",
        entry.size_bytes,
        entry.modified,
        num_rows,
        keys.columns(),
        offsets,
    )


def _other_form(lines: list[records.Line]) -> tuple[Reason, str] | None:
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


class _Keys:
    """Keys of all rows with the kinds of their values, in order of first appearance."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[type]] = {}
        self._shapes: set[tuple[Any, ...]] = set()

    def see(self, line: records.Line) -> records.Line:
        value, _ = _parse(line)
        if isinstance(value, dict):
            shape = (*value, *map(type, value.values()))
            if shape not in self._shapes:
                self._shapes.add(shape)
                for key, found in value.items():
                    self._kinds.setdefault(key, set()).add(type(found))
        return line

    def columns(self) -> dict[str, str]:
        """Kinds by key; several kinds are joined by `|`."""
        return {key: "|".join(sorted({_KINDS[kind] for kind in kinds})) for key, kinds in self._kinds.items()}


def _parse(line: records.Line) -> tuple[Any, str]:
    """The value of a line, and what is wrong with it."""
    if line.too_long:
        return None, f"longer than {records.MAX_RECORD_CHARS} characters"
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
    return records.read_range(
        shard,
        lambda: _open(shard.file.path, reader, shard.start_byte or 0),
        lambda first, part: _raw_rows(first, part, columns, text_columns, reader.encoding),
        lambda line: len(line.text),
    )


def _raw_rows(
    first: int, part: list[records.Line], columns: Sequence[str], text_columns: Sequence[str], encoding: str
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
            faults.append(records.malformed(row_no, problem, [line], encoding))
            continue
        row_nos.append(row_no)
        for name in columns:
            values[name].append(_text(value.get(name)))
    arrays = {name: records.as_text(found, encoding) for name, found in values.items()}
    return RawRows(np.array(row_nos, np.int64), arrays, tuple(faults))


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
