"""Profiles of parts add up to that of the night."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.outputs.night_profile import (
    OTHER_GROUPS,
    GroupProfile,
    Moments,
    NightProfile,
    bounded_groups,
    packed,
    unpacked,
)


def profile_of(values, ngrams=None):
    return NightProfile(
        rows=len(values),
        moments={"x": Moments.of(np.array(values))},
        histograms={"x": packed(np.bincount(values, minlength=4))},
        ngrams="" if ngrams is None else packed(np.array(ngrams, np.float32)),
        ngram_rows=(0, 0) if ngrams is None else (1, 2),
        repeated={"aa": values.count(1)},
        groups={"shop": {"north": GroupProfile(rows=len(values), labels={"neg": 1}, probabilities={"neg": 0.5})}},
    )


def test_moments_give_mean_and_unbiased_variance():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    moments = Moments.of(values[:1]).plus(Moments.of(values[1:]))
    assert moments == (4, 16.0, 102.0)
    assert (moments.mean, moments.variance) == (values.mean(), pytest.approx(values.var(ddof=1)))
    assert (Moments(0, 0.0, 0.0).mean, Moments(1, 5.0, 25.0).variance) == (0.0, 0.0)


def test_profiles_of_two_parts_are_that_of_all_rows():
    both = profile_of([0, 1, 1]) + profile_of([3, 1])
    assert (both.rows, both.moments) == (5, {"x": Moments.of(np.array([0, 1, 1, 3, 1]))})
    assert both.histogram("x").tolist() == [1, 3, 0, 1]
    assert both.histogram("y") is None
    assert (both.repeated, both.top_share) == ({"aa": 3}, 3 / 5)
    assert both.groups["shop"]["north"] == GroupProfile(rows=5, labels={"neg": 2}, probabilities={"neg": 1.0})
    assert NightProfile() + both == both


def test_ngrams_add_up_and_one_part_may_have_none():
    one, none = profile_of([1], [[1, 2], [3, 4]]), profile_of([1])
    assert (one + one + none).ngram_sums.tolist() == [[2, 4], [6, 8]]
    assert (one + one).ngram_rows == (2, 4)
    assert none.ngram_sums is None


def test_a_profile_survives_json():
    profile = profile_of([0, 1, 3], [[1, 2], [3, 4]])
    assert NightProfile.model_validate_json(profile.model_dump_json()) == profile


def test_sparse_counts_take_little_room():
    counts = np.zeros(1024, np.float32)
    counts[7] = 1.5
    assert len(packed(counts)) < 60
    assert unpacked(packed(counts)).tolist() == counts.tolist()


def test_the_smallest_of_many_groups_become_one_and_nothing_is_lost():
    groups = {f"g{n}": GroupProfile(rows=n + 1, labels={}, probabilities={}) for n in range(150)}
    kept = bounded_groups(groups)
    assert len(kept) == 100
    assert sum(group.rows for group in kept.values()) == sum(range(1, 151))
    assert kept[OTHER_GROUPS].rows == sum(range(1, 52))
