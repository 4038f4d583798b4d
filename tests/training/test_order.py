"""The order of examples is arithmetic: exactly once an epoch, the same steps for any number of workers."""

import numpy as np
import pytest

from bertray.training.order import (
    balanced_weights,
    epoch_steps,
    microbatches,
    num_steps,
    rank_share,
    step_seed,
)

LENS_N = np.random.default_rng(0).integers(3, 128, size=1003)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_example_is_seen_exactly_once_per_epoch_on_any_number_of_workers(world_size):
    seen = []
    for step in epoch_steps(LENS_N, batch_size=32, seed=5, epoch=2):
        for rank in range(world_size):
            share = rank_share(step, rank=rank, world_size=world_size)
            for batch in microbatches(LENS_N[share], max_tokens=512):
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


def test_steps_group_examples_of_near_length():
    steps = epoch_steps(LENS_N, batch_size=32, seed=0, epoch=0)
    padded = sum(int(LENS_N[step].max()) * len(step) for step in steps)
    at_random = sum(int(LENS_N[i : i + 32].max()) * 32 for i in range(0, 992, 32))
    assert LENS_N.sum() / padded > 0.9 > LENS_N[:992].sum() / at_random


def test_a_step_shorter_than_the_world_leaves_ranks_without_examples():
    shares = [rank_share(np.array([4, 9]), rank=rank, world_size=3).tolist() for rank in range(3)]
    assert shares == [[4], [9], []]


def test_microbatches_hold_each_position_once_within_the_token_budget():
    lens_B = np.array([10, 300, 20, 20, 5, 120])
    batches = microbatches(lens_B, max_tokens=128)
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4, 5]
    assert all(len(batch) == 1 or lens_B[batch].max() * len(batch) <= 128 for batch in batches)
    assert microbatches(np.array([], np.int64), max_tokens=128) == []


def test_step_seeds_differ_between_steps_and_ranks():
    seeds = {step_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200


def test_balanced_weights_equal_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    label_ids_N = np.array([0] * 70 + [1] * 20 + [2] * 10)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=label_ids_N)
    np.testing.assert_allclose(balanced_weights(label_ids_N, 3), expected, rtol=1e-12)
