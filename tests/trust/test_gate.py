"""Pass rates of the gate for simulated models whose true gain is known."""

from itertools import product

import numpy as np
import pytest

from bertray.evaluation.paired import PairedCounts, SliceGain, one_sided_low
from bertray.trust import gate
from tests.evaluation.test_paired import SETTINGS, tables

NUM_TABLES = 20_000
# One-sided 95 % Newcombe lower bound > 0, % passed: measured beforehand by another program (true gain in points).
MEASURED = {
    (200, -1.0): (1.4, 2.0, 3.0),
    (200, -0.5): (2.9, 3.4, 3.3),
    (200, 0.0): (4.8, 5.3, 5.2),
    (200, 1.0): (12, 10, 8),
    (200, 2.0): (28, 18, 14),
    (500, -1.0): (0.4, 1.0, 1.8),
    (500, -0.5): (1.8, 2.9, 2.8),
    (500, 0.0): (4.8, 4.5, 5.0),
    (500, 1.0): (23, 14, 12),
    (500, 2.0): (55, 29, 22),
    (2000, -1.0): (0.0, 0.3, 0.4),
    (2000, -0.5): (0.4, 1.5, 1.6),
    (2000, 0.0): (4.8, 5.8, 5.2),
    (2000, 1.0): (57, 31, 23),
    (2000, 2.0): (98, 75, 55),
}


@pytest.mark.parametrize(("rows", "points"), MEASURED)
def test_gate_passes_simulated_models_as_often_as_measured(rows, points):
    for (accuracy, discordance), measured in zip(SETTINGS, MEASURED[rows, points], strict=True):
        counts = tables(rows, accuracy, discordance, points / 100, NUM_TABLES, seed=7)
        passed = 100 * float((one_sided_low(counts) > 0).mean())
        assert passed == pytest.approx(measured, abs=2.0)  # the other simulation had 4,000 tables: 2.5 standard errors
        if points < 0:
            assert passed <= 5


def test_decision_is_the_bound_above_minus_the_tolerance():
    counts = PairedCounts(both_right=1550, only_a=150, only_b=170, both_wrong=130)
    strict = gate.decide(counts, {})
    assert strict.gain == pytest.approx(0.01)
    assert strict.low == pytest.approx(float(one_sided_low(counts)))
    assert not strict.passed
    lenient = gate.decide(counts, {}, tolerance=0.01)
    assert lenient.passed
    assert any("worse by 1 points pass in 5 % of cases" in sentence for sentence in lenient.sentences)
    assert strict.sentences[0].startswith("Refused: accuracy +1.0 points over the model in use")


def test_a_test_set_used_again_is_judged_more_strictly():
    counts = PairedCounts(both_right=1550, only_a=130, only_b=170, both_wrong=150)
    first, tenth = gate.decide(counts, {}, use=1), gate.decide(counts, {}, use=10)
    assert first.passed
    assert not tenth.passed
    assert tenth.error == pytest.approx(0.005)
    assert any("Use 10 of this test set" in sentence for sentence in tenth.sentences)
    assert first.finds[0.01] > tenth.finds[0.01]


@pytest.mark.slow
def test_of_fifty_worse_candidates_on_one_test_set_almost_none_passes():
    """All 1 point worse, 10 % discordance: the bound without correction lets one of 50 pass in 15 % of cases."""
    passed = []
    for rows, repeat in product([500], range(200)):
        counts = tables(rows, 0.85, 0.10, -0.01, 50, seed=repeat)
        uses = np.arange(1, 51)
        each = [PairedCounts(*(int(cells[k]) for cells in counts)) for k in range(50)]
        passed.append(any(float(one_sided_low(c, 0.05 / k)) > 0 for c, k in zip(each, uses, strict=True)))
    assert np.mean(passed) <= 0.05


def slices_of(num_slices: int, rows: int, worse: float, seed: int) -> list[SliceGain]:
    """Slices of equal models, the first one worse by a share of its rows; accuracy .85, discordance 10 %."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_slices):
        gain = -worse if number == 0 else 0.0
        only_b, only_a = (0.10 + gain) / 2, (0.10 - gain) / 2
        both = 0.85 - only_a
        found.append(
            SliceGain.of(PairedCounts(*map(int, rng.multinomial(rows, [both, only_a, only_b, 1 - both - 0.10]))))
        )
    return found


@pytest.mark.parametrize(("num_slices", "rows", "blocked"), [(3, 100, 98), (8, 100, 88), (8, 300, 100)])
def test_slices_block_what_is_worse_and_not_what_is_equal(num_slices, rows, blocked):
    def share_blocked(worse: float) -> float:
        drawn = [slices_of(num_slices, rows, worse, seed) for seed in range(250)]
        judged = [gate.judge_slices([("product", str(n), gain) for n, gain in enumerate(each)]) for each in drawn]
        return 100 * float(np.mean([any(slice_.worse for slice_ in each) for each in judged]))

    assert share_blocked(0.0) <= 7  # measured beforehand: 3-4 %; 250 draws have a standard error of 1.3
    assert share_blocked(0.10) == pytest.approx(blocked, abs=6)


def test_small_slices_are_named_and_never_block():
    small = SliceGain.of(PairedCounts(0, 99, 0, 0))
    large = SliceGain.of(PairedCounts(60, 35, 5, 0))
    counts = PairedCounts(both_right=1550, only_a=100, only_b=200, both_wrong=150)
    alone = gate.decide(counts, {"language": {"ko": small}})
    assert alone.passed
    assert "Cannot be judged, with fewer than 100 rows: language=ko (99)." in alone.sentences
    many = gate.decide(counts, {"shop": {f"{number:02d}": small for number in range(40)}})
    assert len(many.slices) == 40
    [said] = [sentence for sentence in many.sentences if sentence.startswith("Cannot be judged")]
    assert said.endswith("shop=08 (99), shop=09 (99) and 30 more.")
    both = gate.decide(counts, {"language": {"ko": small, "en": large}})
    assert not both.passed
    assert [judged.name for judged in both.worse_slices] == ["language=en"]
    assert any(sentence.startswith("Worse on language=en: −30.0 points on 100 rows") for sentence in both.sentences)
