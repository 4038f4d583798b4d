"""What `bertray init` sees in unknown data: format, columns, labels, lengths, and the config that follows from it."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from bertray.config import Columns, TextFormat
from bertray.errors import ConfigError, DataRefused
from bertray.reviews import reader as sources
from bertray.reviews.file_access import check_uri, filesystem_of, reading, scheme_of
from bertray.reviews.formats import dialects
from bertray.reviews.formats import text_records as records
from bertray.reviews.label_counts import count_labels
from bertray.reviews.labels import canonical, sorted_values, value_counts
from bertray.reviews.listing import format_of, list_inputs
from bertray.reviews.rows import BadFile, Dialect, FileEntry, InputFile, RawRows, ReadSpec, Shard
from bertray.reviews.screening import id_text, utf8_or_empty
from bertray.reviews.writing_system import dominant_script
from bertray.wording import config_word, counted

ROWS_LOOKED_AT = 1000
_LABEL_ROWS_COUNTED = 2_000_000
_MAX_CLASSES = 50

_TEXT_NAME = re.compile(r"text|review|sentence|comment|content|body|message|document", re.I)
_ID_NAME = re.compile(r"(^|_)(u?u?id|key)$", re.I)
_PAIR_NAME = re.compile(r"^(text_pair|aspect|aspect_term|aspect_category|sentence2|question2|hypothesis)$", re.I)
_LABEL_NAMES = (
    re.compile(r"^labels?$", re.I),
    re.compile(r"(^|_)(sentiment|polarity|label|class|target)$", re.I),
    re.compile(r"(^|_)(stars?|rating|score|category|emotion)$", re.I),
)
_SPLIT_NAMES = {
    "test": re.compile(r"(^|[^a-z])test([^a-z]|$)", re.I),
    "validation": re.compile(r"(^|[^a-z])(val|valid|validation|dev)([^a-z]|$)", re.I),
    "train": re.compile(r"(^|[^a-z])train([^a-z]|$)", re.I),
}
# Characters for one token, roughly: WordPiece of an English vocabulary; one token a character in Chinese and Japanese.
_CHARS_PER_TOKEN = {"latin": 4.2, "han": 1.0, "kana": 1.0, "hangul": 1.7}
# With a tokenizer.json: no encoder of Japanese alone has one that works without further packages.
_ENCODERS = {
    "han": "bert-base-chinese",
    "hangul": "klue/bert-base",
}


@dataclass(frozen=True)
class Look:
    """What was seen and guessed. `splits` holds the paths for the `data` section."""

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


def look(paths: Sequence[str], reader: TextFormat) -> Look:
    """Look at file names and about a thousand rows. What `reader` sets explicitly is not guessed again.

    Raises:
        ConfigError: a path does not exist, or no column looks like a text.
        DataRefused: there is no file, or none that can be read.
    """
    stated = reader
    reader, notes = _guess_format(paths, reader)
    entries = list_inputs(paths, reader)
    if not entries:
        raise DataRefused(f"{', '.join(paths)}: expected data, found no file.", "Name a file or folder with reviews.")
    csv_entry = next((entry for entry in entries if entry.format == "csv"), None)
    if csv_entry is not None:
        reader = _guess_delimited(csv_entry, reader, notes)
    elif entries[0].format == "jsonl":
        reader = _with(reader, encoding=_encoding(_head(entries[0].path).raw, notes))
    files = _readable(sources.inspect_all(entries, reader), notes)
    files = _with_same_columns(files, notes)
    notes += [f"{file.relative_path}: {note}" for file in files[:5] for note in file.notes]
    if not any(file.format in ("csv", "jsonl") for file in files):
        reader = stated
    sample = _sample(files, reader)
    columns = _guess_columns(sample, notes)
    counts, exact = _label_counts(files, reader, columns, sample, notes)
    texts, _ = utf8_or_empty(sample[columns.text].cast(pa.large_binary()).cast(pa.binary()))
    lengths = sorted(len(text) for text in texts.to_pylist() if text)
    scripts = value_counts(dominant_script(texts.filter(texts.is_valid())))
    script = max(scripts, key=lambda name: (scripts[name], name))
    p90 = lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0
    tokens = p90 / _CHARS_PER_TOKEN.get(script, 3.0) + 2
    max_length = next((size for size in (32, 64, 128) if tokens <= size), 256)
    return Look(
        num_files=len(files),
        num_rows=sum(file.num_rows for file in files),
        reader=reader,
        columns=columns,
        has_ids=columns.id in sample,
        splits=_splits(paths, entries, files, notes),
        label_counts=counts,
        counts_are_exact=exact,
        max_length=max_length,
        median_chars=int(median(lengths)) if lengths else 0,
        p90_chars=p90,
        script=script,
        other_columns=tuple(name for name in sample if name not in columns.model_dump().values()),
        notes=tuple(notes),
    )


# --- format ----------------------------------------------------------------------------------------------------------


def _with(reader: TextFormat, **guesses: Any) -> TextFormat:
    """The reader with guesses for what was not set explicitly."""
    fresh = {key: value for key, value in guesses.items() if key not in reader.model_fields_set}
    stated = {key: getattr(reader, key) for key in reader.model_fields_set}
    return TextFormat(**{**fresh, **stated})


def _guess_format(paths: Sequence[str], reader: TextFormat) -> tuple[TextFormat, list[str]]:
    """The format of a single file whose name does not tell it."""
    notes: list[str] = []
    if reader.format != "auto" or len(paths) != 1 or scheme_of(paths[0]) == "hub":
        return reader, notes
    check_uri(paths[0])
    filesystem, inner = filesystem_of(paths[0])
    with reading(paths[0]):
        is_file = filesystem.get_file_info(inner).type == pafs.FileType.File
    if not is_file or format_of(inner, reader) is not None:
        return reader, notes
    head = _head(paths[0]).raw
    start = head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
    if b"\0" in head[:4096] and dialects.wide_encoding(head) is None:
        raise ConfigError(f"{paths[0]}: expected text or Parquet, found other bytes.", "Convert it first.")
    if start == b"<":
        raise ConfigError(
            f"{paths[0]}: expected Parquet, CSV, TSV or JSON Lines, found what looks like XML.", "Convert it first."
        )
    notes.append("format guessed from the content: the file name does not tell it")
    return _with(reader, format="jsonl" if start == b"{" else "csv"), notes


def _head(path: str) -> records.Head:
    with reading(path):
        return records.read_head(path)


def _encoding(head: bytes, notes: list[str]) -> str:
    wide = dialects.wide_encoding(head)
    if wide is not None:
        return wide
    try:
        head[: head.rfind(b"\n") + 1 or len(head)].decode("utf-8")
    except UnicodeDecodeError:
        is_dense = sum(byte >= 0x80 for byte in head) > 0.3 * len(head)
        guess = "gb18030" if is_dense else "cp1252"
        notes.append(f"not UTF-8; reader.encoding={guess} is a guess")
        return guess
    return "utf-8"


def _guess_delimited(entry: FileEntry, reader: TextFormat, notes: list[str]) -> TextFormat:
    """Delimiter, quotes, lines to skip and header of a delimited file, from its first rows."""
    head = _head(entry.path)
    reader = _with(reader, encoding=_encoding(head.raw, notes))
    lines, _, stated = dialects.first_lines(head, reader)
    usual = stated or dialects.delimiter_of(entry.path, reader)
    delimiters = [usual, *(d for d in dialects.DELIMITERS if d != usual and reader.delimiter is None and not stated)]
    ways = [dialects.best_way(lines, delimiter, reader) for delimiter in delimiters]
    found, way = max(((_records(lines, way), way) for way in ways), key=lambda pair: _regularity(pair[0]))
    preamble = 0 if reader.skip_lines or stated else dialects.preamble_lines(found)
    rows = [record.fields or [] for record in found if record.offset >= preamble]
    guesses: dict[str, Any] = {"header": _has_header(rows)}
    if not way.quoting:
        guesses["quoting"] = False
    if way.escape:
        guesses["escape"] = way.escape
    if way.delimiter != usual:
        guesses["delimiter"] = way.delimiter
    if preamble:
        guesses["skip_lines"] = preamble
        notes.append(f"the first {preamble} lines are no rows")
    return _with(reader, **guesses)


def _records(lines: list[records.Line], way: Dialect) -> list[records.CsvRecord]:
    return list(records.csv_records(iter(lines), way))


def _regularity(found: list[records.CsvRecord]) -> tuple[float, float]:
    """(share of rows with the usual number of fields, that number); one field is no table."""
    usual = dialects.usual_width(found)
    share = sum(len(record.fields or []) == usual for record in found) / max(1, len(found))
    return (round(share, 2) if usual > 1 else 0.0), float(usual)


def _has_header(rows: list[list[str]]) -> bool:
    """The first row names columns: short distinct words, none a number, none a value that comes again below."""
    if len(rows) < 2:
        return bool(rows) and any(_TEXT_NAME.search(cell) for cell in rows[0])
    words = [cell.strip() for cell in dialects.without_empty_end(rows[0])]
    names = [word.casefold() for word in words]
    rest = [row for row in rows[1:] if [cell.strip().casefold() for cell in row] != names]  # it may stand again
    if sum(not word for word in words) > 1 or len(set(words)) < len(words):
        return False
    if any(len(word) > 40 or re.fullmatch(r"[-+]?[\d.,]+", word) for word in words):
        return False
    below = [{row[at].strip() for row in rest if at < len(row)} for at in range(len(words))]
    return not any(word and word in seen for word, seen in zip(words, below, strict=True))


# --- files -----------------------------------------------------------------------------------------------------------


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
    """The files that share columns and hold most, whatever their format; the others are named in notes.

    A name for a text or a label counts fourfold: a table of ids and labels alone has as many rows as the one of texts.
    """
    kinds: dict[frozenset[str], list[InputFile]] = {}
    for file in files:
        kinds.setdefault(frozenset(file.columns), []).append(file)

    def weight(group: list[InputFile]) -> int:
        names = group[0].columns
        has_text = any(_TEXT_NAME.search(name) for name in names)
        has_label = any(pattern.search(name) for name in names for pattern in _LABEL_NAMES)
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
    """Files by the split their names tell; everything is `train` when they tell none."""
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


# --- columns ---------------------------------------------------------------------------------------------------------


def _rows_of(shard: Shard, reader: TextFormat, columns: list[str]) -> Iterator[RawRows]:
    return sources.read_rows(shard, ReadSpec(reader=reader), columns, [])


def _sample(files: list[InputFile], reader: TextFormat) -> dict[str, pa.Array]:
    """About a thousand rows, spread over the files and within them: data is often sorted by label."""
    total = sum(file.num_rows for file in files)
    names = [name for name, kind in files[0].columns.items() if kind != "repeated"]
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    chosen = files if len(files) <= 16 else files[:: len(files) // 16]
    for file in chosen:
        wanted = max(20, ROWS_LOOKED_AT * file.num_rows // total)
        num_places = 1 if file.num_rows <= wanted else min(8, max(1, wanted // 20))
        size = min(file.num_rows, -(-wanted // num_places))
        for place in np.linspace(0, file.num_rows - size, num_places).astype(int).tolist():
            shard = sources.shard_of(file, place, place + size)
            for raw in _rows_of(shard, reader, names):
                for name in raw.columns:
                    if name in parts:
                        parts[name].append(_plain(raw.columns[name]))
    return {name: _joined(arrays) for name, arrays in parts.items() if arrays}


def _joined(arrays: list[pa.Array]) -> pa.Array:
    if len({array.type for array in arrays}) > 1:  # of several formats
        arrays = [canonical(array) for array in arrays]
    return pa.concat_arrays(arrays)


def _plain(values: pa.Array) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _as_words(values: pa.Array) -> list[str | None] | None:
    """Values as text, or None for a column of lists, structs or other things that are no words."""
    try:
        return [value if value else None for value in canonical(values).to_pylist()]
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return None


def _is_string(values: pa.Array) -> bool:
    kind = values.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _guess_columns(sample: dict[str, pa.Array], notes: list[str]) -> Columns:
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
    guesses: dict[str, str] = {"text": text}
    if chosen_id is not None:
        guesses["id"] = chosen_id
    if label is not None:
        guesses["label"] = label
    if pair is not None:
        guesses["text_pair"] = pair
    return Columns(**guesses)


def _text_column(sample: dict[str, pa.Array], words: dict[str, list[str | None]]) -> str:
    """The string column with the longest values; a telling name counts double."""
    lengths = {}
    for name, values in words.items():
        if _is_string(sample[name]) or pa.types.is_binary(sample[name].type):
            known = [len(value) for value in values if value]
            lengths[name] = (sum(known) / len(values) if values else 0.0) * (2 if _TEXT_NAME.search(name) else 1)
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
        rank = next((rank for rank, pattern in enumerate(_LABEL_NAMES) if pattern.search(name)), len(_LABEL_NAMES))
        is_named = rank < len(_LABEL_NAMES)
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


def _label_counts(
    files: list[InputFile], reader: TextFormat, columns: Columns, sample: dict[str, pa.Array], notes: list[str]
) -> tuple[dict[str, int], bool]:
    """Rows by label value: over every row where that is quick, else in the sample."""
    if columns.label not in sample:
        return {}, True
    if sum(file.num_rows for file in files) > _LABEL_ROWS_COUNTED:
        return value_counts(canonical(sample[columns.label])), False
    counts = count_labels(files, ReadSpec(columns=columns, reader=reader))
    if len(counts) == 1:
        notes.append("only one label value: training needs two classes")
    return counts, True


# --- config ----------------------------------------------------------------------------------------------------------


def render_config(seen: Look, verb: str, file: str) -> str:
    """Commented YAML that `bertray train -c FILE output=FOLDER` accepts as it is, or `bertray score`.

    Args:
        seen: what the data looks like.
        verb: `train` or `score`.
        file: name that the config will have, for the commands in its comments.
    """
    out = io.StringIO()

    def write(line: str = "", comment: str = "") -> None:
        out.write(f"{line}  # {comment}\n" if line and comment else f"# {comment}\n" if comment else f"{line}\n")

    write(comment=f"{counted(seen.num_files, 'file')}, {counted(seen.num_rows, 'row')}")
    for note in seen.notes:
        write(comment=_one_line(note))
    words = f"-c {shlex.quote(file)} output={'runs/first' if verb == 'train' else 'scored'}"
    write(comment=f"{verb.capitalize()}: bertray {verb} {_one_line(words)}")
    write()
    if verb == "train":
        _write_splits(seen, write)
    else:
        paths = [path for split in seen.splits.values() for path in split]
        write(f"input: {config_word(paths if len(paths) > 1 else paths[0])}")
    _write_reader(seen.reader, write)
    write()
    write("columns:")
    for name in ("id", "text", "text_pair", "label"):
        value = getattr(seen.columns, name)
        is_there = name != "id" or seen.has_ids
        if name == "label" and verb == "score" and seen.label_counts:
            write(comment=f" label: {config_word(value)}  for the accuracy, where its values are classes of the model")
        elif value is not None and is_there and (name != "label" or seen.label_counts):
            write(f"  {name}: {config_word(value)}")
    if verb == "train":
        _write_training(seen, write)
    else:
        write()
        write("model: runs/first/model", "of a training run, or a hub id")
        if seen.other_columns:
            write(comment=f"keep_columns: {config_word(list(seen.other_columns))}")
    return out.getvalue()


def _write_splits(seen: Look, write: Any) -> None:
    write("data:")
    for split, paths in seen.splits.items():
        write(f"  {split}: {config_word(list(paths) if len(paths) > 1 else paths[0])}")
    if "validation" not in seen.splits:
        write(comment="no data.validation: 10 % of train is held out, identical texts on one side")
    if "test" not in seen.splits:
        write(comment="no data.test: the report is on the validation split")


def _write_training(seen: Look, write: Any) -> None:
    _write_labels(seen, write)
    write()
    if seen.script in _ENCODERS:
        write(comment=f"the texts are mostly {seen.script}, and the bundled encoder is English: with network, or a")
        write(comment=f"downloaded folder, use `model: {_ENCODERS[seen.script]}` instead")
    elif seen.script not in ("latin", "other"):
        write(comment=f"the texts are mostly {seen.script}, and the bundled encoder is English: use a multilingual")
        write(comment="encoder, for example `model: bert-base-multilingual-cased`")
    write("model: bundled", "or a hub id, or a folder")
    longer = "; 512 sees more and is slower" if seen.max_length == 256 else ""
    lengths = f"median text {seen.median_chars} characters, 90 % below {seen.p90_chars}"
    write(f"max_length: {seen.max_length}", f"tokens; {lengths}{longer}")
    write("training:")
    write("  epochs: 3")
    write("  learning_rate: 5.0e-5")
    write("  batch_size: 32")


def _write_reader(reader: TextFormat, write: Any) -> None:
    default = TextFormat().model_dump()
    changed = {name: value for name, value in reader.model_dump().items() if value != default[name]}
    if changed:
        write()
        write("reader:")
        for name, value in changed.items():
            write(f"  {name}: {config_word(value)}")


def _write_labels(seen: Look, write: Any) -> None:
    if not seen.label_counts:
        return
    values = sorted_values(seen.label_counts)
    counted = ", ".join(f"{_one_line(value)} {seen.label_counts[value]:,}" for value in values[:20])
    more = f" and {len(values) - 20} more" if len(values) > 20 else ""
    exact = "" if seen.counts_are_exact else " (in a sample)"
    write()
    write(comment=f"label values{exact}: {counted}{more}")
    if values in (["0", "1"], ["neg", "pos"]):
        write("labels:", "value: name; the names are a guess, correct them")
        for value, name in zip(values, ("negative", "positive"), strict=True):
            write(f"  {value}: {name}")
    elif len(values) >= 3 and set(values) <= {"1", "2", "3", "4", "5"}:
        write(comment="stars as classes: labels: {1: negative, 2: negative, 3: neutral, 4: positive, 5: positive}")
    elif len(values) >= 2:
        write(comment="without `labels` the sorted values are the class names; `value: null` leaves one out")


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:500]
