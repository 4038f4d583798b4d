"""The two executors give the same results and the same errors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError

from bertray.errors import BertrayError, ConfigError, DataRefused, InfrastructureError
from bertray.execution.executor import Actors, Executor, InProcess, Progress, Task, in_order
from bertray.execution.resources import Resources

RESOURCES = Resources(num_workers=2, threads=1, cpus_per_worker=1.0, gpus_per_worker=0, stall_timeout_s=60.0)


@pytest.fixture(params=["in process", pytest.param("ray", marks=pytest.mark.ray)])
def executor(request) -> Executor:
    if request.param == "in process":
        return InProcess(RESOURCES)
    request.getfixturevalue("ray_cluster")
    from bertray.execution.ray_data import RayData

    return RayData(RESOURCES)


def double(number: int) -> int:
    return 2 * number


def rows_up_to(number: int) -> pa.Table:
    return pa.table({"row": np.arange(number)})


def reversed_list(tables: list[pa.Table]) -> list[pa.Table]:
    return tables[::-1]


def num_rows(table: pa.Table) -> int:
    return int(table.num_rows)


class Counting:
    """A function with state: how many items this replica has met."""

    def __init__(self, log: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        self.log, self.met = log, 0

    def __call__(self, value: Any) -> tuple[Any, int]:
        self.met += 1
        return value, self.met

    def close(self) -> None:
        with self.log.open("a") as file:
            file.write("closed\n")


@dataclass(frozen=True)
class MakesCounting:
    log: Path

    def __call__(self) -> Counting:
        return Counting(self.log)


@dataclass(frozen=True)
class Slice:
    """A result that holds tables."""

    number: int
    rows: pa.Table


def a_slice(number: int) -> Slice:
    return Slice(number, pa.table({"row": np.arange(1_000_000)}).slice(10 * number, 3))


class Folders:
    """The folder that relative paths begin at, here and in the stage before."""

    def __call__(self, before: str) -> list[str]:
        return [before, str(Path.cwd())]


def here(_: Any) -> str:
    return str(Path.cwd())


def test_relative_paths_begin_at_the_folder_of_the_driver(executor, tmp_path, monkeypatch):
    for name in ("a", "b"):  # a notebook that changes its folder after Ray has started
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert list(executor.run([1], [Task(here), Actors(Folders)])) == [[str(tmp_path / name)] * 2]
    (tmp_path / "b").rmdir()
    assert list(executor.run([1], [Task(double)])) == [2]


def test_every_item_gives_one_result_in_any_order(executor):
    assert sorted(executor.run(range(10), [Task(double)])) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_each_stage_is_given_what_the_one_before_it_returned(executor):
    tables = executor.run([3, 1, 2], [Task(double), Task(rows_up_to)])
    assert sorted(table["row"].to_pylist() for table in tables) == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    stages = [Task(rows_up_to), Actors(lambda: num_rows, replicas=2), Task(double)]
    assert sorted(executor.run([3, 1, 2], stages)) == [2, 4, 6]


def test_actors_may_come_first(executor):
    assert sorted(executor.run([1, 2], [Actors(lambda: double)])) == [2, 4]


def test_a_factory_is_called_once_for_each_replica(executor, tmp_path):
    log = tmp_path / "log"
    results = list(executor.run(range(8), [Task(double), Actors(MakesCounting(log), replicas=1)]))
    assert sorted(number for number, _ in results) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert sorted(met for _, met in results) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(line != "closed" for line in log.read_text().splitlines()) == 1


def test_nothing_is_loaded_for_no_items(executor, tmp_path):
    assert list(executor.run([], [Actors(MakesCounting(tmp_path / "log"))])) == []
    assert not (tmp_path / "log").exists()


def test_items_may_come_from_a_generator(executor):
    assert sorted(executor.run((number for number in range(3)), [Task(double)])) == [0, 2, 4]


def test_results_in_order_are_in_the_order_of_the_items(executor):
    assert in_order(executor, list(range(9, 0, -1)), double) == list(range(18, 0, -2))


def test_tables_within_results_travel_as_their_rows(executor):
    found = sorted(executor.run(range(3), [Task(a_slice)]), key=lambda one: one.number)
    assert [one.rows["row"].to_pylist() for one in found] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_lists_of_tables_are_handed_on_whole(executor):
    stages = [Task(lambda number: [rows_up_to(number), rows_up_to(0)]), Actors(lambda: reversed_list)]
    found = sorted(executor.run([2, 1], stages), key=lambda tables: tables[1].num_rows)
    assert [[table["row"].to_pylist() for table in tables] for tables in found] == [[[], [0]], [[], [0, 1]]]
    assert list(executor.run([0], [Task(lambda _: [])])) == [[]]


def test_values_that_are_nothing_and_empty_tables_are_results(executor):
    assert next(iter(executor.run([0], [Task(rows_up_to)]))).num_rows == 0
    assert list(executor.run([0, 1], [Task(lambda _: None)])) == [None, None]


# --- errors ----------------------------------------------------------------------------------------------------------


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def no_memory() -> None:
    raise MemoryError("4 GiB")


def no_memory_of_numpy() -> None:
    np.empty(1 << 55, np.uint8)


def no_memory_of_arrow() -> None:
    raise pa.ArrowMemoryError("malloc of size 64 failed")


def no_memory_of_torch() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 9 bytes.")


def full_disk_of_safetensors() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def storage_failed() -> None:
    try:
        raise OSError("connection reset")
    except OSError as error:
        raise InfrastructureError("s3://b/x: the storage failed.", "Run the same command again.") from error


def refused() -> None:
    raise DataRefused("a.parquet: expected text, found numbers.\nTwo lines.", "Look at the file.")


OURS = [
    (full_disk, InfrastructureError, "No space left"),
    (no_memory, InfrastructureError, "out of memory (MemoryError: 4 GiB)"),
    (no_memory_of_numpy, InfrastructureError, "out of memory"),
    (no_memory_of_arrow, InfrastructureError, "malloc of size 64 failed"),
    (no_memory_of_torch, InfrastructureError, "can't allocate memory: 9 bytes"),
    (full_disk_of_safetensors, InfrastructureError, "No space left"),
    (storage_failed, InfrastructureError, "s3://b/x: the storage failed. Run the same command again."),
    (refused, DataRefused, "a.parquet: expected text, found numbers.\nTwo lines. Look at the file."),
]


class Raises:
    """A stage that fails: the function of a task, a factory, or what a factory makes."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self.fault = fault

    def __call__(self, *_: Any) -> Any:
        self.fault()


def places_of(fault: Callable[[], None]) -> dict[str, list[Any]]:
    raises = Raises(fault)
    return {
        "task": [Task(raises), Task(double), Actors(lambda: double)],
        "factory": [Task(double), Actors(raises)],
        "actor": [Task(double), Actors(lambda: raises), Task(double)],
    }


@pytest.mark.parametrize(
    ("executor", "fault", "kind", "said"),
    [
        pytest.param(name, *case, id=f"{name}-{case[0].__name__}", marks=marks)
        for case in OURS
        for name, marks in (
            ("in process", []),
            ("ray", [pytest.mark.ray, *([] if case[0] in (no_memory_of_numpy, refused) else [pytest.mark.soak])]),
        )
    ],
    indirect=["executor"],
)
def test_an_error_of_a_stage_arrives_as_one_of_ours(executor, fault, kind, said):
    with pytest.raises(BertrayError) as caught:
        list(executor.run([1, 2], places_of(fault)["task"]))
    assert type(caught.value) is kind
    assert said in str(caught.value)


@pytest.mark.parametrize("place", ["factory", "actor"])
def test_an_error_of_an_actor_arrives_as_one_of_ours(executor, place):
    with pytest.raises(DataRefused, match="expected text, found numbers"):
        list(executor.run([1, 2], places_of(refused)[place]))


def a_bug() -> None:
    raise KeyError("bertray.errors.ConfigError: not an error of ours")


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def an_odd_bug() -> None:
    raise Odd(1, 2)


@pytest.mark.parametrize("place", ["task", "factory", "actor"])
def test_a_bug_stays_a_bug(executor, place):
    with pytest.raises(KeyError, match=r"bertray\.errors\.ConfigError: not an error of ours"):
        list(executor.run([1], places_of(a_bug)[place]))


def test_a_bug_that_cannot_be_sent_keeps_its_words(executor):
    with pytest.raises(Exception, match="1 and 2") as caught:
        list(executor.run([1], places_of(an_odd_bug)["task"]))
    assert not isinstance(caught.value, BertrayError)


@pytest.mark.parametrize("place", ["task", "factory", "actor"])
def test_a_stage_that_ends_its_process_is_a_bug(executor, place):
    with pytest.raises(RuntimeError, match=r"a stage ended its process: SystemExit\(3\)"):
        list(executor.run([1], places_of(lambda: sys.exit(3))[place]))


def test_results_before_an_error_are_given(executor):
    def fails_late(number: int) -> int:
        if number == 2:
            time.sleep(1.5)
            refused()
        return number

    results = executor.run(range(3), [Task(fails_late)])
    assert sorted([next(results), next(results)]) == [0, 1]
    with pytest.raises(DataRefused):
        next(results)


@pytest.mark.slow
def test_whoever_wants_no_more_results_ends_the_work(executor, tmp_path):
    def note(number: int) -> int:
        time.sleep(0.2)
        (tmp_path / str(number)).touch()
        return number

    results = executor.run(range(200), [Task(note, cpus=1.0)])
    next(results)
    results.close()
    time.sleep(1.0)  # what is at work comes to its end
    done = len(list(tmp_path.iterdir()))
    time.sleep(1.0)
    assert len(list(tmp_path.iterdir())) == done < 100


# --- each by itself --------------------------------------------------------------------------------------------------


def test_in_process_items_are_taken_when_results_are_wanted_and_what_was_opened_is_closed(tmp_path):
    taken = []

    def items() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    results: Any = InProcess(RESOURCES).run(items(), [Actors(MakesCounting(tmp_path / "log"), replicas=4)])
    assert taken == []
    assert next(results) == (0, 1)
    assert taken == [0]
    results.close()
    assert (tmp_path / "log").read_text() == f"{os.getpid()}\nclosed\n"


def impatient(stall_timeout_s: float) -> Resources:
    return replace(RESOURCES, stall_timeout_s=stall_timeout_s)


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_lacks_a_module_is_a_matter_of_installing(ray_cluster):
    from bertray.execution.ray_data import RayData

    def lacks() -> None:
        import bertray.nothing_of_that_name  # type: ignore[import-not-found]  # noqa: F401

    for stages in places_of(lacks).values():
        with pytest.raises(ConfigError, match=r"a worker cannot load what it needs.*nothing_of_that_name"):
            list(RayData(RESOURCES).run([1], stages))


@pytest.mark.ray
def test_an_actor_that_dies_again_and_again_is_a_stall(ray_cluster):
    from bertray.execution.ray_data import RayData

    with pytest.raises(InfrastructureError, match="nothing was finished for 5 s; 1 of 1 items wait: 1"):
        list(RayData(impatient(5.0)).run([1], [Task(double), Actors(lambda: os._exit(1))]))


@pytest.mark.ray
def test_a_worker_that_is_killed_is_replaced(ray_cluster, tmp_path):
    from bertray.execution.ray_data import RayData

    def dies_once(number: int) -> int:
        if number == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        return number

    stages: list[Task | Actors] = [Task(dies_once), Actors(lambda: dies_once)]
    assert sorted(RayData(RESOURCES).run(range(5), stages)) == [0, 1, 2, 3, 4]
    assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_stage_that_finishes_nothing_is_an_error_that_names_the_items(ray_cluster):
    from bertray.execution.ray_data import RayData

    resources = Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0, stall_timeout_s=3.0)
    progress = Progress("trying", "shard", lambda item: f"file {item}")
    with pytest.raises(
        InfrastructureError, match=r"trying: nothing was finished for 3 s; 1 of 2 shards wait: file 9\."
    ):
        list(RayData(resources).run([0, 9], [Task(lambda seconds: time.sleep(4 * seconds))], progress))


@pytest.mark.ray
def test_few_rows_are_worked_on_in_this_process_with_the_threads_of_all_workers(ray_cluster):
    from bertray.execution.ray_data import RayData

    executor = RayData(Resources(2, 3, 1.0, 0, in_process_rows=10))
    alone = executor.for_rows(10)
    assert isinstance(alone, InProcess)
    assert (alone.resources.num_workers, alone.resources.threads) == (1, 6)
    assert executor.for_rows(11) is executor
    assert alone.for_rows(11) is alone
