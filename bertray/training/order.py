"""Order of examples: those of each optimizer step, and each rank's share of them, by arithmetic without state.

The order is a function of (seed, epoch) and of the examples alone. The number of workers only decides how one step's
examples are shared out, so the loss curve depends on it by nothing but what drops out, and a resumed run repeats the
same steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertray.model.packing import plan_packs


def num_steps(num_examples: int, batch_size: int) -> int:
    """Optimizer steps of one epoch; the last may be short."""
    return -(-num_examples // batch_size)


def epoch_steps(lens_N: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Examples of every optimizer step of one epoch, drawn at random.

    Steps of examples of like length would compute less padding, but are no random sample: the gradient of short texts
    alone is not that of all. Padding is saved within a step instead, by packing or by `cheapest_microbatches`.

    Args:
        lens_N: token counts of the examples.
        batch_size: examples of one step over all workers.
        seed: the run's seed.
        epoch: 0-based.

    Returns:
        `num_steps` arrays of example numbers, longest example first; the last may be short. Each example stands in
        exactly one of them.
    """
    order_N = np.random.default_rng([seed, epoch]).permutation(len(lens_N))
    steps = [order_N[start : start + batch_size] for start in range(0, len(order_N), batch_size)]
    return [step[np.argsort(-lens_N[step], kind="stable")] for step in steps]


def rank_share(step: np.ndarray, *, rank: int, world_size: int) -> np.ndarray:
    """Examples of a step that one rank computes: every world_size-th, so that lengths are spread evenly.

    A rank may get none when the step has fewer examples than there are ranks.
    """
    return step[rank::world_size]


def cheapest_microbatches(lens_B: np.ndarray, *, max_tokens: int, tokens_per_microbatch: int) -> list[np.ndarray]:
    """Cut a share of a step into passes of at most `max_tokens` padded tokens (one example may exceed it).

    Of all cuts of the examples sorted by length it is the one that costs least: padded tokens, and for each pass as
    much as `tokens_per_microbatch` tokens.

    Returns:
        Positions into `lens_B`, longest first; together they hold each position once.
    """
    positions = np.argsort(-lens_B, kind="stable")
    widths_B = np.maximum(lens_B[positions], 1).astype(np.int64)
    num = len(positions)
    cost = np.zeros(num + 1)
    first = np.zeros(num + 1, np.int64)  # of the last pass, when so many examples are computed
    for end in range(1, num + 1):
        # A pass from `start` has the width of its first example; more than `max_tokens` only where it is alone.
        starts = np.arange(max(0, end - max(max_tokens, 1)), end)
        padded = widths_B[starts] * (end - starts)
        allowed = (padded <= max_tokens) | (starts == end - 1)
        costs = np.where(allowed, cost[starts] + padded + tokens_per_microbatch, np.inf)
        best = int(costs.argmin())
        cost[end], first[end] = costs[best], starts[best]
    batches: list[np.ndarray] = []
    end = num
    while end:
        batches.append(positions[first[end] : end])
        end = int(first[end])
    return batches[::-1]


def within_budget(lens_B: np.ndarray, *, max_tokens: int, padded: bool) -> list[np.ndarray]:
    """Cut any number of examples into passes of at most `max_tokens` tokens (one example may exceed it).

    Args:
        lens_B: at least 1 each.
        padded: every example counts as long as the longest of its pass.

    Returns:
        Positions into `lens_B`, longest first; together they hold each position once.
    """
    return [pack.sequences_B for pack in plan_packs(lens_B, max_tokens_per_pack=max_tokens, padded=padded)]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one step on one rank: nothing random has to be stored to resume."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def balanced_weights(label_ids_N: np.ndarray, num_classes: int) -> list[float]:
    """Class weights N / (C * count), so that every class weighs the same in sum (scikit-learn's "balanced")."""
    counts_C: Sequence[int] = np.bincount(label_ids_N, minlength=num_classes).tolist()
    present = sum(count > 0 for count in counts_C)
    return [len(label_ids_N) / (present * count) if count else 0.0 for count in counts_C]
