"""The machine that holds the scoring worker is lost while it works; another takes over and the rows stay exact."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.corpus import write
from tests.processes import run_beside_the_cluster, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
ROWS = 6000


def score_and_lose_a_node(model: str, folder: Path, after: int, num_gpus: int) -> int:
    """Score on two machines, both played by this one; the one at work is lost once so many of 120 parts are there.

    With GPUs it is the one that has them, as Ray counts them; its actor computes on the CPU.
    """
    from ray.cluster_utils import Cluster

    from bertray.cli import run
    from bertray.execution.resources import Resources

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20})
    # Only the second node has the two CPUs that a scoring worker takes.
    second = cluster.add_node(num_cpus=2, num_gpus=num_gpus, object_store_memory=150 << 20)
    os.environ["RAY_ADDRESS"] = cluster.address
    words = [f"model={model}", f"input={folder / 'in'}", f"output={folder / 'out'}", "rows_per_shard=50"]
    words.append("workers.use_gpu=true" if num_gpus else "workers.threads=2")
    Resources.device = "cpu"  # type: ignore[assignment, method-assign]  # no GPU is there
    codes: list[int] = []
    # Nodes can be added from the main thread only.
    command = threading.Thread(target=lambda: codes.append(run(["score", *words])))
    command.start()
    wait_for(lambda: bool(codes) or len(list((folder / "out").rglob("*.receipt.json"))) >= after, seconds=150)
    assert not codes, f"the run ended with {codes} before the node was lost"
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(num_cpus=2, num_gpus=num_gpus, object_store_memory=150 << 20)
    command.join()
    cluster.shutdown()
    return codes[0]


@pytest.mark.parametrize(
    ("after", "num_gpus"),
    [*(pytest.param(after, 0, marks=pytest.mark.soak) for after in (5, 60)), pytest.param(60, 1, id="gpu-node")],
)
def test_a_lost_node_costs_no_row(after, num_gpus, trained, tmp_path):
    write(tmp_path / "in" / "reviews.parquet", ROWS, 7, "k")
    words = [str(trained / "model"), str(tmp_path), str(after), str(num_gpus)]
    run_beside_the_cluster("tests.kills.test_node_loss", *words, seconds=270)
    ids = Counter(pq.read_table(tmp_path / "out" / "data")["id"].to_pylist())
    assert ids == Counter(f"k{i}" for i in range(ROWS))


if __name__ == "__main__":
    sys.exit(score_and_lose_a_node(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
