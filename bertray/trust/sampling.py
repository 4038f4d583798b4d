"""Rows that people answer: half drawn with known probabilities, to measure; half the most uncertain, to learn from.

Shape letters: N rows, C classes, H strata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_STRATA = 4  # by what the labels of their rows are expected to vary
MIN_PER_STRATUM = 4
NEAR = 0.7  # Jaccard similarity of character 4-grams from which two texts are near-duplicates
_SHINGLE = 4
RANDOM, UNCERTAIN = "random", "uncertain"


@dataclass(frozen=True)
class Draw:
    """Rows drawn at random within strata.

    Args:
        rows: ascending.
        probability: of each of having been drawn.
    """

    rows: NDArray[np.int64]
    probability: NDArray[np.float64]


def stratified_draw(probs_NC: NDArray[np.float64], budget: int, seed: int | Sequence[int]) -> Draw:
    """Draw rows from strata of equal size by expected variance, more where labels are less certain (Neyman).

    Args:
        probs_NC: float [N, C].
        budget: rows to draw; all of them where N is no larger.
        seed: of the generator, one number or several.

    Source: Neyman 1934, "On the two different aspects of the representative method" (JRSS 97).
    """
    num_rows, rng = len(probs_NC), np.random.default_rng(seed)
    if budget >= num_rows:
        return Draw(np.arange(num_rows), np.ones(num_rows))
    variance_N = (probs_NC * (1 - probs_NC)).sum(axis=1)
    num_strata = max(1, min(NUM_STRATA, budget // MIN_PER_STRATUM))
    order = np.argsort(variance_N, kind="stable")
    strata = np.array_split(order, num_strata)
    sizes = np.array([len(rows) for rows in strata])
    weight = sizes * np.sqrt([float(variance_N[rows].mean()) for rows in strata])
    takes = _allocated(weight, sizes, budget)
    drawn = [rng.choice(rows, take, replace=False) for rows, take in zip(strata, takes, strict=True)]
    rows = np.concatenate(drawn)
    probability = np.concatenate([np.full(take, take / size) for take, size in zip(takes, sizes, strict=True)])
    ascending = np.argsort(rows)
    return Draw(rows[ascending], probability[ascending])


def _allocated(weight: NDArray[np.float64], sizes: NDArray[np.int64], budget: int) -> list[int]:
    """Rows of each stratum: by weight, at least a few, at most all, the budget together."""
    least = np.minimum(sizes, min(MIN_PER_STRATUM, budget // len(sizes)))
    total = weight.sum()
    wanted = budget * (weight / total if total else np.full(len(sizes), 1 / len(sizes)))
    takes = np.clip(np.floor(wanted).astype(np.int64), least, sizes)
    while takes.sum() != budget:
        step = 1 if takes.sum() < budget else -1
        free = takes < sizes if step > 0 else takes > least
        gap = np.where(free, step * (wanted - takes), -np.inf)
        takes[int(gap.argmax())] += step
    return [int(take) for take in takes]


def entropy(probs_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row's probabilities, float64 [N], in nats."""
    safe_NC = np.clip(probs_NC, 1e-12, 1)
    found_N: NDArray[np.float64] = -(safe_NC * np.log(safe_NC)).sum(axis=1)
    return found_N


def distinct(texts: Sequence[str], beside: Sequence[str], budget: int) -> list[int]:
    """Positions of the first texts that are no near-duplicates of each other, nor of those beside them."""
    kept = [_shingles(text) for text in beside]
    chosen: list[int] = []
    for at, text in enumerate(texts):
        if len(chosen) == budget:
            break
        shingles = _shingles(text)
        if not any(_alike(shingles, other) for other in kept):
            chosen.append(at)
            kept.append(shingles)
    return chosen


def _shingles(text: str) -> frozenset[str]:
    plain = " ".join(text.casefold().split())
    return frozenset(plain[at : at + _SHINGLE] for at in range(max(len(plain) - _SHINGLE + 1, 1)))


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    common = len(one & other)
    return common >= NEAR * (len(one) + len(other) - common)
