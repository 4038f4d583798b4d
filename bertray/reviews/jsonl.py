"""JSON Lines: one object a line; columns are the keys seen in the first thousand rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from bertray.config import TextFormat
from bertray.reviews import records
from bertray.reviews.files import DATA_ERRORS, is_store_failure, reading, short
from bertray.reviews.inputs import BadFile, FileEntry, InputFile, RawRows, RowFault, Shard
from bertray.schema import Reason

_ROWS_LOOKED_AT = 1000
_KINDS = {str: "string", bool: "bool", int: "int64", float: "double", type(None): "null", list: "json", dict: "json"}


def _open(path: str, reader: TextFormat, start_byte: int = 0) -> Iterator[records.Line]:
    return records.json_records(records.open_lines(path, reader.encoding, start_byte))


def inspect(entry: FileEntry, reader: TextFormat) -> InputFile | BadFile:
    """Keys, exact number of rows and the row index, in one streaming pass."""
    seekable = records.can_seek(entry.path, reader.encoding)
    try:
        with reading(entry.path):
            rows = _open(entry.path, reader)
            head = list(islice(rows, _ROWS_LOOKED_AT))
            objects = [value for line in head if isinstance(value := _parse(line)[0], dict)]
            if not head:
                return entry.bad(Reason.FILE_EMPTY, "no row")
            if head[0].text.lstrip().startswith("["):
                return entry.bad(Reason.FILE_UNSUPPORTED, "a JSON array; write one JSON object a line")
            if not objects:
                return entry.bad(Reason.FILE_CORRUPT, f"none of the first {len(head)} lines is a JSON object")
            num_rows, offsets = records.index(chain(head, rows), seekable=seekable)
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
        _columns(objects),
        offsets,
    )


def _columns(objects: list[dict[str, Any]]) -> dict[str, str]:
    """Kinds of values by key, in order of first appearance; several kinds are joined by `|`."""
    kinds: dict[str, set[str]] = {}
    for row in objects:
        for key, value in row.items():
            kinds.setdefault(key, set()).add(_KINDS[type(value)])
    return {key: "|".join(sorted(found)) for key, found in kinds.items()}


def _parse(line: records.Line) -> tuple[Any, str]:
    """The value of a line, and what is wrong with it."""
    if line.too_long:
        return None, f"longer than {records.MAX_RECORD_CHARS} characters"
    try:
        value = json.loads(line.text)
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at character {error.pos}"
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
