"""Some rows read again by their numbers, in tasks: the texts that no pipeline carries along.

Of a file only the wanted rows are checked and cleaned, whatever lies around them; rows kept in an output are clean.

Shape letters: N rows that are wanted, W of them in one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.execution.executor import Executor, Progress, Task
from bertray.reviews.pairs import as_one_text
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import ReadSpec, Shard

_ROW_BITS = 40


def row_keys(file_no_N: np.ndarray, row_no_N: np.ndarray) -> np.ndarray:
    """int64 [N]: one number for each row of an input, in the order of files and rows."""
    keys_N: np.ndarray = file_no_N.astype(np.int64) << _ROW_BITS | row_no_N
    return keys_N


class RowUnit(Protocol):
    """Rows that stand together, with those of no other unit between them."""

    @property
    def name(self) -> str:
        """Place of the rows, for messages."""

    @property
    def keys(self) -> tuple[int, int]:
        """Key of the first row that it may hold, and the first key beyond."""

    def rows(self, keys_W: np.ndarray | None) -> pa.Table:
        """Kept rows as `ReviewBatch` has them: those with some keys, ascending, each once; None: all."""


@dataclass(frozen=True)
class ShardRows:
    """Rows of a shard, and how they are read."""

    shard: Shard
    spec: ReadSpec

    @property
    def name(self) -> str:
        return f"{self.shard.file.path} rows {self.shard.lo}-{self.shard.hi}"

    @property
    def keys(self) -> tuple[int, int]:
        lo, hi = row_keys(np.array(self.shard.file_no), np.array([self.shard.lo, self.shard.hi])).tolist()
        return lo, hi

    def rows(self, keys_W: np.ndarray | None) -> pa.Table:
        row_nos_W = None if keys_W is None else keys_W & ((1 << _ROW_BITS) - 1)
        return read_shard(self.shard, self.spec, row_nos_W).kept


@dataclass(frozen=True)
class Wanted:
    """Some rows of a unit, or all."""

    unit: RowUnit
    keys_W: np.ndarray | None = None  # ascending, each once

    def rows(self) -> pa.Table:
        """Kept rows as `ReviewBatch` has them."""
        return self.unit.rows(self.keys_W)


def wanted_rows(
    units: Iterable[RowUnit], file_no_N: np.ndarray, row_no_N: np.ndarray
) -> Iterator[tuple[Wanted, np.ndarray, np.ndarray]]:
    """Rows by the unit that holds them: the rows, the position of each of the W, which of the unit's rows it is."""
    keys_N = row_keys(file_no_N, row_no_N)
    order = np.argsort(keys_N, kind="stable")
    keys_N = keys_N[order]
    for unit in units:
        first, end = np.searchsorted(keys_N, unit.keys)
        if first < end:
            distinct, which_W = np.unique(keys_N[first:end], return_inverse=True)
            yield Wanted(unit, distinct), order[first:end], which_W


def fetch_rows(
    executor: Executor,
    units: Iterable[RowUnit],
    file_no_N: np.ndarray,
    row_no_N: np.ndarray,
    function: Callable[[pa.Table], Any],
) -> Iterator[tuple[np.ndarray, Any]]:
    """Read some rows again, unit by unit; yields positions among the N rows, and what `function` makes of these.

    Args:
        executor: runs the tasks.
        units: all that may hold a row.
        file_no_N, row_no_N: where the rows stand; every one is fit for use.
        function: of kept rows as `ReviewBatch` has them, in the order of the positions.
    """
    work = list(wanted_rows(units, file_no_N, row_no_N))
    progress = Progress("reading again", "shard", lambda item: str(item[0].unit.name))
    yield from executor.for_rows(len(row_no_N)).run(work, [Task(_ReadWanted(function))], progress)


def fetch_texts(executor: Executor, units: Iterable[RowUnit], file_no_N: np.ndarray, row_no_N: np.ndarray) -> list[str]:
    """Cleaned texts of some rows, in their order; a text and its second text as one."""
    texts = np.empty(len(row_no_N), object)
    for positions_W, found in fetch_rows(executor, units, file_no_N, row_no_N, whole_texts):
        texts[positions_W] = found
    whole: list[str] = texts.tolist()
    return whole


def fetch_text_pairs(
    executor: Executor, units: Iterable[RowUnit], file_no_N: np.ndarray, row_no_N: np.ndarray
) -> list[tuple[str, str | None]]:
    """Cleaned texts of some rows, in their order, each with its second text."""
    texts = np.empty(len(row_no_N), object)
    for positions_W, found in fetch_rows(executor, units, file_no_N, row_no_N, _text_pairs):
        for position, text in zip(positions_W.tolist(), found, strict=True):
            texts[position] = text
    pairs: list[tuple[str, str | None]] = texts.tolist()
    return pairs


def _text_pairs(kept: pa.Table) -> list[tuple[str, str | None]]:
    texts = kept[s.TEXT].to_pylist()
    seconds = kept[s.TEXT_PAIR].to_pylist() if s.TEXT_PAIR in kept.column_names else [None] * len(texts)
    return list(zip(texts, seconds, strict=True))


def shard_rows(shards: Sequence[Shard], spec: ReadSpec) -> list[RowUnit]:
    """Units of some shards."""
    return [ShardRows(shard, spec) for shard in shards]


def whole_texts(kept: pa.Table) -> list[str]:
    """Texts as the model reads them: a pair as one."""
    return as_one_text(kept[s.TEXT], kept[s.TEXT_PAIR] if s.TEXT_PAIR in kept.column_names else None)


@dataclass(frozen=True)
class _ReadWanted:
    function: Callable[[pa.Table], Any]

    def __call__(self, item: tuple[Wanted, np.ndarray, np.ndarray]) -> tuple[np.ndarray, Any]:
        wanted, positions_W, which_W = item
        return positions_W, self.function(wanted.rows().take(which_W))
