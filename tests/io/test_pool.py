"""The pool: results in order, several at once, and the first error ends it."""

from __future__ import annotations

import threading

import pytest

from bertray.io.pool import each_in_pool, in_pool


@pytest.mark.parametrize("num_threads", [1, 4])
def test_results_come_in_the_order_of_the_items(num_threads):
    assert list(in_pool(lambda n: n * n, range(100), num_threads)) == [n * n for n in range(100)]
    assert list(in_pool(str, [], num_threads)) == []


def test_as_many_are_at_work_at_once_as_there_are_threads():
    together = threading.Barrier(8, timeout=10)
    assert list(in_pool(lambda _: together.wait() >= 0, range(16), 8)) == [True] * 16


def test_an_error_is_raised_after_what_had_begun_has_ended_and_nothing_begins_any_more():
    ended: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        ended.append(number)

    with pytest.raises(ValueError, match="three"):
        each_in_pool(work, range(1000), 2)
    assert {0, 1, 2} <= set(ended)
    assert len(ended) < 20


@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_error_of_the_one_who_gives_the_items_ends_it_too(num_threads):
    done: list[int] = []

    def items():
        yield from range(3)
        raise KeyError("no more")

    with pytest.raises(KeyError):
        each_in_pool(done.append, items(), num_threads)
    assert set(done) <= {0, 1, 2}
