"""The order of examples is arithmetic: exactly once an epoch, the same steps for any number of workers."""

import functools
import itertools

import numpy as np
import pytest

from bertray.training.order import (
    balanced_weights,
    cheapest_microbatches,
    epoch_steps,
    num_steps,
    rank_share,
    step_seed,
    within_budget,
)

LENS_N = np.random.default_rng(0).integers(3, 128, size=1003)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_example_is_seen_exactly_once_per_epoch_on_any_number_of_workers(world_size):
    seen = []
    for step in epoch_steps(LENS_N, batch_size=32, seed=5, epoch=2):
        for rank in range(world_size):
            share = rank_share(step, rank=rank, world_size=world_size)
            for batch in cheapest_microbatches(LENS_N[share], max_tokens=512, tokens_per_microbatch=96):
                seen.append(share[batch])
    assert sorted(np.concatenate(seen).tolist()) == list(range(1003))


def test_steps_are_the_same_whatever_the_number_of_workers():
    steps = epoch_steps(LENS_N, batch_size=32, seed=5, epoch=0)
    for world_size in (2, 3):
        for step in steps:
            joined = np.concatenate([rank_share(step, rank=r, world_size=world_size) for r in range(world_size)])
            assert sorted(joined.tolist()) == sorted(step.tolist())
    assert len(steps) == num_steps(1003, 32) == 32
    assert [len(step) for step in steps] == [32] * 31 + [11]


def test_order_changes_with_epoch_and_seed_and_repeats_with_both():
    def order(seed, epoch):
        return np.concatenate(epoch_steps(LENS_N, batch_size=32, seed=seed, epoch=epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_steps_are_drawn_whatever_the_lengths():
    """Steps of like lengths would be no random sample: the mean length of a step is that of a random draw."""
    steps = epoch_steps(LENS_N, batch_size=32, seed=0, epoch=0)[:-1]
    means = np.array([LENS_N[step].mean() for step in steps])
    assert abs(means.mean() - LENS_N.mean()) < 3
    assert means.std() == pytest.approx(LENS_N.std() / 32**0.5, rel=0.5)
    assert all((np.diff(LENS_N[step]) <= 0).all() for step in steps)


def test_a_step_is_cut_where_it_saves_padding():
    padded = whole = 0
    for step in epoch_steps(LENS_N, batch_size=32, seed=0, epoch=0):
        lens = LENS_N[step]
        batches = cheapest_microbatches(lens, max_tokens=8192, tokens_per_microbatch=96)
        padded += sum(int(lens[batch].max()) * len(batch) + 96 for batch in batches)
        whole += int(lens.max()) * len(lens) + 96
    assert padded < 0.8 * whole
    assert len(cheapest_microbatches(np.full(32, 20), max_tokens=8192, tokens_per_microbatch=96)) == 1
    lens = np.array([9] * 8 + [100] * 4)
    assert [len(batch) for batch in cheapest_microbatches(lens, max_tokens=8192, tokens_per_microbatch=96)] == [4, 8]


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_is_the_cheapest_of_all(seed):
    random = np.random.default_rng(seed)
    lens = np.sort(random.integers(1, 60, size=9))[::-1].copy()

    def price(cuts) -> float:
        bounds = [0, *cuts, 9]
        passes = [(lens[a], b - a) for a, b in itertools.pairwise(bounds)]
        return sum(w * n + 17 for w, n in passes) if all(w * n <= 150 or n == 1 for w, n in passes) else np.inf

    least = min(price(cuts) for size in range(9) for cuts in itertools.combinations(range(1, 9), size))
    found = cheapest_microbatches(lens, max_tokens=150, tokens_per_microbatch=17)
    assert sum(int(lens[batch].max()) * len(batch) + 17 for batch in found) == least


def test_a_step_shorter_than_the_world_leaves_ranks_without_examples():
    shares = [rank_share(np.array([4, 9]), rank=rank, world_size=3).tolist() for rank in range(3)]
    assert shares == [[4], [9], []]


BY_TOKENS = functools.partial(within_budget, padded=False)
BY_PADDED_TOKENS = functools.partial(within_budget, padded=True)


@pytest.mark.parametrize(
    "cut", [BY_TOKENS, BY_PADDED_TOKENS, functools.partial(cheapest_microbatches, tokens_per_microbatch=8)]
)
def test_passes_hold_each_position_once_within_the_token_budget(cut):
    lens_B = np.array([10, 300, 20, 20, 5, 120])
    batches = cut(lens_B, max_tokens=128)
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4, 5]
    size = np.sum if cut is BY_TOKENS else lambda lens: lens.max() * len(lens)
    assert all(len(batch) == 1 or size(lens_B[batch]) <= 128 for batch in batches)
    assert cut(np.array([], np.int64), max_tokens=128) == []


def test_step_seeds_differ_between_steps_and_ranks():
    seeds = {step_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200


def test_balanced_weights_equal_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    label_ids_N = np.array([0] * 70 + [1] * 20 + [2] * 10)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=label_ids_N)
    np.testing.assert_allclose(balanced_weights(label_ids_N, 3), expected, rtol=1e-12)
