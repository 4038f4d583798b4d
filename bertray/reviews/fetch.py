"""Rows read again by their numbers, in tasks: the texts that no pipeline carries along.

Only the wanted rows are checked and cleaned, whatever lies around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.execution.executor import Executor, Progress, Task
from bertray.reviews.reader import ReadSpec, Shard, read_shard

PAIR_SEPARATOR = " · "


@dataclass(frozen=True)
class _Wanted:
    """Some rows of a shard: `positions_W` says where each stands among the rows that are asked for."""

    shard: Shard
    spec: ReadSpec
    row_nos_W: np.ndarray
    positions_W: np.ndarray


def fetch_rows(
    executor: Executor,
    sources: Iterable[tuple[Sequence[Shard], ReadSpec]],
    file_no_N: np.ndarray,
    row_no_N: np.ndarray,
    function: Callable[[pa.Table], Any],
) -> Iterator[tuple[np.ndarray, Any]]:
    """Read some rows again, shard by shard; yields positions among the N rows, and what `function` makes of these.

    Args:
        executor: runs the tasks.
        sources: all shards that may hold a row, each with how it is read; a file number stands in one source alone.
        file_no_N, row_no_N: where the rows stand; every one is fit for use.
        function: of kept rows as `ReviewBatch` has them, in the order of the positions.
    """
    order = np.lexsort((row_no_N, file_no_N))
    files_N, rows_N = file_no_N[order], row_no_N[order]
    work: list[_Wanted] = []
    for shards, spec in sources:
        for shard in shards:
            lo, hi = np.searchsorted(files_N, [shard.file_no, shard.file_no + 1])
            first, end = lo + np.searchsorted(rows_N[lo:hi], [shard.lo, shard.hi])
            if first < end:
                work.append(_Wanted(shard, spec, rows_N[first:end], order[first:end]))
    progress = Progress("reading again", "shard", lambda wanted: f"{wanted.shard.file.path} rows {wanted.shard.lo}-")
    yield from executor.for_rows(len(row_no_N)).run(work, [Task(_ReadWanted(function))], progress)


def fetch_texts(
    executor: Executor, shards: Sequence[Shard], spec: ReadSpec, file_no_N: np.ndarray, row_no_N: np.ndarray
) -> list[str]:
    """Cleaned texts of some rows, in their order; a text and its second text as one."""
    texts = np.empty(len(row_no_N), object)
    for positions_W, found in fetch_rows(executor, [(shards, spec)], file_no_N, row_no_N, whole_texts):
        texts[positions_W] = found
    whole: list[str] = texts.tolist()
    return whole


def whole_texts(kept: pa.Table) -> list[str]:
    """Texts as the model reads them: a pair as one."""
    columns = [kept[name] for name in (s.TEXT, s.TEXT_PAIR) if name in kept.column_names]
    texts: list[str] = pc.binary_join_element_wise(*columns, PAIR_SEPARATOR).to_pylist()
    return texts


@dataclass(frozen=True)
class _ReadWanted:
    function: Callable[[pa.Table], Any]

    def __call__(self, wanted: _Wanted) -> tuple[np.ndarray, Any]:
        kept = read_shard(wanted.shard, wanted.spec, np.unique(wanted.row_nos_W)).kept
        rows = kept.take(np.searchsorted(kept[s.ROW_NO].to_numpy(), wanted.row_nos_W))
        return wanted.positions_W, self.function(rows)
