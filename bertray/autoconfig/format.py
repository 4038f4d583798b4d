"""Format, encoding and dialect of files, guessed from their first bytes and rows."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Sequence
from typing import Any

from bertray.autoconfig.columns import TEXT_NAME_PATTERN
from bertray.config import TextFormat
from bertray.errors import ConfigError
from bertray.reviews.file_access import check_uri, is_file, reading, scheme_of
from bertray.reviews.formats import dialects
from bertray.reviews.formats import text_records as records
from bertray.reviews.listing import format_of
from bertray.reviews.rows import Dialect, FileEntry

_DENSE = 0.3  # share of bytes beyond ASCII from which on a text is hardly in Latin letters
_DENSE_ENCODINGS = (
    *("gb18030", "big5", "cp932", "euc_jp", "cp949"),  # Chinese, Japanese, Korean
    *("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "tis_620"),  # Cyrillic, Greek, Hebrew, Arabic, Thai
)


def with_guesses(reader: TextFormat, **guesses: Any) -> TextFormat:
    """The reader with guesses for what was not set explicitly."""
    fresh = {key: value for key, value in guesses.items() if key not in reader.model_fields_set}
    stated = {key: getattr(reader, key) for key in reader.model_fields_set}
    return TextFormat(**{**fresh, **stated})


def guess_format(paths: Sequence[str], reader: TextFormat) -> tuple[TextFormat, list[str]]:
    """Reader for a single file whose name has no known extension; its format is guessed from the content."""
    notes: list[str] = []
    if reader.format != "auto" or len(paths) != 1 or scheme_of(paths[0]) == "hub":
        return reader, notes
    check_uri(paths[0])
    if not is_file(paths[0]) or format_of(paths[0], reader) is not None:
        return reader, notes
    head = head_of(paths[0]).raw
    start = head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
    if b"\0" in head[:4096] and dialects.wide_encoding(head) is None:
        raise ConfigError(f"{paths[0]}: expected text or Parquet, found other bytes.", "Convert it first.")
    if start == b"<":
        raise ConfigError(
            f"{paths[0]}: expected Parquet, CSV, TSV or JSON Lines, found what looks like XML.", "Convert it first."
        )
    notes.append("format guessed from the content, since the file name has no known extension")
    return with_guesses(reader, format="jsonl" if start == b"{" else "csv"), notes


def head_of(path: str) -> records.Head:
    """First bytes of a file, unpacked."""
    with reading(path):
        return records.read_head(path)


def guess_encoding(head: bytes, notes: list[str]) -> str:
    """Name of the codec of a file's first bytes; a note where it is a guess.

    UTF-16 and UTF-8 are certain. Text with few bytes beyond ASCII is read as cp1252: charset-normalizer confuses that
    with cp1250 and, in short texts, with big5. Text with many is in another script, and charset-normalizer tells which;
    but it takes Japanese in cp932 for Hangul in cp949. Hangul never looks like cp932 to it, so cp932 wins over cp949.
    """
    from charset_normalizer import from_bytes

    wide = dialects.wide_encoding(head)
    if wide is not None:
        return wide
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
        return "utf-8"
    guess = "cp1252"
    if sum(byte >= 0x80 for byte in head) > _DENSE * len(head):
        whole_lines = head[: head.rfind(b"\n") + 1] or head
        found = [match.encoding for match in from_bytes(whole_lines, cp_isolation=list(_DENSE_ENCODINGS))]
        guess = "cp932" if found[:1] == ["cp949"] and "cp932" in found else (found or ["gb18030"])[0]
    notes.append(f"not UTF-8; reader.encoding={guess} is a guess")
    return guess


def guess_delimited(entry: FileEntry, reader: TextFormat, notes: list[str]) -> TextFormat:
    """Delimiter, quotes, lines to skip and header of a delimited file, from its first rows."""
    head = head_of(entry.path)
    reader = with_guesses(reader, encoding=guess_encoding(head.raw, notes))
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
    return with_guesses(reader, **guesses)


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
        return bool(rows) and any(TEXT_NAME_PATTERN.search(cell) for cell in rows[0])
    words = [cell.strip() for cell in dialects.without_empty_end(rows[0])]
    names = [word.casefold() for word in words]
    rest = [row for row in rows[1:] if [cell.strip().casefold() for cell in row] != names]  # it may stand again
    if sum(not word for word in words) > 1 or len(set(words)) < len(words):
        return False
    if any(len(word) > 40 or re.fullmatch(r"[-+]?[\d.,]+", word) for word in words):
        return False
    below = [{row[at].strip() for row in rest if at < len(row)} for at in range(len(words))]
    return not any(word and word in seen for word, seen in zip(words, below, strict=True))
