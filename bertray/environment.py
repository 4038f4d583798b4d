"""What is to be in the environment of a process that computes on CPU before it starts, or before it imports torch."""

from __future__ import annotations

import os

# Threads of torch that wait do so asleep. By default they spin, which beside any other busy process costs it, and them,
# half of their speed and more (docs/performance.md).
THREADS_ENV = {"OMP_WAIT_POLICY": "passive"}

COMPUTE_ENV = {
    **THREADS_ENV,
    # glibc keeps freed memory instead of handing it back after every batch: measured 1.1-1.2x on CPU inference.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "2",
}

_added: set[str] = set()


def set_up_threads() -> None:
    """Let the threads of this process wait asleep, unless its environment says otherwise; to be called before torch."""
    _added.update(THREADS_ENV.keys() - os.environ.keys())
    for name in _added:
        os.environ[name] = THREADS_ENV[name]


def environment_of_user() -> dict[str, str]:
    """The environment of this process without what `set_up_threads` added."""
    return {name: value for name, value in os.environ.items() if name not in _added}
