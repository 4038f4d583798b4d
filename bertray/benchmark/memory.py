"""Memory of a process and those below it; Linux only, elsewhere unknown."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EVERY_S = 1.0  # it must not slow what it watches


def private_mb(pid: int) -> int:
    """Memory of a process that it does not share with others, such as Ray's object store."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has ended, or this is no Linux
        return 0
    _, _, after = status.partition("RssAnon:")
    return int(after.split()[0]) // 1024 if after else 0


def processes_below(pid: int, *, apart: frozenset[int] = frozenset()) -> list[int]:
    """Processes that a process has started, and those that they have.

    Args:
        pid: of the process.
        apart: processes, with what is below them, that do not count.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has just ended
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += [child for child in children.get(parent, ()) if child not in apart]
    return found[1:]


class Peak:
    """The largest sum of private memory that was met."""

    mb = 0


@contextmanager
def watched(*, apart: frozenset[int] = frozenset()) -> Iterator[Peak]:
    """Look at this process and those below it once a second.

    Args:
        apart: processes, with what is below them, that do not count.
    """
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(_EVERY_S):
            pids = (os.getpid(), *processes_below(os.getpid(), apart=apart))
            peak.mb = max(peak.mb, sum(map(private_mb, pids)))

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
