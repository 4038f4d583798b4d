"""Scoring and evaluating in int8 say what it changed, compared with fp32 on some of the reviews."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
import torch

from bertray.benchmark.measure import classifier_of
from bertray.cli import run
from bertray.model.linear import can_quantize
from bertray.runs.evaluated import NOT_INT8
from bertray.scoring import stage_part as parts
from tests.corpus import write
from tests.nightly import without_ray

pytestmark = pytest.mark.skipif(not can_quantize(torch.device("cpu")), reason="this CPU has neither VNNI nor AMX")
LABELS = "labels={neg: negative, pos: positive}"
TOLD = re.compile(
    r"Computed in int8\. Of (\d+) reviews computed in fp32 as well, (\d+) \((.+?)\) got the same label; "
    r"a probability differed by (0\.\d{3}) at most\."
)


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "in" / "a.parquet", 60, 3, "a").parent


@pytest.fixture
def model(tiny_encoder, tmp_path):
    """A bundle with a random head: unlike one that has learned this corpus, it is never quite sure."""
    return classifier_of(tmp_path, str(tiny_encoder), 24, seed=0)


def test_a_night_in_int8_tells_what_it_changed(model, reviews, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.setattr(parts, "COMPARED_ROWS", 12)
    rows, notes, compared = {}, {}, {}
    for precision in ("fp32", "int8"):
        out = tmp_path / precision
        words = [f"model={model}", f"input={reviews}", f"output={out}", "slot=night", "rows_per_shard=16", LABELS]
        assert run(["score", *words, f"precision={precision}"]) == 0
        rows[precision] = pq.read_table(out / "data", partitioning=None).sort_by("id").to_pydict()
        notes[precision] = json.loads((out / "reports" / "night" / "run=1" / "report.json").read_text())["notes"]
        entry = json.loads((out / "control" / "commits" / "00000001.json").read_text())
        compared[precision] = entry["int8"]
        assert entry["settings"]["precision"] == precision
    assert (notes["fp32"], compared["fp32"]) == ([], None)
    differences = [abs(a - b) for a, b in zip(rows["fp32"]["score"], rows["int8"]["score"], strict=True)]
    assert 0 < max(differences) < 0.01
    found = compared["int8"]
    assert found["rows"] == 12  # of the first work item alone
    assert found["same_label"] == 12
    assert 0 < found["largest_difference"] <= max(differences) + 1e-6
    told = TOLD.fullmatch(notes["int8"][0])
    assert told is not None
    assert told.groups() == ("12", "12", "100.0%", f"{found['largest_difference']:.3f}")


def test_a_model_that_cannot_be_computed_in_int8_says_so(model, reviews, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.setattr("bertray.model.backend._INT8_TOLERANCE", -1.0)
    words = [f"model={model}", f"input={reviews}", f"output={tmp_path / 'out'}", "slot=night", LABELS]
    assert run(["score", *words, "precision=int8"]) == 0
    assert json.loads((tmp_path / "out" / "reports" / "night" / "run=1" / "report.json").read_text())["notes"] == [
        NOT_INT8
    ]


def test_enough_rows_are_compared_however_small_the_work_items(model, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.setattr(parts, "COMPARED_ROWS", 40)
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
    assert TOLD.search((out / "report.html").read_text()).group(1) == "60"
