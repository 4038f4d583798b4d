"""Intervals against scipy, hand calculations and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from bertray.evaluation.intervals import (
    MAX_BOOTSTRAP_ROWS,
    MAX_CELLS_PER_CHUNK,
    Estimate,
    mean_estimate,
    percentile_estimate,
    resampled_counts,
    wilson,
    wilson_estimate,
)


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (1, 1), (7, 10), (0, 40), (40, 40), (9_231, 20_000)])
def test_wilson_equals_scipy(hits, trials):
    found = wilson_estimate(hits, trials)
    expected = stats.binomtest(hits, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert found.value == hits / trials
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_wilson_without_a_trial_is_zero_and_knows_nothing():
    assert [array.tolist() for array in wilson([0, 3], [0, 3])] == [
        [0.0, 1.0],
        [0.0, pytest.approx(0.4385, abs=1e-4)],
        [1.0, 1.0],
    ]


def test_resampled_counts_keep_the_total_and_come_in_bounded_chunks():
    counts_K = np.array([0, 5, 1, 94])
    chunks = list(resampled_counts(counts_K, seed=3))
    draws_RK = np.concatenate(chunks)
    assert draws_RK.shape == (1000, 4)
    assert (draws_RK.sum(axis=1) == 100).all()
    assert (draws_RK[:, 0] == 0).all()
    # The mean of 1,000 draws of a count with standard deviation below 2.4 lies within 5 standard errors.
    assert draws_RK.mean(axis=0) == pytest.approx(counts_K, abs=5 * 2.4 / 1000**0.5)
    wide = list(resampled_counts(np.ones(MAX_CELLS_PER_CHUNK // 2, np.int64), seed=0, num_draws=3))
    assert [len(chunk) for chunk in wide] == [2, 1]


def test_resampled_counts_follow_from_the_seed():
    first, again, other = (np.concatenate(list(resampled_counts(np.array([3, 7]), seed))) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def near(value: float) -> Any:
    return pytest.approx(value)


def test_percentile_estimate_is_widened_to_hold_its_value():
    draws_R = np.linspace(0, 1, 1001)
    assert percentile_estimate(0.5, draws_R) == Estimate(0.5, near(0.025), near(0.975))
    assert percentile_estimate(1.2, draws_R) == Estimate(1.2, near(0.025), 1.2)
    assert percentile_estimate(-0.2, draws_R) == Estimate(-0.2, -0.2, near(0.975))


def test_mean_estimate_agrees_with_the_normal_interval_below_and_above_the_switch():
    rng = np.random.default_rng(0)
    for num_rows in (MAX_BOOTSTRAP_ROWS, MAX_BOOTSTRAP_ROWS + 1):
        values_N = rng.exponential(size=num_rows)
        found = mean_estimate(values_N, seed=0, bounds=(0.0, 40.0))
        half = 1.96 * values_N.std() / num_rows**0.5
        assert found.value == pytest.approx(values_N.mean(), abs=1e-12)
        # A percentile of 1,000 draws is known to about 8 % of the half width.
        assert found.low == pytest.approx(values_N.mean() - half, abs=0.15 * half)
        assert found.high == pytest.approx(values_N.mean() + half, abs=0.15 * half)


def test_mean_estimate_of_one_row_spans_everything_possible():
    assert mean_estimate(np.array([0.3]), seed=0, bounds=(0.0, 36.0)) == Estimate(0.3, 0.0, 36.0)
