"""Training on one and on two Ray Train workers: the same examples, steps and losses; a killed worker is survived."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from tests.corpus import train_argv
from tests.processes import descendants

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def losses(output) -> list[float]:
    rows = pq.read_table(output / "history.parquet").to_pylist()
    return [row["loss"] for row in rows if row["kind"] == "step"]


@pytest.fixture(scope="module")
def still_encoder(tiny_encoder, tmp_path_factory):
    """The tiny encoder without dropout, so that runs can be compared step by step."""
    import json
    import shutil

    folder = tmp_path_factory.mktemp("still") / "encoder"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_one_and_two_workers_take_the_same_steps_with_the_same_losses(still_encoder, corpus, tmp_path, ray_cluster):
    words = ["training.epochs=2", "training.precision=fp32", "report.baselines=false", "workers.threads=1"]
    assert run(train_argv(still_encoder, corpus, tmp_path / "one", *words)) == 0
    assert run(train_argv(still_encoder, corpus, tmp_path / "two", *words, "workers.num_workers=2")) == 0
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 28  # 216 examples in steps of 16, twice
    np.testing.assert_allclose(one, two, atol=2e-4)  # gradients are summed in another order, 28 steps in a row


@pytest.mark.timeout(600)  # starting a group of workers again has taken minutes on a slow machine
def test_a_killed_training_worker_is_replaced_and_the_losses_repeat(still_encoder, corpus, tmp_path, ray_cluster):
    words = ["training.epochs=3", "training.precision=fp32", "report.baselines=false", "workers.threads=1"]
    words.append("training.checkpoint_every_s=0.001")
    assert run(train_argv(still_encoder, corpus, tmp_path / "whole", *words)) == 0
    killed: list[int] = []
    killer = threading.Thread(target=_kill_worker_once, args=(tmp_path / "killed" / "checkpoints", killed))
    killer.start()
    assert run(train_argv(still_encoder, corpus, tmp_path / "killed", *words)) == 0
    killer.join(timeout=10)
    assert killed, "no training worker was found to kill"
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert "interrupted and resumed at step" in (tmp_path / "killed" / "report.html").read_text()


def _kill_worker_once(checkpoints, killed: list[int]) -> None:
    """Kill -9 the training worker as soon as a few checkpoints exist."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if checkpoints.is_dir() and any(int(path.name[5:]) >= 4 for path in checkpoints.glob("step-*")):
            mine = descendants(os.getpid(), "ray::RayTrainWorker")
            if mine:
                os.kill(mine[0], signal.SIGKILL)
                killed.append(mine[0])
                return
        time.sleep(0.02)
