"""Packs of a forward pass side by side on a CPU's cores.

Threads that share each operation meet at its end, some hundred times a second: whoever another process holds up for a
moment holds up all. A thread takes whole packs instead, and meets the others at the end of a window only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PACK_THREADS = 4  # of one process: all share the interpreter, which prepares packs


class PackThreads:
    """Threads that work on items side by side, each with an equal share of torch's threads.

    Args:
        num_threads: of torch, for all pack threads together. Their number divides it and is at most
            `MAX_PACK_THREADS`; a single one is the thread that asks for the work.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.count = max(count for count in range(1, MAX_PACK_THREADS + 1) if num_threads % count == 0)
        self._pool: ThreadPoolExecutor | None = None
        if self.count == 1:
            return
        self._pool = ThreadPoolExecutor(self.count, "pack")
        all_set_up = threading.Barrier(self.count + 1)
        for _ in range(self.count):
            self._pool.submit(self._set_up, all_set_up)
        all_set_up.wait()
        torch.set_num_threads(num_threads)  # threads to come begin with what was set last, by whichever thread

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results of `work` for each item, in their order; begun in that order.

        Where there are fewer items than threads, all of torch's threads work on one after the other.

        Raises:
            Exception: the first that `work` raised; items not yet begun are left.
        """
        listed = list(items)
        if self._pool is None or len(listed) < self.count:
            return [work(item) for item in listed]
        return list(self._pool.map(work, listed))

    def _set_up(self, all_set_up: threading.Barrier) -> None:
        torch.get_num_threads()  # the first call in a thread sets its number, which the next line is to overrule
        torch.set_num_threads(self.num_threads // self.count)
        all_set_up.wait()
