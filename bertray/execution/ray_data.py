"""Stages on a cluster, by Ray Data: numbers of items → tasks → actors → results on the driver.

An item is a row from end to end: columns `id` (number of the item), `kind` and `value` (Arrow tables as IPC, anything
else pickled). Ray may join and split blocks as it likes and never cuts an item. An error of a
stage travels as such a row too and arrives as it was raised; Ray Data would turn it into text.
"""

from __future__ import annotations

import io
import logging
import traceback
from collections import ChainMap
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import pyarrow as pa
import ray
import ray.data
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError

from bertray.errors import InfrastructureError
from bertray.execution.executor import (
    DEFAULT,
    Executor,
    Function,
    InProcess,
    Progress,
    Rank,
    Stage,
    Task,
    Training,
    called,
)
from bertray.execution.machines import machine_watch
from bertray.execution.remote_errors import code_missing, translated
from bertray.execution.resources import Resources
from bertray.execution.stalls import Pending, StallWatch
from bertray.io.tables import from_ipc, from_streams, ipc_buffer, stream_buffer, to_ipc
from bertray.runtime import work_in, working_folder
from bertray.wording import counted

MAX_BLOCKS = 20_000  # Ray Data keeps bookkeeping for each block; beyond this many, one block carries several items

# Many tasks read beside a GPU, each on one CPU: a tokenizer that opened all cores would take them from the others.
READER_ENV = {"RAYON_NUM_THREADS": "1"}

ID, KIND, VALUE = "id", "kind", "value"
TABLE, PICKLED, ERROR, TABLES = range(4)


@dataclass(frozen=True)
class RayData:
    """Runs stages as a pipeline of Ray Data.

    The blocks of numbers are made by this process: tasks that made them (`ray.data.range`) would each need a whole CPU,
    and actors that fill their machines leave only READER_CPUS.
    """

    resources: Resources

    def run(self, items: Iterable[Any], stages: Sequence[Stage], progress: Progress = DEFAULT) -> Iterator[Any]:
        """See `Executor.run`; items are all listed before the first one is worked on."""
        items = list(items)
        if not items:
            return
        configure_data(self.resources.stall_timeout_s)
        groups = _grouped(stages)
        # A process fetches items and functions once, instead of each task carrying all.
        work = ray.put((items, [stage.function if isinstance(stage, Task) else None for stage in groups]))
        dataset = ray.data.from_items(
            [{ID: number} for number in range(len(items))], override_num_blocks=min(len(items), MAX_BLOCKS)
        )
        for at, stage in enumerate(groups):
            dataset = self._mapped(dataset, stage, work, at, len(items))
        pending = Pending(progress.unit, len(items), lambda number: progress.name_of(items[number]))
        # Closed at once when an error arrives or nobody wants more, or actors would work on.
        with closing(self._blocks(dataset, pending, progress.doing)) as blocks:
            for block in blocks:
                for number, kind, value in _rows(block):
                    pending.arrived(number)
                    yield _result(kind, value)

    @property
    def training_workers(self) -> str:
        """`1 worker`, `4 workers`."""
        return counted(self.resources.num_workers, "worker")

    def train(self, body: Callable[[Rank], Any], training: Training) -> Any:
        """See `Executor.train`; by Ray Train."""
        from bertray.execution.ray_train import run_ranks

        return run_ranks(body, training, self.resources)

    def for_rows(self, num_rows: int) -> Executor:
        """This process with the cores of all workers, for at most `Resources.in_process_rows` reviews."""
        if num_rows > self.resources.in_process_rows:
            return self
        return InProcess(self.resources.together())

    def _mapped(self, dataset: Any, stage: Stage, work: Any, at: int, num_items: int) -> Any:
        if isinstance(stage, Task):
            return dataset.map_batches(
                _InTasks(work, at, working_folder()),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=stage.cpus,
                runtime_env={"env_vars": READER_ENV} if self.resources.gpus_per_worker else None,
            )
        # One call a replica: Ray's own defaults, which a CPU is measured with.
        calls = {"max_concurrent_calls_per_actor": stage.calls, "enable_true_multi_threading": True}
        return dataset.map_batches(
            _InActor,
            fn_constructor_args=(stage.factory, work, at, working_folder()),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(stage.replicas, num_items), **(calls if stage.calls > 1 else {})),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus or None,
            runtime_env=self.resources.runtime_env,
        )

    def _blocks(self, dataset: Any, pending: Pending, doing: str) -> Generator[pa.Table, None, None]:
        """Blocks as soon as they are there; by default Ray hands one out when the next one has been made."""
        with translated(), machine_watch(self.resources), StallWatch(doing, lambda: str(pending)) as watch:
            blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            try:
                with closing(blocks):
                    for block in blocks:
                        watch.progressed()
                        yield block
            except ExecutionTimeoutError as error:
                raise InfrastructureError(
                    f"{doing}: nothing was finished for {self.resources.stall_timeout_s:,.0f} s; {pending}.",
                    "Look for a worker that hangs (`ray list actors`), then run the same command again; a slow model "
                    "needs a longer workers.stall_timeout_s.",
                ) from error


def configure_data(stall_timeout_s: float) -> None:
    """Ray Data for many small independent items: quiet, no silent drops, a watchdog."""
    for name in ("ray.data", "ray.data._internal"):  # Ray sets these up when it is imported, after our own set-up
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = stall_timeout_s
    context.max_errored_blocks = 0
    # A worker that was starting on a machine that went away; by default it would end the run.
    context.max_consecutive_actor_init_deaths = 3


# --- stages as Ray Data calls them -----------------------------------------------------------------------------------


def _grouped(stages: Sequence[Stage]) -> list[Stage]:
    """Tasks that follow each other become one: what they hand on need not leave the process."""
    groups: list[Stage] = []
    for stage in stages:
        before = groups[-1] if groups else None
        if isinstance(stage, Task) and isinstance(before, Task):
            groups[-1] = Task(_Chain(before.function, stage.function), max(before.cpus, stage.cpus))
        else:
            groups.append(stage)
    return groups


@dataclass(frozen=True)
class _Chain:
    first: Function
    second: Function

    def __call__(self, value: Any) -> Any:
        return self.second(self.first(value))


@lru_cache(maxsize=2)
def _fetched(work: Any) -> tuple[list[Any], list[Function | None]]:
    """Items and functions of a run, once a process."""
    fetched: tuple[list[Any], list[Function | None]] = ray.get(work)
    return fetched


class _InTasks:
    """Stage of tasks: a block of items → a row for each.

    Args:
        work: of `_fetched`.
        at: number of the stage; the first one is given items, which lie in `work`.
        folder: of the driver.
    """

    def __init__(self, work: Any, at: int, folder: str | None) -> None:
        self._work, self._at, self._folder = work, at, folder

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        work_in(self._folder)
        items, functions = _fetched(self._work)
        function = functions[self._at]
        assert function is not None
        yield from _processed(block, function, None if self._at else items)


class _InActor:
    """Stage of actors: the factory is called once, and an error of it is a result of the first item."""

    def __init__(self, factory: Any, work: Any, at: int, folder: str | None) -> None:
        work_in(folder)
        self._items = None if at else _fetched(work)[0]
        self._function: Function
        try:
            self._function = called(factory)
        except Exception as error:
            self._function = _Raises(error)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        yield from _processed(block, self._function, self._items)


@dataclass(frozen=True)
class _Raises:
    error: Exception

    def __call__(self, value: Any) -> Any:
        raise self.error


def _processed(block: pa.Table, function: Function, items: Sequence[Any] | None) -> Iterator[pa.Table]:
    if items is not None:
        for number in block[ID].to_pylist():
            yield _attempted(number, partial(called, function, items[number]))
        return
    for at, (number, kind, value) in enumerate(_rows(block)):
        if kind == ERROR:  # of an earlier stage
            yield block.slice(at, 1)
        else:
            yield _attempted(number, partial(_decoded_and_called, function, kind, value))


def _decoded_and_called(function: Function, kind: int, value: pa.Buffer) -> Any:
    return called(function, _decoded(kind, value))


def _attempted(number: int, attempt: Callable[[], Any]) -> pa.Table:
    """The row of a result, or of the error in its place."""
    try:
        return _row(number, *_encoded(attempt()))
    except Exception as error:
        return _row(number, ERROR, _error_as_data(error))


# --- values as rows --------------------------------------------------------------------------------------------------


def _row(number: int, kind: int, value: pa.Buffer) -> pa.Table:
    """One row of a block; the value is not copied."""
    offsets = pa.array([0, value.size], pa.int64()).buffers()[1]
    values = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, value])
    return pa.table({ID: pa.array([number], pa.int64()), KIND: pa.array([kind], pa.int8()), VALUE: values})


def _rows(block: pa.Table) -> Iterator[tuple[int, int, pa.Buffer]]:
    """Number, kind and value of each row; the value is not copied."""
    for number, kind, value in zip(block[ID], block[KIND], block[VALUE], strict=True):
        yield number.as_py(), kind.as_py(), value.as_buffer()


def _encoded(value: Any) -> tuple[int, pa.Buffer]:
    if isinstance(value, pa.Table):
        return TABLE, ipc_buffer(value)
    if isinstance(value, list) and value and all(isinstance(each, pa.Table) for each in value):
        return TABLES, stream_buffer(value)
    return PICKLED, _pickled(value)


def _decoded(kind: int, value: pa.Buffer) -> Any:
    if kind == TABLES:
        return from_streams(value)
    return from_ipc(value) if kind == TABLE else cloudpickle.loads(value)


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # Ray publishes no types
    """Tables within other objects as their rows: plain pickle keeps all of the memory that a slice is taken from."""

    dispatch_table: ClassVar = ChainMap(
        {pa.Table: lambda table: (from_ipc, (to_ipc(table),))}, cloudpickle.CloudPickler.dispatch_table
    )


def _pickled(value: Any) -> pa.Buffer:
    sink = io.BytesIO()
    _Pickler(sink, protocol=5).dump(value)
    return pa.py_buffer(sink.getbuffer())


# --- errors as data --------------------------------------------------------------------------------------------------


def _error_as_data(error: Exception) -> pa.Buffer:
    """An error with its traceback; one that no other process could read becomes a RuntimeError of the same words."""
    told = "".join(traceback.format_exception(error))
    error = code_missing(error) or error
    try:
        content = cloudpickle.dumps((error, told))
        cloudpickle.loads(content)
    except Exception:
        content = cloudpickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), told))
    return pa.py_buffer(content)


def _result(kind: int, value: pa.Buffer) -> Any:
    """Raises the error that came in place of a result."""
    if kind != ERROR:
        return _decoded(kind, value)
    error, told = cloudpickle.loads(value)
    error.add_note(f"In a process of Ray:\n{told}")
    raise error
