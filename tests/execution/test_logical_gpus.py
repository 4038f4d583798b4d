"""Scheduling on GPUs that Ray counts and nobody has: one a worker, two calls side by side, ranks of Ray Train."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest

from tests.processes import run_beside_the_cluster


class Seen:
    """An actor that tells which GPU Ray gave it, and how many of its calls ran at once."""

    def __init__(self) -> None:
        self._lock, self._running, self._most = threading.Lock(), 0, 0

    def __call__(self, number: int) -> tuple[str, int]:
        with self._lock:
            self._running += 1
            self._most = max(self._most, self._running)
        deadline = time.monotonic() + 3  # items come as their readers are done, one after the other on a busy machine
        while self._most < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            self._running -= 1
        return os.environ["CUDA_VISIBLE_DEVICES"], self._most


def reader(number: int) -> int:
    """An item, from a process whose tokenizers take one thread."""
    if os.environ.get("RAYON_NUM_THREADS") != "1":
        raise RuntimeError("a tokenizer would open all cores")
    return number


def rank(of: Any) -> tuple[int, int, str]:
    return of.number, of.world_size, os.environ["CUDA_VISIBLE_DEVICES"]


def check(folder: str) -> None:
    """Run stages and ranks on two GPUs, neither of which is there."""
    import ray
    import ray.train.torch as ray_train

    from bertray.config import Workers
    from bertray.errors import ConfigError
    from bertray.execution.executor import Actors, Stage, Task, Training
    from bertray.execution.machines import machines_of_cluster
    from bertray.execution.ray_data import RayData
    from bertray.execution.resources import plan_resources

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, object_store_memory=200 << 20)
    with pytest.raises(ConfigError, match="3 GPUs asked for, this machine has 2"):
        plan_resources(Workers(num_workers=3, use_gpu=True), machines_of_cluster(), local=True)
    resources = plan_resources(Workers(num_workers=2, use_gpu=True), machines_of_cluster(), local=True)
    assert (resources.device, resources.gpus_per_worker, resources.reader_cpus) == ("cuda", 1, 1.0)
    executor = RayData(resources)
    stages: list[Stage] = [Task(reader, resources.reader_cpus), Actors(Seen, 2, resources.cpus_per_worker, 1, calls=2)]
    seen = list(executor.run(range(12), stages))
    assert len(seen) == 12
    assert {gpu for gpu, _ in seen} == {"0", "1"}
    assert max(most for _, most in seen) == 2
    # A build for CPUs has no NCCL; all else is as on GPUs.
    trainer: Any = ray_train.TorchTrainer
    ray_train.TorchTrainer = lambda *args, **keys: trainer(
        *args, torch_config=ray_train.TorchConfig(backend="gloo"), **keys
    )
    number, world_size, visible = executor.train(rank, Training("run", folder, 0))
    assert (number, world_size) == (0, 2)
    assert set(visible.split(",")) <= {"0", "1"}
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_on_logical_gpus_have_one_each_and_two_calls_side_by_side(tmp_path):
    run_beside_the_cluster("tests.execution.test_logical_gpus", str(tmp_path), seconds=200)


if __name__ == "__main__":
    check(sys.argv[1])
