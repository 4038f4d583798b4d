"""The gain on all reviews from labels of disagreements: beside the labels of all, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.evaluation.answered import AnsweredDisagreements


def test_the_gain_is_the_share_of_disagreements_times_the_lead_among_answers():
    found = AnsweredDisagreements(rows=1000, disagreements=200, only_a=20, only_b=50, neither=30)
    assert found.gain.value == pytest.approx(0.2 * 0.3)
    # By hand: shares with half an answer more are 20.5, 50.5 and 30.5 of 101.5.
    a, b = 20.5 / 101.5, 50.5 / 101.5
    s = a + b - (b - a) ** 2
    error = np.sqrt(0.04 * s / 100 * (1 - 100 / 200) + ((b - a) ** 2 * 0.2 * 0.8 + 0.2 * s) / 1000)
    assert found.gain.low == pytest.approx(0.06 - 1.959964 * error)
    assert found.gain.high == pytest.approx(0.06 + 1.959964 * error)
    assert found.verdict == "better"
    assert "of 200 that the two label differently, 100 were answered" in found.sentence
    assert "A was right in 20, B in 50, neither in 30" in found.sentence


def test_with_every_disagreement_answered_the_interval_is_that_of_all_labels():
    """Nothing is left to draw: the same rows, all labelled, have the same gain and nearly Newcombe's interval."""
    from bertray.evaluation.paired import PairedCounts, newcombe_estimate

    found = AnsweredDisagreements(rows=2000, disagreements=300, only_a=90, only_b=150, neither=60)
    of_all = newcombe_estimate(PairedCounts(1500, 90, 150, 260))
    assert found.gain.value == pytest.approx(of_all.value)
    assert found.gain.low == pytest.approx(of_all.low, abs=0.001)
    assert found.gain.high == pytest.approx(of_all.high, abs=0.001)


def test_few_answers_decide_nothing():
    found = AnsweredDisagreements(rows=1000, disagreements=5, only_a=0, only_b=5, neither=0)
    assert found.verdict == "undecided"
    assert "cannot be told apart" in found.sentence


def test_more_answers_find_more():
    few, many = (AnsweredDisagreements(2000, 300, n, 2 * n, n) for n in (10, 60))
    assert few.power[0.01] < many.power[0.01] < many.power[0.02] <= 1
    assert AnsweredDisagreements(1000, 5, 1, 2, 1).power[0.02] == 1.0  # more than all disagreements can give


@pytest.mark.parametrize("true_gain", [0.0, 0.02])
def test_intervals_hold_the_true_gain(true_gain):
    random = np.random.default_rng(0)
    share, differ, held, better, rounds = 0.15, 0.19, 0, 0, 400
    chances = np.array([(share - true_gain) / 2, (share + true_gain) / 2, differ - share]) / differ
    for _ in range(rounds):
        disagreements = int(random.binomial(5000, differ))
        drawn = random.multivariate_hypergeometric(random.multinomial(disagreements, chances), 200)
        found = AnsweredDisagreements(5000, disagreements, *map(int, drawn))
        held += found.gain.low <= true_gain <= found.gain.high
        better += found.verdict == "better"
    assert 0.92 <= held / rounds <= 0.98  # 95 % within three standard errors of 400 rounds
    if true_gain == 0:
        assert better / rounds < 0.05
