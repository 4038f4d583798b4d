"""Stages of work as data, and the one interface that runs them: in this process, or on a cluster.

items → stage → stage → … → results

Whoever has work to spread describes it (`Task`, `Actors`) and gets an `Executor` as an argument; it never asks what
the executor is. This module imports no Ray; `ray_data` holds the implementation that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Protocol

from bertray import errors
from bertray.execution.resources import READER_CPUS, Resources

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Task:
    """Stage without state: a function of one item.

    Args:
        function: must be picklable, as what it gives; an Arrow table, or a list of them, travels without being pickled.
        cpus: CPU share of each call.
    """

    function: Function
    cpus: float = READER_CPUS


@dataclass(frozen=True)
class Actors:
    """Stage with state, such as a model in memory: processes that each call `factory` once.

    Args:
        factory: makes the function of one item; where that has a method `close`, it is called at the end in this
            process.
        replicas: processes, at most.
        cpus: CPU share of each replica.
        gpus: GPUs of each replica.
        calls: items that a replica works on side by side; its function is called by as many threads.
    """

    factory: Callable[[], Function]
    replicas: int = 1
    cpus: float = 1.0
    gpus: int = 0
    calls: int = 1


Stage = Task | Actors


@dataclass(frozen=True)
class Progress:
    """Words for messages about a run of stages.

    Args:
        doing: begins a line: `scoring`.
        unit: an item is called so: `shard`.
        name_of: an item, in words.
    """

    doing: str = "working"
    unit: str = "item"
    name_of: Callable[[Any], str] = str


DEFAULT = Progress()


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together.

    Args:
        number: in 0..world_size-1.
        world_size: number of processes.
        device: to compute on, as torch names it.
        messages: log messages of this process, for the one that waits; they grow.
    """

    number: int
    world_size: int
    device: str
    messages: Sequence[str] = ()


@dataclass(frozen=True)
class Training:
    """Settings by which the ranks of a training run start.

    Args:
        name: of the run, never used before.
        storage: path or URI of a folder for bookkeeping that all machines see.
        max_failures: how often the ranks are started again after one was lost, without getting on in between.
        progress: says how far the training is, so that losses count from where it last got on.
        imports: modules that this process will need afterwards.
    """

    name: str
    storage: str
    max_failures: int
    progress: Callable[[], object] = lambda: None
    imports: Sequence[str] = ()


class Executor(Protocol):
    """Runs stages over items, and ranks of a training; the caller does not know where."""

    @property
    def resources(self) -> Resources:
        """Workers and threads that there are for a stage."""

    def run(self, items: Iterable[Any], stages: Sequence[Stage], progress: Progress = DEFAULT) -> Iterator[Any]:
        """Run every item through all stages; yields one result an item, in any order, each as soon as it is there.

        Args:
            items: what the first stage is given.
            stages: at least one; each is given what the one before it returned.
            progress: words for messages.

        Raises:
            BertrayError: what a stage raised, or what befell the cluster; where nothing is finished for
                `Resources.stall_timeout_s`, it names the items that wait.
            Exception: anything else that a stage raised, which is a bug.
        """

    @property
    def training_workers(self) -> str:
        """Place where `train` runs its ranks, in words."""

    def train(self, body: Callable[[Rank], Any], training: Training) -> Any:
        """Run `body` on every rank; returns what rank 0 returned.

        Raises:
            BertrayError: what a rank raised, or what befell the cluster.
        """

    def for_rows(self, num_rows: int) -> Executor:
        """The executor for so many reviews: this process, where they are so few that starting actors costs more."""


@dataclass(frozen=True)
class InProcess:
    """Runs stages in this process: lazily, one item after the other, so that one item is in memory at a time."""

    resources: Resources

    def run(self, items: Iterable[Any], stages: Sequence[Stage], progress: Progress = DEFAULT) -> Iterator[Any]:
        """See `Executor.run`; results come in the order of the items."""
        with ExitStack() as stack:
            functions: list[Function] = []
            for value in items:
                if not functions:  # the first item is there: now a model is worth loading
                    functions = [_opened(stage, stack) for stage in stages]
                for function in functions:
                    value = called(function, value)
                yield value

    training_workers = "in this process"

    def train(self, body: Callable[[Rank], Any], training: Training) -> Any:
        """See `Executor.train`; one rank."""
        return body(Rank(0, 1, self.resources.device))

    def for_rows(self, num_rows: int) -> Executor:
        """Itself."""
        return self


def in_order(executor: Executor, items: Sequence[Any], function: Function, progress: Progress = DEFAULT) -> list[Any]:
    """Results of a function in the order of the items, all in memory."""
    numbered = Progress(progress.doing, progress.unit, lambda pair: progress.name_of(pair[1]))
    found = dict(executor.run(enumerate(items), [Task(_Numbered(function))], numbered))
    return [found[number] for number in range(len(items))]


@dataclass(frozen=True)
class _Numbered:
    """A function of (number, item) that keeps the number."""

    function: Function

    def __call__(self, pair: tuple[int, Any]) -> tuple[int, Any]:
        return pair[0], self.function(pair[1])


def called(function: Callable[..., Any], *values: Any) -> Any:
    """Value that a stage's function returns.

    Raises:
        BertrayError: what it raised, where that is a lack of memory or disk, as one of ours.
        RuntimeError: it tried to end the process.
    """
    try:
        return function(*values)
    except Exception as error:
        known = errors.known(error)
        if known is None or known is error:
            raise
        raise known from error
    except SystemExit as error:
        if hasattr(error, "ray_terminate_msg"):  # Ray ends this process, and gives its items to another one
            raise
        raise RuntimeError(f"a stage ended its process: SystemExit({error.code!r})") from error


def _opened(stage: Stage, stack: ExitStack) -> Function:
    if isinstance(stage, Task):
        return stage.function
    function: Function = called(stage.factory)
    if hasattr(function, "close"):
        stack.enter_context(closing(function))
    return function


def actors(factory: Callable[[], Function], resources: Resources, *, calls_on_gpu: int = 1) -> Actors:
    """A stage on all workers that there are.

    Args:
        calls_on_gpu: calls side by side of a replica with a GPU, which one alone would let wait.
    """
    calls = calls_on_gpu if resources.gpus_per_worker else 1
    return Actors(factory, resources.num_workers, resources.cpus_per_worker, resources.gpus_per_worker, calls)


THIS_PROCESS = InProcess(Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0))
"""For work that is never large enough for a cluster."""
