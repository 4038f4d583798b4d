"""The machine that holds the scoring worker is lost while it works; another takes over and the rows stay exact."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.corpus import write
from tests.processes import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]
ROWS = 6000


def _score_and_lose_a_node(model: str, folder: Path) -> None:
    """In a process of its own, since the tests' process has its own cluster. Exits with the code of the command."""
    from ray.cluster_utils import Cluster

    from bertray.cli import run

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20})
    # Only the second node has the two CPUs that a scoring worker takes.
    second = cluster.add_node(num_cpus=2, object_store_memory=150 << 20)
    os.environ["RAY_ADDRESS"] = cluster.address
    words = [f"model={model}", f"input={folder / 'in'}", f"output={folder / 'out'}", "rows_per_shard=50"]
    codes: list[int] = []
    # Nodes can be added from the main thread only.
    command = threading.Thread(target=lambda: codes.append(run(["score", *words, "workers.threads=2"])))
    command.start()
    wait_for(lambda: len(list((folder / "out").rglob("*.receipt.json"))) >= 5, seconds=150)
    cluster.remove_node(second, allow_graceful=False)
    assert command.is_alive(), "the run ended before the node was lost"
    cluster.add_node(num_cpus=2, object_store_memory=150 << 20)
    command.join()
    cluster.shutdown()
    sys.exit(codes[0])


def test_a_lost_node_costs_no_row(trained, tmp_path):
    write(tmp_path / "in" / "reviews.parquet", ROWS, 7, "k")
    process = multiprocessing.get_context("spawn").Process(
        target=_score_and_lose_a_node, args=(str(trained / "model"), tmp_path)
    )
    process.start()
    process.join(270)
    assert process.exitcode == 0
    ids = Counter(pq.read_table(tmp_path / "out" / "data")["id"].to_pylist())
    assert ids == Counter(f"k{i}" for i in range(ROWS))
