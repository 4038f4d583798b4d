"""Work units to tokenized reviews: read, clean, tokenize; what a task does before a model is at work."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.io.tables import one_chunk
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.reader import ReadSpec, Shard, WorkItem, read_shard
from bertray.reviews.split import group_hash, group_or_text_hash, input_hash


@dataclass(frozen=True)
class ReadSettings:
    """Settings of a reading task; small, because every task carries them."""

    spec: ReadSpec
    model: str
    max_length: int
    long_text: str
    group_column: str | None = None  # column whose equal values stay in one split; by default the text itself


@functools.lru_cache(maxsize=4)
def _tokenizer(model: str, max_length: int, long_text: str) -> ReviewTokenizer:
    """One tokenizer a process, whatever the number of shards it reads."""
    return ReviewTokenizer(resolve_model(model), max_length, long_text)


@dataclass(frozen=True)
class ReadAndTokenize:
    """A work unit to its tokenized reviews, kept and refused rows together.

    A refused row has a `reason` and no tokens; so each row of a unit travels exactly once, and a later stage counts the
    rows that were read.

    Args:
        settings: how to read.
        only_rows: file_no -> numbers of the rows that are wanted, ascending; others are not cleaned, and no refused row
            is given. None: every row.
    """

    settings: ReadSettings
    only_rows: Mapping[int, np.ndarray] | None = None

    def __call__(self, item: WorkItem) -> pa.Table:
        """Rows of a work unit; they are tokenized in one go, however many files they come from."""
        batches = [(shard, read_shard(shard, self.settings.spec, self._rows_of(shard))) for shard in item]
        kept = self._tokenized([_with_path(_of_file(batch.kept, shard), shard) for shard, batch in batches])
        if self.only_rows is not None:
            return kept
        refused = [_of_file(batch.refused, shard) for shard, batch in batches]
        return pa.concat_tables([kept, *(rows for rows in refused if rows.num_rows)], promote_options="default")

    def _rows_of(self, shard: Shard) -> np.ndarray | None:
        return None if self.only_rows is None else self.only_rows.get(shard.file_no, np.empty(0, np.int64))

    def _tokenized(self, tables: Sequence[pa.Table]) -> pa.Table:
        settings = self.settings
        kept = pa.concat_tables(tables, promote_options="default")
        tokenizer = _tokenizer(settings.model, settings.max_length, settings.long_text)
        texts = one_chunk(kept[s.TEXT])
        pairs = one_chunk(kept[s.TEXT_PAIR]) if s.TEXT_PAIR in kept.column_names else None
        tokens = tokenizer.encode(texts, pairs)
        # A text that was cut before tokenizing is truncated too, whatever the tokenizer saw of it.
        truncated = pc.or_(one_chunk(tokens[s.TRUNCATED]), one_chunk(kept[s.CUT]))
        tokens = tokens.set_column(tokens.column_names.index(s.TRUNCATED), s.TRUNCATED, truncated)
        columns = {name: kept[name] for name in kept.column_names if name not in (s.TEXT, s.TEXT_PAIR, s.CUT)}
        columns |= {name: tokens[name] for name in tokens.column_names}
        group = settings.group_column
        text_hash_N = group_hash(texts)
        columns[s.TEXT_HASH] = pa.array(text_hash_N)
        columns[s.INPUT_HASH] = pa.array(input_hash(text_hash_N, texts, pairs))
        columns |= tokenizer.coverage(texts)
        if group is not None:
            columns[s.GROUP_HASH] = pa.array(group_or_text_hash(one_chunk(kept[s.KEEP_PREFIX + group]), texts))
        else:
            columns[s.GROUP_HASH] = columns[s.TEXT_HASH]
        for name in (s.REASON, s.DETAIL, s.TEXT_SHA256, s.TEXT_LEN):
            columns[name] = pa.nulls(kept.num_rows, s.REFUSED_SCHEMA.field(name).type)
        return pa.table(columns)


def name_of(item: WorkItem) -> str:
    """Its first rows, to name a work unit in messages."""
    return f"{item[0].file.path} rows {item[0].lo}-{item[0].hi}"


def num_rows_of(work: Sequence[WorkItem]) -> int:
    """Rows of some work units."""
    return sum(shard.hi - shard.lo for item in work for shard in item)


def _with_path(rows: pa.Table, shard: Shard) -> pa.Table:
    return rows.append_column(s.INPUT_PATH, pa.repeat(pa.scalar(shard.file.path), rows.num_rows))


def _of_file(rows: pa.Table, shard: Shard) -> pa.Table:
    return rows.append_column(s.FILE_NO, pa.array(np.full(rows.num_rows, shard.file_no, np.int32)))
