"""`training.method=stack`: a bundle like any other, that reads the whole text wherever it scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run
from bertray.errors import InfrastructureError
from bertray.training import features
from tests.corpus import sentences, train_argv
from tests.nightly import without_ray

LONG = "the plot was " + "very " * 30  # more than max_length=24 tokens


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    without_ray(monkeypatch)


def stack_argv(encoder: Path, corpus: Path, output: Path, *words: str) -> list[str]:
    return train_argv(encoder, corpus, output, "training.method=stack", "report.baselines=false", *words)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory, tiny_encoder, corpus) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("stack") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert run(stack_argv(tiny_encoder, corpus, output)) == 0
    return output


def test_a_stack_is_trained_and_evaluated(stacked):
    metrics = json.loads((stacked / "metrics.json").read_text())
    assert metrics["metrics"]["accuracy"]["value"] > 0.95
    bundle = json.loads((stacked / "model" / "bertray.json").read_text())
    assert bundle["head"] == "stack_on_mean"
    assert {"head.safetensors", "terms.json"} <= {path.name for path in (stacked / "model").iterdir()}
    report = (stacked / "report.html").read_text()
    assert "<title>TF-IDF and " in report
    assert "terms (words 1-2) of the whole text" in report
    assert "`terms.json`" in (stacked / "model" / "README.md").read_text()


def test_score_evaluate_and_classifier_say_the_same_of_the_whole_text(stacked, corpus, tmp_path):
    model = str(stacked / "model")
    test = pq.read_table(corpus / "test.parquet")
    texts = [LONG + "great lovely good fine", LONG + "awful poor boring bad", "<b>the</b> film was &quot;great&quot;"]
    table = pa.table({"id": [*"abc", *test["id"].to_pylist()], "text": [*texts, *test["text"].to_pylist()]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert run(["score", f"model={model}", f"input={tmp_path / 'in.parquet'}", f"output={tmp_path / 'out'}"]) == 0
    [part] = (tmp_path / "out" / "data").rglob("*.parquet")
    scored = pq.read_table(part)
    classifier = bertray.Classifier.load(model)
    probs_NC = classifier.predict_proba(table["text"].to_pylist())
    assert (np.column_stack([scored["prob_neg"].to_numpy(), scored["prob_pos"].to_numpy()]) == probs_NC).all()
    assert scored["label"].to_pylist()[:3] == ["pos", "neg", "pos"]  # of words beyond max_length
    assert classifier(table)["label"].to_pylist() == scored["label"].to_pylist()
    evaluated = bertray.evaluate(model, test, output=tmp_path / "evaluated")
    found = json.loads((stacked / "metrics.json").read_text())["metrics"]["log_loss"]["value"]
    assert evaluated.metrics["log_loss"].value == found


@pytest.mark.slow
def test_a_stack_is_promoted_embeds_and_teaches(stacked, tiny_encoder, corpus, tmp_path):
    model, registry = f"{stacked / 'model'}", f"registry={tmp_path / 'registry'}"
    seen = set(pq.read_table(corpus / "train.parquet")["text"].to_pylist())
    fresh = [pair for pair in zip(*sentences(200, 3), strict=True) if pair[0] not in seen]
    pq.write_table(
        pa.table(dict(zip(("text", "label"), zip(*fresh, strict=True), strict=True))), tmp_path / "judge.parquet"
    )
    assert run(["promote", "reviews", f"model={model}", f"input={tmp_path / 'judge.parquet'}", registry]) == 0
    classifier = bertray.Classifier.load("registry:reviews", registry=tmp_path / "registry")
    assert classifier.predict([LONG + "great"]) == ["pos"]
    assert np.isfinite(bertray.Embedder.load(model).encode(["a film"])).all()
    argv = train_argv(tiny_encoder, corpus, tmp_path / "student", "training.method=distill")
    assert run([*argv, f"training.teacher={model}", "training.epochs=1", "report.baselines=false"]) == 0
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    whole = json.loads((stacked / "metrics.json").read_text())["metrics"]["log_loss"]["value"]
    assert metrics["baselines"]["teacher"]["log_loss"]["value"] == pytest.approx(whole, abs=1e-6)


def test_pairs_windows_and_a_balanced_loss(tiny_encoder, corpus, tmp_path):
    for name in ("train", "test"):
        table = pq.read_table(corpus / f"{name}.parquet")
        aspects = ["film" if number % 2 else "plot" for number in range(table.num_rows)]
        pq.write_table(table.append_column("aspect", pa.array(aspects)), tmp_path / f"{name}.parquet")
    words = ["columns.text_pair=aspect", "training.class_weights=balanced", "long_text=windows"]
    assert run(stack_argv(tiny_encoder, tmp_path, tmp_path / "run", *words, "training.encoder_weight=0.25")) == 0
    report = (tmp_path / "run" / "report.html").read_text()
    assert "0.25 (0% of the train rows are cut by max_length)" in report
    classifier = bertray.Classifier.load(tmp_path / "run" / "model", columns={"text_pair": "aspect"})
    assert classifier.predict([LONG + "great", LONG + "awful"], ["film", "plot"]) == ["pos", "neg"]


def test_validation_rows_of_a_file_of_their_own_are_read_from_it(tiny_encoder, corpus, tmp_path):
    """Temperature 1 would come of texts and labels that do not belong together."""
    words = ["data.test=null", f"data.validation={corpus / 'test.parquet'}"]
    assert run(stack_argv(tiny_encoder, corpus, tmp_path / "run", *words)) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"] == 90
    assert metrics["metrics"]["accuracy"]["value"] > 0.95
    assert json.loads((tmp_path / "run" / "model" / "bertray.json").read_text())["temperature"] < 0.5


def test_a_killed_run_keeps_its_embeddings(tiny_encoder, corpus, tmp_path, monkeypatch):
    from bertray.runs.fit import linear_methods

    def end(*_, **__):
        raise InfrastructureError("the machine went away.")

    argv = stack_argv(tiny_encoder, corpus, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(linear_methods, "fit_stack", end)
        assert run(argv) == 7
    monkeypatch.setattr(features, "actors", lambda *_: pytest.fail("embedded again"))
    assert run(argv) == 0
    assert not (tmp_path / "run" / "control" / "features").exists()


def test_without_its_encoder_a_stack_is_trained_on_terms_alone(tiny_encoder, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "actors", lambda *_: pytest.fail("the encoder computed"))
    output = tmp_path / "run"
    assert run(stack_argv(tiny_encoder, corpus, output, "training.encoder_weight=0", "report.explain=0")) == 0
    assert json.loads((output / "metrics.json").read_text())["metrics"]["accuracy"]["value"] > 0.95
    assert json.loads((output / "model" / "bertray.json").read_text())["head"] == "terms"
    assert "A linear head on TF-IDF terms, made with bertray" in (output / "model" / "README.md").read_text()
    report = (output / "report.html").read_text()
    assert "<title>TF-IDF in one logistic regression" in report
    assert "encoder frozen" not in report
    assert bertray.Classifier.load(str(output / "model")).predict([LONG + "great", LONG + "awful"]) == ["pos", "neg"]


def test_texts_without_a_term_are_left_to_the_encoder_whatever_its_weight(tiny_encoder, tmp_path):
    for name, shortest in (("train", 2), ("test", 42)):
        texts = [("." if number % 2 else "!") * (shortest + number // 2) for number in range(80)]
        table = pa.table({"text": texts, "label": ["pos", "neg"] * 40, "shop": ["north"] * 80})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert run(stack_argv(tiny_encoder, tmp_path, tmp_path / "run", "training.encoder_weight=0")) == 0
    assert "weight of the encoder" in (tmp_path / "run" / "report.html").read_text()
