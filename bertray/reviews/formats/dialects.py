"""Dialect of a delimited file: delimiter, quotes, escapes, lines to skip and columns that tell a row from other text.

The first rows decide, once a file: every shard of it is then read alike. What the config says is not guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, islice, pairwise, product, takewhile

from bertray.config import TextFormat
from bertray.reviews.formats import text_records as records
from bertray.reviews.formats.text_records import CsvRecord, Line
from bertray.reviews.rows import Dialect

ROWS_LOOKED_AT = 1000
DELIMITERS = (",", "\t", ";", "|")
_MAX_PREAMBLE = 50
_MAX_LABELS = 20
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.I)  # Excel's own way to say the delimiter, above the header
# What stands first in files that are no text, whatever they are called.
_OTHER_CONTENT = {
    b"PK\x03\x04": "a zip archive or Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"BZh": "bzip2 content",
    b"\x1f\x8b": "gzip content within gzip",
    b"\xfd7zXZ": "xz content",
    b"\x28\xb5\x2f\xfd": "zstd content",
    b"PAR1": "Parquet content",
    b"%PDF": "a PDF document",
}


def other_content(head: bytes, encoding: str) -> str | None:
    """Content that is no text in this encoding, with the remedy."""
    for start, name in _OTHER_CONTENT.items():
        if head.startswith(start):
            named = "name it .parquet" if start == b"PAR1" else "unpack or convert it, gzip apart nothing is unpacked"
            return f"{name}: {named}"
    wide = wide_encoding(head)
    if wide is not None and not records.is_wide(encoding):
        return f"looks like {wide[:6].upper()}: set reader.encoding={wide}"
    return None


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by its byte order mark, or by the zero bytes of Latin letters, delimiters and line ends."""
    for mark, name in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16")):
        if head.startswith(mark):
            return name
    if head.startswith(b"\xfe\xff"):
        return "utf-16"
    sample = head[:8192]
    zeros = [sample[start::2].count(0) / max(1, len(sample) // 2) for start in (0, 1)]
    for least, most, name in ((0, 1, "utf-16-le"), (1, 0, "utf-16-be")):
        if zeros[most] > 0.1 and zeros[least] < 0.1 * zeros[most]:
            return name
    return None


def delimiter_of(path: str, reader: TextFormat) -> str:
    """The configured field separator, else a comma, or a tab for .tsv and .tab."""
    if reader.delimiter is not None:
        return reader.delimiter
    name = path.lower().removesuffix(".gz")
    return "\t" if reader.format == "tsv" or name.endswith((".tsv", ".tab")) else ","


@dataclass(frozen=True)
class Decision:
    """A dialect, the rows it was decided on, and what the config might say instead."""

    dialect: Dialect
    first: CsvRecord | None  # the header, or the first row
    notes: tuple[str, ...]


def decide(path: str, reader: TextFormat, head: records.Head) -> Decision:
    """The dialect of a file, with what the config leaves open decided on its first rows.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged or the storage failed.
    """
    lines, skip_lines, stated = first_lines(head, reader)
    delimiter = reader.delimiter or stated or delimiter_of(path, reader)
    is_all = head.whole and len(lines) <= ROWS_LOOKED_AT
    if delimiter == "\t" and reader.quoting is None and not is_all:
        numbered = (line._replace(offset=no) for no, line in enumerate(records.open_lines(path, reader.encoding)))
        lines = [*takewhile(_opens_no_quotes, lines), *_from_first_quote(islice(numbered, skip_lines, None))]
    best = best_way(lines, delimiter, reader)
    notes: list[str] = []
    if not best.quoting and delimiter != "\t" and reader.quoting is None:
        notes.append("quotes seem to be characters of the texts: is reader.quoting=false right?")
        best = best_way(lines, delimiter, reader.model_copy(update={"quoting": True}))
    dialect = replace(best, skip_lines=skip_lines)
    found = list(records.csv_records(iter(lines), dialect))
    if not found:
        return Decision(dialect, None, ())
    preamble = preamble_lines(found)
    if preamble and not reader.skip_lines:
        notes = [f"the first lines have other fields than the rest: is reader.skip_lines={preamble} right?"]
    return Decision(_with_columns(dialect, found, reader.header, notes), found[0], tuple(notes))


def first_lines(head: records.Head, reader: TextFormat) -> tuple[list[Line], int, str | None]:
    """Some thousand lines, how many are skipped before them, and the delimiter that a line `sep=;` states."""
    lines = records.head_lines(head, reader.encoding)
    lines, num_skipped = lines[: ROWS_LOOKED_AT + reader.skip_lines + 2], reader.skip_lines
    stated = _SEPARATOR_LINE.fullmatch(lines[num_skipped].text.lstrip("\ufeff")) if lines[num_skipped:] else None
    num_skipped += stated is not None
    return lines[num_skipped:], num_skipped, stated[1] if stated else None


def best_way(lines: Sequence[Line], delimiter: str, reader: TextFormat) -> Dialect:
    """Quotes and escapes with which most lines are whole rows.

    Tabs need no quotes: where none encloses a field, a quote is a character, and an unpaired one may follow.
    """
    quotings = [True, False] if reader.quoting is None else [reader.quoting]
    escapes = [""] if reader.escape is None else [reader.escape]
    num_quotes, num_escaped = (sum(line.text.count(mark) for line in lines) for mark in ('"', '\\"'))
    if reader.escape is None and num_escaped:
        escapes.append("\\")
    only_escaped = reader.quoting is None and num_escaped == num_quotes
    spaced = re.compile(re.escape(delimiter) + ' +"')
    spaces = [False, True] if delimiter != " " and any(spaced.search(line.text) for line in lines) else [False]
    ways = [
        Dialect(delimiter, quoting, escape, space)
        for quoting, escape, space in product(quotings, escapes, spaces)
        # Both are for quotes, unless said otherwise or no quote goes without an escape.
        if quoting or (not space and (only_escaped or escape == (reader.escape or "")))
    ]
    if len(ways) == 1 or not num_quotes:
        return next((way for way in ways if way.quoting == (delimiter != "\t")), ways[0])
    encloses = _encloses(lines, delimiter)
    if reader.quoting is None and delimiter != "\t" and encloses:
        ways = [way for way in ways if way.quoting]
    prefers_quotes = delimiter != "\t" or encloses
    # At a tie the first way wins: quotes where they are usual, no escapes but where most quotes have one, no spaces.
    ways.sort(key=lambda way: (way.quoting != prefers_quotes, (2 * num_escaped > num_quotes) != bool(way.escape)))
    return min(ways, key=lambda way: _num_broken(lines, way))


def _num_broken(lines: Sequence[Line], way: Dialect) -> int:
    """Lines that are no whole row of the usual width, each read with a way."""
    found = list(records.csv_records(iter(lines), way))
    width = usual_width(found)
    found = list(records.csv_records(iter(lines), _with_marks(way, found[1:], width)))
    return sum(
        len(record.lines) for record in found if record.problem or record.lenient or len(record.fields or []) != width
    )


def usual_width(found: Iterable[CsvRecord]) -> int:
    """The number of fields that most records have; the larger of two alike."""
    widths = Counter(len(record.fields) for record in found if record.fields)
    return max(widths, key=lambda width: (widths[width], width), default=0)


def preamble_lines(found: Sequence[CsvRecord]) -> int:
    """Lines above the header that are no row: none of them as wide as most rows.

    Args:
        found: records of `records.head_lines`.
    """
    width = usual_width(found)
    filled = [len(without_empty_end(record.fields)) for record in found if record.fields]
    if filled and filled[0] == max(filled):  # more delimiters at the end of the header, or of the rows
        return 0
    at = next((at for at, record in enumerate(found) if record.fields and len(record.fields) == width), 0)
    is_known = width > 1 and at <= _MAX_PREAMBLE and sum(len(r.fields or []) == width for r in found) > len(found) // 2
    return found[at].offset if is_known and at else 0


def without_empty_end(fields: list[str]) -> list[str]:
    """The fields up to the last one that holds something."""
    last = next((at for at in range(len(fields), 0, -1) if fields[at - 1]), 0)
    return fields[:last]


def _with_columns(dialect: Dialect, found: list[CsvRecord], has_header: bool, notes: list[str]) -> Dialect:
    """The dialect with its columns, and what tells their values."""
    first = found[0].fields or []
    rows = [record for record in (found[1:] if has_header else found) if record.fields]
    width, usual = len(first), usual_width(rows)
    if has_header and usual and usual < width and not any(name.strip() for name in first[usual:]):
        width = usual
    wider = [record for record in rows if record.fields and len(record.fields) > width]
    extra = [record for record in wider if record.fields and not any(record.fields[width:])]
    extra_empty = has_header and bool(extra) and 2 * len(extra) > len(rows)
    if extra_empty:
        notes.append("rows end with more delimiters than the header: the empty fields behind them are left out")
    header = tuple(name.strip().casefold() for name in first)
    named = replace(dialect, header_as_written=tuple(first), header=header) if has_header else dialect
    return _with_marks(replace(named, extra_empty=extra_empty), rows, width)


def _with_marks(dialect: Dialect, rows: Sequence[CsvRecord], width: int) -> Dialect:
    """The dialect with `width` and the marks of columns whose values have a narrow form.

    Where records of several lines leave nothing to learn from, single lines of that width tell the form: one pair of
    stray quotes may hold all rows but a few.
    """
    marked = _marks_of(dialect, [record.fields for record in rows if record.fields], width)
    if marked.marks or all(len(record.lines) == 1 for record in rows):
        return marked
    lines = [line.text.rstrip("\r\n").split(dialect.delimiter) for record in rows for line in record.lines]
    return _marks_of(dialect, [fields for fields in lines if len(fields) == width], width)


def _marks_of(dialect: Dialect, rows: Sequence[list[str]], width: int) -> Dialect:
    marks: list[tuple[int, str]] = []
    good = [fields for fields in rows if len(fields) >= width]
    rising, largest_step = None, 0
    for at in range(width):
        values = [fields[at].strip() for fields in good if "\n" not in fields[at]]
        pattern = _pattern([value for value in values if value]) if len(values) > 0.9 * len(good) else None
        if pattern is None:
            continue
        marks.append((at, pattern))
        if rising is None and all(re.fullmatch(r"[0-9]{1,18}", value) for value in values):
            steps = [int(b) - int(a) for a, b in pairwise(values)]
            if min(steps) > 0:
                rising, largest_step = at, max(steps)
    return replace(dialect, width=width, marks=tuple(marks), rising=rising, largest_step=largest_step)


def _pattern(values: list[str]) -> str | None:
    """A regular expression of numbers, codes or labels that all values match; None for prose and for too few."""
    if len(values) < 2 or any(len(value) > 40 for value in values):
        return None
    lengths = {len(value) for value in values}
    if all(re.fullmatch(r"[0-9]+", value) for value in values):
        return f"[0-9]{{{min(lengths)},{max(lengths) + 2}}}"
    shapes = Counter(re.sub(r"[^\W\d_]+", "a", re.sub(r"[0-9]+", "9", value)) for value in values)
    if len(shapes) <= 2 and all("9" in shape for shape in shapes):
        forms = [re.escape(shape).replace("9", "[0-9]+").replace("a", r"[^\W\d_]+") for shape in shapes]
        return "|".join(forms)
    if len(lengths) == 1 and min(lengths) >= 6 and all(re.search("[0-9]", value) for value in values):
        return rf"\S{{{min(lengths)}}}" if not any(re.search(r"\s", value) for value in values) else None
    distinct = Counter(values)
    if 2 <= len(distinct) <= _MAX_LABELS and len(values) >= 2 * len(distinct) and not any(" " in v for v in distinct):
        return "|".join(re.escape(value) for value in sorted(distinct))
    return None


def _opens_no_quotes(line: Line) -> bool:
    return not line.text.startswith('"') and '\t"' not in line.text


def _from_first_quote(lines: Iterable[Line]) -> list[Line]:
    """Some thousand lines from the first one on in which a field between tabs starts with a quote."""
    return list(islice(dropwhile(_opens_no_quotes, lines), ROWS_LOOKED_AT))


def _encloses(lines: Sequence[Line], delimiter: str) -> bool:
    """Do quotes enclose fields: all of a column, or those that need it for a quote, delimiter or line end?"""
    rows = [record for record in records.csv_records(iter(lines), Dialect(delimiter)) if not record.lenient]
    width = usual_width(rows)
    kept = [record for record in rows if record.fields and len(record.fields) == width]
    needs, num_plain = 0, 0
    enclosed_by_column: Counter[int] = Counter()
    for record in kept:
        parts = [line.text.rstrip("\r\n").split(delimiter) for line in record.lines]
        if any(re.search(f'[{re.escape(delimiter)}"\n]', field) for field in record.fields or []):
            needs += any('""' in line.text for line in record.lines) or any(len(part) != width for part in parts)
        elif len(parts[0]) == width:
            num_plain += 1
            enclosed_by_column.update(at for at, part in enumerate(parts[0]) if re.fullmatch('".*"', part))
    return needs > 0 or max(enclosed_by_column.values(), default=0) > 0.9 * num_plain
