"""Records of delimited text found in blocks of bytes, as far as they are written by the book (RFC 4180).

The exact rules (`text_records.csv_records`) look at every record in Python. Most files are by the book: each quote
opens right after a delimiter or line end, or closes right before one, or is one of a pair. A few passes over the bytes
tell how far that holds; there the line ends outside of quotes are the ends of records, and Arrow's CSV reader gives the
same fields. The first record that is not by the book, or may be a header that stands again, is left to the exact rules.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from bertray.reviews.formats.text_records import BYTE_ORDER_MARK, codec_name, holds_rows
from bertray.reviews.rows import Dialect

_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_SPACES = b" \t\v\f\r\x1c\x1d\x1e\x1f"
NULL = b"\\N"  # as MySQL, Hive and PostgreSQL write it


@dataclass(frozen=True)
class PlainRecords:
    """Records at the start of a block.

    Attributes:
        starts_R: int64 [R] byte positions in the block; blank lines are no records.
        end: bytes of the block up to the end of the last record, blank lines among them.
        stopped: the record behind them is for the exact rules; else the block ends before the record does.
    """

    starts_R: np.ndarray
    end: int
    stopped: bool


class PlainCsv:
    """Finds records that are by the book in blocks of a file.

    Args:
        dialect: of the file.
        encoding: of the file; `byte_window.keeps_ascii`.
    """

    def __init__(self, dialect: Dialect, encoding: str) -> None:
        self._dialect, self._encoding = dialect, codec_name(encoding)
        delimiter = dialect.delimiter.encode(self._encoding, "replace")
        # A delimiter of several bytes, or one that means something else, too, is for the exact rules.
        self._usable = len(delimiter) == 1 and delimiter not in (b'"', b"\n", b"\r")
        self._delimiter = delimiter[0]
        self._mark = BYTE_ORDER_MARK.encode(self._encoding, "ignore")
        # With escapes, or spaces before quotes, only records without any of these are by the book.
        self._bad_bytes = dialect.escape.encode(self._encoding, "replace") if dialect.escape else b""
        self._quotes_are_bad = dialect.quoting and bool(dialect.escape or dialect.spaces_before_quotes)
        self._of_header = _header_bytes(dialect.header[0], delimiter[0]) if dialect.header else []

    def records(self, block: bytes, is_last: bool) -> PlainRecords:
        """Records by the book from the start of a block, which is the start of a record.

        Args:
            block: some bytes.
            is_last: the file ends with them.
        """
        if not self._usable:
            return PlainRecords(np.empty(0, np.int64), 0, stopped=True)
        raw_B = np.frombuffer(block, np.uint8)
        ends_L = np.flatnonzero(raw_B == _NEWLINE)
        if is_last and len(raw_B) and raw_B[-1] != _NEWLINE:
            ends_L = np.append(ends_L, len(raw_B))  # as if there were a line end
        bad = [len(raw_B) + 1]  # positions of what is not by the book; the first counts
        multiline_starts = np.empty(0, np.int64)
        if self._dialect.quoting:
            quotes_Q = np.flatnonzero(raw_B == _QUOTE)
            if len(quotes_Q) and self._quotes_are_bad:
                bad.append(int(quotes_Q[0]))
            elif len(quotes_Q):
                bad.append(_first_odd_quote(raw_B, quotes_Q, self._delimiter, is_last))
                inside_L = np.searchsorted(quotes_Q, ends_L) % 2 == 1
                outer = ends_L[~inside_L]
                starts = np.concatenate([[0], outer + 1])
                multiline_starts = np.unique(starts[np.searchsorted(outer, ends_L[inside_L])])
                ends_L = outer
            returns = np.flatnonzero(raw_B == _RETURN)
            returns = returns[~_is_before_newline(raw_B, returns)]
            if len(quotes_Q):
                returns = returns[np.searchsorted(quotes_Q, returns) % 2 == 0]
        else:
            returns = np.flatnonzero(raw_B == _RETURN)
            returns = returns[~_is_before_newline(raw_B, returns)]
        bad += returns[:1].tolist()
        bad += [at for byte in self._bad_bytes if (at := block.find(byte)) >= 0]
        starts_R = np.concatenate([[0], ends_L + 1])[: len(ends_L)]
        bad += self._first_special_start(block, raw_B, starts_R)
        first_bad = min(bad)
        count = int(np.searchsorted(starts_R, first_bad, side="right"))
        if first_bad <= len(raw_B) and count:  # the record that holds it
            count -= ends_L[count - 1] >= first_bad
        multiline = multiline_starts[multiline_starts < (ends_L[count - 1] if count else 0)]
        wrong = self._first_of_rows(block, starts_R, ends_L, multiline)
        if wrong is not None:
            count = wrong
        stopped = wrong is not None or first_bad <= len(raw_B)
        end = min(int(ends_L[count - 1]) + 1, len(raw_B)) if count else 0
        starts_R, ends_R = starts_R[:count], ends_L[:count]
        size_R = ends_R - starts_R
        blank_R = (size_R == 0) | ((size_R == 1) & (raw_B[np.minimum(starts_R, len(raw_B) - 1)] == _RETURN))
        return PlainRecords(starts_R[~blank_R], end, stopped)

    def _first_special_start(self, block: bytes, raw_B: np.ndarray, starts_R: np.ndarray) -> list[int]:
        """Position of the first record that begins with a byte order mark, or may be the header again."""
        found: list[int] = []
        at = block.find(self._mark) if self._mark else -1
        while at >= 0 and not found:
            if at == 0 or raw_B[at - 1] == _NEWLINE:
                found.append(at)
            at = block.find(self._mark, at + 1)
        if not self._of_header or not len(starts_R):
            return found
        padded_B = np.concatenate([raw_B, np.zeros(len(self._of_header) + 2, np.uint8)])
        quoted = self._dialect.quoting
        alike = starts_R
        begins = alike + (padded_B[alike] == _QUOTE) if quoted else alike
        unsure = np.zeros(len(alike), bool)  # spaces, or letters that fold to others: looked at in Python
        for at_letter, table in enumerate(self._of_header):
            kind = table[padded_B[begins + at_letter]]
            unsure |= kind == 2
            keep = (kind > 0) | unsure
            alike, begins, unsure = alike[keep], begins[keep], unsure[keep]
            if not len(alike):
                return found
        first = self._dialect.header[0]
        is_odd = self._dialect.delimiter in first or '"' in first
        for start in alike.tolist():
            if is_odd or self._first_field(block, start).strip().casefold() == first:
                return [*found, start]
        return found

    def _first_field(self, block: bytes, start: int) -> str:
        """First field of a record, without quotes."""
        end = block.find(b"\n", start)
        line = block[start : end if end >= 0 else len(block)].decode(self._encoding, "surrogateescape")
        return line.split(self._dialect.delimiter, 1)[0].strip().strip('"')

    def _first_of_rows(
        self, block: bytes, starts_R: np.ndarray, ends_R: np.ndarray, multiline: np.ndarray
    ) -> int | None:
        """Number of the first record of several lines that are rows of their own; see `holds_rows`."""
        if not self._dialect.marks:
            return None
        for number in np.searchsorted(starts_R, multiline).tolist():
            text = block[starts_R[number] : ends_R[number] + 1].decode(self._encoding, "surrogateescape")
            fields = next(csv.reader(io.StringIO(text, newline="\n"), delimiter=self._dialect.delimiter), [])
            if fields and holds_rows(fields, self._dialect):
                return int(number)
        return None

    def values(self, block: bytes, positions: Sequence[int]) -> list[pa.Array] | None:
        """binary [R] of some columns of records by the book; None: not all of them have the usual number of fields.

        Args:
            block: whole records, and nothing else.
            positions: of the columns.
        """
        if self._encoding != "utf-8" or self._dialect.escape or self._dialect.spaces_before_quotes:
            return None
        names = [str(number) for number in range(self._dialect.width)]
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block),
                pa_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
                pa_csv.ParseOptions(
                    delimiter=self._dialect.delimiter,
                    quote_char='"' if self._dialect.quoting else False,
                    double_quote=True,
                    newlines_in_values=self._dialect.quoting,
                ),
                pa_csv.ConvertOptions(
                    check_utf8=False,
                    column_types={names[at]: pa.binary() for at in positions},
                    include_columns=[names[at] for at in dict.fromkeys(positions)],
                    strings_can_be_null=False,
                    quoted_strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        columns = [table[names[at]].combine_chunks() for at in positions]
        return [pc.if_else(pc.equal(values, pa.scalar(NULL)), None, values) for values in columns]


def _first_odd_quote(raw_B: np.ndarray, quotes_Q: np.ndarray, delimiter: int, is_last: bool) -> int:
    """Position of the first quote that neither opens a field nor closes one nor is one of a pair."""
    opening, closing = quotes_Q[0::2], quotes_Q[1::2]
    before = raw_B[np.maximum(opening - 1, 0)]
    opens = (opening == 0) | (before == delimiter) | (before == _NEWLINE)
    opens[1:] |= opening[1:] == closing[: len(opening) - 1] + 1
    after = raw_B[np.minimum(closing + 1, len(raw_B) - 1)]
    closes = (after == delimiter) | (after == _NEWLINE)
    closes |= (after == _RETURN) & _is_before_newline(raw_B, closing + 1)
    paired = np.zeros(len(closing), bool)
    paired[: len(opening) - 1] = opening[1:] == closing[: len(opening) - 1] + 1
    # What stands behind the last byte is not known; a record that ends there is not taken unless the file ends, too.
    closes |= paired | (closing == len(raw_B) - 1)
    odd = [*opening[~opens][:1].tolist(), *closing[~closes][:1].tolist()]
    if is_last and len(quotes_Q) % 2:
        odd.append(int(opening[-1]))  # never closed
    return min(odd, default=len(raw_B) + 1)


def _is_before_newline(raw_B: np.ndarray, at_P: np.ndarray) -> np.ndarray:
    """bool [P]: a line feed stands behind the position, or nothing that is known yet."""
    is_before_P: np.ndarray = (at_P + 1 >= len(raw_B)) | (raw_B[np.minimum(at_P + 1, len(raw_B) - 1)] == _NEWLINE)
    return is_before_P


def _header_bytes(name: str, delimiter: int) -> list[np.ndarray]:
    """Tables int8 [256] for the first bytes of a field that may be a name: 0 not so, 1 possible, 2 compare as text."""
    letters = []
    for letter in name[:8]:
        if not letter.isascii():
            break
        letters.append([ord(letter.lower()), ord(letter.upper())])
    tables = []
    for possible in letters or [[] if name else [delimiter, _NEWLINE, _RETURN]]:
        table = np.zeros(256, np.int8)
        table[128:] = 2  # letters that fold to ASCII ones, and spaces of other scripts
        table[[*_SPACES, _QUOTE]] = 2
        table[possible] = 1
        tables.append(table)
    return tables
