"""Figures of ordered classes against scikit-learn and hand calculations."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from bertray.evaluation.metrics import confusion_matrix
from bertray.evaluation.ordered import ordered_metrics


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    given_N = rng.integers(0, 5, size=400)
    predicted_N = np.clip(given_N + rng.integers(-2, 3, size=400), 0, 4)
    found = ordered_metrics(confusion_matrix(given_N, predicted_N, 5), seed=0)
    assert found["mean_absolute_error"].value == pytest.approx(mean_absolute_error(given_N, predicted_N))
    assert found["quadratic_weighted_kappa"].value == pytest.approx(
        cohen_kappa_score(given_N, predicted_N, weights="quadratic")
    )
    assert found["off_by_more_than_one"].value == pytest.approx((np.abs(given_N - predicted_N) > 1).mean())
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high


def test_an_error_counts_by_its_distance():
    near = ordered_metrics(np.array([[8, 2, 0], [0, 10, 0], [0, 0, 10]]), seed=0)
    far = ordered_metrics(np.array([[8, 0, 2], [0, 10, 0], [0, 0, 10]]), seed=0)
    assert near["mean_absolute_error"].value == pytest.approx(2 / 30)
    assert far["mean_absolute_error"].value == pytest.approx(4 / 30)
    assert (near["off_by_more_than_one"].value, far["off_by_more_than_one"].value) == (0, pytest.approx(2 / 30))
    assert near["quadratic_weighted_kappa"].value > far["quadratic_weighted_kappa"].value


def test_one_label_and_one_prediction_have_no_agreement_beyond_chance():
    assert ordered_metrics(np.array([[7, 0], [0, 0]]), seed=0)["quadratic_weighted_kappa"].value == 0
