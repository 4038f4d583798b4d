"""A threshold for reviews from validation rows: into the bundle, the report, and the rows that `score` writes."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from tests.corpus import sentences, train_argv
from tests.nightly import without_ray


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    without_ray(monkeypatch)


def train(encoder, corpus, output, *words: str) -> int:
    return run([*train_argv(encoder, corpus, output), "data.validation_fraction=0.5", *words])


@pytest.mark.slow
def test_the_bundle_says_which_rows_need_review(tiny_encoder, corpus, tmp_path):
    table = pq.read_table(corpus / "train.parquet")
    wrong_N = np.random.default_rng(0).random(table.num_rows) < 0.2  # or the model would be sure of every row
    flipped = {"pos": "neg", "neg": "pos"}
    labels = [flipped[y] if wrong else y for y, wrong in zip(table["label"].to_pylist(), wrong_N, strict=True)]
    noisy = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    pq.write_table(noisy, tmp_path / "noisy.parquet")
    words = ["review.share=0.25", f"data.train={tmp_path / 'noisy.parquet'}"]
    assert train(tiny_encoder, corpus, tmp_path / "run", *words) == 0
    info = json.loads((tmp_path / "run" / "model" / "bertray.json").read_text())
    threshold = info["needs_review_below"]
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["calibration"]
    assert told["review"]["threshold"] == threshold
    assert told["review"]["wanted"] == {"share": 0.25}
    assert told["temperature"] == info["temperature"]
    assert told["before"]["ece"]["value"] >= 0
    page = (tmp_path / "run" / "report.html").read_text().replace("\u00a0", " ")
    assert "a score below " in page
    assert "Before calibration: calibration error" in page
    texts, _ = sentences(120, 5)
    pq.write_table(pa.table({"id": [f"n{i}" for i in range(120)], "text": texts}), tmp_path / "in.parquet")
    score = ["score", f"model={tmp_path / 'run' / 'model'}", f"input={tmp_path / 'in.parquet'}", "slot=night=1"]
    assert run([*score, f"output={tmp_path / 'scored'}"]) == 0
    rows = pq.read_table(tmp_path / "scored" / "data" / "night=1" / "run=1")
    assert rows["needs_review"].to_pylist() == [s < threshold for s in rows["score"].to_pylist()]
    assert 0 < sum(rows["needs_review"].to_pylist()) < 120
    assert run([*score, f"output={tmp_path / 'own'}", "needs_review_below=0.01"]) == 0
    own = pq.read_table(tmp_path / "own" / "data" / "night=1" / "run=1")
    assert not any(own["needs_review"].to_pylist())


@pytest.mark.slow
def test_a_precision_that_few_rows_cannot_show_is_not_promised(tiny_encoder, corpus, tmp_path):
    assert train(tiny_encoder, corpus, tmp_path / "run", "review.precision=0.999", "training.epochs=1") == 0
    assert "needs_review_below" not in json.loads((tmp_path / "run" / "model" / "bertray.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text().replace("\u00a0", " ")
    assert "cannot be had with " in page
    assert "it takes 2,995 rows at least" in page


@pytest.mark.slow
def test_class_bias_moves_the_decision_of_the_bundle_itself(tiny_encoder, corpus, tmp_path):
    """Validation rows have other class shares than the train split: with the bias, their mean probability is theirs."""
    table = pq.read_table(corpus / "test.parquet")
    positive = table.filter(pa.compute.equal(table["label"], "pos"))
    negative = table.filter(pa.compute.equal(table["label"], "neg")).slice(0, 8)
    skewed = tmp_path / "skewed.parquet"
    pq.write_table(pa.concat_tables([positive, negative]), skewed)
    words = train_argv(tiny_encoder, corpus, tmp_path / "run", f"data.validation={skewed}", "training.class_bias=true")
    assert run([*words, "training.epochs=2"]) == 0
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["calibration"]
    assert set(told["offsets"]) == {"neg", "pos"}
    assert told["offsets"]["pos"] == pytest.approx(-told["offsets"]["neg"])
    bundle = tmp_path / "run" / "model"
    assert run(["evaluate", f"model={bundle}", f"input={skewed}", f"output={tmp_path / 'out'}"]) == 0
    found = pq.read_table(tmp_path / "out" / "predictions.parquet")
    share = sum(label == "pos" for label in found["label"].to_pylist()) / found.num_rows
    # Likelihood makes them equal, but for the penalty, and for bf16 where the machine computes in it.
    assert sum(found["prob_pos"].to_pylist()) / found.num_rows == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["review.share=0.1", "review.precision=0.9"], "review.precision and review.share"),
        (["training.class_bias=true", "training.match_shares=true"], "both move the decision"),
        (["training.class_bias=true", "training.method=stack"], "applies to training.method=auto and finetune, not to"),
        (["review.share=1.5"], "less than 1"),
    ],
)
def test_settings_that_contradict_each_other_are_told(words, said, tiny_encoder, corpus, tmp_path, capsys):
    assert train(tiny_encoder, corpus, tmp_path / "run", *words) == 2
    assert said in capsys.readouterr().err
