"""How busy a GPU was is read from what its driver prints."""

from __future__ import annotations

import os
import time

import pyarrow as pa
import pytest

from bertray.benchmark import measure
from bertray.benchmark.gpu import Busy, visible_gpus, watched_gpus


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function that stands in for `nvidia-smi`: notes what it was asked, prints lines, and waits to be ended."""

    def install(*lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        told = "\n".join(f"echo '{line}'" for line in lines)
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{told}\nexec sleep 60\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_the_mean_of_what_the_driver_says_of_these_gpus(driver, tmp_path):
    driver("50", "[N/A]", "100", "30")
    with watched_gpus(["GPU-a", "GPU-b"]) as busy:
        deadline = time.monotonic() + 20
        while busy.share_of_last(20, until=time.monotonic()) != pytest.approx(0.6) and time.monotonic() < deadline:
            time.sleep(0.01)
        begun = time.monotonic()
    assert time.monotonic() - begun < 4  # nothing of it is waited for
    assert busy.share_of_last(40, until=time.monotonic()) == pytest.approx(0.6)
    assert "--id=GPU-a,GPU-b" in (tmp_path / "asked").read_text()
    assert "utilization.gpu" in (tmp_path / "asked").read_text()


def test_only_the_seconds_at_work_count(monkeypatch):
    busy = Busy()
    for at, share in ((10.0, 0.0), (12.0, 0.4), (13.0, 0.8), (15.0, 0.0)):
        monkeypatch.setattr("bertray.benchmark.gpu.time.monotonic", lambda at=at: at)
        busy.add(share)
    assert busy.share_of_last(2.5, until=14.0) == pytest.approx(0.6)
    assert busy.share_of_last(1.0, until=9.0) is None


def test_without_a_driver_or_a_gpu_nothing_is_asked(driver, tmp_path, monkeypatch):
    driver("50")
    with watched_gpus([]):
        pass
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with watched_gpus(["GPU-a"]) as busy:
        pass
    assert busy.share_of_last(60, until=time.monotonic()) is None
    assert visible_gpus("cpu") == []


@pytest.mark.slow
def test_each_run_of_a_way_tells_how_busy_the_gpu_was(driver, tiny_encoder, tmp_path, monkeypatch):
    driver(*["40"] * 3)
    monkeypatch.setattr(measure, "visible_gpus", lambda _: ["GPU-a", "GPU-b", "GPU-c"])
    trial = measure.open_trial(
        tmp_path / "trial",
        str(tiny_encoder),
        pa.array(["a good film", "a bad plot"]),
        max_length=16,
        few_rows=1,
        device="cpu",
        environment=os.environ,
        seed=0,
    )

    def way(_: int, runs: measure.Runs) -> None:
        time.sleep(0.5)
        runs.seconds.append(5.0)  # the samples are of these, though the stand-in prints at once

    (runs,) = measure.in_turn(trial, {"bertray": way}, 2, lambda _: None, num_gpus=2).values()
    assert runs.gpu_busy == pytest.approx([0.4, 0.4])
    assert all(1e8 < limit < 1e14 for limit in runs.limits)
    assert len(runs.limits) == 2
    assert "--id=GPU-a,GPU-b\n" in (tmp_path / "asked").read_text()


def test_an_untrained_bert_base_is_drawn_by_the_seed(tmp_path, monkeypatch):
    import transformers

    small = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    monkeypatch.setattr(transformers, "BertConfig", lambda **_: small)
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = measure.classifier_of(tmp_path / name, "untrained-bert-base", 16, seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.id2label == {0: "negative", 1: "positive"}
        assert len(transformers.AutoTokenizer.from_pretrained(folder)) <= model.config.vocab_size
        weights.append(model.classifier.weight.tolist())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(("gpu", "cells"), [("H200", ["GPU busy", "75%", ""]), (None, ["peak MB", "", ""])])
def test_the_table_has_a_column_for_it_on_a_gpu_alone(gpu, cells):
    figures = dict.fromkeys(("rows_per_s", "tokens_per_s", "bertray_is_faster_by", "share_of_limit", "tflops"), 1.0)
    empty = {"start_up_s": [], "peak_mb": None, "share_of_silicon": None}
    way = {"title": "engine", "gpu_busy": [0.7, 0.8], **empty, **figures}
    ways = {"engine": way, "pipeline": way | {"gpu_busy": []}}
    content = {"machine": {"gpu": gpu}, "ways": ways}
    rows = [measure.columns(content), *measure.table_rows(content)]
    assert {len(row) for row in rows} == {9 if gpu else 8}
    assert [row[7] for row in rows] == cells
