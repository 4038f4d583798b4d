"""Summary of unknown data for a first config: format, columns, labels and text lengths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import pyarrow as pa

from bertray.autoconfig.columns import (
    LABEL_NAME_PATTERNS,
    TEXT_NAME_PATTERN,
    count_label_values,
    guess_columns,
    sample_rows,
)
from bertray.autoconfig.format import guess_delimited, guess_encoding, guess_format, head_of, with_guesses
from bertray.config import Columns, TextFormat
from bertray.errors import DataRefused
from bertray.execution.on_demand import in_this_process
from bertray.reviews.labels import value_counts
from bertray.reviews.listing import list_inputs
from bertray.reviews.rows import BadFile, FileEntry, InputFile
from bertray.reviews.scan import ScanSettings, scan_files
from bertray.reviews.screening import utf8_or_empty
from bertray.reviews.writing_system import dominant_script
from bertray.wording import counted

_SPLIT_NAMES = {
    "test": re.compile(r"(^|[^a-z])test([^a-z]|$)", re.I),
    "validation": re.compile(r"(^|[^a-z])(val|valid|validation|dev)([^a-z]|$)", re.I),
    "train": re.compile(r"(^|[^a-z])train([^a-z]|$)", re.I),
}
# Characters for one token, roughly: WordPiece of an English vocabulary; one token a character in Chinese and Japanese.
_CHARS_PER_TOKEN = {"latin": 4.2, "han": 1.0, "kana": 1.0, "hangul": 1.7}

_MAX_LENGTH, _MAX_LENGTH_OF_FEW = 256, 128  # few rows are learned several times over, and by folds
_FEW_ROWS = 1000


@dataclass(frozen=True)
class DataSummary:
    """Facts and guesses on some data. `splits` holds the paths for the `data` section."""

    num_files: int
    num_rows: int
    reader: TextFormat
    columns: Columns
    has_ids: bool
    splits: dict[str, tuple[str, ...]]
    label_counts: dict[str, int]  # by canonical value; empty: no label column was found
    counts_are_exact: bool
    max_length: int
    median_chars: int
    p90_chars: int
    script: str
    other_columns: tuple[str, ...]
    notes: tuple[str, ...]
    num_train_rows: int
    texts: pa.Array  # string, of the sample
    is_cut: bool  # more than a tenth of the texts are longer than max_length


def inspect_data(paths: Sequence[str], reader: TextFormat) -> DataSummary:
    """Summary of data, from file names and about a thousand rows; keys that `reader` sets are not guessed again.

    Raises:
        ConfigError: a path does not exist, or no column looks like a text.
        DataRefused: there is no file, or none that can be read.
    """
    stated = reader
    reader, notes = guess_format(paths, reader)
    entries = list_inputs(paths, reader)
    if not entries:
        raise DataRefused(f"{', '.join(paths)}: expected data, found no file.", "Name a file or folder with reviews.")
    csv_entry = next((entry for entry in entries if entry.format == "csv"), None)
    if csv_entry is not None:
        reader = guess_delimited(csv_entry, reader, notes)
    elif entries[0].format == "jsonl":
        reader = with_guesses(reader, encoding=guess_encoding(head_of(entries[0].path).raw, notes))
    scans = scan_files(entries, ScanSettings(reader), in_this_process)
    files = _readable([scan if isinstance(scan, BadFile) else scan.file for scan in scans], notes)
    files = _with_same_columns(files, notes)
    notes += [f"{file.relative_path}: {note}" for file in files[:5] for note in file.notes]
    if not any(file.format in ("csv", "jsonl") for file in files):
        reader = stated
    sample = sample_rows(files, reader)
    columns = guess_columns(sample, notes)
    counts, exact = count_label_values(files, reader, columns, sample, notes)
    texts, _ = utf8_or_empty(sample[columns.text_name].cast(pa.large_binary()).cast(pa.binary()))
    lengths = sorted(len(text) for text in texts.to_pylist() if text)
    scripts = value_counts(dominant_script(texts.filter(texts.is_valid())))
    script = max(scripts, key=lambda name: (scripts[name], name))
    p90 = lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0
    tokens = p90 / _CHARS_PER_TOKEN.get(script, 3.0) + 2
    splits, num_rows = _splits(paths, entries, files, notes), sum(file.num_rows for file in files)
    num_train_rows = sum(file.num_rows for file in files if file.path in splits["train"]) or num_rows
    most = _MAX_LENGTH_OF_FEW if num_train_rows < _FEW_ROWS else _MAX_LENGTH
    max_length = next((size for size in (32, 64, 128) if tokens <= size), most)
    return DataSummary(
        num_files=len(files),
        num_rows=num_rows,
        reader=reader,
        columns=columns,
        has_ids=columns.id in sample,
        splits=splits,
        label_counts=counts,
        counts_are_exact=exact,
        max_length=max_length,
        median_chars=int(median(lengths)) if lengths else 0,
        p90_chars=p90,
        script=script,
        other_columns=tuple(name for name in sample if name not in columns.model_dump().values()),
        notes=tuple(notes),
        num_train_rows=num_train_rows,
        is_cut=tokens > max_length,
        texts=texts.drop_null(),
    )


def _readable(files: Sequence[InputFile | BadFile], notes: list[str]) -> list[InputFile]:
    good = [file for file in files if isinstance(file, InputFile)]
    bad = [file for file in files if isinstance(file, BadFile)]
    if not good:
        raise DataRefused(
            f"{bad[0].path}: expected a file that can be read, found {bad[0].reason.value}: {bad[0].detail}.",
            "Repair or convert it.",
        )
    for file in bad:
        notes.append(f"cannot be read: {file.relative_path} ({file.reason.value}: {file.detail})")
    with_rows = [file for file in good if file.num_rows]
    if not with_rows:
        raise DataRefused(f"{good[0].path}: expected rows, found none.", "Name data with reviews in it.")
    return with_rows


def _with_same_columns(files: list[InputFile], notes: list[str]) -> list[InputFile]:
    """Files that share columns and hold most of the data, in any format; notes name the others.

    A name for a text or a label counts fourfold: a table of ids and labels alone has as many rows as the one of texts.
    """
    kinds: dict[frozenset[str], list[InputFile]] = {}
    for file in files:
        kinds.setdefault(frozenset(file.columns), []).append(file)

    def weight(group: list[InputFile]) -> int:
        names = group[0].columns
        has_text = any(TEXT_NAME_PATTERN.search(name) for name in names)
        has_label = any(pattern.search(name) for name in names for pattern in LABEL_NAME_PATTERNS)
        return sum(file.size_bytes for file in group) * (4 if has_text else 1) * (4 if has_label else 1)

    chosen = max(kinds.values(), key=weight)
    formats = sorted({file.format for file in chosen})
    if len(formats) > 1:
        held = [_rows_and_files([file for file in chosen if file.format == name], name) for name in formats]
        notes.append(f"{len(formats)} formats with the same columns, read together: {', '.join(held)}")
    for group in kinds.values():
        if group is not chosen:
            kind = "/".join(sorted({file.format for file in group}))
            names = ", ".join(repr(name) for name in list(group[0].columns)[:6])
            shown = ", ".join(file.relative_path for file in group[:5]) + (" ..." if len(group) > 5 else "")
            notes.append(f"left out, other columns: {_rows_and_files(group, kind)} with {names}: {shown}")
    if len(kinds) > 1:
        notes.append("files that were left out need a config of their own: name them to `bertray init`")
    return chosen


def _rows_and_files(files: list[InputFile], kind: str) -> str:
    return f"{counted(len(files), f'{kind} file')} ({counted(sum(file.num_rows for file in files), 'row')})"


def _splits(
    paths: Sequence[str], entries: Sequence[FileEntry], files: list[InputFile], notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """Files by the split that their names contain; all are `train` when none does."""
    named: dict[str, list[str]] = {}
    unnamed = []
    for file in files:
        split = next((name for name, pattern in _SPLIT_NAMES.items() if pattern.search(file.relative_path)), None)
        if split is None:
            unnamed.append(file)
        else:
            named.setdefault(split, []).append(file.path)
    if "train" not in named or len(files) == 1 or files[0].format == "acl_imdb":
        everything = tuple(paths) if len(files) == len(entries) else tuple(file.path for file in files)
        return {"train": everything}
    if unnamed:
        shown = ", ".join(file.relative_path for file in unnamed[:3])
        notes.append(f"not in any split: {counted(len(unnamed), 'file')}, such as {shown}")
    return {split: tuple(named[split]) for split in ("train", "validation", "test") if split in named}
