"""Paired tests against hand calculations, published examples and simulations with a known truth."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn.metrics import f1_score, log_loss, matthews_corrcoef

from bertray.evaluation import paired
from bertray.evaluation.paired import PairedCounts, compare_paired

SETTINGS = [(0.85, 0.06), (0.85, 0.15), (0.65, 0.25)]  # accuracy of A, share of discordant rows


def tables(rows: int, accuracy: float, discordance: float, gain: float, num_tables: int, seed: int = 61):
    """Test sets of two models with a known gain of B."""
    only_b, only_a = (discordance + gain) / 2, (discordance - gain) / 2
    both = accuracy - only_a
    cells = [both, only_a, only_b, 1 - both - only_a - only_b]
    return PairedCounts(*np.random.default_rng(seed).multinomial(rows, cells, size=num_tables).T)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    # Newcombe 1998, table III, method 10 (both, A alone, B alone, neither; difference A - B).
    [((36, 12, 2, 0), 0.0569, 0.3404), ((36, 14, 0, 0), 0.1528, 0.4167), ((0, 0, 0, 54), -0.0664, 0.0664)],
)
def test_newcombe_gives_the_published_intervals(cells, low, high):
    _, low_b, high_b = paired.newcombe(PairedCounts(*cells))
    assert (-high_b, -low_b) == pytest.approx((low, high), abs=2e-4)


def test_newcombe_covers_the_true_gain_in_95_of_100_test_sets():
    for accuracy, discordance in SETTINGS:
        for gain in (-0.02, 0.0, 0.01):
            _, low, high = paired.newcombe(tables(500, accuracy, discordance, gain, 4000))
            assert 0.935 <= ((low <= gain) & (gain <= high)).mean() <= 0.975


def test_midp_halves_the_weight_of_what_was_seen():
    # Exact two-sided p of 2 against 9 counts P(<= 2) twice; mid-p takes the probability of 2 itself once less.
    exact = binomtest(2, 11).pvalue
    assert paired.mcnemar_midp(2, 9) == pytest.approx(exact - binom.pmf(2, 11, 0.5))
    assert paired.mcnemar_midp(9, 2) == paired.mcnemar_midp(2, 9)
    assert paired.mcnemar_midp(0, 0) == 1
    assert paired.mcnemar_midp(5, 5) == 1


def test_worse_midp_is_one_sided():
    assert paired.worse_midp(9, 2) == pytest.approx(paired.mcnemar_midp(9, 2) / 2)
    assert paired.worse_midp(2, 9) == pytest.approx(1 - paired.mcnemar_midp(9, 2) / 2)
    assert paired.worse_midp(0, 0) == 0.5


def test_holm_steps_down_in_the_order_of_p_values():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, each at least as large as the one before.
    assert paired.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert paired.holm([]) == []


@pytest.mark.parametrize(
    ("rows", "accuracy", "discordance", "one", "two"),
    # Measured beforehand with 4,000 simulated test sets: one-sided 95 % Newcombe lower > 0.
    [(2000, 0.85, 0.06, 57, 98), (2000, 0.85, 0.15, 31, 75), (2000, 0.65, 0.25, 23, 55), (500, 0.85, 0.15, 14, 29)],
)
def test_power_is_that_of_the_gate(rows, accuracy, discordance, one, two):
    half = round(rows * discordance / 2)
    both = round(rows * accuracy) - half
    counts = PairedCounts(both, half, half, rows - both - 2 * half)
    assert 100 * paired.power(counts, 0.01) == pytest.approx(one, abs=2.5)
    assert 100 * paired.power(counts, 0.02) == pytest.approx(two, abs=2.5)


def test_rows_needed_for_one_point():
    assert paired.rows_needed(PairedCounts(1550, 150, 150, 150), 0.01) == pytest.approx(9300, rel=0.01)


def probabilities(predictions_N: np.ndarray, confidence_N: np.ndarray) -> np.ndarray:
    probs_N3 = np.repeat((1 - confidence_N)[:, None] / 2, 3, axis=1)
    probs_N3[np.arange(len(predictions_N)), predictions_N] = confidence_N
    return probs_N3


def two_models(rows: int, seed: int, accuracy_a: float, accuracy_b: float):
    rng = np.random.default_rng(seed)
    given_N = rng.choice(3, size=rows, p=[0.6, 0.3, 0.1])
    ease_N = rng.random(rows)  # one for both models: they err on the same rows
    found = []
    for accuracy in (accuracy_a, accuracy_b):
        right_N = 0.8 * ease_N + 0.2 * rng.random(rows) < accuracy
        wrong_N = (given_N + rng.integers(1, 3, size=rows)) % 3
        found.append(probabilities(np.where(right_N, given_N, wrong_N), 0.4 + 0.6 * rng.random(rows)))
    return given_N, *found


def test_differences_are_those_of_scikit_learn():
    given_N, a_N3, b_N3 = two_models(400, 1, 0.7, 0.8)
    found = compare_paired(given_N, a_N3, b_N3, ["x", "y", "z"], seed=0)
    a_N, b_N = a_N3.argmax(axis=1), b_N3.argmax(axis=1)
    expected = {
        "accuracy": (b_N == given_N).mean() - (a_N == given_N).mean(),
        "macro_f1": f1_score(given_N, b_N, average="macro") - f1_score(given_N, a_N, average="macro"),
        "mcc": matthews_corrcoef(given_N, b_N) - matthews_corrcoef(given_N, a_N),
        "log_loss": log_loss(given_N, b_N3) - log_loss(given_N, a_N3),
    }
    assert {name: estimate.value for name, estimate in found.difference.items()} == pytest.approx(expected)
    f1 = f1_score(given_N, b_N, average=None) - f1_score(given_N, a_N, average=None)
    assert [found.per_class[label]["f1"].value for label in "xyz"] == pytest.approx(f1.tolist())
    assert found.verdict == "better"
    assert found.sentence.startswith("B is better than A on 400 labelled rows")
    assert "a gain of one point would be found in " in found.power_sentence
    for estimate in found.difference.values():
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.slow
def test_paired_bootstrap_of_macro_f1_covers_the_true_gain():
    truth_N, *both = two_models(200_000, 9, 0.7, 0.72)
    a_N, b_N = (probs_N3.argmax(axis=1) for probs_N3 in both)
    truth = f1_score(truth_N, b_N, average="macro") - f1_score(truth_N, a_N, average="macro")
    inside = 0
    for seed in range(120):
        given_N, a_N3, b_N3 = two_models(300, 1000 + seed, 0.7, 0.72)
        gain = compare_paired(given_N, a_N3, b_N3, list("xyz"), seed=seed).difference["macro_f1"]
        inside += gain.low <= truth <= gain.high
    assert 0.88 <= inside / 120 <= 0.99  # measured before on real pairs: 92-97 %


def test_two_models_with_the_same_predictions_are_undecided_and_not_certain():
    given_N, a_N3, _ = two_models(300, 3, 0.8, 0.8)
    found = compare_paired(given_N, a_N3, a_N3, ["x", "y", "z"], seed=0)
    assert (found.verdict, found.mcnemar_p, found.counts.discordant) == ("undecided", 1.0, 0)
    assert found.difference["macro_f1"].low < 0 < found.difference["macro_f1"].high
    assert "cannot be told apart" in found.sentence


def test_slices_count_their_own_rows():
    given_N = np.zeros(6, int)
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    a_N2, b_N2 = (
        np.array([right, right, wrong, wrong, right, wrong]),
        np.array([right, wrong, right, right, right, wrong]),
    )
    found = compare_paired(
        given_N, a_N2, b_N2, ["x", "y"], seed=0, slices={"shop": ["n", "n", "n", "s", "s", "s"]}
    ).slices["shop"]
    assert {name: (gain.rows, gain.only_a, gain.only_b) for name, gain in found.items()} == {
        "n": (3, 1, 1),
        "s": (3, 0, 1),
    }
    assert found["s"].gain.value == pytest.approx(1 / 3)
