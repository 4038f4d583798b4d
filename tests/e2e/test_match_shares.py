"""training.match_shares: the bundle says each class as often as validation rows have it, and the report says so."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bertray.cli import run
from tests.conftest import WORDS
from tests.corpus import train_argv

NUM_RARE, NUM_ROWS = 30, 100


@pytest.fixture
def folder(tmp_path):
    """Labels that the texts hardly tell, so that a model prefers the frequent one."""
    random = np.random.default_rng(0)
    for name, rows in (("train", 3 * NUM_ROWS), ("validation", NUM_ROWS)):
        texts = [" ".join(random.choice(WORDS, size=16)) for _ in range(rows)]
        labels = np.array(["pos"] * rows)
        labels[random.permutation(rows)[: rows * NUM_RARE // NUM_ROWS]] = "neg"
        table = pa.table(
            {"id": [f"{name}{i}" for i in range(rows)], "text": texts, "label": labels, "shop": ["a"] * rows}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet")
    return tmp_path


@pytest.mark.slow
def test_the_bundle_says_each_class_as_often_as_validation_has_it(folder, tiny_encoder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # in fp32: so small a model decides by a hair
    said, accuracy = {}, {}
    for name in ("argmax", "matched"):
        out = folder / name
        words = ["training.epochs=3", f"training.match_shares={name == 'matched'}"]
        argv = train_argv(tiny_encoder, folder, out, *words)
        # What chose the offsets is what is scored.
        given = [word for word in argv if not word.startswith("data.test=")]
        assert run([*given, f"data.validation={folder / 'validation.parquet'}"]) == 0
        said[name] = Counter(pq.read_table(out / "predictions.parquet")["prediction"].to_pylist())
        history = pq.read_table(out / "history.parquet").to_pylist()
        accuracy[name] = [row["accuracy"] for row in history if row["kind"] == "eval"]
    assert said["argmax"]["neg"] < NUM_RARE - 5
    assert said["matched"]["neg"] == pytest.approx(NUM_RARE, abs=1)  # scoring may round otherwise than training
    assert accuracy["matched"] != accuracy["argmax"]  # epochs are judged by the moved decision
    told = "The decision was moved until classes were said of validation rows as often as they occur there"
    assert told in (folder / "matched" / "report.html").read_text()
    assert told not in (folder / "argmax" / "report.html").read_text()


@pytest.mark.parametrize("method", ["features", "distill"])
def test_other_methods_refuse_it(method, folder, tiny_encoder, capsys):
    argv = train_argv(tiny_encoder, folder, folder / "out", "training.match_shares=true", f"training.method={method}")
    assert run(argv) == 2
    assert "training.match_shares applies to training.method=auto and finetune" in capsys.readouterr().err
