"""Packs: every sequence once, under the budget, in groups of near-equal length."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.model.packing import Group, plan_packs


def random_lengths() -> np.ndarray:
    return np.random.default_rng(3).integers(1, 200, size=500)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("budget", [1, 199, 2048, 10**9])
def test_every_sequence_is_in_one_pack_longest_first(padded, budget):
    lens_S = random_lengths()
    packs = plan_packs(lens_S, max_tokens_per_pack=budget, padded=padded)
    order = np.concatenate([pack.sequences_B for pack in packs])
    assert sorted(order) == list(range(500))
    assert (np.diff(lens_S[order]) <= 0).all()
    assert all((pack.lens_B == lens_S[pack.sequences_B]).all() for pack in packs)


def test_packs_fill_the_budget_with_real_tokens():
    packs = plan_packs(np.array([4, 9, 3, 5, 8]), max_tokens_per_pack=17)
    assert [pack.lens_B.tolist() for pack in packs] == [[9, 8], [5, 4, 3]]
    assert [pack.sequences_B.tolist() for pack in packs] == [[1, 4], [3, 0, 2]]


def test_padded_packs_count_padding():
    packs = plan_packs(np.array([4, 9, 3, 5, 8]), max_tokens_per_pack=17, padded=True)
    assert [pack.lens_B.tolist() for pack in packs] == [[9], [8, 5], [4, 3]]
    assert [pack.groups for pack in packs] == [(Group(0, 1, 9),), (Group(0, 2, 8),), (Group(0, 2, 4),)]


def test_sequence_above_the_budget_is_a_pack_of_its_own():
    packs = plan_packs(np.array([7, 50, 7]), max_tokens_per_pack=14)
    assert [pack.lens_B.tolist() for pack in packs] == [[50], [7, 7]]


def test_groups_join_near_lengths_and_leave_long_runs_of_equal_length_alone():
    (pack,) = plan_packs(np.array([128] * 5 + [127, 113, 112, 111, 20, 12, 11]), max_tokens_per_pack=10**6)
    # 127 - 127 // 8 = 112; below 64 tokens up to 8 are padded.
    assert pack.groups == (Group(0, 5, 128), Group(5, 8, 127), Group(8, 9, 111), Group(9, 11, 20), Group(11, 12, 11))


def test_groups_are_near_equal_and_cover_their_pack():
    for pack in plan_packs(random_lengths(), max_tokens_per_pack=2048, width_multiple=16):
        bounds = [group.first for group in pack.groups] + [pack.groups[-1].stop]
        assert bounds[0] == 0
        assert bounds[-1] == len(pack.lens_B)
        assert [group.stop for group in pack.groups] == bounds[1:]
        for group in pack.groups:
            lens_G = pack.lens_B[group.first : group.stop]
            assert group.width == -(-lens_G[0] // 16) * 16
            assert lens_G[-1] >= lens_G[0] - max(8, lens_G[0] // 8)


def test_few_shapes_rounds_widths_and_slots_up():
    (pack,) = plan_packs(np.array([17, 30]), max_tokens_per_pack=100, width_multiple=16, slots_multiple=64)
    assert pack.num_slots == 64
    assert pack.groups == (Group(0, 1, 32), Group(1, 2, 32))


def test_no_sequences_make_no_packs():
    assert plan_packs(np.array([], np.int64), max_tokens_per_pack=100) == []
