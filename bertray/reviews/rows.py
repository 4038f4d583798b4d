"""Records of files, shards and rows that the reader passes on: small, picklable, without behaviour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.config import Columns, TextFormat
from bertray.errors import DataRefused
from bertray.io.tables import decoded
from bertray.reviews.clean import Cleaning
from bertray.schema import Reason

ROWS_PER_OFFSET = 4096  # text formats: the byte offset of every 4096th row is remembered
ROWS_PER_SHARD = 4096  # of a file, that a task reads at once; enough reviews to sort by length before they are packed


@dataclass(frozen=True)
class FileEntry:
    """A listed file that nobody has opened yet; for the aclImdb layout, one labelled folder."""

    path: str  # absolute, or a URI
    relative_path: str  # below the folder the user named; part of generated ids
    format: str  # parquet | csv | jsonl | acl_imdb
    size_bytes: int
    modified: str  # time of change in ns, as text; of an object store its tag of the content
    refused: str = ""  # why its path is not read: a link out of the folder the user named, for example
    given: tuple[tuple[str, str | None], ...] = field(default=(), compare=False)
    """Columns with one value for all rows: keys of folder names (`dt=2026-11-20`), or partition values of a table."""
    table: str = field(default="", compare=False)  # root of the Delta table whose log names the file
    table_columns: tuple[str, ...] = field(default=(), compare=False)  # of that table; null in files of before a column
    utc_columns: tuple[str, ...] = field(default=(), compare=False)  # of that table; Spark stores them without a zone

    @property
    def stamp(self) -> tuple[str, int, str]:
        """Identity of the content as listed: path, size and time of change."""
        return self.path, self.size_bytes, self.modified

    def readable(self, num_rows: int, columns: dict[str, str], **findings: Any) -> InputFile:
        """The same file with what was found in it, as in `InputFile`."""
        listed = (self.path, self.relative_path, self.format, self.size_bytes, self.modified)
        added = tuple((name, None) for name in self.table_columns if name not in columns)
        given = dict((*added, *self.given))
        kinds = {name: "null" if value is None else "string" for name, value in given.items()}
        return InputFile(*listed, num_rows, columns | kinds, given=tuple(given.items()), **findings)

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
class Aspects:
    """Source of the aspects of a review.

    Attributes:
        label_columns: column with the label of each aspect, the same aspects for every review; empty with `column`.
        column: column that holds the list of a review's aspects; its labels are the list in `columns.label`.
    """

    label_columns: dict[str, str]
    column: str | None = None

    @classmethod
    def of(cls, config: Any, trained: Mapping[str, str] | None = None) -> Aspects | None:
        """Aspects of a config, or else those that its model was trained for; None: a row is a row.

        Args:
            config: with `columns`, and maybe `aspects`.
            trained: label columns by aspect, of a bundle.
        """
        given = getattr(config, "aspects", None)
        if given:
            return cls(dict(given) if isinstance(given, Mapping) else {name: name for name in given})
        if config.columns.aspects is not None:
            return cls({}, config.columns.aspects)
        return cls(dict(trained)) if trained and config.columns.text_pair is None else None

    def __str__(self) -> str:
        return f"listed in column {self.column!r}" if self.column is not None else ", ".join(self.label_columns)

    def columns(self, label: str, *, wants_label: bool) -> list[str]:
        """Columns to read for the aspects of a row and their labels.

        Args:
            label: the key `columns.label`.
        """
        if self.column is not None:
            return [self.column, *([label] if wants_label else [])]
        return list(self.label_columns.values()) if wants_label else []


@dataclass(frozen=True)
class Expansion:
    """Stored rows [lo, hi) of a file, each of which is several rows.

    Attributes:
        first: number of the first row of the stored row `lo`.
        width: rows of each stored row; 0: `counts` says it.
        counts: uint16, little-endian, rows of each stored row in [lo, hi).
    """

    lo: int
    hi: int
    first: int = 0
    width: int = 0
    counts: bytes = b""

    @cached_property
    def _starts(self) -> np.ndarray:
        """int64 [hi - lo + 1]: number of the first row of each stored row, and of the row behind the last."""
        counts = np.frombuffer(self.counts, "<u2").astype(np.int64)
        return self.first + np.concatenate([[0], np.cumsum(counts)])

    @property
    def end(self) -> int:
        """Number of the row behind the last."""
        of_counts = int(np.frombuffer(self.counts, "<u2").sum(dtype=np.int64))  # nothing cached: it travels small
        return self.first + (self.width * (self.hi - self.lo) if self.width else of_counts)

    def starts_of(self, stored_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the first row, number of rows) of some stored rows, int64 [N] each."""
        if self.width:
            return self.first + (stored_N - self.lo) * self.width, np.full(len(stored_N), self.width)
        starts = self._starts
        return starts[stored_N - self.lo], starts[stored_N - self.lo + 1] - starts[stored_N - self.lo]

    def cut(self, lo: int, hi: int) -> Expansion:
        """The stored rows that hold the rows [lo, hi)."""
        if self.width:
            first, last = (lo - self.first) // self.width, -(-(hi - self.first) // self.width)
            return replace(self, lo=self.lo + first, hi=self.lo + last, first=self.first + first * self.width)
        starts = self._starts
        first = int(np.searchsorted(starts, lo, side="right")) - 1
        last = int(np.searchsorted(starts, hi, side="left"))
        counts = self.counts[2 * first : 2 * last]
        return Expansion(self.lo + first, self.lo + last, int(starts[first]), counts=counts)


@dataclass(frozen=True)
class AspectRows:
    """Additions of the expansion to some rows.

    Attributes:
        stored_M: int64, row of the file that each row comes from.
        names: string or binary [M], the aspect; null where none can be read.
        labels: string [M], canonical, null where the aspect has none; None where no labels were asked for.
        problem_M: int8, a key of `aspects.PROBLEMS`, or 0.
    """

    stored_M: np.ndarray
    names: pa.Array
    labels: pa.Array | None
    problem_M: np.ndarray

    def filter(self, mask_M: np.ndarray) -> AspectRows:
        """Some of the rows."""
        mask = pa.array(mask_M)
        labels = None if self.labels is None else self.labels.filter(mask)
        return AspectRows(self.stored_M[mask_M], self.names.filter(mask), labels, self.problem_M[mask_M])


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
    expansion: Expansion | None = None  # rows are one for each aspect of what is stored; `num_rows` counts them
    given: tuple[tuple[str, str | None], ...] = ()  # columns that are not in the file, with their value in every row

    @property
    def entry(self) -> FileEntry:
        """The file as it was listed."""
        listed = (self.path, self.relative_path, self.format, self.size_bytes, self.modified)
        return FileEntry(*listed, given=self.given)


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
    expansion: Expansion | None = None  # the stored rows behind [lo, hi), where each is a row for each aspect


# A work unit, tokenized, scored and written in one piece: a shard of a large file, or those of several small files.
WorkUnit = tuple[Shard, ...]


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
    aspects: Aspects | None = None  # a review is a row for each of them

    @property
    def has_pair(self) -> bool:
        """The model reads a second text: a column, or an aspect."""
        return self.columns.text_pair is not None or self.aspects is not None


@dataclass(frozen=True)
class ReviewBatch:
    """The rows of one shard: `rows_in == kept.num_rows + refused.num_rows`, always.

    kept: `row_no` int64, `id`, `text`, [`text_pair`], [`label`, nullable] string, `cut` bool, `script` string, then
    `keep:<name>` columns in their own types. refused: `schema.REFUSED_SCHEMA`. With aspects both end with `input_row`
    int64, the row of the file, and `text_pair` is the aspect. Both in row order, maybe chunked.
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
    input_row: int | None = None  # of the file, where `row_no` counts rows of aspects


@dataclass(frozen=True)
class RawRows:
    """Consecutive rows of a file as they were read: some have values, the others a fault."""

    row_nos: np.ndarray  # int64 [N], ascending: the rows that have values
    columns: dict[str, pa.Array]  # each of the same length N
    faults: tuple[RowFault, ...] = ()
    aspects: AspectRows | None = None  # after the expansion

    def of(self, period: Period | None) -> RawRows:
        """The rows of a period; faults have no time and stay."""
        if period is None or period.column not in self.columns:
            return self
        return self.where(period.mask(self.columns[period.column]).to_numpy(zero_copy_only=False))

    def beside(self, given: Iterable[tuple[str, str | None]]) -> RawRows:
        """The rows with further columns, each of one value."""
        num_rows = len(self.row_nos)
        columns = {n: pa.nulls(num_rows) if value is None else pa.repeat(value, num_rows) for n, value in given}
        return replace(self, columns=self.columns | columns)

    def joined(self, names: Sequence[str], name: str) -> RawRows:
        """The rows with some text columns as one, a line each; null where all of them are."""
        texts = [decoded(self.columns[each]) for each in names]
        is_text = all(pa.types.is_string(each.type) or pa.types.is_null(each.type) for each in texts)
        texts = [each.cast(pa.string() if is_text else pa.binary()) for each in texts]
        some = pc.is_valid(pc.coalesce(*texts))
        line = pa.scalar("\n", texts[0].type)
        # Of a row of nulls alone "skip" of pyarrow 26 gives no value at all: the result would be shorter.
        text = pc.binary_join_element_wise(*texts, line, null_handling="replace", null_replacement="")
        return replace(self, columns=self.columns | {name: pc.if_else(some, text, pa.scalar(None, text.type))})

    def only(self, row_nos_W: np.ndarray) -> RawRows:
        """The rows, and faults, of some row numbers."""
        faults = tuple(fault for fault in self.faults if fault.row_no in row_nos_W)
        return replace(self, faults=faults).where(np.isin(self.row_nos, row_nos_W))

    def within(self, lo: int, hi: int) -> RawRows:
        """The rows, and faults, with numbers in [lo, hi)."""
        faults = tuple(fault for fault in self.faults if lo <= fault.row_no < hi)
        return replace(self, faults=faults).where((self.row_nos >= lo) & (self.row_nos < hi))

    def where(self, mask_N: np.ndarray) -> RawRows:
        """The rows of a mask, and all faults."""
        columns = {name: values.filter(pa.array(mask_N)) for name, values in self.columns.items()}
        aspects = None if self.aspects is None else self.aspects.filter(mask_N)
        return replace(self, row_nos=self.row_nos[mask_N], columns=columns, aspects=aspects)
