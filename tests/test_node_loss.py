"""The machine that holds the scoring worker is lost while it works; another takes over and the rows stay exact."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.corpus import write
from tests.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parent.parent
ROWS = 6000


def score_and_lose_a_node(model: str, folder: Path) -> int:
    """Score on a cluster of two machines, both played by this one, and lose the one that works."""
    from ray.cluster_utils import Cluster

    from bertray.cli import run

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20})
    # Only the second node has the two CPUs that a scoring worker takes.
    second = cluster.add_node(num_cpus=2, object_store_memory=150 << 20)
    os.environ["RAY_ADDRESS"] = cluster.address
    words = [f"model={model}", f"input={folder / 'in'}", f"output={folder / 'out'}", "rows_per_shard=50"]
    codes: list[int] = []
    # Nodes can be added from the main thread only.
    command = threading.Thread(target=lambda: codes.append(run(["score", *words, "workers.threads=2"])))
    command.start()
    wait_for(lambda: bool(codes) or len(list((folder / "out").rglob("*.receipt.json"))) >= 5, seconds=150)
    assert not codes, f"the run ended with {codes} before the node was lost"
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(num_cpus=2, object_store_memory=150 << 20)
    command.join()
    cluster.shutdown()
    return codes[0]


def test_a_lost_node_costs_no_row(trained, tmp_path):
    write(tmp_path / "in" / "reviews.parquet", ROWS, 7, "k")
    # In a process of its own, without what the tests' own cluster left in the environment.
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-m", "tests.test_node_loss", str(trained / "model"), str(tmp_path)],
        env=env | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=ROOT,
        timeout=270,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    ids = Counter(pq.read_table(tmp_path / "out" / "data")["id"].to_pylist())
    assert ids == Counter(f"k{i}" for i in range(ROWS))


if __name__ == "__main__":
    sys.exit(score_and_lose_a_node(sys.argv[1], Path(sys.argv[2])))
