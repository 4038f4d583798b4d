"""Calibration judged on held-out rows by cross-fitting, with planted temperature and class shares."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.evaluation.calibrated import MIN_ROWS, cross_fitted, judge_calibration
from bertray.model.calibration import fit_offsets, fit_temperature, probs_of_rows

OFFSETS_C = np.array([0.9, -0.3, -0.6])


def planted(num_rows: int, offsets_C: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose probabilities are right after the offsets and the temperature."""
    random = np.random.default_rng(0)
    logits_VC = random.normal(0, 3, (num_rows, 3))
    chances_VC = probs_of_rows((logits_VC + offsets_C) / temperature)
    drawn_V = (random.random(num_rows)[:, None] > chances_VC.cumsum(axis=1)).sum(axis=1)
    return logits_VC, drawn_V


def test_offsets_and_temperature_that_were_planted_are_found():
    logits_VC, label_ids_V = planted(20_000, OFFSETS_C, 2.0)
    offsets_C, temperature = fit_offsets(logits_VC, label_ids_V)
    assert offsets_C == pytest.approx(OFFSETS_C, abs=0.1)  # 20,000 rows
    assert temperature == pytest.approx(2.0, abs=0.06)
    assert offsets_C.sum() == pytest.approx(0, abs=1e-9)
    shares_C = probs_of_rows((logits_VC + offsets_C) / temperature).mean(axis=0)
    assert shares_C == pytest.approx(
        np.bincount(label_ids_V) / len(label_ids_V), abs=1e-3
    )  # what likelihood makes equal


def test_a_fitted_offset_is_what_scikit_learn_finds_with_the_same_penalty():
    """With the slope at 1 the bias of a softmax regression on one constant feature is the same problem."""
    from scipy.optimize import minimize

    logits_VC, label_ids_V = planted(200, OFFSETS_C, 1.0)

    def loss(x: np.ndarray) -> float:
        chances = probs_of_rows((logits_VC * x[0]) + x[1:])
        return float(-np.log(chances[np.arange(200), label_ids_V]).sum() + (x[1:] ** 2).sum() / 2)

    found = minimize(loss, np.array([1.0, 0, 0, 0]), method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-6})
    offsets_C, temperature = fit_offsets(logits_VC, label_ids_V)
    assert 1 / temperature == pytest.approx(found.x[0], abs=1e-3)
    expected_C = found.x[1:] - found.x[1:].mean()
    assert offsets_C / temperature == pytest.approx(expected_C, abs=1e-3)


def test_offsets_of_one_row_are_none_and_rows_that_are_not_finite_are_left_out():
    offsets_C, temperature = fit_offsets(np.array([[1.0, 2.0], [np.nan, 0]]), np.array([0, 1]))
    assert (offsets_C.tolist(), temperature) == ([0.0, 0.0], 1.0)


def test_a_row_is_judged_by_a_calibration_that_has_not_seen_it():
    seen: list[set[int]] = []

    def fit(logits_VC, label_ids_V):
        seen.append(set(logits_VC[:, 0].astype(int).tolist()))
        return np.zeros(2), float(len(seen))

    logits_VC = np.column_stack([np.arange(20.0), np.zeros(20)])
    probs_VC = cross_fitted(logits_VC, np.zeros(20, int), fit, seed=0)
    assert [len(rows) for rows in seen] == [16] * 5
    for number, rows in enumerate(seen, start=1):
        for row in set(range(20)) - rows:
            assert probs_VC[row] == pytest.approx(probs_of_rows(logits_VC[[row]] / number)[0])


def test_calibration_says_what_it_mended():
    logits_VC, label_ids_V = planted(2_000, np.zeros(3), 3.0)
    found = judge_calibration(
        logits_VC, label_ids_V, lambda z, y: (np.zeros(3), fit_temperature(z, y)), ["a", "b", "c"], seed=0
    )
    assert found.rows == 2_000
    assert found.offsets == {}
    assert found.before is not None
    assert found.after is not None
    assert found.before.ece.value > 0.1 > 0.05 > found.after.ece.value
    assert found.after.log_loss.value < found.before.log_loss.value
    assert found.to_json()["review"] is None


def test_too_few_rows_are_not_judged():
    logits_VC, label_ids_V = planted(MIN_ROWS - 1, np.zeros(3), 1.0)
    found = judge_calibration(logits_VC, label_ids_V, fit_offsets, ["a", "b", "c"], seed=0)
    assert (found.before, found.after) == (None, None)
    assert set(found.offsets) == {"a", "b", "c"}
