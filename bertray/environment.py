"""What is to be in the environment of a process that computes on CPU before it starts, or before it imports torch."""

from __future__ import annotations

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
