"""Scoring and evaluating in int8 say what it changed, compared with fp32 on some of the reviews."""

from __future__ import annotations

import json
import re
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bertray.benchmark.measure import classifier_of
from bertray.cli import run
from bertray.model.bundle import read_info
from bertray.model.predictor import Predictor
from bertray.runs.evaluation_page import NOT_INT8
from bertray.scoring import row_makers
from tests.corpus import train_argv, write
from tests.nightly import without_ray

LABELS = "labels={neg: negative, pos: positive}"
TOLD = re.compile(
    r"Computed in int8, and (\d+) of (\d+) reviews \((.+?)\), whose two best labels were close, again in full "
    r"precision\. "
    r"Of (\d+) reviews computed in fp32 as well, (\d+) \((.+?)\) got the same label; "
    r"a probability differed by (0\.\d{3}) at most\."
)


@pytest.fixture(autouse=True)
def _int8_on_any_cpu(monkeypatch):
    """A CPU without VNNI and AMX computes the same numbers by an emulation."""
    monkeypatch.setattr("bertray.model.engine.can_quantize", lambda _: True)


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "in" / "a.parquet", 60, 3, "a").parent


@pytest.fixture
def model(tiny_encoder, tmp_path):
    """A bundle with a random head: unlike one that has learned this corpus, it is never quite sure."""
    return classifier_of(tmp_path, str(tiny_encoder), 24, seed=0)


@pytest.mark.slow
def test_a_night_in_int8_computes_close_reviews_again(model, reviews, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.setattr(row_makers, "COMPARED_ROWS", 12)
    # Full precision is fp32 on every CPU, so that its numbers are those of the first night.
    monkeypatch.setattr("bertray.model.engine.choose_dtype", lambda precision, device: torch.float32)

    def night(name: str, precision: str, bound: float) -> tuple[np.ndarray, list[str], dict[str, Any]]:
        monkeypatch.setattr("bertray.model.predictor.DEFAULT_BOUND", bound)
        out = tmp_path / name
        words = [f"model={model}", f"input={reviews}", f"output={out}", "slot=night", "rows_per_shard=16", LABELS]
        assert run(["score", *words, f"precision={precision}"]) == 0
        scores_N = pq.read_table(out / "data", partitioning=None).sort_by("id")["score"].to_numpy()
        entry = json.loads((out / "control" / "commits" / "00000001.json").read_text())
        assert entry["settings"]["precision"] == precision
        return scores_N, json.loads((out / "reports/night/run=1/report.json").read_text())["notes"], entry

    full_N, notes, entry = night("full", "fp32", 0.0)
    assert (notes, entry["int8"], entry["recomputed"]) == ([], None, 0)
    int8_N, notes, entry = night("int8", "int8", 0.0)
    assert 0 < np.abs(int8_N - full_N).max() < 0.01
    found = entry["int8"]
    assert (found["rows"], found["same_label"]) == (12, 12)  # of the first work unit alone
    assert 0 < found["largest_difference"] <= np.abs(int8_N - full_N).max() + 1e-6
    told = TOLD.fullmatch(notes[0])
    assert told is not None
    assert told.groups() == ("0", "60", "0.0 %", "12", "12", "100.0 %", f"{found['largest_difference']:.3f}")

    margin_N = 2 * int8_N - 1  # of two classes
    bound = float(np.median(margin_N))  # between two of sixty
    verified_N, notes, entry = night("verified", "int8", bound)
    np.testing.assert_allclose(verified_N, np.where(margin_N < bound, full_N, int8_N), atol=1e-6)
    assert entry["recomputed"] == 30
    assert TOLD.fullmatch(notes[0]).groups()[:3] == ("30", "60", "50.0 %")


def test_a_model_that_cannot_be_computed_in_int8_says_so(model, reviews, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.setattr("bertray.model.backend._INT8_TOLERANCE", -1.0)
    words = [f"model={model}", f"input={reviews}", f"output={tmp_path / 'out'}", "slot=night", LABELS]
    assert run(["score", *words, "precision=int8", "report.explain=0"]) == 0
    assert json.loads((tmp_path / "out" / "reports" / "night" / "run=1" / "report.json").read_text())["notes"] == [
        NOT_INT8
    ]


def test_enough_rows_are_compared_however_small_the_work_units(model, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.setattr(row_makers, "COMPARED_ROWS", 40)
    write(tmp_path / "in" / "a.parquet", 60, 3, "a")
    words = [f"model={model}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "slot=night", LABELS]
    assert run(["score", *words, "precision=int8", "rows_per_shard=16"]) == 0
    entry = json.loads((tmp_path / "out" / "control" / "commits" / "00000001.json").read_text())
    assert entry["int8"]["rows"] == 40


def test_int8_on_a_gpu_is_refused_before_any_work(model, reviews, tmp_path, capsys):
    words = [f"model={model}", f"input={reviews}", f"output={tmp_path / 'out'}", "precision=int8"]
    assert run(["score", *words, "workers.use_gpu=true"]) == 2
    assert "precision=int8 is for CPUs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_precision_is_another_setting_of_a_slot(model, reviews, tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    words = [f"model={model}", f"input={reviews}", f"output={tmp_path / 'out'}", "slot=night", LABELS]
    assert run(["score", *words]) == 0
    entry = json.loads((tmp_path / "out" / "control" / "commits" / "00000001.json").read_text())
    assert "precision" not in entry["settings"]  # so that outputs of before the key are what they were
    assert run(["score", *words, "replace=true", "precision=int8"]) == 0
    entry = json.loads((tmp_path / "out" / "control" / "commits" / "00000002.json").read_text())
    assert (entry["slot"], entry["version"], entry["settings"]["precision"]) == ("night", 2, "int8")
    assert entry["int8"]["rows"] == 60


def test_an_evaluation_in_int8_tells_it_too(model, reviews, tmp_path):
    out = tmp_path / "evaluated"
    words = [
        f"model={model}",
        f"input={reviews}",
        f"output={out}",
        "precision=int8",
        "labels={neg: negative, pos: positive}",
    ]
    assert run(["evaluate", *words]) == 0
    assert TOLD.search((out / "report.html").read_text()).group(2) == "60"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "features", "stack"])
def test_training_measures_what_int8_would_change(tiny_encoder, corpus, tmp_path, monkeypatch, method):
    without_ray(monkeypatch)
    monkeypatch.setattr("bertray.model.int8.LEAST_MEASURED", 10)
    words = [f"training.method={method}", "training.epochs=1", "report.baselines=false", "report.explain=0"]
    assert run(train_argv(tiny_encoder, corpus, tmp_path / "run", *words)) == 0
    info = read_info(tmp_path / "run" / "model")
    assert info.int8_bound is not None
    assert 0 < info.int8_bound < 0.1
    words = [f"model={tmp_path / 'run' / 'model'}", f"input={corpus / 'test.parquet'}", f"output={tmp_path / 'out'}"]
    given = Mock(wraps=Predictor)
    monkeypatch.setattr("bertray.model.predictor.Predictor", given)
    assert run(["score", *words, "precision=int8", "report.explain=0"]) == 0
    assert {call.kwargs["int8_bound"] for call in given.call_args_list} == {info.int8_bound}
