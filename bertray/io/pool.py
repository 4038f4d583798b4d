"""Requests to a store, several at once: what costs 50 ms each costs 50 ms for all of a pool's threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_pool(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], num_threads: int) -> Iterator[ResultT]:
    """Results of a function over items, in the order of the items.

    The calling thread draws the items, at most two a thread ahead of the results. What `items` raises while it is
    drawn, and the first error of the function, cancel what has not begun and are raised after the rest has ended.

    Args:
        function: called in any order, in several threads.
        items: drawn one after the other.
        num_threads: 1: everything happens in the calling thread.
    """
    if num_threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="store") as pool:
        begun: deque[Future[ResultT]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) >= 2 * num_threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def each_in_pool(function: Callable[[ItemT], object], items: Iterable[ItemT], num_threads: int) -> None:
    """Call a function for each item in a pool, and wait for all of them."""
    for _ in in_pool(function, items, num_threads):
        pass
