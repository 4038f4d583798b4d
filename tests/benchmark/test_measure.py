"""What is told of runs that took turns."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bertray.benchmark import measure
from bertray.benchmark.measure import Runs, Trial, in_turn


def test_a_ratio_is_of_runs_of_the_same_round_so_that_a_slow_minute_slows_both():
    ours = Runs(rows=10, tokens=100, flops=1.0, seconds=[1.0, 10.0, 2.0])
    theirs = Runs(rows=5, tokens=50, flops=1.0, seconds=[1.5, 15.0, 8.0])
    assert ours.faster_by(theirs) == pytest.approx(3.0)  # of medians: 8
    assert ours.faster_by(ours) == 1.0


def test_the_share_of_the_limit_is_of_what_the_machine_could_do_at_that_moment():
    runs = Runs(rows=10, tokens=100, flops=6.0, seconds=[1.0, 2.0, 1.0], limits=[12.0, 6.0, 8.0])
    assert runs.share_of_limit == pytest.approx(0.5)  # of medians: 0.75


def test_the_share_of_silicon_is_of_the_number_format_of_a_way():
    silicon = [{"bf16": 12.0, "int8": 24.0}, {"bf16": 6.0, "int8": 12.0}, {"bf16": 8.0, "int8": 16.0}]
    shares = {
        form: Runs(
            rows=10, tokens=100, flops=6.0, seconds=[1.0, 2.0, 1.0], number_format=form, silicon=silicon
        ).share_of_silicon
        for form in ("bf16", "int8", "fp32")
    }
    assert shares == {"bf16": pytest.approx(0.5), "int8": pytest.approx(0.25), "fp32": None}


def test_number_formats_of_ways_are_int8_ours_or_that_of_most_people(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "choose_dtype", lambda *_: torch.bfloat16)
    trial = Trial(tmp_path, tiny_encoder, 16, np.array([16, 3]), 1, "cpu", {})
    names = ["engine", "openvino", "int8", "openvino_int8", "onnx_int8", "pipeline", "train_bertray", "train_tutorial"]
    assert {name: trial.runs(name).number_format for name in names} == {
        **dict.fromkeys(("engine", "openvino", "train_bertray"), "bf16"),
        **dict.fromkeys(("int8", "openvino_int8", "onnx_int8"), "int8"),
        **dict.fromkeys(("pipeline", "train_tutorial"), "fp32"),
    }
    assert {name: trial.runs(name).rows for name in names if trial.runs(name).rows == 2} == dict.fromkeys(
        ("engine", "openvino", "int8", "openvino_int8", "onnx_int8"), 2
    )


def content(gpu: str | None, silicon: dict[str, Any], **way: Any) -> dict[str, Any]:
    """Figures of the engine alone."""
    figures = dict.fromkeys(("rows_per_s", "tokens_per_s", "bertray_is_faster_by", "share_of_limit", "tflops"), 1.0)
    empty = {"start_up_s": [], "peak_mb": None, "gpu_busy": [], "share_of_silicon": None, "agreement": None}
    return {
        "machine": {"gpu": gpu},
        "limit_tflops": 2.5,
        "silicon": silicon,
        "ways": {"engine": {"title": "engine", **empty, **figures, **way}},
        "price_per_million_reviews": None,
        "minutes_per_million_reviews": 5.0,
    }


def test_the_table_has_shares_of_both_limits():
    silicon = {"bf16": {"product": "amx_bf16", "tflops": 6.25}, "int8": {"product": "amx_int8", "tflops": 12.5}}
    found = content(None, silicon, share_of_limit=0.6, share_of_silicon=0.25)
    (row,) = measure.table_rows(found)
    assert dict(zip(measure.columns(found), row, strict=True)) == {
        "": "engine",
        "rows/s": "1.0",
        "tokens/s": "1",
        "speed-up": "1.00x",
        "limit": "60%",
        "silicon": "25%",
        "start": "",
        "peak MB": "",
    }
    assert measure.sentences(found)[1] == (
        "silicon: share of the CPU's widest product in each way's number format, TFLOP/s: "
        "6.250 in bf16 (amx_bf16), 12.500 in int8 (amx_int8)"
    )


def test_an_empty_column_has_its_reason_and_a_gpu_has_none():
    found = content(None, {})
    (row,) = measure.table_rows(found)
    assert dict(zip(measure.columns(found), row, strict=True))["silicon"] == ""
    assert measure.sentences(found)[1].startswith("silicon: not known, since our kernels, which measure it, are not in")
    on_gpu = content("H200", {})
    assert "silicon" not in [*measure.columns(on_gpu), *measure.sentences(on_gpu)]
    assert not [sentence for sentence in measure.sentences(on_gpu) if "silicon" in sentence]


def test_the_limit_of_a_round_is_the_best_seen_in_it(monkeypatch):
    rates = iter([{"bf16": 3.0, "int8": 6.0}, {"bf16": 4.0, "int8": 5.0}, {"bf16": 2.0}, {"bf16": 1.0}])
    monkeypatch.setattr(measure, "silicon_rates", lambda: next(rates))
    seconds = iter([2.0, 1.0, 0.25, 0.5])  # of 1e12 operations: before each run of two ways, twice
    limit = SimpleNamespace(pid=0, seconds=lambda: next(seconds))
    trial: Any = SimpleNamespace(
        device="cpu", runs=lambda _: Runs(rows=1, tokens=1, flops=1.0), contestant=lambda _: nullcontext(limit)
    )

    def way(_, runs):
        runs.seconds.append(1.0)

    measured = in_turn(trial, {"bertray": way, "engine": way}, 2, lambda _: None)
    assert [runs.limits for runs in measured.values()] == [[1e12, 4e12], [1e12, 4e12]]
    assert [runs.silicon for runs in measured.values()] == [[{"bf16": 4.0, "int8": 6.0}, {"bf16": 2.0}]] * 2
