"""Luck of seeds and of rows, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from bertray.evaluation.seeds import Spread, seeded_gain


def test_a_spread_is_mean_and_standard_deviation_of_the_sample():
    found = Spread.of([0.8, 0.9, 0.7])
    assert (found.mean, found.deviation) == (pytest.approx(0.8), pytest.approx(0.1))
    assert Spread.of([0.8]).deviation is None


def test_a_gain_adds_the_luck_of_rows_and_of_seeds():
    right_a = np.array([[1, 1, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 0, 1, 0]], bool)
    right_b = np.array([[1, 1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0, 1, 1]], bool)
    found = seeded_gain(right_a, right_b)
    difference = right_b.mean(axis=0) - right_a.mean(axis=0)
    rows = difference.var(ddof=1) / 8
    of_a, of_b = np.var([0.5, 0.375], ddof=1) / 2, 0.0  # 6 and 6 of 8
    freedom = (rows + of_a + of_b) ** 2 / of_a**2
    half = t.ppf(0.975, freedom) * np.sqrt(rows + of_a)
    assert found.gain.value == pytest.approx(0.75 - 0.4375)
    assert found.gain.high - found.gain.value == pytest.approx(half)
    assert found.seeds_error == pytest.approx(np.sqrt(of_a))


def test_equal_seeds_leave_the_luck_of_rows():
    right = np.array([[True, False, True, True]] * 2)
    found = seeded_gain(right, ~right)
    assert found.seeds_error == 0
    assert found.gain.value == pytest.approx(-0.5)
    assert found.gain.low == pytest.approx(-0.5 - norm.ppf(0.975) * found.rows_error)


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_luck_of_seeds_is_not_taken_for_a_gain(gain):
    """Seeds move the accuracy by 2 points; rows are hard or easy for both. The interval holds the true gain."""
    random, held, better, rounds = np.random.default_rng(0), 0, 0, 300
    for _ in range(rounds):
        hardness_N = random.normal(0, 1, 800)

        def train(accuracy: float, hardness_N: np.ndarray = hardness_N) -> np.ndarray:
            bars_S = norm.ppf(accuracy + random.normal(0, 0.02, 4)) * np.sqrt(1.25)
            return hardness_N + random.normal(0, 0.5, (4, 800)) < bars_S[:, None]

        found = seeded_gain(train(0.85), train(0.85 + gain))
        held += found.gain.low <= gain <= found.gain.high
        better += found.verdict == "better"
    assert held / rounds >= 0.92
    if not gain:
        assert better / rounds <= 0.05
