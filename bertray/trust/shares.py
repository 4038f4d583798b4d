"""Shares of labels per group, corrected for the errors of the model, with 95 % intervals.

Counting predicted labels is off by what the model confuses. Three estimators in its place, by the labels at hand:
the mean calibrated probability; where a group has enough labelled rows of its own, the count solved by its confusion
matrix; where rows were drawn with known probabilities and answered, the mean probability corrected by the answers.

Shape letters: C classes, M answered rows, H strata, R draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import t as student

from bertray.evaluation.intervals import Estimate, Z

MIN_SOURCE_ROWS = 300  # labelled rows of a group from which its own confusion matrix counts
MIN_ANSWERS = 10  # in a group from which they correct it
LEAST_HALF_WIDTH = 0.05  # of a mean probability, whose calibration in a group nobody has checked
NUM_DRAWS = 400
Method = Literal["mean probability", "adjusted count", "answers"]


@dataclass(frozen=True)
class GroupSums:
    """Sums over the rows of one group.

    Args:
        rows: N.
        counted_C: rows by predicted label.
        probs_C: sums of probabilities.
        noise_C: sums of p (1 - p).
    """

    rows: int
    counted_C: NDArray[np.int64]
    probs_C: NDArray[np.float64]
    noise_C: NDArray[np.float64]

    def plus(self, other: GroupSums) -> GroupSums:
        """Sums over the rows of both."""
        return GroupSums(
            self.rows + other.rows,
            self.counted_C + other.counted_C,
            self.probs_C + other.probs_C,
            self.noise_C + other.noise_C,
        )


class Stratum(NamedTuple):
    """Rows of a queue that were drawn with one probability.

    Args:
        slot: number of the slot that the queue asked about.
        queue: number of the queue.
        rows: that they were drawn from.
        answered: rows with an answer, of any group; those without one are taken as missing at random.
    """

    slot: int
    queue: int
    rows: float
    answered: int


@dataclass(frozen=True)
class Answers:
    """Answered rows of a group, drawn at random within strata.

    Args:
        true_M: int [M] in 0..C-1.
        probs_MC: float [M, C].
        stratum_M: position of the stratum of each row in `strata`, int [M].
        strata: of all queues together, each with an answer of some group.
    """

    true_M: NDArray[np.int64]
    probs_MC: NDArray[np.float64]
    stratum_M: NDArray[np.int64]
    strata: tuple[Stratum, ...]

    @classmethod
    def of_draw(
        cls, true_M: NDArray[np.int64], probs_MC: NDArray[np.float64], probability_M: NDArray[np.float64]
    ) -> Answers:
        """Answers to every row of one `sampling.Draw`, all of one group."""
        values, stratum_M, counts = np.unique(probability_M, return_inverse=True, return_counts=True)
        strata = [Stratum(0, 0, count / value, int(count)) for value, count in zip(values, counts, strict=True)]
        return cls(true_M, probs_MC, stratum_M, tuple(strata))

    @property
    def weights(self) -> dict[int, float]:
        """Weight of each queue: several draws from the rows of one slot are several estimates, which are averaged."""
        of_queue: dict[int, int] = {}
        of_slot: dict[int, int] = {}
        for stratum in self.strata:
            of_queue[stratum.queue] = of_queue.get(stratum.queue, 0) + stratum.answered
            of_slot[stratum.slot] = of_slot.get(stratum.slot, 0) + stratum.answered
        return {stratum.queue: of_queue[stratum.queue] / of_slot[stratum.slot] for stratum in self.strata}


@dataclass(frozen=True)
class GroupShares:
    """Shares of one group.

    Args:
        counted_C: share of predicted labels.
        shares: one for each class.
    """

    rows: int
    counted_C: NDArray[np.float64]
    shares: tuple[Estimate, ...]
    method: Method
    labels: int = 0  # labelled rows that it rests on


def mean_probability(sums: GroupSums) -> list[Estimate]:
    """Mean calibrated probability of each class; the interval is at least LEAST_HALF_WIDTH wide on either side."""
    return [
        _bounded(float(total) / sums.rows, max(Z * math.sqrt(float(noise)) / sums.rows, LEAST_HALF_WIDTH))
        for total, noise in zip(sums.probs_C, sums.noise_C, strict=True)
    ]


def adjusted_count(sums: GroupSums, confusion_CC: NDArray[np.int64], seed: int = 0) -> list[Estimate]:
    """Shares for which the group's own confusion matrix gives the counts of predicted labels.

    Args:
        confusion_CC: labelled rows of the same group by true (row) and predicted class.
        seed: of the resampling of both.

    Source: Forman 2008, "Quantifying counts and costs via classification", section 3 (adjusted count).
    """
    rng = np.random.default_rng(seed)
    value_C = _solved(confusion_CC, sums.counted_C)
    cells = confusion_CC.size
    drawn_RK = rng.multinomial(int(confusion_CC.sum()), confusion_CC.ravel() / confusion_CC.sum(), size=NUM_DRAWS)
    counted_RC = rng.multinomial(sums.rows, sums.counted_C / sums.rows, size=NUM_DRAWS)
    side = math.isqrt(cells)
    draws_RC = np.array(
        [_solved(drawn.reshape(side, side), counted) for drawn, counted in zip(drawn_RK, counted_RC, strict=True)]
    )
    low_C, high_C = np.percentile(draws_RC, [2.5, 97.5], axis=0)
    return [
        Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
        for value, low, high in zip(value_C, low_C, high_C, strict=True)
    ]


def _solved(confusion_CC: NDArray[np.int64], counted_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """Class shares x >= 0 with P(predicted | true) x nearest to the predicted shares, [C], of sum 1."""
    # A row more of each cell, so that a class without labelled rows does not make the matrix singular.
    given_CC = (confusion_CC + 1e-3) / (confusion_CC + 1e-3).sum(axis=1, keepdims=True)
    shares_C, _ = nnls(given_CC.T, counted_C / max(counted_C.sum(), 1))
    total = shares_C.sum()
    solved_C: NDArray[np.float64] = shares_C / total if total else np.full(len(shares_C), 1 / len(shares_C))
    return solved_C


def corrected_by_answers(sums: GroupSums, answers: Answers) -> list[Estimate]:
    """Mean probability plus the mean error that answers show, each weighted by its chance of being drawn and answered.

    The difference estimator of stratified sampling, with finite-population correction; strata of few answers have at
    least a quarter of the variance that their probabilities imply.

    Args:
        sums: of the group; every row of it could have been drawn.
        answers: of rows of the group, at least one.

    Source: Särndal, Swensson and Wretman 1992, sections 6.3, 10.3 and 15.6; Angelopoulos et al. 2023,
    "Prediction-powered inference" (Science 382), for the same estimator with a model's output as proxy.
    """
    num_classes, strata_H, weights = len(sums.probs_C), np.unique(answers.stratum_M), answers.weights
    error_MC = np.eye(num_classes)[answers.true_M] - answers.probs_MC
    total_C, variance_C = sums.probs_C.copy(), np.zeros(num_classes)
    for number in strata_H:
        in_M, stratum = answers.stratum_M == number, answers.strata[number]
        count, weight = stratum.answered, weights[stratum.queue]
        # Errors of rows of other groups are 0 for this one: the mean and variance are over all that was answered.
        mean_C = error_MC[in_M].sum(axis=0) / count
        squares_C = (error_MC[in_M] ** 2).sum(axis=0) - count * mean_C**2
        implied_C = (answers.probs_MC[in_M] * (1 - answers.probs_MC[in_M])).sum(axis=0) / count / 4
        within_C = np.maximum(squares_C / max(count - 1, 1), implied_C)
        total_C = total_C + weight * stratum.rows * mean_C
        unseen = max(1 - count / stratum.rows, 0.0)
        variance_C = variance_C + (weight * stratum.rows) ** 2 * unseen * within_C / count
    # Strata in which no row of the group was drawn count, too: by what the probabilities of its rows imply.
    share_of_all = min(len(answers.true_M) / sums.rows, 1.0)
    variance_C = np.maximum(variance_C, sums.noise_C / 4 * (1 - share_of_all) / share_of_all)
    freedom = max(len(answers.true_M) - len(strata_H), 1)
    quantile = float(student.ppf(0.975, freedom))
    return [
        _bounded(float(total) / sums.rows, quantile * math.sqrt(float(variance)) / sums.rows)
        for total, variance in zip(total_C, variance_C, strict=True)
    ]


def accuracy_by_answers(score_N: NDArray[np.float64], answers: Answers) -> Estimate:
    """Measured accuracy of the rows that could have been drawn: the same estimator, the score as proxy.

    Args:
        score_N: probability of the predicted label of every row, float [N].
        answers: their probabilities give score and predicted label.
    """
    right_M, score_M = answers.probs_MC.argmax(axis=1) == answers.true_M, answers.probs_MC.max(axis=1)
    of_right = Answers(
        np.where(right_M, 0, 1), np.column_stack([score_M, 1 - score_M]), answers.stratum_M, answers.strata
    )
    noise = float((score_N * (1 - score_N)).sum())
    total = float(score_N.sum())
    sums = GroupSums(
        len(score_N), np.zeros(2, np.int64), np.array([total, len(score_N) - total]), np.array([noise, noise])
    )
    return corrected_by_answers(sums, of_right)[0]


def group_shares(sums: GroupSums, source_CC: NDArray[np.int64] | None, answers: Answers | None) -> GroupShares:
    """Shares of a group by the best estimator that its labels allow.

    Args:
        source_CC: confusion matrix of labelled rows of the same group; None: there are none.
        answers: answered rows of the group with known probabilities, where all of its rows could have been drawn.
    """
    counted_C = sums.counted_C / sums.rows
    if answers is not None and len(answers.true_M) >= MIN_ANSWERS:
        found = corrected_by_answers(sums, answers)
        return GroupShares(sums.rows, counted_C, tuple(found), "answers", len(answers.true_M))
    if source_CC is not None and source_CC.sum() >= MIN_SOURCE_ROWS:
        found = adjusted_count(sums, source_CC)
        return GroupShares(sums.rows, counted_C, tuple(found), "adjusted count", int(source_CC.sum()))
    return GroupShares(sums.rows, counted_C, tuple(mean_probability(sums)), "mean probability")


def _bounded(value: float, half: float) -> Estimate:
    value = min(max(value, 0.0), 1.0)
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))
