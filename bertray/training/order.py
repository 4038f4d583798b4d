"""Which examples make which optimizer step, and which rank computes which of them: arithmetic, no state.

The order is a function of (seed, epoch) and of the examples alone. The number of workers only decides how one step's
examples are shared out, so the loss curve does not depend on it and a resumed run repeats the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Steps whose examples are drawn together and grouped by length: less padding, still a fresh mix every epoch.
STEPS_PER_GROUP = 32


def num_steps(num_examples: int, batch_size: int) -> int:
    """Optimizer steps of one epoch; the last may be short."""
    return -(-num_examples // batch_size)


def epoch_steps(lens_N: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Examples of every optimizer step of one epoch.

    Args:
        lens_N: token counts of the examples.
        batch_size: examples of one step over all workers.
        seed: the run's seed.
        epoch: 0-based.

    Returns:
        `num_steps` arrays of example numbers, longest example first. Each example stands in exactly one of them.
    """
    num_examples = len(lens_N)
    random = np.random.default_rng([seed, epoch])
    order_N = random.permutation(num_examples)
    group = batch_size * STEPS_PER_GROUP
    steps: list[np.ndarray] = []
    for start in range(0, num_examples, group):
        members = order_N[start : start + group]
        members = members[np.argsort(-lens_N[members], kind="stable")]
        steps += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    # Only full steps change places, so that a short one stays last whatever the seed.
    num_full = num_examples // batch_size
    full = [step for step in steps if len(step) == batch_size]
    short = [step for step in steps if len(step) < batch_size]
    return [full[i] for i in random.permutation(num_full)] + short


def rank_share(step: np.ndarray, *, rank: int, world_size: int) -> np.ndarray:
    """Examples of a step that one rank computes: every world_size-th, so that lengths are spread evenly.

    A rank may get none when the step has fewer examples than there are ranks.
    """
    return step[rank::world_size]


def microbatches(lens_B: np.ndarray, *, max_tokens: int) -> list[np.ndarray]:
    """Cut a share into forward passes of at most `max_tokens` padded tokens (one example may exceed it).

    Returns:
        Positions into `lens_B`, longest first; together they hold each position once.
    """
    positions = np.argsort(-lens_B, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(positions):
        widest = max(int(lens_B[positions[start]]), 1)
        size = max(max_tokens // widest, 1)
        batches.append(positions[start : start + size])
        start += size
    return batches


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one step on one rank: nothing random has to be stored to resume."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def balanced_weights(label_ids_N: np.ndarray, num_classes: int) -> list[float]:
    """Class weights N / (C * count), so that every class weighs the same in sum (scikit-learn's "balanced")."""
    counts_C: Sequence[int] = np.bincount(label_ids_N, minlength=num_classes).tolist()
    present = sum(count > 0 for count in counts_C)
    return [len(label_ids_N) / (present * count) if count else 0.0 for count in counts_C]
