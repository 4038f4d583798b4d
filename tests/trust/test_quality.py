"""Accuracy without labels, by simulation and beside other implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bertray.trust.quality import (
    LEAST_HALF_WIDTH,
    Figure,
    PastError,
    estimate_night,
    estimate_quality,
    interval,
    macro_f1_of,
    prior_corrected,
)

PRIOR: Any = np.array([0.2, 0.3, 0.5])


def draw(rng, rows, shares=PRIOR, prior=PRIOR):
    """Rows whose P(x | class) does not depend on `shares`: (probabilities calibrated for `prior`, true labels)."""
    true = rng.choice(3, rows, p=shares)
    evidence = rng.normal(0, 1, (rows, 3)) + 1.2 * np.eye(3)[true]
    weights = prior * np.exp(1.2 * evidence)  # likelihood ratio of unit-variance normals
    return weights / weights.sum(axis=1, keepdims=True), true


def accuracy(probs, true):
    return float((probs.argmax(axis=1) == true).mean())


def test_prior_correction_finds_the_shares_of_a_night_and_its_probabilities():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.2])
    probs, _ = draw(rng, 20_000, shares)
    found, corrected = prior_corrected(probs, PRIOR)
    assert found == pytest.approx(shares, abs=0.015)
    expected = probs * shares / PRIOR
    assert corrected == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=0.02)


def test_an_ordinary_night_is_estimated_by_its_scores_and_a_shifted_one_by_prior_correction():
    rng = np.random.default_rng(1)
    probs, true = draw(rng, 20_000)
    estimate = estimate_night(probs, PRIOR)
    assert estimate.accuracy.value == pytest.approx(accuracy(probs, true), abs=0.01)
    shifted, true = draw(rng, 20_000, np.array([0.6, 0.3, 0.1]))
    estimate = estimate_night(shifted, PRIOR)
    truth = accuracy(shifted, true)
    assert abs(estimate.accuracy.value - truth) > 0.03
    assert estimate.shifted_accuracy.value == pytest.approx(truth, abs=0.012)


def test_macro_f1_and_its_noise_are_those_of_drawn_labels():
    rng = np.random.default_rng(2)
    probs, _ = draw(rng, 600)
    predicted = probs.argmax(axis=1)
    cumulative = probs.cumsum(axis=1)
    drawn = [
        f1_score((rng.random(600)[:, None] > cumulative[:, :-1]).sum(axis=1), predicted, average="macro")
        for _ in range(300)
    ]
    figure = estimate_night(probs, PRIOR).macro_f1
    assert figure.value == pytest.approx(np.mean(drawn), abs=0.004)
    assert np.sqrt(figure.noise) == pytest.approx(np.std(drawn), rel=0.15)


def test_macro_f1_of_a_table_is_scikit_learns():
    rng = np.random.default_rng(3)
    true, said = rng.integers(0, 3, 200), rng.integers(0, 2, 200)
    table = np.zeros((3, 3))
    np.add.at(table, (true, said), 1)
    assert macro_f1_of(table) == pytest.approx(f1_score(true, said, average="macro", zero_division=0))
    alone = table[:2, :2]
    padded = np.zeros((3, 3))
    padded[:2, :2] = alone
    assert macro_f1_of(padded) == pytest.approx(macro_f1_of(alone))


def labelled(rng, nights, rows=800, spread=0.0):
    past = []
    for _ in range(nights):
        probs, true = draw(rng, rows, rng.dirichlet(PRIOR / max(spread, 1e-4)))
        past.append(PastError(rows, accuracy(probs, true), 0.5, estimate_night(probs, PRIOR)))
    return past


def test_intervals_cover_ordinary_nights_and_nights_of_another_mix():
    rng = np.random.default_rng(4)
    past = labelled(rng, 20, spread=0.002)
    for shares, least in ((PRIOR, 0.9), (np.array([0.4, 0.3, 0.3]), 0.9)):
        held = 0
        for _ in range(60):
            probs, true = draw(rng, 800, shares)
            found = estimate_quality(estimate_night(probs, PRIOR), past).accuracy
            held += found.low <= accuracy(probs, true) <= found.high
            assert found.high - found.low < 0.2
        assert held / 60 >= least


def test_few_labelled_nights_leave_a_stated_minimum():
    rng = np.random.default_rng(5)
    probs, _ = draw(rng, 100_000)
    found = estimate_quality(estimate_night(probs, PRIOR), labelled(rng, 15))
    assert found.labelled_nights == 15
    assert found.accuracy.high - found.accuracy.low == pytest.approx(2 * LEAST_HALF_WIDTH, abs=0.01)


def test_a_bias_that_labelled_nights_show_is_corrected_and_one_that_they_do_not_is_not():
    noise = np.full(20, 1e-6)
    sure = interval([Figure(0.7, 1e-6)], [(np.full(20, -0.05) + np.tile([0.001, -0.001], 10), noise)])
    assert sure.value == pytest.approx(0.65, abs=1e-3)
    unsure = interval([Figure(0.7, 1e-6)], [(np.tile([0.05, -0.049], 10), noise)])
    assert unsure.value == 0.7
    assert unsure.high - unsure.low > 0.2
