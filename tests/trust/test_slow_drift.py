"""Slow drift: sums over nights find what no single night shows."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.trust.drift import Reference
from bertray.trust.slow_drift import LARGEST, NUM_NIGHTS, SLACK, cumulative_sums, slow_shifts, threshold
from tests.trust.nights import ordinary_night


def test_sums_add_what_lies_beyond_the_slack_and_start_again_at_zero():
    up, down = cumulative_sums(np.array([[1.5, -9.0], [0.0, 0.2], [-2.0, 3.0]]))
    assert up.tolist() == pytest.approx([0.0, 2.5])  # 1.0, 0.5, 0 | 0, 0, 3 - 0.5
    assert down.tolist() == pytest.approx([1.5, 0.0])  # 0, 0, 1.5 | 4 - 0.5 = 3.5, 2.8, 0
    assert (SLACK, LARGEST) == (0.5, 4.0)


def test_the_threshold_falls_with_the_nights_of_the_reference_and_grows_with_the_statistics():
    found = [threshold(nights, 30) for nights in (10, 12, 20, 31, 60)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == found[-2]
    assert [threshold(31, number) for number in (3, 10, 30, 100, 400, 900)] == [11.1, 11.1, 13.5, 16.1, 19.2, 19.2]


@pytest.mark.parametrize(("num_nights", "num_statistics"), [(10, 30), (31, 100)])
def test_one_ordinary_month_in_twenty_crosses_the_threshold(num_nights, num_statistics):
    """Months of independent normal statistics, the usual value and its spread taken from the reference."""
    random, months = np.random.default_rng(0), 2000
    usual = random.standard_normal((num_nights, months * num_statistics))
    nights_TS = random.standard_normal((NUM_NIGHTS, months * num_statistics))
    deviations_TS = (nights_TS - usual.mean(axis=0)) / usual.std(axis=0, ddof=1)
    # The largest sum of a month, not the last one: every night of it may alarm.
    largest_S = np.max([np.maximum(*cumulative_sums(deviations_TS[:end])) for end in range(1, NUM_NIGHTS + 1)], axis=0)
    crossed = (largest_S.reshape(months, -1) > threshold(num_nights, num_statistics)).any(axis=1)
    assert crossed.mean() == pytest.approx(0.05, abs=0.015)


def test_a_share_that_moves_a_little_every_night_is_found_although_no_night_alarms():
    reference = Reference([ordinary_night(seq) for seq in range(1, 32)])
    ordinary = [ordinary_night(seq) for seq in range(200, 227)]
    assert slow_shifts(reference, ordinary) == []
    drifting = [ordinary_night(300 + n, positive=0.6 + 0.009 * n) for n in range(14)]
    loud = [any(s.is_alarm for s in reference.mean_shifts(night)) for night in drifting[:7]]
    assert not any(loud)
    found = slow_shifts(reference, drifting)
    assert {shift.name for shift in found} >= {"predicted:pos", "probability:pos"}
    assert all((shift.kind, shift.is_alarm) == ("slow", True) for shift in found)


def test_one_odd_night_is_no_slow_drift():
    reference = Reference([ordinary_night(seq) for seq in range(1, 32)])
    nights = [ordinary_night(400 + n, positive=0.95 if n == 3 else 0.6) for n in range(12)]
    assert slow_shifts(reference, nights) == []
