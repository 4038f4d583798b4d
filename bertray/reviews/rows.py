"""Records of files, shards and rows that the reader passes on: small, picklable, without behaviour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.config import Columns, TextFormat
from bertray.errors import DataRefused
from bertray.reviews.clean import Cleaning
from bertray.schema import Reason

ROWS_PER_OFFSET = 4096  # text formats: the byte offset of every 4096th row is remembered


@dataclass(frozen=True)
class FileEntry:
    """A listed file that nobody has opened yet; for the aclImdb layout, one labelled folder."""

    path: str  # absolute, or a URI
    relative_path: str  # below the folder the user named; part of generated ids
    format: str  # parquet | csv | jsonl | acl_imdb
    size_bytes: int
    modified: str  # modification time in ns, as text
    refused: str = ""  # why its path is not read: a link out of the folder the user named, for example

    @property
    def stamp(self) -> tuple[str, int, str]:
        """Identity of the content as listed: path, size and time of change."""
        return self.path, self.size_bytes, self.modified

    def bad(self, reason: Reason, detail: str, num_rows: int | None = None) -> BadFile:
        """The same file as one that cannot be used."""
        return BadFile(self.path, self.relative_path, self.size_bytes, self.modified, reason, detail[:200], num_rows)


@dataclass(frozen=True)
class Dialect:
    """Dialect of one delimited file, decided once from its first rows for every shard of it.

    Attributes:
        escape: a character before a quote, a delimiter or itself takes away its meaning; empty: none.
        spaces_before_quotes: spaces behind a delimiter are no part of the field, so that a quote may follow them.
        skip_lines: lines before the first row.
        width: number of columns.
        header_as_written: names of the columns; () without a header.
        header: the same in lower case, without spaces around.
        extra_empty: rows may end with more delimiters than the header.
        marks: (column, regular expression) of the columns whose values tell a row from a line of text.
        rising: column of whole numbers that grow by at most `largest_step` from row to row.
    """

    delimiter: str = ","
    quoting: bool = True
    escape: str = ""
    spaces_before_quotes: bool = False
    skip_lines: int = 0
    width: int = 0
    header_as_written: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    extra_empty: bool = False
    marks: tuple[tuple[int, str], ...] = ()
    rising: int | None = None
    largest_step: int = 0

    def unescaped(self, line: str) -> str:
        """A line for the csv module, for which an escape before any other character has to be escaped itself."""
        if self.escape not in line:
            return line
        after = {self.escape, '"', self.delimiter, "\r", "\n"}
        pairs = re.finditer(f"{re.escape(self.escape)}(.?)|[^{re.escape(self.escape)}]+", line, re.DOTALL)
        return "".join(
            self.escape + pair[0] if pair[1] is not None and pair[1] not in after else pair[0] for pair in pairs
        )

    def columns_marked(self, lo: int = 0, hi: int | None = None) -> list[tuple[int, str]]:
        """Marks of the columns [lo, hi)."""
        return [mark for mark in self.marks if lo <= mark[0] < (self.width if hi is None else hi)]

    def matches(
        self, fields: list[str], marks: list[tuple[int, str]], *, first: int = 0, before: list[str] | None = None
    ) -> bool:
        """Do the fields of a line have the marks?

        Args:
            fields: of columns from `first` on.
            marks: some of `marks`.
            before: fields of the row before, after which a rising number has to go on.
        """
        if not all(re.fullmatch(pattern, fields[at - first].strip().strip('"')) for at, pattern in marks):
            return False
        if before is None or self.rising is None or self.rising not in [at for at, _ in marks]:
            return True
        here, above = fields[self.rising - first].strip().strip('"'), before[self.rising].strip().strip('"')
        return not above.isdecimal() or 0 < int(here) - int(above) <= 4 * self.largest_step


@dataclass(frozen=True)
class InputFile:
    """A file that can be read: its rows are counted and its columns known."""

    path: str
    relative_path: str
    format: str
    size_bytes: int
    modified: str
    num_rows: int
    columns: dict[str, str]  # name -> Arrow type as text; "repeated" for a name that stands twice
    row_offsets: tuple[int, ...] = ()  # byte offset of rows 0, 4096, 8192, ...; () where a file has to be streamed
    fingerprint: str = ""  # digest of the first and last 64 KiB: files of one size with another one are different
    digest: str | None = None  # sha256 of the content, where it has been read as a whole
    dialect: Dialect | None = None  # of a delimited file
    arrow_schema: bytes = b""  # of Parquet: types of the columns, serialized
    notes: tuple[str, ...] = ()  # what a person should know of the file, such as a header that stands twice

    @property
    def entry(self) -> FileEntry:
        """The file as it was listed."""
        return FileEntry(self.path, self.relative_path, self.format, self.size_bytes, self.modified)


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be read at all, and why."""

    path: str
    relative_path: str
    size_bytes: int
    modified: str
    reason: Reason
    detail: str
    num_rows: int | None  # None: unknown


@dataclass(frozen=True)
class Shard:
    """Rows [lo, hi) of one input file: the unit of reading."""

    file: InputFile  # without row_offsets and arrow_schema: this shard's own start is below
    file_no: int
    lo: int
    hi: int
    duplicates: tuple[int, ...] = ()  # rows in [lo, hi) whose id stands earlier in the file
    start_row: int = 0  # reading a text file starts here ...
    start_byte: int | None = None  # ... at this byte; None: at the start of the file


# What is tokenized, scored and written in one piece: a shard of a large file, or those of several small files.
WorkItem = tuple[Shard, ...]


@dataclass(frozen=True)
class Period:
    """The rows on one side of a moment; a row without a time stands before it.

    Args:
        column: of strings in ISO form, dates or timestamps, compared as text; a time zone is not looked at.
        moment: `2026-11-01`, or with a time of day.
        after: the rows from the moment on, or those before it.
    """

    column: str
    moment: str
    after: bool

    def __str__(self) -> str:
        return f"with {self.column} {'from' if self.after else 'before'} {self.moment}{' on' if self.after else ''}"

    def times(self, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """string [N]: values of `column` in one form, null where there is no time."""
        if pa.types.is_binary(values.type):  # of a text file, where one of them is no valid Unicode
            said = [None if value is None else value.decode("utf-8", "replace") for value in values.to_pylist()]
            values = pa.array(said, pa.string())
        text = pc.replace_substring(pc.utf8_trim_whitespace(values.cast(pa.string())), "T", " ", max_replacements=1)
        return pc.if_else(pc.equal(text, ""), None, text)  # as a blank cell of a CSV file reads

    def odd_times(self, text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Those of `times` that are no times in ISO form."""
        return text.filter(pc.invert(pc.fill_null(pc.match_substring_regex(text, r"^\d{4}-\d{2}-\d{2}"), True)))

    def refusal(self, odd: str) -> DataRefused:
        """The error about a value that is no time."""
        return DataRefused(
            f"data.time: expected {self.column!r} to hold times in ISO form, such as 2026-11-01, found {odd[:40]!r}.",
            "Write the column as dates, or give data.test as a file.",
        )

    def mask(self, times: pa.Array | pa.ChunkedArray) -> pa.Array:
        """bool [N]: rows of the period, by their values of `column`.

        Raises:
            DataRefused: a value is no time in ISO form.
        """
        text = self.times(times)
        odd = self.odd_times(text)
        if len(odd):
            raise self.refusal(odd[0].as_py())
        is_after = pc.fill_null(pc.greater_equal(text, self.moment.replace("T", " ")), False)
        return is_after if self.after else pc.invert(is_after)


class RowVisitor(Protocol):
    """Sees values of all rows of a file while they are counted."""

    def wanted(self, columns: Mapping[str, str] | None) -> list[str]:
        """Columns to show, of those that a file has; None: which it has is known only at its end."""

    def visit(self, rows: RawRows) -> None:
        """Called with consecutive rows, in order; rows that cannot be read as rows are not among them."""


@dataclass(frozen=True)
class ReadSpec:
    """Settings by which rows are read, checked and cleaned."""

    columns: Columns = field(default_factory=Columns)
    reader: TextFormat = field(default_factory=TextFormat)
    keep_columns: tuple[str, ...] = ()
    wants_label: bool = False
    cleaning: Cleaning = field(default_factory=Cleaning)
    max_chars: int = 20_000  # longer texts are cut
    max_text_chars: int = 5_000_000  # longer texts are refused
    unique_ids: bool = True
    period: Period | None = None  # rows outside of it are neither kept nor refused


@dataclass(frozen=True)
class ReviewBatch:
    """The rows of one shard: `rows_in == kept.num_rows + refused.num_rows`, always.

    kept: `row_no` int64, `id`, `text`, [`text_pair`], [`label`, nullable] string, `cut` bool, `script` string, then
    `keep:<name>` columns in their own types. refused: `schema.REFUSED_SCHEMA`. Both in row order, maybe chunked.
    """

    kept: pa.Table
    refused: pa.Table
    rows_in: int


@dataclass(frozen=True)
class RowFault:
    """A row that could not be read as a row. Holds a digest, never its text."""

    row_no: int
    reason: Reason
    detail: str
    text_sha256: str | None = None
    text_len: int | None = None


@dataclass(frozen=True)
class RawRows:
    """Consecutive rows of a file as they were read: some have values, the others a fault."""

    row_nos: np.ndarray  # int64 [N], ascending: the rows that have values
    columns: dict[str, pa.Array]  # each of the same length N
    faults: tuple[RowFault, ...] = ()

    def of(self, period: Period | None) -> RawRows:
        """The rows of a period; faults have no time and stay."""
        if period is None or period.column not in self.columns:
            return self
        mask = period.mask(self.columns[period.column])
        columns = {name: values.filter(mask) for name, values in self.columns.items()}
        return replace(self, row_nos=self.row_nos[mask.to_numpy(zero_copy_only=False)], columns=columns)

    def only(self, row_nos_W: np.ndarray) -> RawRows:
        """The rows, and faults, of some row numbers."""
        mask_N = np.isin(self.row_nos, row_nos_W)
        columns = {name: values.filter(pa.array(mask_N)) for name, values in self.columns.items()}
        faults = tuple(fault for fault in self.faults if fault.row_no in row_nos_W)
        return replace(self, row_nos=self.row_nos[mask_N], columns=columns, faults=faults)
