"""Figures against scikit-learn; intervals against brute force; the corners by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from bertray.evaluation.metrics import (
    AVERAGES,
    NUM_BINS,
    all_metrics,
    calibration_error,
    check_rows,
    class_metrics,
    confusion_matrix,
    matrix_metrics,
    row_metrics,
)


def noisy(num_rows, num_classes, seed, classes=None):
    """Labels and probabilities of a model that is often right; `classes` limits which labels occur."""
    rng = np.random.default_rng(seed)
    label_ids_N = rng.choice(classes or num_classes, num_rows)
    logits_NC = rng.normal(size=(num_rows, num_classes))
    logits_NC[np.arange(num_rows), label_ids_N] += 1.5
    probs_NC = np.exp(logits_NC)
    return label_ids_N, probs_NC / probs_NC.sum(axis=1, keepdims=True)


def figures(label_ids_N, probs_NC, seed=0):
    matrix_CC = confusion_matrix(label_ids_N, probs_NC.argmax(axis=1), probs_NC.shape[1])
    return all_metrics(matrix_CC, label_ids_N, probs_NC, seed)


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "classes"),
    [(1, 2, None), (7, 3, None), (500, 2, None), (2000, 20, None), (50, 20, None), (300, 5, [0, 2])],
)
def test_values_equal_scikit_learn(num_rows, num_classes, classes):
    label_ids_N, probs_NC = noisy(num_rows, num_classes, num_rows, classes)
    predictions_N = probs_NC.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(label_ids_N, predictions_N),
        "mcc": 0.0 if num_rows == 1 else sk.matthews_corrcoef(label_ids_N, predictions_N),
        "log_loss": sk.log_loss(label_ids_N, probs_NC, labels=range(num_classes)),
    }
    for average in ("macro", "weighted"):
        scores = sk.precision_recall_fscore_support(label_ids_N, predictions_N, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), scores, strict=False):
            expected[f"{average}_{name}"] = value
    found = figures(label_ids_N, probs_NC)
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(found) == {*expected, "ece"}
    for figure in found.values():
        assert figure.low <= figure.value <= figure.high


def test_classes_equal_scikit_learn_also_without_support_or_prediction():
    label_ids_N, predictions_N = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 3, 0])
    found = class_metrics(confusion_matrix(label_ids_N, predictions_N, 5))
    expected = sk.precision_recall_fscore_support(label_ids_N, predictions_N, labels=range(5), zero_division=0)
    for name, values_C in zip(("precision", "recall", "f1"), expected, strict=False):
        assert [getattr(row, name).value for row in found] == pytest.approx(values_C, abs=1e-12)
    assert [row.support for row in found] == [3, 2, 1, 0, 0]
    nobody = found[4]  # neither given nor predicted: nothing is known
    assert [(e.value, e.low, e.high) for e in (nobody.precision, nobody.recall, nobody.f1)] == [(0.0, 0.0, 1.0)] * 3


def test_confusion_matrix_has_given_labels_as_rows():
    assert confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]


@pytest.mark.slow
def test_intervals_of_averages_equal_a_row_bootstrap():
    label_ids_N, probs_NC = noisy(400, 3, 1)
    predictions_N = probs_NC.argmax(axis=1)
    rng = np.random.default_rng(5)
    rows_RN = rng.integers(0, 400, size=(250, 400))
    drawn = {
        "macro_f1": [sk.f1_score(label_ids_N[r], predictions_N[r], average="macro") for r in rows_RN],
        "mcc": [sk.matthews_corrcoef(label_ids_N[r], predictions_N[r]) for r in rows_RN],
        "log_loss": [sk.log_loss(label_ids_N[r], probs_NC[r], labels=range(3)) for r in rows_RN],
    }
    found = figures(label_ids_N, probs_NC)
    for name, draws in drawn.items():
        # Each end is known to about 8 % of the half width from this many draws; two of them are compared.
        tolerance = 0.3 * np.std(draws) * 1.96
        assert [found[name].low, found[name].high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=tolerance)


def test_interval_of_class_f1_covers_the_truth_in_about_95_of_100_samples():
    rng = np.random.default_rng(0)
    shares = np.array([0.30, 0.10, 0.05, 0.55])
    true_f1 = 2 * 0.30 / (2 * 0.30 + 0.10 + 0.05)
    samples = rng.multinomial(80, shares, size=500).reshape(-1, 2, 2)
    covered = [row.f1.low <= true_f1 <= row.f1.high for row in (class_metrics(matrix)[0] for matrix in samples)]
    assert 0.92 <= np.mean(covered) <= 0.98  # 3 standard errors of 500 samples around 0.95


def test_all_rows_right_does_not_claim_certainty():
    found = matrix_metrics(np.array([[6, 0], [0, 6]]), seed=0)
    low = pytest.approx(0.757, abs=1e-3)  # Wilson for 12 of 12
    assert {name: (figure.value, figure.low, figure.high) for name, figure in found.items() if name != "mcc"} == {
        name: (1.0, low, 1.0) for name in ("accuracy", *AVERAGES) if name != "mcc"
    }
    assert (found["mcc"].value, found["mcc"].low) == (1.0, pytest.approx(2 * 0.757 - 1, abs=2e-3))


def test_one_row_says_almost_nothing():
    found = figures(np.array([1]), np.array([[0.2, 0.8]]))
    assert found["accuracy"].value == found["macro_f1"].value == 1.0
    assert found["accuracy"].low == found["macro_f1"].low == pytest.approx(0.2065, abs=1e-4)
    assert found["mcc"].value == 0.0
    assert (found["ece"].value, found["ece"].low, found["ece"].high) == (pytest.approx(0.2), 0.0, 1.0)
    assert (found["log_loss"].low, found["log_loss"].high) == (0.0, pytest.approx(36.04, abs=0.01))


def test_a_model_that_always_says_one_class_has_mcc_zero():
    label_ids_N = np.array([0] * 70 + [1] * 30)
    found = figures(label_ids_N, np.tile([0.7, 0.3], (100, 1)))
    assert (found["accuracy"].value, found["mcc"].value, found["mcc"].low, found["mcc"].high) == (0.7, 0.0, 0.0, 0.0)


def test_calibration_error_equals_a_hand_calculation():
    probs_NC = np.array([[0.95, 0.05], [0.94, 0.06], [0.40, 0.60], [0.50, 0.50]])
    label_ids_N = np.array([0, 1, 1, 0])
    # Bins of 1/15: (14/15, 1] holds 0.95 right and 0.94 wrong; (8/15, 9/15] holds 0.60 right; (7/15, 8/15] 0.50 right.
    expected = (2 * abs(0.945 - 0.5) + abs(0.60 - 1) + abs(0.50 - 1)) / 4
    assert calibration_error(probs_NC, label_ids_N, NUM_BINS, 0).value == pytest.approx(expected, abs=1e-12)
    assert calibration_error(probs_NC, label_ids_N, 1, 0).value == pytest.approx(abs(2.99 / 4 - 0.75))


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one():
    probs_NC = np.array([[0.5, 0.5], [0.625, 0.375]])
    # Bins of 1/4: 0.5 (right) in (0.25, 0.5], 0.625 (wrong) in (0.5, 0.75].
    assert calibration_error(probs_NC, np.array([0, 1]), 4, 0).value == (0.5 + 0.625) / 2


def test_calibration_interval_holds_the_value_and_shrinks_with_rows():
    widths = []
    for num_rows in (500, 50_000):
        label_ids_N, probs_NC = noisy(num_rows, 3, 2)
        ece = row_metrics(label_ids_N, probs_NC, seed=0)["ece"]
        assert 0 <= ece.low <= ece.value <= ece.high <= 1
        widths.append(ece.high - ece.low)
    assert widths[1] < widths[0] / 5  # 100 times the rows: a tenth of the width, give or take


def test_log_loss_of_a_certain_mistake_is_finite():
    found = row_metrics(np.array([0, 0]), np.array([[0.0, 1.0], [1.0, 0.0]]), seed=0)
    assert found["log_loss"].value == pytest.approx(
        sk.log_loss([0, 0], [[0.0, 1.0], [1.0, 0.0]], labels=[0, 1]), abs=1e-12
    )


def test_same_seed_gives_the_same_intervals():
    label_ids_N, probs_NC = noisy(200, 3, 4)
    assert figures(label_ids_N, probs_NC, seed=1) == figures(label_ids_N, probs_NC, seed=1)
    assert figures(label_ids_N, probs_NC, seed=1) != figures(label_ids_N, probs_NC, seed=2)


def test_half_a_million_rows_take_seconds_not_minutes():
    label_ids_N, probs_NC = noisy(500_000, 3, 0)
    start = time.process_time()
    figures(label_ids_N, probs_NC)
    assert time.process_time() - start < 10  # about 0.3 s; a bootstrap over rows would take minutes


@pytest.mark.parametrize(
    ("label_ids", "probs", "words"),
    [
        ([], np.empty((0, 2)), "at least one labelled row"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], "one label for each of 2 rows"),
        ([0], [[0.2, 0.3, 0.5]], "expected 2 columns"),
        ([2], [[0.5, 0.5]], "expected 0..1, found 2..2"),
        ([-1], [[0.5, 0.5]], "found -1..-1"),
        ([0], [[np.nan, 0.5]], "NaN"),
        ([0], [[0.5, 0.6]], "sum to 1"),
    ],
)
def test_rows_that_cannot_be_evaluated_are_refused_by_name(label_ids, probs, words):
    with pytest.raises(ValueError, match=words):
        check_rows(np.array(label_ids, np.int64), np.array(probs, np.float64), ["negative", "positive"])
