"""Answers as the test set of a promotion: rows whose chance of being drawn is known, each with the same chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bertray.errors import DataRefused
from bertray.runs.release.pair import Pair
from bertray.runs.release.promotion import drawn_alike


def pair_of(probabilities: list[float | None], right_a: Any, right_b: Any) -> Pair:
    """Rows of class 0 that A and B say rightly or not."""
    side: Any = None
    probs_a, probs_b = (np.where(np.array(right)[:, None], [0.9, 0.1], [0.1, 0.9]) for right in (right_a, right_b))
    count = len(probabilities)
    return Pair(
        side,
        side,
        ("x", "y"),
        pa.array([f"id {number}" for number in range(count)]),
        np.zeros(count, np.int32),
        probs_a,
        probs_b,
        {"probability": pa.array([None if p is None else str(p) for p in probabilities], pa.string())},
        notes=("a note",),
    )


def test_answers_drawn_with_different_chances_are_thinned_to_one_chance():
    """A is unsure of rows that are drawn more often, and wrong there; B is as good as A on all rows together."""
    rng = np.random.default_rng(0)
    unsure = rng.random(40_000) < 0.25
    chance = np.where(unsure, 0.4, 0.1)
    right_a, right_b = rng.random(40_000) < np.where(unsure, 0.5, 0.9), rng.random(40_000) < 0.8
    drawn = np.flatnonzero(rng.random(40_000) < chance)
    pair = pair_of(chance[drawn].tolist(), right_a[drawn], right_b[drawn])
    assert right_b[drawn].mean() - right_a[drawn].mean() > 0.05  # as they are, B looks better
    kept = drawn_alike(pair)
    gain = (kept.probs_b_NC.argmax(axis=1) == 0).mean() - (kept.probs_a_NC.argmax(axis=1) == 0).mean()
    assert abs(gain) < 0.02
    assert 3_700 < kept.num_rows < 4_300
    assert "probability" not in kept.slices
    assert kept.notes[-1].startswith(f"{kept.num_rows:,} answers of {len(drawn):,} judge the models")
    assert drawn_alike(pair).ids == kept.ids  # the same rows each time: a test set is known by its rows


def test_answers_to_rows_that_the_model_is_unsure_of_do_not_judge():
    pair = pair_of([None, 0.5, None, 0.5], [True] * 4, [False] * 4)
    assert drawn_alike(pair).ids.to_pylist() == ["id 1", "id 3"]
    with pytest.raises(DataRefused, match="none of the answers has a probability"):
        drawn_alike(pair_of([None, None], [True] * 2, [True] * 2))
