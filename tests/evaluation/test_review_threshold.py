"""Thresholds for review: by hand, and how often a promise does not hold on simulated models of known precision."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.evaluation.intervals import wilson_estimate
from bertray.evaluation.review_threshold import threshold_for_precision, threshold_for_share


def test_a_share_of_the_rows_lies_below_its_threshold():
    score_N = np.arange(100) / 100
    found = threshold_for_share(score_N, score_N >= 0.5, 0.1)
    assert (found.threshold, found.kept) == (pytest.approx(0.095), 90)
    assert found.precision == wilson_estimate(50, 90)
    assert (score_N < found.threshold).sum() == 10


def test_a_share_takes_as_many_rows_as_make_one_of_them():
    found = threshold_for_share(np.linspace(0.5, 1, 19), np.ones(19, bool), 0.05)
    assert found.threshold is None
    assert "`review.share=0.05` cannot be had with 19 validation rows; it takes 20 rows at least." in found.sentence
    assert threshold_for_share(np.linspace(0.5, 1, 20), np.ones(20, bool), 0.05).kept == 19


def test_equal_scores_have_no_share():
    found = threshold_for_share(np.full(100, 1 - 1e-9), np.ones(100, bool), 0.05)  # 1.0 in the precision of scored rows
    assert found.threshold is None
    assert "their scores are all the same" in found.sentence


def test_a_precision_without_an_error_takes_the_rows_of_the_rule_of_three():
    """0.95 ** 59 is the first power below 0.05."""
    few = threshold_for_precision(np.linspace(0.5, 1, 58), np.ones(58, bool), 0.95)
    assert (few.threshold, few.needed) == (None, 59)
    assert "cannot be had with 58 validation rows; it takes 59 rows at least" in few.sentence
    enough = threshold_for_precision(np.linspace(0.5, 1, 59), np.ones(59, bool), 0.95)
    assert (enough.threshold, enough.kept) == (0.5, 59)  # every row is sure enough
    assert enough.low == pytest.approx(0.05 ** (1 / 59))


def test_a_precision_ends_above_the_first_threshold_that_fails():
    score_N = np.linspace(1, 0.5, 1000)
    right_N = np.arange(1000) % 10 != 9
    right_N[:400] = True
    found = threshold_for_precision(score_N, right_N, 0.95)
    assert found.threshold is not None
    assert found.low is not None
    assert 400 <= found.kept < 900
    assert found.low >= 0.95
    below_N = score_N < found.threshold
    assert (~below_N).sum() == found.kept
    assert right_N[~below_N].mean() == found.precision.value


def test_equal_scores_stay_on_one_side():
    score_N = np.repeat([0.9, 0.8, 0.7], 100)
    right_N = np.concatenate([np.ones(100, bool), np.ones(100, bool), np.zeros(100, bool)])
    found = threshold_for_precision(score_N, right_N, 0.9)
    assert (found.kept, found.threshold) == (200, pytest.approx(0.75))


def test_a_promise_is_false_in_at_most_one_of_twenty_runs():
    """Scores are the true chances of being right, so that the precision above a threshold is known."""
    random = np.random.default_rng(0)
    everything = 1 / (1 + np.exp(-np.abs(random.normal(0, 3, 100_000))))
    promised, wrong = 0, 0
    for _ in range(300):
        score_N = 1 / (1 + np.exp(-np.abs(random.normal(0, 3, 600))))
        found = threshold_for_precision(score_N, random.random(600) < score_N, 0.95)
        if found.threshold is not None:
            promised += 1
            wrong += everything[everything >= found.threshold].mean() < 0.95
    assert promised > 200
    assert wrong <= 0.05 * promised
