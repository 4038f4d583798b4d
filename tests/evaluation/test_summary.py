"""The whole evaluation and metrics.json in the shape of the contract."""

from __future__ import annotations

import json

import numpy as np

from bertray.evaluation.baselines import majority
from bertray.evaluation.slices import length_bands
from bertray.evaluation.summary import evaluate_predictions

LABELS = ["negative", "neutral", "positive"]
NAMES = [
    "accuracy",
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "weighted_precision",
    "weighted_recall",
    "mcc",
    "log_loss",
    "ece",
]


def evaluation(num_rows=90, labels_given=3, **options):
    rng = np.random.default_rng(0)
    label_ids_N = rng.integers(0, labels_given, num_rows)
    logits_NC = rng.normal(size=(num_rows, 3)) + 2 * np.eye(3)[label_ids_N]
    probs_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    return evaluate_predictions(
        label_ids_N,
        probs_NC.astype(np.float32),
        LABELS,
        split="test",
        seed=0,
        slices={"length": length_bands(np.full(num_rows, 20)), "script": ["latin"] * num_rows},
        baselines={"majority": majority(np.array([0, 2, 2]), 3, num_rows)},
        **options,
    )


def is_estimate(value):
    return set(value) == {"value", "low", "high"} and value["low"] <= value["value"] <= value["high"]


def test_metrics_json_has_the_shape_of_the_contract():
    content = evaluation().to_json()
    assert list(content) == [
        "schema_version",
        "split",
        "rows",
        "labels",
        "metrics",
        "per_class",
        "confusion_matrix",
        "slices",
        "baselines",
    ]
    assert (content["schema_version"], content["split"], content["rows"], content["labels"]) == (1, "test", 90, LABELS)
    assert list(content["metrics"]) == NAMES
    assert all(is_estimate(value) for value in content["metrics"].values())
    assert list(content["per_class"]) == LABELS
    for row in content["per_class"].values():
        assert list(row) == ["precision", "recall", "f1", "support"]
        assert all(is_estimate(row[name]) for name in ("precision", "recall", "f1"))
    assert sum(map(sum, content["confusion_matrix"])) == 90
    assert [sum(row) for row in content["confusion_matrix"]] == [r["support"] for r in content["per_class"].values()]
    assert {column: list(values) for column, values in content["slices"].items()} == {
        "length": ["17-64"],
        "script": ["latin"],
    }
    assert list(content["slices"]["script"]["latin"]) == ["rows", "accuracy", "macro_f1", "small"]
    assert list(content["baselines"]) == ["majority"]
    assert list(content["baselines"]["majority"]) == NAMES


def test_metrics_json_is_strict_json_and_the_same_again():
    for num_rows, labels_given in ((90, 3), (1, 3), (2, 1)):
        first = json.dumps(evaluation(num_rows, labels_given).to_json(), allow_nan=False)
        assert first == json.dumps(evaluation(num_rows, labels_given).to_json(), allow_nan=False)


def test_a_slice_of_all_rows_has_the_figures_of_the_whole():
    whole = evaluation()
    assert whole.slices["script"]["latin"].accuracy == whole.metrics["accuracy"]
    assert whole.slices["script"]["latin"].macro_f1 == whole.metrics["macro_f1"]


def test_the_baseline_is_compared_on_the_same_rows_by_name():
    found = evaluation(model_name="BERT").comparisons["majority"]
    assert found.verdict == "better"
    assert found.sentence.startswith("BERT beats the majority baseline (accuracy ")
    assert found.differences["accuracy"].b == evaluation().baselines["majority"]["accuracy"].value
