"""Ranks of a training: in this process and on the workers of Ray Train."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertray.errors import DataRefused, InfrastructureError
from bertray.execution.executor import InProcess, Rank, Training
from bertray.execution.resources import Resources

RESOURCES = Resources(num_workers=2, threads=1, cpus_per_worker=1.0, gpus_per_worker=0)


def training(folder: Path) -> Training:
    return Training(name=folder.name, storage=str(folder), max_failures=0)


def test_in_process_there_is_one_rank_on_the_device_of_the_executor(tmp_path):
    found = InProcess(RESOURCES).train(lambda rank: rank, training(tmp_path))
    assert found == Rank(0, 1, "cpu")


@pytest.mark.ray
@pytest.mark.slow
def test_every_worker_is_a_rank_and_what_rank_0_returns_is_the_result(ray_cluster, tmp_path, monkeypatch):
    from bertray.execution.ray_data import RayData

    monkeypatch.chdir(tmp_path)

    def body(rank: Rank) -> tuple[int, int, str]:
        Path(f"rank-{rank.number}").touch()  # in the folder of the driver
        return rank.number, rank.world_size, rank.device

    executor = RayData(RESOURCES)
    assert executor.training_workers == "2 workers"
    assert executor.train(body, training(tmp_path)) == (0, 2, "cpu")
    assert {path.name for path in tmp_path.glob("rank-*")} == {"rank-0", "rank-1"}


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_of_a_rank_arrives_as_one_of_ours(ray_cluster, tmp_path):
    from bertray.execution.ray_data import RayData

    def body(rank: Rank) -> None:
        if rank.number == 1:
            raise DataRefused("rank 1: no row.", "Give rows.") from OSError("elsewhere")

    with pytest.raises(DataRefused, match=r"rank 1: no row\. Give rows\."):
        RayData(RESOURCES).train(body, training(tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_a_rank_without_memory_is_infrastructure(ray_cluster, tmp_path):
    from bertray.execution.ray_data import RayData

    def body(rank: Rank) -> None:
        raise MemoryError("4 GiB")

    with pytest.raises(InfrastructureError, match="out of memory"):
        RayData(RESOURCES).train(body, training(tmp_path))
