"""Gain of model B over model A on many reviews, from labels of a sample of those on which the two differ.

Where both give the same label, both are right or both are wrong: only disagreements bear on the difference in accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import norm

from bertray.evaluation.intervals import Estimate, Z
from bertray.evaluation.paired import (
    MIN_DISAGREEMENTS,
    NUM_POWER_DRAWS,
    ONE_SIDED_ERROR,
    POWER_GAINS,
    PairedVerdict,
    mcnemar_midp,
    p_in_words,
)
from bertray.wording import counted, points


@dataclass(frozen=True)
class AnsweredDisagreements:
    """Answers on a random sample of the reviews on which A and B differ.

    Args:
        rows: reviews that both models read.
        disagreements: of them, those to which the two give different labels.
        only_a, only_b, neither: answered disagreements by which model was right.
        seed: of the simulated power.
    """

    rows: int
    disagreements: int
    only_a: int
    only_b: int
    neither: int
    seed: int = 0

    @property
    def answers(self) -> int:
        return self.only_a + self.only_b + self.neither

    @cached_property
    def gain(self) -> Estimate:
        """Gain in accuracy of B over A on reviews like these, with its 95 % interval."""
        value = _gain(self.rows, self.disagreements, self.only_a, self.only_b, self.answers)
        half = Z * float(_standard_error(self.rows, self.disagreements, self.only_a, self.only_b, self.answers))
        most = max(self.disagreements / self.rows, abs(value))
        return Estimate(value, max(value - half, -most), min(value + half, most))

    @property
    def mcnemar_p(self) -> float:
        return float(mcnemar_midp(self.only_a, self.only_b))

    @property
    def verdict(self) -> PairedVerdict:
        """Verdict on the accuracy, by its 95 % interval; undecided where hardly an answer favours one of the two."""
        if self.only_a + self.only_b < MIN_DISAGREEMENTS:
            return "undecided"
        return "better" if self.gain.low > 0 else "worse" if self.gain.high < 0 else "undecided"

    @cached_property
    def power(self) -> dict[float, float]:
        """True gain -> share of such samples on which it is found, one-sided at 95 %."""
        return {gain: self._power(gain) for gain in POWER_GAINS}

    def _power(self, gain: float) -> float:
        share = self.disagreements / self.rows
        if gain >= share:
            return 1.0
        decided = max((self.only_a + self.only_b) / self.answers, gain / share)
        only_b, only_a = (decided + gain / share) / 2, (decided - gain / share) / 2
        cells = np.clip([only_a, only_b, 1 - decided], 0, 1)
        random = np.random.default_rng(self.seed)
        drawn_R3 = random.multinomial(self.answers, cells / cells.sum(), size=NUM_POWER_DRAWS)
        only_a_R, only_b_R = drawn_R3[:, 0], drawn_R3[:, 1]
        error_R = _standard_error(self.rows, self.disagreements, only_a_R, only_b_R, self.answers)
        low_R = share * (only_b_R - only_a_R) / self.answers - float(norm.ppf(1 - ONE_SIDED_ERROR)) * error_R
        return float((low_R > 0).mean())

    @property
    def sentence(self) -> str:
        """The evidence in plain words, with the numbers."""
        told = {"better": "B is better than A", "worse": "B is worse than A"}
        found = told.get(self.verdict, "A and B cannot be told apart")
        gain = self.gain
        return (
            f"{found} on {counted(self.rows, 'review')} (accuracy {points(gain.value)} points, 95 % interval "
            f"{points(gain.low)} to {points(gain.high)}): of {self.disagreements:,} that the two label "
            f"differently, {self.answers:,} were answered, and A was right in {self.only_a:,}, B in {self.only_b:,}, "
            f"neither in {self.neither:,}; McNemar mid-p {p_in_words(self.mcnemar_p)}."
        )

    @property
    def power_sentence(self) -> str:
        """Gains that these answers could have found."""
        found = " and ".join(f"{100 * gain:g} in {100 * share:.0f} %" for gain, share in self.power.items())
        return f"With so many answers a true gain of so many points is found: {found} of cases."

    def to_json(self) -> dict[str, Any]:
        """Content of `answers` in comparison.json."""
        return {
            "rows": self.rows,
            "disagreements": self.disagreements,
            "answers": self.answers,
            "only_a_right": self.only_a,
            "only_b_right": self.only_b,
            "both_wrong": self.neither,
            "power": {f"{gain:g}": share for gain, share in self.power.items()},
        }


def _gain(rows: int, disagreements: int, only_a: int, only_b: int, answers: int) -> float:
    return disagreements / rows * (only_b - only_a) / answers


def _standard_error(rows: int, disagreements: int, only_a: Any, only_b: Any, answers: int) -> np.ndarray:
    """Standard error of the gain, elementwise: of the drawn sample, and of the reviews themselves.

    Shares have half an answer added to each of the three outcomes, so that a few equal answers do not pass for
    certainty. Source: Särndal, Swensson and Wretman 1992, section 9.4 (two-phase sampling).
    """
    total = answers + 1.5
    share_a, share_b = (np.asarray(only_a) + 0.5) / total, (np.asarray(only_b) + 0.5) / total
    mean = share_b - share_a
    variance = share_a + share_b - mean**2
    share = disagreements / rows
    drawn = share**2 * variance / answers * max(1 - answers / disagreements, 0.0)
    of_reviews = (mean**2 * share * (1 - share) + share * variance) / rows
    error: np.ndarray = np.sqrt(drawn + of_reviews)
    return error
