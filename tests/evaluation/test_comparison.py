"""Who is better, and is it said truthfully?"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bertray.evaluation.comparison import compare


def compared(given, a, b, num_classes=2, seed=0):
    return compare(
        np.array(given),
        np.array(a),
        np.array(b),
        num_classes,
        name_a="the model",
        name_b="the TF-IDF baseline",
        seed=seed,
    )


def right_on(shares, num_rows, seed):
    """Two-class labels and predictions of several models, each right on its share of rows, independently."""
    rng = np.random.default_rng(seed)
    given_N = rng.integers(0, 2, num_rows)
    return given_N, *(np.where(rng.random(num_rows) < share, given_N, 1 - given_N) for share in shares)


@pytest.mark.slow
def test_differences_equal_scikit_learn_and_a_paired_row_bootstrap():
    rng = np.random.default_rng(1)
    given_N, a_N, b_N = rng.integers(0, 3, (3, 300))
    a_N = np.where(rng.random(300) < 0.6, given_N, a_N)
    found = compared(given_N, a_N, b_N, 3)
    figures = {
        "accuracy": accuracy_score,
        "macro_f1": lambda y, p: f1_score(y, p, average="macro"),
        "mcc": matthews_corrcoef,
    }
    rows_RN = rng.integers(0, 300, (250, 300))
    for name, figure in figures.items():
        difference = found.differences[name]
        assert difference.a == pytest.approx(figure(given_N, a_N), abs=1e-12)
        assert difference.b == pytest.approx(figure(given_N, b_N), abs=1e-12)
        assert difference.difference.value == pytest.approx(difference.a - difference.b, abs=1e-12)
        draws = [figure(given_N[r], a_N[r]) - figure(given_N[r], b_N[r]) for r in rows_RN]
        tolerance = 0.3 * 1.96 * np.std(draws)  # both ends are percentiles of a few hundred draws
        ends = [difference.difference.low, difference.difference.high]
        assert ends == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=tolerance)


def test_a_clearly_better_model_beats_the_baseline_with_numbers():
    found = compared(*right_on((0.9, 0.8), 2000, seed=0))
    assert found.verdict == "better"
    assert found.sentence.startswith("The model beats the TF-IDF baseline (accuracy 0.9")
    assert "points, 95 % interval +" in found.sentence


def test_a_clearly_worse_model_does_not_beat_the_baseline():
    found = compared(*right_on((0.75, 0.9), 2000, seed=0))
    assert found.verdict == "worse"
    assert found.sentence.startswith("The model does not beat the TF-IDF baseline: it is worse (accuracy 0.7")
    assert "interval −" in found.sentence


def test_models_of_equal_strength_cannot_be_told_apart():
    found = compared(*right_on((0.85, 0.85), 500, seed=3))
    assert found.verdict == "undecided"
    assert "does not beat the TF-IDF baseline: the two cannot be told apart on 500 rows (" in found.sentence


def test_the_difference_is_paired():
    # 5 % of 1,000 rows are right only with A: unpaired intervals of 0.80 and 0.75 overlap, the paired one does not.
    given = [0] * 1000
    a = [0] * 800 + [1] * 200
    b = [0] * 750 + [1] * 250
    found = compared(given, a, b)
    assert (found.only_a_right, found.only_b_right, found.verdict) == (50, 0, "better")
    interval = found.differences["accuracy"].difference
    assert (interval.low, interval.high) == pytest.approx((0.0365, 0.0635), abs=0.003)  # binomial, 50 of 1,000


def test_five_rows_that_differ_decide_nothing():
    found = compared([0, 1] * 20, [0, 1] * 20, [1, 0, 1, 0, 1] + [1, 0] * 17 + [1])
    assert (found.only_a_right, found.only_b_right, found.verdict) == (5, 0, "undecided")
    assert "of which 5 are right with one and wrong with the other" in found.sentence


def test_one_row_decides_nothing():
    found = compared([1], [1], [0])
    assert found.verdict == "undecided"
    assert "cannot be told apart on 1 row, of which 1 is right with one" in found.sentence


def test_higher_accuracy_with_lower_macro_f1_is_mixed():
    given = [0] * 900 + [1] * 100
    always_0 = [0] * 1000
    finds_1 = [1] * 200 + [0] * 700 + [1] * 100  # accuracy 0.8, but F1 of both classes
    found = compared(given, always_0, finds_1)
    assert found.verdict == "mixed"
    assert "does not clearly beat" in found.sentence


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"found \(2, 1, 2\)"):
        compared([0, 1], [0], [0, 1])
