"""Labelled nights as later nights look back at them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from bertray.outputs.decisions import Truth, fullest
from bertray.runs.night_quality import labelled_nights, past_errors
from bertray.trust.quality import estimate_night


def truth(confusion, *, run_id="r1", rows=1000, shown=(0.76, 0.84)):
    """A labelled night that was estimated at 0.8."""
    probs = np.tile(np.array([0.8, 0.2], np.float32), (rows, 1))
    return Truth(
        seq=1,
        run_id=run_id,
        model_version="m",
        source="labels.csv",
        at="",
        labels=["a", "b"],
        confusion=confusion,
        estimate=asdict(estimate_night(probs, [0.8, 0.2])),
        shown=shown,
    )


@pytest.mark.parametrize(
    ("right", "wrong", "held"),
    [
        (830, 170, True),
        (850, 150, False),  # every row has its label: the interval alone counts
        (85, 15, True),  # of a hundred labels, 0.85 is within their own error
        (95, 5, False),
        (10, 10, None),  # too few to tell
    ],
)
def test_an_interval_is_checked_by_as_much_as_the_labels_can_tell(right, wrong, held):
    (night,) = labelled_nights([truth([[right, 0], [wrong, 0]])], {"r1": "dt=1"})
    assert (night.title, night.rows, night.held) == ("dt=1", right + wrong, held)


def test_a_record_without_a_row_counts_for_nothing():
    records = [truth([[0, 0], [0, 0]]), truth([[80, 20], [0, 0]], run_id="r2")]
    assert [record.run_id for record in fullest(records)] == ["r2"]
    assert [error.accuracy for error in past_errors(records, "m", "")] == [0.8]
    assert len(labelled_nights(records, {})) == 1
