"""Luck of seeds: figures of the same training with several seeds, and a gain that is more than it.

Shape letters: N rows, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from bertray.evaluation.intervals import Estimate
from bertray.evaluation.paired import PairedVerdict
from bertray.wording import points


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Args:
        mean: of the seeds.
        deviation: standard deviation between seeds; None of a single one.
        values: in the order of the seeds.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        values_S = np.asarray(values, np.float64)
        deviation = float(values_S.std(ddof=1)) if len(values_S) > 1 else None
        return cls(float(values_S.mean()), deviation, tuple(values_S.tolist()))

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}


@dataclass(frozen=True)
class SeededGain:
    """Gain in accuracy of training B over training A, each run with several seeds, on the same labelled rows.

    Args:
        a, b: accuracy over the seeds of each.
        gain: of the means, with a 95 % interval that counts other rows and other seeds.
        rows_error, seeds_error: standard errors of the gain by the choice of rows, and of seeds.
    """

    a: Spread
    b: Spread
    gain: Estimate
    rows_error: float
    seeds_error: float

    @property
    def verdict(self) -> PairedVerdict:
        return "better" if self.gain.low > 0 else "worse" if self.gain.high < 0 else "undecided"

    @property
    def sentence(self) -> str:
        """Gain and luck in plain words."""
        found = {"better": "B is better than A", "worse": "B is worse than A"}
        told = found.get(self.verdict, "A and B cannot be told apart")
        a, b, gain = self.a, self.b, self.gain
        return (
            f"Over {len(a.values)} seeds of A and {len(b.values)} of B, {told}: mean accuracy {100 * a.mean:.1f} and "
            f"{100 * b.mean:.1f} %, difference {points(gain.value)} points, 95 % interval "
            f"{points(gain.low)} to {points(gain.high)} over other rows and other seeds. By the seed "
            f"alone the accuracy of A varies by {100 * (a.deviation or 0):.1f} points (standard deviation), that of B "
            f"by {100 * (b.deviation or 0):.1f}."
        )

    def to_json(self) -> dict[str, Any]:
        """Content of `seeds` in comparison.json."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "difference": self.gain.to_json(),
            "rows_error": self.rows_error,
            "seeds_error": self.seeds_error,
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def seeded_gain(right_a_SN: np.ndarray, right_b_SN: np.ndarray) -> SeededGain:
    """Gain of B over A beyond the luck of seeds and rows.

    Rows: standard error of the paired difference of shares of seeds that are right. Seeds: variance of the accuracy
    between the seeds of each, divided by their number. The interval is Student's, degrees of freedom by Welch and
    Satterthwaite, where the rows count as known.

    Args:
        right_a_SN, right_b_SN: bool, a row for each seed (two at least), of the same N rows (two at least).
    """
    a, b = (Spread.of(right_SN.mean(axis=1).tolist()) for right_SN in (right_a_SN, right_b_SN))
    difference_N = right_b_SN.mean(axis=0) - right_a_SN.mean(axis=0)
    rows_variance = float(difference_N.var(ddof=1)) / len(difference_N)
    of_seeds = [(spread.deviation or 0.0) ** 2 / len(spread.values) for spread in (a, b)]
    variance = rows_variance + sum(of_seeds)
    counts = (len(a.values), len(b.values))
    spent = sum(part**2 / (count - 1) for part, count in zip(of_seeds, counts, strict=True))
    quantile = float(t.ppf(0.975, variance**2 / spent)) if spent else float(t.ppf(0.975, np.inf))
    half, value = quantile * variance**0.5, b.mean - a.mean
    gain = Estimate(value, value - half, value + half)
    return SeededGain(a, b, gain, rows_variance**0.5, sum(of_seeds) ** 0.5)
