"""How much memory a process and those below it take; Linux only, elsewhere nothing is known."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EVERY_S = 0.5


def private_mb(pid: int) -> int:
    """Memory of a process that it does not share with others, such as Ray's object store."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has ended, or this is no Linux
        return 0
    _, _, after = status.partition("RssAnon:")
    return int(after.split()[0]) // 1024 if after else 0


def processes_below(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has just ended
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


class Peak:
    """The largest sum of private memory that was met."""

    mb = 0


@contextmanager
def watched(*, apart: frozenset[int] = frozenset()) -> Iterator[Peak]:
    """Look at this process and those below it twice a second.

    Args:
        apart: processes, with what is below them, that do not count.
    """
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(_EVERY_S):
            others = {below for pid in apart for below in (pid, *processes_below(pid))}
            pids = {os.getpid(), *processes_below(os.getpid())} - others
            peak.mb = max(peak.mb, sum(map(private_mb, pids)))

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
