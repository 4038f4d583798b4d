"""`training.method=features`: a linear head on frozen embeddings is a bundle like any other."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.errors import InfrastructureError
from bertray.model.heads import fit_head
from bertray.training.features import Embedded, HeadSettings, _sample, fit_on_features, in_words
from tests.corpus import train_argv, write
from tests.nightly import without_ray

pytestmark = pytest.mark.ray


def features_argv(encoder, corpus, output, *words: str) -> list[str]:
    return train_argv(encoder, corpus, output, "training.method=features", "report.baselines=false", *words)


def test_a_head_on_frozen_features_is_trained_evaluated_and_scores(
    tiny_encoder, corpus, tmp_path, ray_cluster, monkeypatch, capsys
):
    """Its embeddings on Ray; the rest in this process."""
    without_ray(monkeypatch)
    output = tmp_path / "run"
    argv = features_argv(tiny_encoder, corpus, output, "training.head=svm", "training.max_feature_rows=150")
    assert run(argv) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["metrics"]["accuracy"]["value"] > 0.8
    bundle = json.loads((output / "model" / "bertray.json").read_text())
    assert bundle["head"] == "linear_on_mean"
    assert (output / "model" / "head.safetensors").is_file()
    assert "encoder frozen" in (output / "report.html").read_text()
    assert pq.read_table(output / "history.parquet").num_rows == 0

    write(tmp_path / "in" / "reviews.parquet", 60, 9, "n")
    assert run(["score", f"model={output / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]) == 0
    scored = pq.read_table(tmp_path / "out" / "data")
    given = pq.read_table(tmp_path / "in" / "reviews.parquet")
    truth = dict(zip(given["id"].to_pylist(), given["label"].to_pylist(), strict=True))
    right = [truth[i] == label for i, label in zip(scored["id"].to_pylist(), scored["label"].to_pylist(), strict=True)]
    assert np.mean(right) > 0.8
    assert run(argv) == 0
    assert "already trained" in capsys.readouterr().out


def test_a_run_killed_after_its_embeddings_uses_them(tiny_encoder, corpus, tmp_path, monkeypatch):
    from bertray.training import features

    without_ray(monkeypatch)

    def end(*_, **__):
        raise InfrastructureError("the machine went away.")

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(features, "fit_linear", end)
        assert run(features_argv(tiny_encoder, corpus, output)) == 7
    assert list((output / "control" / "features").rglob("*.arrow"))
    monkeypatch.setattr(features, "actors", lambda *_: pytest.fail("embedded again"))
    assert run(features_argv(tiny_encoder, corpus, output)) == 0
    assert not (output / "control" / "features").exists()


@pytest.mark.parametrize(("num_validation", "strength", "normalized"), [(99, 4.0, True), (100, 10.0, False)])
def test_few_validation_rows_choose_no_regularisation(num_validation, strength, normalized):
    random = np.random.default_rng(0)
    label_ids = np.arange(200 + num_validation) % 2
    vectors = random.normal(size=(len(label_ids), 4)) + 9 * label_ids[:, None]
    train, validation = np.arange(200), np.arange(200, len(label_ids))
    embedded = Embedded(train, validation, vectors[train], vectors[validation])
    fitted = fit_on_features(embedded, label_ids, "mean", HeadSettings(), 0)
    assert (fitted.head.strength, fitted.form.normalized) == (strength, normalized)
    given = vectors[validation] / (np.linalg.norm(vectors[validation], axis=1, keepdims=True) if normalized else 1)
    np.testing.assert_allclose(fitted.validation_VC, fitted.head.logits(given), atol=1e-5)
    assert in_words(fitted, "logreg")["regularisation"].startswith("C = 4;" if normalized else "10 was best of")


def test_a_sample_is_bounded_and_holds_every_class():
    label_ids = np.array([0] * 1000 + [1] * 3 + [2])
    members = np.arange(0, 1004, dtype=np.int64)
    for seed in range(20):
        sample = _sample(members, label_ids, 50, seed)
        assert len(sample) == 50
        assert (np.diff(sample) > 0).all()
        assert set(label_ids[sample]) == {0, 1, 2}
    assert len(_sample(members[:40], label_ids, 50, 0)) == 40


@pytest.mark.parametrize("kind", ["logreg", "svm"])
def test_the_head_of_several_classes_comes_back_as_it_was_fitted(kind):
    from safetensors.numpy import load

    random = np.random.default_rng(0)
    labels_N = np.repeat(np.arange(4), 30)
    features_ND = random.normal(size=(4, 7))[labels_N] * 3 + random.normal(size=(120, 7))
    head = fit_head(features_ND, labels_N, features_ND, labels_N, 4, kind)
    stored = load(head.to_tensors())
    np.testing.assert_array_equal(stored["weight"], head.weight_CD)
    np.testing.assert_array_equal(stored["bias"], head.bias_C)
    assert ((features_ND @ stored["weight"].T + stored["bias"]).argmax(axis=1) == labels_N).mean() > 0.95
