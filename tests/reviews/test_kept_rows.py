"""Cleaned rows kept beside token shards: the same on any number of tasks, and given back by file and row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray.execution.executor import THIS_PROCESS
from bertray.io.store import Store, open_store
from bertray.reviews.fetch import fetch_texts
from bertray.reviews.kept_rows import ALL, Keep, KeepRule, KeptRows, draw

FILE_NO_N = np.repeat([0, 1, 7, 123_456], [5000, 1, 3000, 2000]).astype(np.int32)
ROW_NO_N = np.concatenate([np.arange(5000), [9], np.arange(3000) * 2, np.arange(2000)])
TEXTS = [f"{file} {row}" for file, row in zip(FILE_NO_N.tolist(), ROW_NO_N.tolist(), strict=True)]
ROWS = pa.table({"file_no": FILE_NO_N, "row_no": ROW_NO_N, "text": TEXTS, "note": pa.array([[t] for t in TEXTS])})


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path))


def keep(store: Store, rule: KeepRule, *cuts: int) -> KeptRows:
    """Kept by one task for the rows between two cuts."""
    where = Keep(store.root, f"control/{len(cuts)}", rule)
    for lo, hi in zip((0, *cuts), (*cuts, ROWS.num_rows), strict=True):
        where.write(ROWS.slice(lo, hi - lo))
    return KeptRows.in_folder(store, where.folder)


def everything(kept: KeptRows) -> pa.Table:
    return pa.concat_tables([wanted.rows() for wanted in kept.work]).combine_chunks()


def test_all_rows_come_back_in_their_order_with_their_types(store):
    kept = keep(store, KeepRule(), 100, 4999, 5001, 5001, 8000)
    assert everything(kept).equals(ROWS.combine_chunks())
    assert len(kept.work) == 5  # a task without a row keeps nothing
    assert kept.num_rows == ROWS.num_rows
    assert kept.of(ROWS.num_rows + 3).refused == 3


def test_texts_are_found_by_file_and_row_in_any_order(store):
    kept = keep(store, KeepRule(), 100, 5001)
    members = np.array([7999, 5000, 0, 99, 100, 9999, 0])
    texts = fetch_texts(THIS_PROCESS, kept.units, FILE_NO_N[members], ROW_NO_N[members])
    assert texts == [TEXTS[member] for member in members]


def test_some_rows_of_the_kept_ones(store):
    members = np.array([3, 4, 6000])
    some = keep(store, KeepRule(), 100, 4000, 5001).only(FILE_NO_N[members], ROW_NO_N[members])
    assert everything(some)["text"].to_pylist() == [TEXTS[member] for member in members]
    assert some.num_rows == 3
    assert len(some.work) == 2


def test_a_sample_is_the_same_on_any_number_of_tasks_and_depends_on_the_seed(store):
    rule = KeepRule.for_sample(ROWS.num_rows, 500, seed=1)
    alone, shared = (everything(keep(store, rule, *cuts)) for cuts in ((), (1, 2, 4000, 9000)))
    assert alone.equals(shared)
    # A binomial of 10,001 draws with probability 1,000 / 10,001: mean 1,000, standard deviation 30.
    assert 850 < alone.num_rows < 1150
    assert KeepRule.for_sample(ROWS.num_rows, 500, seed=1) == rule
    again = draw(FILE_NO_N, ROW_NO_N, 2)
    assert not np.array_equal(again, draw(FILE_NO_N, ROW_NO_N, 1))
    shares = np.histogram(again.astype(float), 10, (0, float(ALL)))[0] / len(again)
    assert np.abs(shares - 0.1).max() < 0.015  # five standard deviations


def test_a_sample_of_half_the_rows_or_more_keeps_all():
    assert KeepRule.for_sample(100, 50, 0) == KeepRule(ALL, 0)
    assert KeepRule.for_sample(100, 49, 0).below == ALL * 98 // 100


def test_rows_that_were_not_kept_are_a_mistake_and_not_others(store):
    kept = keep(store, KeepRule.for_sample(ROWS.num_rows, 500, seed=1))
    missing = np.flatnonzero(draw(FILE_NO_N, ROW_NO_N, 1) >= np.uint64(ALL // 2))[-1:]
    with pytest.raises(LookupError, match="not kept"):
        fetch_texts(THIS_PROCESS, kept.units, FILE_NO_N[missing], ROW_NO_N[missing])
