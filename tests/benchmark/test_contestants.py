"""The ways that are compared do the same work: the same labels and scores for the same file."""

from __future__ import annotations

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bertray.benchmark.contestants import CONTESTANTS, Contestant, Task
from bertray.model.linear import can_quantize
from tests.corpus import write

ROWS = 40


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "reviews.parquet", ROWS, 3, "r")


def outcome(name, trained, reviews, folder):
    task = Task(name, str(trained / "model"), str(reviews), str(folder / f"{name}.parquet"), 16, window_rows=16)
    with Contestant(task, os.environ) as contestant:
        seconds = contestant.seconds()
    assert seconds > 0
    return pq.read_table(task.output)


@pytest.mark.slow
def test_all_ways_of_scoring_agree(trained_alone, reviews, tmp_path):
    expected = outcome("pipeline", trained_alone, reviews, tmp_path)
    assert expected.num_rows == ROWS
    for name in ("padded", "engine", "openvino"):
        table = outcome(name, trained_alone, reviews, tmp_path)
        assert table["label"].equals(expected["label"])
        np.testing.assert_allclose(table["score"], expected["score"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not can_quantize(torch.device("cpu")), reason="this CPU has neither VNNI nor AMX")
def test_int8_comes_near(trained_alone, reviews, tmp_path):
    expected, table = (outcome(name, trained_alone, reviews, tmp_path) for name in ("engine", "int8"))
    assert table["label"].equals(expected["label"])
    np.testing.assert_allclose(table["score"], expected["score"], atol=0.1)


@pytest.mark.parametrize("name", ["train_tutorial", "train_bertray"])
def test_training_runs_an_epoch_each_time(name, tiny_encoder, reviews, tmp_path):
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    run = CONTESTANTS[name](
        Task(name, str(tiny_encoder), str(reviews), str(tmp_path / "out.parquet"), 16, batch_size=8)
    )
    for epochs in (1, 2):
        assert run() > 0
        assert len(steps) == epochs * ROWS // 8
    hook.remove()


@pytest.mark.slow
def test_what_a_library_prints_is_no_answer(tiny_encoder, reviews, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('a greeting', flush=True)\n")
    task = Task("limit", str(tiny_encoder), str(reviews), str(tmp_path / "out.parquet"), 16)
    with Contestant(task, {**os.environ, "PYTHONPATH": str(tmp_path)}) as contestant:
        assert contestant.seconds() > 0


@pytest.mark.slow
def test_a_contestant_that_cannot_start_says_why(tmp_path, reviews):
    task = Task("engine", str(tmp_path / "nothing"), str(reviews), str(tmp_path / "out.parquet"), 16)
    with pytest.raises(RuntimeError, match=r"benchmark: engine ended: [\s\S]*nothing"):
        Contestant(task, os.environ)
