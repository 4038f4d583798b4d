"""Slow drift: sums over nights find what no single night shows."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.trust.drift import Reference
from bertray.trust.slow_drift import LARGEST, SLACK, cumulative_sums, slow_shifts, threshold
from tests.trust.nights import ordinary_night


def test_sums_add_what_lies_beyond_the_slack_and_start_again_at_zero():
    up, down = cumulative_sums(np.array([[1.5, -9.0], [0.0, 0.2], [-2.0, 3.0]]))
    assert up.tolist() == pytest.approx([0.0, 2.5])  # 1.0, 0.5, 0 | 0, 0, 3 - 0.5
    assert down.tolist() == pytest.approx([1.5, 0.0])  # 0, 0, 1.5 | 4 - 0.5 = 3.5, 2.8, 0
    assert (SLACK, LARGEST) == (0.5, 4.0)


def test_the_threshold_falls_with_the_nights_of_the_reference():
    found = [threshold(nights) for nights in (10, 12, 20, 31, 60)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == found[-2]


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
