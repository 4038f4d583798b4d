"""95 % intervals: Wilson's for shares, resampling of counts for the rest; fast for any number of rows.

Shape letters: N rows, R draws, K cells of a table, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_DRAWS = 1000
MAX_CELLS_PER_CHUNK = 4_000_000  # draws x cells held at once: 32 MB
MAX_BOOTSTRAP_ROWS = 5000
Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; always low <= value <= high."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(hits: Any, trials: Any, z: float = Z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of hits with Wilson's score interval, elementwise.

    Args:
        hits: counts, any shape.
        trials: counts of the same shape; without a trial the share is 0 and its interval is all of [0, 1].
        z: normal quantile of either bound.

    Returns:
        (share, low, high), float64 of that shape.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    hits, trials = np.asarray(hits, np.float64), np.asarray(trials, np.float64)
    some = np.maximum(trials, 1)
    share = np.where(trials > 0, hits / some, 0.0)
    centre = (share + z**2 / (2 * some)) / (1 + z**2 / some)
    half = z / (1 + z**2 / some) * np.sqrt(share * (1 - share) / some + z**2 / (4 * some**2))
    low = np.where(trials > 0, np.clip(np.minimum(centre - half, share), 0, 1), 0.0)
    high = np.where(trials > 0, np.clip(np.maximum(centre + half, share), 0, 1), 1.0)
    return share, low, high


def wilson_estimate(hits: int, trials: int) -> Estimate:
    """`wilson` of one pair of counts."""
    share, low, high = wilson(hits, trials)
    return Estimate(float(share), float(low), float(high))


def resampled_counts(counts_K: np.ndarray, seed: int, num_draws: int = NUM_DRAWS) -> Iterator[np.ndarray]:
    """Tables as they could have come out: multinomial draws of the same total, int64 [R', K] in chunks.

    Drawing cell counts is the row bootstrap for everything that is a function of the table, at a cost that does not
    grow with the number of rows.
    """
    total = int(counts_K.sum())
    shares_K = counts_K / total
    rng = np.random.default_rng(seed)
    per_chunk = max(1, MAX_CELLS_PER_CHUNK // len(counts_K))
    for start in range(0, num_draws, per_chunk):
        yield rng.multinomial(total, shares_K, size=min(per_chunk, num_draws - start))


def percentile_estimate(value: float, draws_R: np.ndarray) -> Estimate:
    """`value` with the middle 95 % of its draws, widened to hold the value itself."""
    low, high = np.percentile(draws_R, [2.5, 97.5])
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def mean_estimate(values_N: np.ndarray, seed: int, *, bounds: tuple[float, float]) -> Estimate:
    """Mean of per-row values: row bootstrap up to 5,000 rows, the normal approximation above, `bounds` for one row.

    Args:
        values_N: float64 [N], N >= 1.
        seed: of the bootstrap.
        bounds: the smallest and the largest mean there can be.
    """
    num_rows = len(values_N)
    value = float(values_N.mean())
    if num_rows == 1:
        return Estimate(value, min(bounds[0], value), max(bounds[1], value))
    if num_rows > MAX_BOOTSTRAP_ROWS:
        half = Z * float(values_N.std(ddof=1)) / num_rows**0.5
        return Estimate(value, min(max(value - half, bounds[0]), value), max(min(value + half, bounds[1]), value))
    draws = [
        counts_RN @ values_N / num_rows for counts_RN in resampled_counts(np.ones(num_rows, np.int64), seed, NUM_DRAWS)
    ]
    return percentile_estimate(value, np.concatenate(draws))
