"""What is to be in the environment of a process that computes on CPU before it starts, or before it imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Threads of torch that wait look for work for a moment, then sleep. By default they spin, which beside any other busy
# process costs it, and them, half of their speed and more; asleep at once they are late for short operations
# (docs/performance.md). The second is read by libgomp, which torch has on Linux, and there overrules the first.
THREADS_ENV = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "4000"}

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
    """Let the threads of this process wait as ours do, unless its environment says how; to be called before torch."""
    ours = unless_chosen(THREADS_ENV)
    _added.update(ours.keys() - os.environ.keys())
    os.environ.update(ours)


def unless_chosen(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings for a process, with what the environment of this one has in place of ours.

    Of how threads wait it is all ours or all the user's, since one setting overrules the other.
    """
    ours = dict(settings)
    if THREADS_ENV.keys() & os.environ.keys():
        for name in THREADS_ENV:
            ours.pop(name, None)
    return ours | {name: os.environ[name] for name in settings if name in os.environ}


def environment_of_user() -> dict[str, str]:
    """The environment of this process without what `set_up_threads` added."""
    return {name: value for name, value in os.environ.items() if name not in _added}
