"""Work units to tokenized reviews: read, clean, tokenize; what a task does before a model is at work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.execution import metrics
from bertray.io.tables import one_chunk
from bertray.model.bundle import kept_of_model
from bertray.model.stack import read_term_scorer
from bertray.model.tokenization import ReviewTokenizer
from bertray.model.units import encode_with_units
from bertray.reviews.fetch import Wanted
from bertray.reviews.kept_rows import Keep
from bertray.reviews.reader import read_shard, read_shard_as
from bertray.reviews.rows import ReadSpec, ReviewBatch, Shard, WorkUnit
from bertray.reviews.split import group_hash, group_or_text_hash, input_hash
from bertray.scoring.profiled import column_of, seen_ngrams, text_profile
from bertray.settings import VocabularyUnit


@dataclass(frozen=True)
class ReadSettings:
    """Settings of a reading task; small, because every task carries them."""

    spec: ReadSpec
    model: str
    max_length: int
    long_text: str
    group_column: str | None = None  # column whose equal values stay in one split; by default the text itself
    with_terms: bool = False  # of a stack, the part of its logits that comes from terms is computed too
    unit: VocabularyUnit | None = None  # whose occurrences are found too
    profile_share: float | None = None  # of the rows whose n-grams are looked at for the profile; None: no profile


_tokenizer = kept_of_model(ReviewTokenizer)
_term_scorer = kept_of_model(read_term_scorer)


ReadUnit = WorkUnit | Wanted
"""Rows that a task tokenizes in one go: shards of input files, or rows that were kept when these were read."""


@dataclass(frozen=True)
class ReadAndTokenize:
    """A work unit to its tokenized reviews, kept and refused rows together.

    A refused row has a `reason` and no tokens; so each row of a unit travels exactly once, and a later stage counts the
    rows that were read.

    Args:
        settings: how to read.
        keep: cleaned rows to write down for other tasks.
        beside: rows of another period, which are only written down.
        only_rows: file_no -> numbers of the rows that are wanted, ascending; others are not cleaned, and no refused row
            is given. None: every row.
    """

    settings: ReadSettings
    keep: Keep | None = None
    beside: ReadAndKeep | None = None
    only_rows: Mapping[int, np.ndarray] | None = None

    def __call__(self, unit: ReadUnit) -> pa.Table:
        """Rows of a work unit; they are tokenized in one go, however many files they come from."""
        if isinstance(unit, Wanted):
            return self.tokenized(unit.rows())
        specs = [self.settings.spec, *([self.beside.spec] if self.beside else [])]
        found = [(shard, read_shard_as(shard, specs, self._rows_of(shard))) for shard in unit]
        if self.beside is not None:
            self.beside.keep.write(cleaned_rows([(shard, batches[1]) for shard, batches in found]))
        return self.of_batches([(shard, batches[0]) for shard, batches in found])

    def of_batches(self, batches: Sequence[tuple[Shard, ReviewBatch]]) -> pa.Table:
        """Rows of a work unit that was read."""
        kept = cleaned_rows(batches)
        if self.keep is not None:
            self.keep.write(kept)
        tokenized = self.tokenized(kept)
        if self.only_rows is not None:
            return tokenized
        refused = [_of_file(batch.refused, shard) for shard, batch in batches]
        return pa.concat_tables([tokenized, *(rows for rows in refused if rows.num_rows)], promote_options="default")

    def _rows_of(self, shard: Shard) -> np.ndarray | None:
        return None if self.only_rows is None else self.only_rows.get(shard.file_no, np.empty(0, np.int64))

    def tokenized(self, kept: pa.Table) -> pa.Table:
        """Cleaned rows without their texts, with the tokens of these."""
        settings = self.settings
        tokenizer = _tokenizer(settings.model, settings.max_length, settings.long_text)
        texts = one_chunk(kept[s.TEXT])
        pairs = one_chunk(kept[s.TEXT_PAIR]) if s.TEXT_PAIR in kept.column_names else None
        if settings.unit is not None:
            tokens = encode_with_units(tokenizer, texts, settings.unit)
        else:
            tokens = tokenizer.encode(texts, pairs)
        # A text that was cut before tokenizing is truncated too, whatever the tokenizer saw of it.
        truncated = pc.or_(one_chunk(tokens[s.TRUNCATED]), one_chunk(kept[s.CUT]))
        tokens = tokens.set_column(tokens.column_names.index(s.TRUNCATED), s.TRUNCATED, truncated)
        if settings.with_terms and (scorer := _term_scorer(settings.model)) is not None:
            tokens = scorer.appended_to(tokens, texts, pairs)
        columns = {name: kept[name] for name in kept.column_names if name not in (s.TEXT, s.TEXT_PAIR, s.CUT)}
        columns |= {name: tokens[name] for name in tokens.column_names}
        if settings.spec.aspects is not None:
            columns[s.ASPECT] = kept[s.TEXT_PAIR]
        group = settings.group_column
        text_hash_N = group_hash(texts)
        columns[s.TEXT_HASH] = pa.array(text_hash_N)
        columns[s.INPUT_HASH] = pa.array(input_hash(text_hash_N, texts, pairs))
        columns |= tokenizer.coverage(texts)
        if group is not None:
            columns[s.GROUP_HASH] = pa.array(group_or_text_hash(one_chunk(kept[s.KEEP_PREFIX + group]), texts))
        else:
            columns[s.GROUP_HASH] = columns[s.TEXT_HASH]
        if settings.profile_share is not None and kept.num_rows:
            profile = text_profile(texts, text_hash_N, settings.profile_share, seen_ngrams(settings.model))
            columns[s.TEXT_PROFILE] = column_of(profile, kept.num_rows)
        for name in (s.REASON, s.DETAIL, s.TEXT_SHA256, s.TEXT_LEN):
            columns[name] = pa.nulls(kept.num_rows, s.REFUSED_SCHEMA.field(name).type)
        return pa.table(columns)


@dataclass(frozen=True)
class ReadForEach:
    """A work unit to its tokenized reviews for each of several models.

    Every row is read once, and cleaned once for all models that clean alike.

    Args:
        readers: one for each model; their specs differ in cleaning at most.
    """

    readers: tuple[ReadAndTokenize, ...]

    def __call__(self, unit: ReadUnit) -> list[pa.Table]:
        """Rows of a work unit, a table for each model."""
        started = time.monotonic()
        try:
            return self._tables(unit)
        finally:
            metrics.add(metrics.SECONDS, time.monotonic() - started, "read")

    def _tables(self, unit: ReadUnit) -> list[pa.Table]:
        if isinstance(unit, Wanted):
            rows = unit.rows()
            return [reader.tokenized(rows) for reader in self.readers]
        specs = [reader.settings.spec for reader in self.readers]
        of_shards = [read_shard_as(shard, specs) for shard in unit]
        return [
            reader.of_batches(list(zip(unit, batches, strict=True)))
            for reader, batches in zip(self.readers, zip(*of_shards, strict=True), strict=True)
        ]


@dataclass(frozen=True)
class ReadAndKeep:
    """A work unit to the number of its rows, of which those that are fit for use are written down."""

    spec: ReadSpec
    keep: Keep

    def __call__(self, unit: WorkUnit) -> int:
        """Read, clean, keep."""
        batches = [(shard, read_shard(shard, self.spec)) for shard in unit]
        self.keep.write(cleaned_rows(batches))
        return sum(batch.rows_in for _, batch in batches)


def cleaned_rows(batches: Sequence[tuple[Shard, ReviewBatch]]) -> pa.Table:
    """Kept rows of a work unit, with their file."""
    tables = [_with_path(_of_file(batch.kept, shard), shard) for shard, batch in batches]
    return pa.concat_tables(tables, promote_options="default")


def name_of(unit: ReadUnit) -> str:
    """Its first rows, to name a work unit in messages."""
    if isinstance(unit, Wanted):
        return unit.unit.name
    return f"{unit[0].file.path} rows {unit[0].lo}-{unit[0].hi}"


def num_rows_of(work: Sequence[WorkUnit]) -> int:
    """Rows of some work units."""
    return sum(shard.hi - shard.lo for unit in work for shard in unit)


def intervals(unit: WorkUnit) -> tuple[tuple[int, int, int], ...]:
    """Rows of a work unit as its receipt has them."""
    return tuple((shard.file_no, shard.lo, shard.hi) for shard in unit)


def _with_path(rows: pa.Table, shard: Shard) -> pa.Table:
    return rows.append_column(s.INPUT_PATH, pa.repeat(pa.scalar(shard.file.path), rows.num_rows))


def _of_file(rows: pa.Table, shard: Shard) -> pa.Table:
    return rows.append_column(s.FILE_NO, pa.array(np.full(rows.num_rows, shard.file_no, np.int32)))
