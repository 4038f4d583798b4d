"""Shares of labels: coverage by simulation, and equality with other implementations."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.runs.answered_rows import Answer, AskedQueue, DrawnStratum, UsableAnswers
from bertray.trust.sampling import stratified_draw
from bertray.trust.shares import (
    Answers,
    GroupSums,
    Stratum,
    accuracy_by_answers,
    adjusted_count,
    corrected_by_answers,
    group_shares,
    mean_probability,
)

CLASSES = 3


def night(rng, rows=880, sharpness=1.0, off=0.0):
    """(probabilities, true labels); `off` makes the probabilities wrong by a shift of the logits."""
    logits = rng.normal(0, 1.3 * sharpness, (rows, CLASSES)) + np.log([0.2, 0.3, 0.5])
    given = np.exp(logits)
    given /= given.sum(axis=1, keepdims=True)
    true = (rng.random(rows)[:, None] > given.cumsum(axis=1)[:, :-1]).sum(axis=1)
    shown = np.exp(logits + np.array([off, 0, 0]))
    return shown / shown.sum(axis=1, keepdims=True), true


def sums_of(probs):
    counted = np.bincount(probs.argmax(axis=1), minlength=CLASSES)
    return GroupSums(len(probs), counted, probs.sum(axis=0), (probs * (1 - probs)).sum(axis=0))


def answered(probs, true, budget, seed):
    draw = stratified_draw(probs, budget, seed)
    return Answers.of_draw(true[draw.rows], probs[draw.rows], draw.probability)


def test_answers_correct_probabilities_that_are_off_and_the_interval_covers():
    rng = np.random.default_rng(0)
    held, errors, widths = [], [], []
    for seed in range(150):
        probs, true = night(rng, off=0.7)
        share = (true == 0).mean()
        found = corrected_by_answers(sums_of(probs), answered(probs, true, 100, seed))[0]
        held.append(found.low <= share <= found.high)
        errors.append(found.value - share)
        widths.append(found.high - found.low)
    assert np.mean(held) >= 0.93
    assert abs(np.mean(errors)) < 0.006
    alone = 2 * 1.96 * np.sqrt(0.25 * 0.75 / 100)
    assert np.mean(widths) < alone


def test_counting_and_mean_probabilities_are_off_there_by_what_answers_correct():
    rng = np.random.default_rng(1)
    probs, true = night(rng, 50_000, off=0.7)
    share = (true == 0).mean()
    assert mean_probability(sums_of(probs))[0].value - share > 0.05
    assert sums_of(probs).counted_C[0] / 50_000 - share > 0.03


def test_the_uncertain_rows_alone_would_be_off_by_tens_of_points():
    """Why answers without a probability of being drawn are refused."""
    rng = np.random.default_rng(2)
    probs, true = night(rng, 2000, sharpness=2.5)
    uncertain = np.argsort(probs.max(axis=1))[:100]
    right = probs.argmax(axis=1) == true
    assert right.mean() - right[uncertain].mean() > 0.2


def test_with_every_row_answered_the_share_is_known():
    rng = np.random.default_rng(3)
    probs, true = night(rng, 300)
    found = corrected_by_answers(sums_of(probs), Answers.of_draw(true, probs, np.ones(300)))
    shares = np.bincount(true, minlength=CLASSES) / 300
    assert [one.value for one in found] == pytest.approx(shares)
    assert all(one.high - one.low < 1e-9 for one in found)


def test_of_a_simple_sample_it_is_the_prediction_powered_estimate():
    """ppi_py's formula with lambda 1: mean of f plus mean of y - f; its variance leaves out that rows are finite."""
    rng = np.random.default_rng(4)
    probs, true = night(rng)
    sample = rng.choice(880, 120, replace=False)
    answers = Answers.of_draw(true[sample], probs[sample], np.full(120, 120 / 880))
    found = corrected_by_answers(sums_of(probs), answers)[2]
    errors = (true[sample] == 2) - probs[sample, 2]
    assert found.value == pytest.approx(probs[:, 2].mean() + errors.mean())
    from scipy.stats import t

    half = t.ppf(0.975, 119) * np.sqrt(errors.var(ddof=1) / 120 * (1 - 120 / 880))
    assert found.high - found.value == pytest.approx(half)


def test_groups_cover_too():
    rng = np.random.default_rng(5)
    held = []
    for seed in range(60):
        probs, true = night(rng, 1200, off=0.5)
        group = rng.integers(0, 4, 1200)
        draw = stratified_draw(probs, 200, seed)
        every = Answers.of_draw(true[draw.rows], probs[draw.rows], draw.probability)
        for number in range(4):
            mine = group[draw.rows] == number
            rows = Answers(every.true_M[mine], every.probs_MC[mine], every.stratum_M[mine], every.strata)
            found = corrected_by_answers(sums_of(probs[group == number]), rows)[0]
            held.append(found.low <= (true[group == number] == 0).mean() <= found.high)
    assert np.mean(held) >= 0.93


def test_measured_accuracy_covers():
    rng = np.random.default_rng(6)
    held = []
    for seed in range(100):
        probs, true = night(rng, off=0.7)
        found = accuracy_by_answers(probs.max(axis=1), answered(probs, true, 100, seed))
        held.append(found.low <= (probs.argmax(axis=1) == true).mean() <= found.high)
    assert np.mean(held) >= 0.92


def test_adjusted_count_undoes_what_the_model_confuses():
    confusion = np.array([[300, 100, 0], [50, 300, 50], [0, 20, 380]])
    given = confusion / confusion.sum(axis=1, keepdims=True)
    shares = np.array([0.5, 0.2, 0.3])
    counted = np.round(shares @ given * 100_000).astype(np.int64)
    sums = GroupSums(int(counted.sum()), counted, np.zeros(3), np.zeros(3))
    found = adjusted_count(sums, confusion)
    assert [one.value for one in found] == pytest.approx(shares, abs=1e-3)
    assert all(one.low < share < one.high for one, share in zip(found, shares, strict=True))


def test_adjusted_count_of_two_classes_is_the_textbook_formula():
    confusion = np.array([[80, 20], [30, 70]])
    # 0.8 x + 0.3 (1 - x) = 0.5: x = 0.4
    found = adjusted_count(GroupSums(1000, np.array([500, 500]), np.zeros(2), np.zeros(2)), confusion)
    assert found[0].value == pytest.approx(0.4, abs=1e-3)


def test_a_group_takes_the_best_that_its_labels_allow():
    rng = np.random.default_rng(7)
    probs, true = night(rng)
    sums, rows = sums_of(probs), answered(probs, true, 100, 0)
    source = np.full((3, 3), 40)
    assert group_shares(sums, source, rows).method == "answers"
    assert group_shares(sums, source, None).method == "adjusted count"
    assert group_shares(sums, source // 2, None).method == "mean probability"
    few = Answers(rows.true_M[:5], rows.probs_MC[:5], rows.stratum_M[:5], rows.strata)
    assert group_shares(sums, None, few).method == "mean probability"


# --- answers to some of what was asked, and to several queues ---------------------------------------------------------


def usable(draws, rows, answered_of):
    """Answers of several queues as `answers.parquet` tells of them; `answered_of` says which rows of each draw."""
    by_id: dict = {}
    strata: dict = {}
    for number, (draw, some) in enumerate(zip(draws, answered_of, strict=True)):
        values, counts = np.unique(draw.probability, return_counts=True)
        for probability, count in zip(values.tolist(), counts.tolist(), strict=True):
            strata[f"q{number}", probability] = DrawnStratum(f"q{number}", probability, count)
        for at in some:
            stratum = list(strata).index((f"q{number}", draw.probability[at]))
            by_id.setdefault(str(draw.rows[at]), []).append(Answer("", stratum))
    queues = {f"q{number}": AskedQueue("slot", rows) for number in range(len(draws))}
    return UsableAnswers({"slot": by_id}, tuple(strata.values()), queues, 0)


def estimated(found, probs, true):
    _, by_id = found.covering("slot", [len(probs)])
    rows = [(int(id_), answer.stratum) for id_, of_id in by_id.items() for answer in of_id]
    place, strata = found.answered([stratum for _, stratum in rows])
    at = np.array([row for row, _ in rows])
    answers = Answers(true[at], probs[at], np.array([place[stratum] for _, stratum in rows]), strata)
    return corrected_by_answers(sums_of(probs), answers)[0]


def test_answers_to_the_first_part_of_a_queue_correct_as_much_as_answers_to_all_of_it():
    rng = np.random.default_rng(8)
    held, errors = [], []
    for seed in range(150):
        probs, true = night(rng, off=0.7)
        draw = stratified_draw(probs, 120, seed)
        answered_rows = rng.permutation(120)[:60]
        found = estimated(usable([draw], len(probs), [answered_rows]), probs, true)
        share = (true == 0).mean()
        held.append(found.low <= share <= found.high)
        errors.append(found.value - share)
    assert np.mean(held) >= 0.93
    assert abs(np.mean(errors)) < 0.007  # half of the correction alone would be off by 0.03


def test_answers_to_two_queues_of_a_slot_are_two_estimates_that_are_averaged():
    rng = np.random.default_rng(9)
    held, errors, widths, one = [], [], [], []
    for seed in range(150):
        probs, true = night(rng, off=0.7)
        draws = [stratified_draw(probs, 60, [seed, number]) for number in range(2)]
        found = estimated(usable(draws, len(probs), [range(60)] * 2), probs, true)
        share = (true == 0).mean()
        held.append(found.low <= share <= found.high)
        errors.append(found.value - share)
        widths.append(found.high - found.low)
        alone = estimated(usable(draws[:1], len(probs), [range(60)]), probs, true)
        one.append(alone.high - alone.low)
    assert np.mean(held) >= 0.93
    assert abs(np.mean(errors)) < 0.007  # twice the correction would be off by 0.06
    assert np.mean(widths) < 0.8 * np.mean(one)


def test_answers_of_two_slots_correct_each_its_own_rows():
    rng = np.random.default_rng(10)
    errors, held = [], []
    for seed in range(100):
        nights = [night(rng, rows, off=0.7) for rows in (600, 300)]
        probs, true = (np.concatenate(of) for of in zip(*nights, strict=True))
        found = []
        for number, (probs_of, true_of) in enumerate(nights):
            draw = stratified_draw(probs_of, 60, [seed, number])
            found.append(Answers.of_draw(true_of[draw.rows], probs_of[draw.rows], draw.probability))
        both = Answers(
            np.concatenate([one.true_M for one in found]),
            np.concatenate([one.probs_MC for one in found]),
            np.concatenate([found[0].stratum_M, found[1].stratum_M + len(found[0].strata)]),
            tuple(one._replace(slot=slot, queue=slot) for slot in range(2) for one in found[slot].strata),
        )
        share = corrected_by_answers(sums_of(probs), both)[0]
        errors.append(share.value - (true == 0).mean())
        held.append(share.low <= (true == 0).mean() <= share.high)
    assert abs(np.mean(errors)) < 0.008  # half of the correction would be off by 0.03
    assert np.mean(held) >= 0.92


def test_rows_of_a_stratum_without_an_answer_are_spread_over_the_others():
    strata = (DrawnStratum("q", 0.1, 10), DrawnStratum("q", 0.2, 20), DrawnStratum("q", 0.5, 100))
    found = UsableAnswers({"slot": {}}, strata, {"q": AskedQueue("slot", 400)}, 0)
    place, counted = found.answered([0, 0, 1, 1, 1])
    assert place == {0: 0, 1: 1}
    assert counted == (Stratum(0, 0, 200.0, 2), Stratum(0, 0, 200.0, 3))


def test_a_run_that_came_after_the_queue_is_not_among_what_it_tells_of():
    strata = (DrawnStratum("early", 0.1, 10), DrawnStratum("late", 0.1, 30))
    queues = {"early": AskedQueue("slot", 100), "late": AskedQueue("slot", 300)}
    answers = {"slot": {"a": (Answer("x", 0), Answer("y", 1)), "b": (Answer("x", 0),)}}
    found = UsableAnswers(answers, strata, queues, 0)
    assert found.covering("slot", [100, 50]) == (100, {"a": [Answer("x", 0)], "b": [Answer("x", 0)]})
    assert found.covering("slot", [100, 200]) == (300, {"a": [Answer("y", 1)]})
    assert found.covering("slot", [90, 40]) == (0, {})
    assert found.covering("other", [100]) == (0, {})
