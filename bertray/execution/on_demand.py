"""Executors of one command: this process for little work, Ray from the moment on that there is more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from bertray.config import Workers
from bertray.execution.executor import THIS_PROCESS, Executor, InProcess
from bertray.execution.resources import Resources
from bertray.execution.session import ray_session, without_ray

# A listing tells bytes and no rows. Files of so many bytes are scanned in this process at once, whatever they hold:
# that takes less time than to start Ray.
BYTES_PER_ROW = 8 << 10

ExecutorFor = Callable[[int], Executor]
"""Gives the executor for so many bytes of input."""


def in_this_process(num_bytes: int) -> Executor:
    """The executor of commands that never need a cluster."""
    return THIS_PROCESS


class Executors(Protocol):
    """Gives the executor for some work; the caller does not know whether it is this process."""

    def for_bytes(self, num_bytes: int) -> Executor:
        """The executor that scans so many bytes of input."""

    def for_rows(self, num_rows: int) -> Executor:
        """The executor that works on so many reviews."""

    def session(self, num_rows: int | None) -> AbstractContextManager[Executor]:
        """The executor for work on so many reviews, or that for whatever there is; what it needed may end with it."""


@dataclass(frozen=True)
class Always:
    """One executor for all work."""

    executor: Executor

    def for_bytes(self, num_bytes: int) -> Executor:
        """The executor."""
        return self.executor

    def for_rows(self, num_rows: int) -> Executor:
        """The executor."""
        return self.executor

    def session(self, num_rows: int | None) -> AbstractContextManager[Executor]:
        """The executor, which stays."""
        return nullcontext(self.executor)


class OnDemand:
    """Opens Ray for the first work that needs it, and keeps it until `close`.

    Args:
        ranks: several workers would share the steps of a training; who asks for several gets them.
        imports: modules that this process will need later; imported while Ray's own processes start.
    """

    def __init__(self, workers: Workers, *, ranks: bool = False, imports: Sequence[str] = ()) -> None:
        self._workers, self._ranks, self._imports = workers, ranks, imports
        self._stack = ExitStack()
        self._opened: Executor | None = None

    def __enter__(self) -> OnDemand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def close(self) -> None:
        """End Ray, if it was opened; later work may open it again."""
        self._opened = None
        self._stack.close()

    def for_bytes(self, num_bytes: int) -> Executor:
        """The executor that scans so many bytes of input."""
        if not num_bytes:  # nothing to read
            return THIS_PROCESS
        num_rows = -(-num_bytes // BYTES_PER_ROW)
        return self._executor(None if self._opened else without_ray(self._workers, num_rows))

    def for_rows(self, num_rows: int) -> Executor:
        """The executor that works on so many reviews."""
        return self._executor(None if self._opened else without_ray(self._workers, num_rows, ranks=self._ranks))

    @contextmanager
    def session(self, num_rows: int | None) -> Iterator[Executor]:
        """The executor for work on so many reviews, or Ray whatever there is to do; Ray ends with it."""
        try:
            yield self._executor(None) if num_rows is None else self.for_rows(num_rows)
        finally:
            self.close()

    def _executor(self, alone: Resources | None) -> Executor:
        if alone is not None:
            return InProcess(alone)
        if self._opened is None:
            self._opened = self._stack.enter_context(ray_session(self._workers, imports=self._imports))
        return self._opened


def executors_of(
    workers: Workers, given: Executors | None, *, ranks: bool = False, imports: Sequence[str] = ()
) -> AbstractContextManager[Executors]:
    """Executors of a run: those that its caller gave, who ends them, or its own; arguments as for `OnDemand`."""
    return OnDemand(workers, ranks=ranks, imports=imports) if given is None else nullcontext(given)
