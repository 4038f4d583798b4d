"""Points of charts against scikit-learn and hand calculations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from bertray.evaluation.curves import MAX_POINTS, curves, reliability_bins, roc_and_precision_recall


def scores(num_rows, seed, decimals):
    rng = np.random.default_rng(seed)
    positive_N = rng.random(num_rows) < 0.3
    return positive_N, np.round(rng.normal(size=num_rows) + positive_N, decimals)


@pytest.mark.parametrize("decimals", [1, 8], ids=["many ties", "no ties"])
def test_areas_equal_scikit_learn(decimals):
    positive_N, score_N = scores(3000, 0, decimals)
    roc, precision_recall = roc_and_precision_recall(positive_N, score_N)
    assert roc.area == pytest.approx(sk.roc_auc_score(positive_N, score_N), abs=1e-12)
    assert precision_recall.area == pytest.approx(sk.average_precision_score(positive_N, score_N), abs=1e-12)


def test_points_of_a_short_curve_equal_scikit_learn():
    positive_N, score_N = scores(60, 1, 1)
    roc, precision_recall = roc_and_precision_recall(positive_N, score_N)
    x, y, _ = sk.roc_curve(positive_N, score_N, drop_intermediate=False)
    assert (roc.x, roc.y) == (pytest.approx(x.tolist()), pytest.approx(y.tolist()))
    precision, recall, _ = sk.precision_recall_curve(positive_N, score_N)
    assert precision_recall.x == pytest.approx(recall[::-1].tolist())
    assert precision_recall.y == pytest.approx(precision[::-1].tolist())


def test_a_long_curve_is_thinned_to_200_points_with_both_ends_and_hardly_another_area():
    positive_N, score_N = scores(50_000, 2, 8)
    for curve in roc_and_precision_recall(positive_N, score_N):
        assert len(curve.x) <= MAX_POINTS
        assert (curve.x[0], curve.x[-1]) == (0.0, 1.0)
        assert list(curve.x) == sorted(curve.x)
        assert np.trapezoid(curve.y, curve.x) == pytest.approx(curve.area, abs=0.005)


def test_a_class_that_all_or_no_rows_have_has_no_curve():
    found = curves(np.array([0, 0]), np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]), ["a", "b", "c"])
    assert (found.roc, found.precision_recall) == ({}, {})


def test_reliability_bins_hold_every_row_once():
    confidence_N, right_N = np.array([0.5, 0.52, 0.95, 1.0]), np.array([True, False, True, True])
    found = reliability_bins(confidence_N, right_N)
    assert [(b.low, b.high, b.rows) for b in found] == [
        (pytest.approx(7 / 15), pytest.approx(8 / 15), 2),
        (pytest.approx(14 / 15), 1.0, 2),
    ]
    assert [b.confidence for b in found] == pytest.approx([0.51, 0.975])
    assert [b.accuracy.value for b in found] == [0.5, 1.0]


def test_score_histograms_count_right_and_wrong_rows():
    probs_NC = np.array([[0.97, 0.03], [0.97, 0.03], [0.5, 0.5], [0.0, 1.0]])
    found = curves(np.array([0, 1, 0, 1]), probs_NC, ["a", "b"])
    assert found.scores_right == (*[0] * 10, 1, *[0] * 8, 2)
    assert found.scores_wrong == (*[0] * 19, 1)
