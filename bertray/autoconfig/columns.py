"""Columns of texts, ids and labels, guessed from the names and a sample of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bertray.config import Columns, TextFormat
from bertray.errors import ConfigError
from bertray.io.tables import decoded
from bertray.reviews import reader as sources
from bertray.reviews.labels import canonical, value_counts
from bertray.reviews.reader import column_type_fits
from bertray.reviews.rows import InputFile, RawRows, ReadSpec, Shard
from bertray.reviews.scan import FileScan, ScanSettings, scan_file, total_counts
from bertray.reviews.screening import id_text

NUM_SAMPLED_ROWS = 1000
_LABEL_ROWS_COUNTED = 2_000_000
_MAX_CLASSES = 50

TEXT_NAME_PATTERN = re.compile(r"text|review|sentence|comment|content|body|message|document", re.I)
_ID_NAME = re.compile(r"(^|_)(u?u?id|key)$", re.I)
_PAIR_NAME = re.compile(r"^(text_pair|aspect|aspect_term|aspect_category|sentence2|question2|hypothesis)$", re.I)
_LIST_NAME = re.compile(r"^(aspects?|topics?|categories|terms)$", re.I)
_MOST_VALUES_OF_ASPECTS = 5
LABEL_NAME_PATTERNS = (
    re.compile(r"^labels?$", re.I),
    re.compile(r"(^|_)(sentiment|polarity|label|class|target)$", re.I),
    re.compile(r"(^|_)(stars?|rating|score|category|emotion)$", re.I),
)


def _rows_of(shard: Shard, reader: TextFormat, columns: list[str]) -> Iterator[RawRows]:
    return sources.read_rows(shard, ReadSpec(reader=reader), columns, [])


def sample_rows(files: list[InputFile], reader: TextFormat) -> dict[str, pa.Array]:
    """About a thousand rows, spread over the files and within them: data is often sorted by label."""
    total = sum(file.num_rows for file in files)
    names = [name for name, kind in files[0].columns.items() if kind != "repeated"]
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    chosen = files if len(files) <= 16 else files[:: len(files) // 16]
    for file in chosen:
        wanted = max(20, NUM_SAMPLED_ROWS * file.num_rows // total)
        num_places = 1 if file.num_rows <= wanted else min(8, max(1, wanted // 20))
        size = min(file.num_rows, -(-wanted // num_places))
        for place in np.linspace(0, file.num_rows - size, num_places).astype(int).tolist():
            shard = sources.shard_of(file, place, place + size)
            for raw in _rows_of(shard, reader, names):
                for name in raw.columns:
                    if name in parts:
                        parts[name].append(decoded(raw.columns[name]))
    return {name: _joined(arrays) for name, arrays in parts.items() if arrays}


def _joined(arrays: list[pa.Array]) -> pa.Array:
    if len({array.type for array in arrays}) > 1:  # of several formats
        arrays = [canonical(array) for array in arrays]
    return pa.concat_arrays(arrays)


def _as_words(values: pa.Array) -> list[str | None] | None:
    """Values as text, or None for a column of lists, structs or other things that are no words."""
    try:
        return [value if value else None for value in canonical(values).to_pylist()]
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return None


def _is_string(values: pa.Array) -> bool:
    kind = values.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def guess_columns(sample: dict[str, pa.Array], notes: list[str]) -> Columns:
    words = {name: found for name, values in sample.items() if (found := _as_words(values)) is not None}
    text = _text_column(sample, words)
    label = _label_column(words, text)
    pair = next((name for name in words if _PAIR_NAME.search(name) and name != text and _is_string(sample[name])), None)
    ids = [name for name in words if name not in (text, label, pair) and _is_id(name, sample[name], words[name])]
    chosen_id = min(ids, key=lambda name: (name.lower() != "id", list(words).index(name)), default=None)
    if chosen_id is None:
        notes.append("no id column: ids are made from file name and row")
    if label is None:
        notes.append("no column looks like a label: set columns.label")
    notes += _notes_on_aspects(sample, words, label)
    guesses: dict[str, str] = {"text": text}
    if chosen_id is not None:
        guesses["id"] = chosen_id
    if label is not None:
        guesses["label"] = label
    if pair is not None:
        guesses["text_pair"] = pair
    return Columns(**guesses)


def _notes_on_aspects(sample: dict[str, pa.Array], words: dict[str, list[str | None]], label: str | None) -> list[str]:
    """Notes on columns that may hold aspects of a review: lists of texts, or several labels with the same values."""
    notes = [
        f"column {name!r} holds lists of texts: with columns.aspects={name} each of them is a row of its own"
        for name, values in sample.items()
        if _LIST_NAME.search(name) and column_type_fits("columns.aspects", str(values.type)) and name not in words
    ]
    if label is not None and any(pattern.search(label) for pattern in LABEL_NAME_PATTERNS):
        return notes
    values_of = {name: {value for value in values if value} for name, values in words.items()}
    few = {name: values for name, values in values_of.items() if 2 <= len(values) <= _MOST_VALUES_OF_ASPECTS}
    widest = max(few.values(), key=len, default=set())
    names = [name for name, values in few.items() if values <= widest]  # some are rare in a sample
    if len(names) > 1:
        notes.append(
            f"columns {', '.join(names)} have the same values: if each is an aspect of a review, give "
            f"aspects: [{', '.join(names)}] in place of columns.label"
        )
    return notes


def _text_column(sample: dict[str, pa.Array], words: dict[str, list[str | None]]) -> str:
    """The string column with the longest values; a telling name counts double."""
    lengths = {}
    for name, values in words.items():
        if _is_string(sample[name]) or pa.types.is_binary(sample[name].type):
            known = [len(value) for value in values if value]
            lengths[name] = (sum(known) / len(values) if values else 0.0) * (2 if TEXT_NAME_PATTERN.search(name) else 1)
    if not lengths or max(lengths.values()) == 0:
        raise ConfigError(
            f"data: expected a column of texts, found {', '.join(repr(name) for name in sample) or 'none'}.",
            "Name a file with reviews, or set `reader.delimiter`.",
        )
    return max(lengths, key=lambda name: lengths[name])


def _label_column(words: dict[str, list[str | None]], text: str) -> str | None:
    """A column with few distinct values, best with a telling name, else the one with fewest gaps and values."""
    candidates = []
    for position, (name, values) in enumerate(words.items()):
        known = [value for value in values if value]
        distinct = len(set(known))
        rank = next(
            (rank for rank, pattern in enumerate(LABEL_NAME_PATTERNS) if pattern.search(name)), len(LABEL_NAME_PATTERNS)
        )
        is_named = rank < len(LABEL_NAME_PATTERNS)
        repeats = 2 <= distinct <= min(_MAX_CLASSES, max(2, len(known) // 3)) and len(known) > 0.5 * len(values)
        is_word = all(len(value) <= 40 for value in known)
        if name != text and is_word and (repeats or (is_named and known and distinct <= _MAX_CLASSES)):
            gaps = len(values) - len(known)
            candidates.append(((rank, gaps, distinct, position), name))
    return min(candidates)[1] if candidates else None


def _is_id(name: str, values: pa.Array, words: list[str | None]) -> bool:
    if name.isdecimal() or not _ID_NAME.search(name):
        return False
    try:
        id_text(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    known = [word for word in words if word]
    return len(known) == len(words) and len(set(known)) >= 0.99 * len(known)


def count_label_values(
    files: list[InputFile], reader: TextFormat, columns: Columns, sample: dict[str, pa.Array], notes: list[str]
) -> tuple[dict[str, int], bool]:
    """Rows by label value: over every row where that is quick, else in the sample."""
    if columns.label not in sample:
        return {}, True
    if sum(file.num_rows for file in files) > _LABEL_ROWS_COUNTED:
        return value_counts(canonical(sample[columns.label])), False
    scans = [scan_file(file.entry, ScanSettings(reader, columns, labels=True)) for file in files]
    counts = total_counts(scan.counts for scan in scans if isinstance(scan, FileScan)).labels
    if len(counts) == 1:
        notes.append("only one label value: training needs two classes")
    return counts, True
