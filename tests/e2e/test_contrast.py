"""`training.method=contrast`: the tuned encoder with a linear head is a bundle like any other."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq

import bertray
from bertray.cli import run
from tests.nightly import without_ray

WORDS = ["max_length=24", "report.baselines=false", "training.method=contrast", "training.learning_rate=1e-2"]


def test_contrast_trains_a_bundle_that_scores(tiny_encoder, corpus, tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    output = tmp_path / "run"
    given = [f"model={tiny_encoder}", f"data.train={corpus / 'train.parquet'}", f"data.test={corpus / 'test.parquet'}"]
    argv = ["train", *given, f"output={output}", *WORDS]
    assert run(argv) == 0
    assert json.loads((output / "metrics.json").read_text())["metrics"]["accuracy"]["value"] > 0.9
    assert json.loads((output / "model" / "bertray.json").read_text())["head"] == "linear_on_normalized_mean"
    assert pq.read_table(output / "history.parquet")["kind"].to_pylist() == ["step"] * 40 + ["eval"]
    report = (output / "report.html").read_text()
    assert "40 of 32 texts of balanced classes, learning rate 0.01" in report
    base = (tiny_encoder / "model.safetensors").read_bytes()
    assert (output / "model" / "model.safetensors").read_bytes() != base
    test = pq.read_table(corpus / "test.parquet")
    predicted = bertray.Classifier.load(output / "model").predict(test["text"].to_pylist())
    assert np.mean(np.array(predicted) == np.array(test["label"].to_pylist())) > 0.9
    assert run([*argv, "training.epochs=3"]) == 2
    assert "training.method=contrast counts steps" in capsys.readouterr().err
