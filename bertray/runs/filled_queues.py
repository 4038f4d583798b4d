"""Queues that people filled in: from paths to rows as text, however a spreadsheet saved them."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import TextFormat
from bertray.errors import ConfigError
from bertray.io.store import open_store
from bertray.io.tables import unguarded
from bertray.label_text import label_text
from bertray.reviews.file_access import full_path, is_file
from bertray.reviews.formats.dialects import wide_encoding
from bertray.reviews.listing import list_inputs

QUEUE_CSV, QUEUE_PARQUET = "queue.csv", "queue.parquet"
_DELIMITERS = ",;\t"  # of CSV that a spreadsheet saves
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # of which Excel reads the delimiter
UNREADABLE = (UnicodeError, csv.Error, pa.ArrowInvalid)
"""What `rows_as_text` raises."""


def filled_in(paths: Sequence[str]) -> dict[str, bytes]:
    """Content of the files that `answers` names, by path: files, folders and globs; of a queue's folder its queue.csv.

    Raises:
        ConfigError: nothing is there.
    """
    files: dict[str, None] = {}
    for path in paths:
        base = path.rstrip("/") or path
        if is_file(full_path(base)):  # of any extension
            files[full_path(base)] = None
        elif open_store(base).exists(QUEUE_CSV):
            files[f"{full_path(base)}/{QUEUE_CSV}"] = None
        else:
            files |= dict.fromkeys(entry.path for entry in list_inputs([path], TextFormat(), key="answers"))
    if not files:
        raise ConfigError(f"answers={', '.join(paths)}: no file there.", "Give the queue.csv that was filled in.")
    return {file: open_store(posixpath.dirname(file)).get(posixpath.basename(file)) for file in files}


def rows_as_text(content: bytes) -> list[dict[str, str]]:
    """Rows of Parquet, or of CSV as a spreadsheet saves it; null is empty.

    CSV may have another delimiter, a first line `sep=;`, UTF-16 ("Unicode text"), and names of columns in another case
    or with spaces around them.

    Raises:
        ArrowInvalid, UnicodeError, csv.Error: neither of them.
    """
    if content[:4] == b"PAR1":
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
        as_text = {s.LABEL: label_text}
        return [{name: as_text.get(name, _as_text)(value) or "" for name, value in row.items()} for row in rows]
    text = content.decode(wide_encoding(content) or "utf-8").removeprefix("\ufeff")
    if stated := _SEPARATOR_LINE.match(text):
        text = text[stated.end() :]
    delimiter = stated[1] if stated else max(_DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = reader.fieldnames or []
    plain = [name.strip().casefold() for name in names]
    reader.fieldnames = [name if low in names else low for name, low in zip(names, plain, strict=True)]
    return [{name: unguarded(value or "") for name, value in row.items() if name} for row in reader]


def _as_text(value: Any) -> str:
    """Null, and NaN, which a column with nulls has when pandas saved it, as nothing; whole numbers without a point."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
