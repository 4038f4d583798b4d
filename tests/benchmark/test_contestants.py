"""The ways that are compared do the same work: the same labels and scores for the same file."""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bertray.benchmark.contestants import CONTESTANTS, Contestant, Task, _in_sorted_shapes
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


def with_extra(name, package, without):
    reason = f"{package} is not installed: pip install -c constraints.txt 'bertray[{name}]'"
    return pytest.param(name, without, marks=pytest.mark.skipif(find_spec(package) is None, reason=reason))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without"),
    [with_extra("openvino_int8", "nncf", "openvino"), with_extra("onnx_int8", "onnxruntime", "padded")],
)
def test_int8_of_others_comes_near_what_they_are_without_it(name, without, trained_alone, reviews, tmp_path):
    expected, table = (outcome(way, trained_alone, reviews, tmp_path) for way in (without, name))
    assert table["label"].equals(expected["label"])
    differences = np.abs(table["score"].to_numpy() - expected["score"].to_numpy())
    assert 5e-6 < differences.max() < 0.1  # fp32 alone is within 1e-6


def test_padded_batches_hold_each_review_once_in_sorted_shapes_and_answers_come_back_in_order(tiny_encoder):
    texts = ["good", "bad film " * 20, "fine", "a plot"]
    shapes = []

    def compute(inputs):
        shapes.append(inputs["input_ids"].shape)
        return np.stack([inputs["attention_mask"].sum(axis=1), np.full(len(inputs["input_ids"]), 12)], axis=1)

    task = Task("onnx_int8", str(tiny_encoder), "", "", 32, window_rows=3)
    config = SimpleNamespace(pad_token_id=0, num_labels=2, id2label={0: "long", 1: "short"})
    labels, _ = _in_sorted_shapes(task, config, compute)(texts)
    assert labels == ["short", "long", "short", "short"]
    assert shapes == [(3, 32), (1, 16)]


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
