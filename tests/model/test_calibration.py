"""Temperature and offsets: against solutions found by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from bertray.model.calibration import fit_temperature, offsets_to_shares, probs_of_reviews


def test_temperature_makes_confidence_equal_accuracy():
    # Four equal answers, three of them right: the best probability is 3/4, so margin / T = ln(3).
    logits_NC = np.array([[4.0, 0.0]] * 4)
    assert fit_temperature(logits_NC, np.array([0, 0, 0, 1])) == pytest.approx(4 / math.log(3), rel=1e-4)


def test_temperature_below_one_makes_a_timid_model_surer():
    logits_NC = np.array([[0.0, 0.5]] * 10)
    fitted = fit_temperature(logits_NC, np.array([1] * 9 + [0]))
    assert fitted == pytest.approx(0.5 / math.log(9), rel=1e-4)


def test_temperature_stays_within_its_bounds():
    logits_NC = np.array([[3.0, 0.0]] * 5)
    assert fit_temperature(logits_NC, np.array([1] * 5)) == pytest.approx(20, rel=1e-3)
    # Always right by little: the surer the better.
    assert fit_temperature(np.array([[0.01, 0.0]] * 5), np.array([0] * 5)) == pytest.approx(0.05, rel=1e-3)
    assert 0.05 <= fit_temperature(logits_NC, np.array([0] * 5)) <= 20


def test_temperature_is_one_where_nothing_can_be_learnt():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0
    assert fit_temperature(np.array([[4.0, 0.0]]), np.array([1])) == 1.0
    assert fit_temperature(np.zeros((6, 2)), np.array([0, 1] * 3)) == 1.0
    assert fit_temperature(np.array([[4.0, 0.0], [np.nan, 0.0]]), np.array([1, 1])) == 1.0


def test_rows_that_are_not_finite_do_not_count():
    logits_NC = np.array([[4.0, 0.0]] * 4 + [[np.inf, 0.0], [np.nan, np.nan]], np.float32)
    assert fit_temperature(logits_NC, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(4 / math.log(3), rel=1e-4)


def test_one_label_a_review_is_expected():
    with pytest.raises(ValueError, match="expected 2 labels, one a review, found 3"):
        fit_temperature(np.zeros((2, 2)), np.array([0, 1, 0]))


def test_probs_of_reviews_divide_by_the_temperature_and_average_windows():
    logits_SC = np.log([[1.0, 3.0], [9.0, 1.0], [1.0, 1.0]])
    probs_NC = probs_of_reviews(2 * logits_SC, np.array([0, 1, 1]), 2.0)
    np.testing.assert_allclose(probs_NC, [[0.25, 0.75], [0.7, 0.3]], atol=1e-12)


def test_offsets_move_the_decision_between_the_rows_that_have_a_class_and_the_others():
    # Leads of class 1: 3, 1, 0.5, -1. Two rows have it, so the decision lies between 1 and 0.5.
    logits_NC = np.array([[0.0, 3.0], [0.0, 1.0], [0.0, 0.5], [1.0, 0.0]])
    np.testing.assert_allclose(offsets_to_shares(logits_NC, np.array([1, 0, 1, 0])), [0.375, -0.375])


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_each_class_is_said_as_often_as_it_occurs(num_classes):
    random = np.random.default_rng(num_classes)
    shares_C = np.arange(1, num_classes + 1) ** 2 / (np.arange(1, num_classes + 1) ** 2).sum()
    label_ids_N = random.choice(num_classes, size=500, p=shares_C)
    logits_NC = random.normal(size=(500, num_classes)) + np.eye(num_classes)[label_ids_N] + 2 * np.log(shares_C)
    counts_C = np.bincount(label_ids_N)
    assert np.bincount(logits_NC.argmax(axis=1), minlength=num_classes)[-1] > counts_C[-1]  # the frequent one too often
    offsets_C = offsets_to_shares(logits_NC, label_ids_N)
    assert offsets_C.sum() == pytest.approx(0)
    assert np.bincount((logits_NC + offsets_C).argmax(axis=1)).tolist() == counts_C.tolist()


def test_offsets_leave_alone_what_says_nothing():
    logits_NC = np.array([[0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(offsets_to_shares(logits_NC, np.array([1, 1, 1])), [0, 0, 0])  # one class
    np.testing.assert_array_equal(offsets_to_shares(np.zeros((0, 2)), np.zeros(0, np.int64)), [0, 0])
    bad_NC = np.array([[0.0, 3.0], [0.0, 1.0], [0.0, 0.5], [1.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
    np.testing.assert_allclose(offsets_to_shares(bad_NC, np.array([1, 0, 1, 0, 0, 0])), [0.375, -0.375])


def test_a_decision_that_is_right_already_stays():
    logits_NC = np.array([[0.0, 9.0], [1.0, 0.0], [1.2, 0.0], [9.0, 0.0]])
    np.testing.assert_array_equal(offsets_to_shares(logits_NC, np.array([0, 1, 0, 0])), [0, 0])


def test_rows_that_cannot_be_told_apart_go_together():
    constant_NC = np.array([[0.0, 3.0]] * 10)
    np.testing.assert_array_equal(offsets_to_shares(constant_NC, np.array([0] * 3 + [1] * 7)), [0, 0])
    two_kinds_NC = np.array([[0.0, 2.0]] * 6 + [[0.0, -1.0]] * 4)
    offsets_C = offsets_to_shares(two_kinds_NC, np.array([0, 1] * 5))
    assert (two_kinds_NC + offsets_C).argmax(axis=1).tolist() == [1] * 6 + [0] * 4


def test_a_class_that_does_not_occur_is_not_said():
    logits_NC = np.array([[0.0, -5.0, 5.0], [-6.0, 0.0, -9.0]])
    assert (logits_NC + offsets_to_shares(logits_NC, np.array([0, 1]))).argmax(axis=1).tolist() == [0, 1]


def test_many_classes_are_matched_in_time():
    random = np.random.default_rng(0)
    label_ids_N = random.integers(77, size=3000)
    logits_NC = 0.5 * random.normal(size=(3000, 77)) + 3 * np.eye(77)[label_ids_N] + np.linspace(-2, 2, 77)
    started = time.process_time()
    offsets_C = offsets_to_shares(logits_NC, label_ids_N)
    assert time.process_time() - started < 10
    assert (np.bincount((logits_NC + offsets_C).argmax(axis=1)) == np.bincount(label_ids_N)).mean() > 0.9
