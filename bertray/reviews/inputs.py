"""What the reader knows of files, shards and rows: small, picklable records without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.config import Cleaning, Columns, TextFormat
from bertray.errors import DataRefused
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
    outside_root: bool = False  # a link that leads out of the folder the user named

    def bad(self, reason: Reason, detail: str, num_rows: int | None = None) -> BadFile:
        """The same file as one that cannot be used."""
        return BadFile(self.path, self.relative_path, self.size_bytes, self.modified, reason, detail[:200], num_rows)


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
    digest: str | None = None  # sha256 of the content, where `with_digests` was asked for it


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

    file: InputFile  # without row_offsets: this shard's own start is below
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

    def mask(self, times: pa.Array | pa.ChunkedArray) -> pa.Array:
        """bool [N]: rows of the period, by their values of `column`.

        Raises:
            DataRefused: a value is no time in ISO form.
        """
        text = self.times(times)
        odd = pc.invert(pc.fill_null(pc.match_substring_regex(text, r"^\d{4}-\d{2}-\d{2}"), True))
        if pc.any(odd).as_py():
            raise DataRefused(
                f"data.time: expected {self.column!r} to hold times in ISO form, such as 2026-11-01, found "
                f"{text.filter(odd)[0].as_py()[:40]!r}.",
                "Write the column as dates, or give data.test as a file.",
            )
        is_after = pc.fill_null(pc.greater_equal(text, self.moment.replace("T", " ")), False)
        return is_after if self.after else pc.invert(is_after)


@dataclass(frozen=True)
class ReadSpec:
    """How rows are read, checked and cleaned."""

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
