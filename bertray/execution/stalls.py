"""Log lines while a pipeline on Ray makes no progress: the items that wait, and the CPUs that are free."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_S = 60.0  # without progress until the first line; then twice as long each time
LONGEST_S = 600.0
SHOWN = 3  # items named in a line


class StallWatch:
    """A thread that logs a line after `FIRST_S` without progress, and again at growing intervals.

    Args:
        stage: of the pipeline, which begins the line: `scoring`.
        waiting: the items that wait, in words.
    """

    def __init__(self, stage: str, waiting: Callable[[], str]) -> None:
        self._stage, self._waiting = stage, waiting
        self._ended = False
        self._told = threading.Event()  # of progress, or of the end
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)

    def __enter__(self) -> StallWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._told.set()
        self._thread.join(timeout=5)  # it may be asking a cluster that does not answer

    def progressed(self) -> None:
        """Start the count of seconds again."""
        self._told.set()

    def _watch(self) -> None:
        while not self._ended:
            since, due_s = time.monotonic(), FIRST_S
            while not self._told.wait(since + due_s - time.monotonic()):
                free = _free_cpus()
                if self._told.is_set():
                    break
                seconds = time.monotonic() - since
                log.warning("%s: no progress for %.0f s; %s%s", self._stage, seconds, self._waiting(), free)
                due_s += min(due_s, LONGEST_S)
            self._told.clear()


class Pending:
    """Numbers of the items of a pipeline that have not arrived, and their names."""

    def __init__(self, unit: str, count: int, name_of: Callable[[int], str]) -> None:
        self._unit, self._count, self._name_of = unit, count, name_of
        self._numbers = dict.fromkeys(range(count))

    def arrived(self, number: int) -> None:
        self._numbers.pop(number, None)

    def __str__(self) -> str:
        waiting = list(self._numbers)  # a copy, in one step: another thread takes numbers out
        names = ", ".join(map(self._name_of, waiting[:SHOWN])) + (", ..." if len(waiting) > SHOWN else "")
        return f"{len(waiting):,} of {self._count:,} {self._unit}s wait" + (f": {names}" if names else "")


def _free_cpus() -> str:
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():
        return ""
    try:
        free, total = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
    except (RayError, RuntimeError, OSError) as error:
        return f" (the cluster does not answer: {' '.join(str(error).split())[:200]})"
    return f" ({free:g} of {total:g} CPUs are free)"
