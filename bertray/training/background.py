"""Calls that go on in a thread while a training computes: one at a time, in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs a call in a thread; an error of it is raised by whoever comes next.

    Args:
        in_thread: False: each call is over when `run` returns, and raises its own error.
    """

    def __init__(self, name: str, *, in_thread: bool) -> None:
        self._pool = ThreadPoolExecutor(1, name) if in_thread else None
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is not over yet."""
        return self._last is not None and not self._last.done()

    def run(self, call: Callable[[], None]) -> None:
        """Wait for the call before this one, then begin this one.

        Raises:
            Exception: what the one before raised; this one is then left out. Without a thread what this one raised.
        """
        if self._pool is None:
            call()
            return
        self.wait()
        self._last = self._pool.submit(call)

    def wait(self) -> None:
        """Wait until the last call is over.

        Raises:
            Exception: what it raised.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for a call that has begun, whatever comes of it, and end the thread."""
        if self._pool is not None:
            self._pool.shutdown()
