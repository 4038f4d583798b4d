"""Paired tests of two classifiers on the same rows: Newcombe, McNemar, Holm, paired bootstrap, and power.

Gains are B minus A: A is the model in use, B the candidate.

Shape letters: N rows, C classes, V values of a column, R draws, K cells of the table (given, A's, B's prediction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.stats import binom, norm

from bertray.evaluation.intervals import Estimate, Z, mean_estimate, percentile_estimate, resampled_counts, wilson
from bertray.evaluation.metrics import EPS, averages, cell_sums, check_rows
from bertray.evaluation.slices import MAX_VALUES, Values, coded
from bertray.wording import counted, points

AVERAGED = ("macro_f1", "mcc")  # figures whose gain comes from the paired bootstrap of the table
MIN_DISAGREEMENTS = 6  # with fewer rows that only one of the two gets right, no sign test can reach 5 %
NUM_POWER_DRAWS = 10_000  # standard error of a power of 50 %: half a point
POWER_GAINS = (0.01, 0.02)
WANTED_POWER = 0.8
ONE_SIDED_ERROR = 0.05

PairedVerdict = Literal["better", "worse", "undecided"]


class PairedCounts(NamedTuple):
    """Rows by which of two models is right; integers, or integer arrays of one shape."""

    both_right: Any
    only_a: Any
    only_b: Any
    both_wrong: Any

    @classmethod
    def of(cls, right_a_N: np.ndarray, right_b_N: np.ndarray) -> PairedCounts:
        """Counts over rows; bool [N] each."""
        cells_4 = np.bincount(2 * right_a_N.astype(np.int64) + right_b_N, minlength=4)
        both_wrong, only_b, only_a, both_right = (int(count) for count in cells_4)
        return cls(both_right, only_a, only_b, both_wrong)

    @property
    def rows(self) -> Any:
        return self.both_right + self.only_a + self.only_b + self.both_wrong

    @property
    def discordant(self) -> Any:
        """Rows on which exactly one model is right."""
        return self.only_a + self.only_b


def newcombe(counts: PairedCounts, z: float = Z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gain in accuracy with Newcombe's interval for paired shares, elementwise.

    Args:
        counts: of at least one row each.
        z: normal quantile of either bound; 1.645 for a one-sided bound at 95 %.

    Returns:
        (gain, low, high), float64 of the shape of the counts.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10.
    """
    a, b, c, d = (
        np.asarray(x, np.float64) for x in (counts.both_right, counts.only_b, counts.only_a, counts.both_wrong)
    )
    n = a + b + c + d
    share_b, low_b, high_b = wilson(a + b, n, z)
    share_a, low_a, high_a = wilson(a + c, n, z)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    product = a * d - b * c
    product = np.where(product > n / 2, product - n / 2, np.minimum(product, 0.0))  # continuity correction of phi
    phi = np.where(margins > 0, product / np.sqrt(np.maximum(margins, 1.0)), 0.0)
    gain = share_b - share_a
    below = (share_b - low_b) ** 2 - 2 * phi * (share_b - low_b) * (high_a - share_a) + (high_a - share_a) ** 2
    above = (high_b - share_b) ** 2 - 2 * phi * (high_b - share_b) * (share_a - low_a) + (share_a - low_a) ** 2
    return gain, gain - np.sqrt(np.maximum(below, 0.0)), gain + np.sqrt(np.maximum(above, 0.0))


def newcombe_estimate(counts: PairedCounts) -> Estimate:
    """`newcombe` of one table, with its 95 % interval."""
    gain, low, high = (float(value) for value in newcombe(counts))
    return Estimate(gain, min(low, gain), max(high, gain))


def one_sided_low(counts: PairedCounts, error: float = ONE_SIDED_ERROR) -> np.ndarray:
    """Lower bound of the gain that lies above the true gain with probability `error` at most, elementwise."""
    return newcombe(counts, float(norm.ppf(1 - error)))[1]


def mcnemar_midp(only_a: Any, only_b: Any) -> np.ndarray:
    """Two-sided mid-p value of McNemar's exact test, elementwise; 1 without a discordant row.

    Source: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data: mid-p and asymptotic
    are better than exact conditional".
    """
    fewer, total = np.minimum(only_a, only_b), np.asarray(only_a) + only_b
    p_value = 2 * binom.cdf(fewer, total, 0.5) - binom.pmf(fewer, total, 0.5)
    clipped: np.ndarray = np.where(total > 0, np.minimum(p_value, 1.0), 1.0)
    return clipped


def worse_midp(only_a: Any, only_b: Any) -> np.ndarray:
    """One-sided mid-p value for "B is worse than A", elementwise; 0.5 without a discordant row."""
    total = np.asarray(only_a) + only_b
    p_value: np.ndarray = np.asarray(binom.cdf(only_b, total, 0.5) - binom.pmf(only_b, total, 0.5) / 2)
    return p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number by Holm's step-down procedure, in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def power(
    counts: PairedCounts, gain: float, *, error: float = ONE_SIDED_ERROR, tolerance: float = 0.0, seed: int = 0
) -> float:
    """Share of test sets like this one on which a true gain is found: its one-sided lower bound is above -tolerance.

    Simulated: tables of as many rows, with the discordance and the accuracy of A as counted here.

    Args:
        counts: of this test set.
        gain: true gain of B in accuracy, a fraction.
        error: of the one-sided test.
        tolerance: a fraction.
        seed: of the simulation.
    """
    rows = counts.rows
    discordance = min(1.0, max(counts.discordant / rows, abs(gain)))
    only_b, only_a = (discordance + gain) / 2, (discordance - gain) / 2
    both_right = min(max((counts.both_right + counts.only_a) / rows - only_a, 0.0), 1 - discordance)
    cells = [both_right, only_a, only_b, max(0.0, 1 - discordance - both_right)]
    drawn_R4 = np.random.default_rng(seed).multinomial(rows, np.divide(cells, sum(cells)), size=NUM_POWER_DRAWS)
    return float((one_sided_low(PairedCounts(*drawn_R4.T), error) > -tolerance).mean())


def rows_needed(counts: PairedCounts, gain: float) -> int:
    """Rows on which a true gain would be found in 80 % of cases at this discordance, by the normal approximation."""
    discordance = max(counts.discordant / counts.rows, gain)
    quantiles = float(norm.ppf(1 - ONE_SIDED_ERROR) + norm.ppf(WANTED_POWER))
    return int(np.ceil(quantiles**2 * discordance / gain**2))


def _about(rows: int) -> str:
    """Two digits of a number of rows: 32,000."""
    step = 10 ** max(0, len(str(rows)) - 2)
    return f"about {round(rows / step) * step:,} rows"


class PairedTable:
    """Counts of (given label, prediction of A, prediction of B), and figures of it and of its resamples.

    Drawing tables of the same total is the paired row bootstrap, at a cost that does not grow with the rows.
    """

    def __init__(
        self, label_ids_N: np.ndarray, predictions_a_N: np.ndarray, predictions_b_N: np.ndarray, num_classes: int
    ) -> None:
        """Raises ValueError when lengths differ or there is no row."""
        if not len(label_ids_N) == len(predictions_a_N) == len(predictions_b_N) > 0:
            lengths = len(label_ids_N), len(predictions_a_N), len(predictions_b_N)
            raise ValueError(
                f"expected as many labels as predictions of both models, and at least one; found {lengths}."
            )
        cells_N = (label_ids_N.astype(np.int64) * num_classes + predictions_a_N) * num_classes + predictions_b_N
        cells_K, self.counts_K = np.unique(cells_N, return_counts=True)
        self.num_classes = num_classes
        self.given_K = cells_K // num_classes**2
        self.a_K, self.b_K = cells_K // num_classes % num_classes, cells_K % num_classes
        self.rows = len(label_ids_N)

    @cached_property
    def counts(self) -> PairedCounts:
        right_a_K, right_b_K = self.a_K == self.given_K, self.b_K == self.given_K
        chosen = (right_a_K & right_b_K, right_a_K & ~right_b_K, ~right_a_K & right_b_K, ~right_a_K & ~right_b_K)
        return PairedCounts(*(int(self.counts_K[which_K].sum()) for which_K in chosen))

    def sums(self, draws_RK: np.ndarray, predicted_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hits, given, predicted) of each class under one model's predictions: int64 [R, C] each."""
        hits_K = np.where(predicted_K == self.given_K, self.given_K, -1)
        hits, given, predicted = (
            cell_sums(draws_RK, classes_K, self.num_classes) for classes_K in (hits_K, self.given_K, predicted_K)
        )
        return hits, given, predicted

    def figures(self, draws_RK: np.ndarray, predicted_K: np.ndarray) -> dict[str, np.ndarray]:
        """`metrics.averages` of many tables under one model's predictions."""
        return averages(*self.sums(draws_RK, predicted_K))


@dataclass(frozen=True)
class SliceGain:
    """Gain on the rows that share one value of a column.

    Args:
        rows: of the slice.
        accuracy_a, accuracy_b: of both models.
        gain: B minus A, Newcombe.
        only_a, only_b: rows that only one of the two gets right.
    """

    rows: int
    accuracy_a: float
    accuracy_b: float
    gain: Estimate
    only_a: int
    only_b: int

    @classmethod
    def of(cls, counts: PairedCounts) -> SliceGain:
        right_a, right_b = counts.both_right + counts.only_a, counts.both_right + counts.only_b
        rows = counts.rows
        return cls(rows, right_a / rows, right_b / rows, newcombe_estimate(counts), counts.only_a, counts.only_b)

    def to_json(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "a": self.accuracy_a,
            "b": self.accuracy_b,
            "difference": self.gain.to_json(),
            "only_a_right": self.only_a,
            "only_b_right": self.only_b,
        }


@dataclass(frozen=True)
class PairedComparison:
    """Candidate B beside model A on the same labelled rows; every difference is B minus A.

    Args:
        counts: rows by which of the two is right.
        difference: `accuracy` (Newcombe), `macro_f1`, `mcc`, `log_loss` (paired bootstrap; less loss is better).
        mcnemar_p: two-sided mid-p value.
        per_class: label -> differences of `precision`, `f1` (paired bootstrap) and `recall` (Newcombe).
        slices: column -> value -> gain in accuracy.
        power: true gain -> share of such test sets on which it would be found.
    """

    counts: PairedCounts
    difference: dict[str, Estimate]
    mcnemar_p: float
    per_class: dict[str, dict[str, Estimate]]
    slices: dict[str, dict[str, SliceGain]]
    power: dict[float, float]

    @property
    def rows(self) -> int:
        return int(self.counts.rows)

    @property
    def verdict(self) -> PairedVerdict:
        """Verdict on the accuracy, by its 95 % interval."""
        gain = self.difference["accuracy"]
        return "better" if gain.low > 0 else "worse" if gain.high < 0 else "undecided"

    @property
    def sentence(self) -> str:
        """The evidence in plain words, with the numbers."""
        gain, counts = self.difference["accuracy"], self.counts
        numbers = (
            f"accuracy {points(gain.value)} points, 95 % interval {points(gain.low)} to "
            f"{points(gain.high)}; of {counted(counts.discordant, 'row')} that only one of them gets right, "
            f"{counts.only_b:,} are B's; McNemar mid-p {p_in_words(self.mcnemar_p)}"
        )
        rows = f"on {counted(self.rows, 'labelled row')} ({numbers})."
        if self.verdict == "undecided":
            return f"A and B cannot be told apart {rows}"
        return f"B is {self.verdict} than A {rows}"

    @property
    def power_sentence(self) -> str:
        """Gains that this test set could have found."""
        first, *others = sorted(self.power)
        said = (
            f"With {these(self.rows)} a gain of {_gain_in_words(first)} would be found in "
            f"{100 * self.power[first]:.0f} % of cases"
        )
        said += "".join(f", one of {_gain_in_words(gain)} in {100 * self.power[gain]:.0f} %" for gain in others)
        if self.power[first] >= WANTED_POWER:
            return f"{said}."
        return f"{said}; for 80 % at {_gain_in_words(first)} it takes {_about(rows_needed(self.counts, first))}."

    def to_json(self) -> dict[str, Any]:
        """Evidence as `comparison.json` holds it."""
        return {
            "rows": self.rows,
            "difference": {name: estimate.to_json() for name, estimate in self.difference.items()},
            "counts": {
                "both_right": self.counts.both_right,
                "only_a_right": self.counts.only_a,
                "only_b_right": self.counts.only_b,
                "both_wrong": self.counts.both_wrong,
            },
            "mcnemar_p": self.mcnemar_p,
            "per_class": {
                label: {name: estimate.to_json() for name, estimate in figures.items()}
                for label, figures in self.per_class.items()
            },
            "slices": {
                column: {value: gain.to_json() for value, gain in values.items()}
                for column, values in self.slices.items()
            },
            "power": {f"{gain:g}": share for gain, share in self.power.items()},
            "verdict": self.verdict,
            "sentence": self.sentence,
            "power_sentence": self.power_sentence,
        }


def compare_paired(
    label_ids_N: np.ndarray,
    probs_a_NC: np.ndarray,
    probs_b_NC: np.ndarray,
    labels: Sequence[str],
    *,
    seed: int,
    slices: Mapping[str, Values] | None = None,
) -> PairedComparison:
    """Compare two classifiers on the same labelled rows; every interval follows from `seed`.

    Args:
        label_ids_N: given labels, int [N] in 0..C-1, N >= 1.
        probs_a_NC, probs_b_NC: float [N, C]; a tie between classes goes to the lower id.
        labels: names of the classes, C of them.
        slices: column -> its N values.

    Raises:
        ValueError: rows that cannot be evaluated (see `metrics.check_rows`).
    """
    check_rows(label_ids_N, probs_a_NC, labels)
    check_rows(label_ids_N, probs_b_NC, labels)
    a_N, b_N = probs_a_NC.argmax(axis=1), probs_b_NC.argmax(axis=1)
    table = PairedTable(label_ids_N, a_N, b_N, len(labels))
    difference, per_class = _resampled(table, labels, seed)
    difference["log_loss"] = mean_estimate(
        _losses(label_ids_N, probs_b_NC) - _losses(label_ids_N, probs_a_NC),
        seed,
        bounds=(float(np.log(EPS)), -float(np.log(EPS))),
    )
    right_a_N, right_b_N = a_N == label_ids_N, b_N == label_ids_N
    for number, label in enumerate(labels):
        of_class_N = label_ids_N == number
        if of_class_N.any():
            counts = PairedCounts.of(right_a_N[of_class_N], right_b_N[of_class_N])
            per_class[label]["recall"] = newcombe_estimate(counts)
    return PairedComparison(
        counts=table.counts,
        difference=difference,
        mcnemar_p=float(mcnemar_midp(table.counts.only_a, table.counts.only_b)),
        per_class=per_class,
        slices={column: slice_gains(right_a_N, right_b_N, values) for column, values in (slices or {}).items()},
        power={gain: power(table.counts, gain, seed=seed) for gain in POWER_GAINS},
    )


def slice_gains(
    right_a_N: np.ndarray, right_b_N: np.ndarray, values: Values, max_values: int = MAX_VALUES
) -> dict[str, SliceGain]:
    """Gain for each value of a column, in the order of `slices.coded`."""
    names, codes_N = coded(values, max_values)
    cells_N = 4 * codes_N + 2 * right_a_N + right_b_N
    table_V4 = np.bincount(cells_N, minlength=4 * len(names)).reshape(-1, 4)
    return {
        name: SliceGain.of(PairedCounts(*(int(cells_4[i]) for i in (3, 2, 1, 0))))
        for name, cells_4 in zip(names, table_V4, strict=True)
        if cells_4.any()
    }


def _resampled(
    table: PairedTable, labels: Sequence[str], seed: int
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Gains in accuracy, `AVERAGED`, and each class's precision and F1."""

    def gains(draws_RK: np.ndarray) -> dict[str, np.ndarray]:
        a, b = table.figures(draws_RK, table.a_K), table.figures(draws_RK, table.b_K)
        found = {name: b[name] - a[name] for name in AVERAGED}
        precision_a, f1_a = _by_class(*table.sums(draws_RK, table.a_K))
        precision_b, f1_b = _by_class(*table.sums(draws_RK, table.b_K))
        return {**found, "precision": precision_b - precision_a, "f1": f1_b - f1_a}

    value = {name: array[0] for name, array in gains(table.counts_K[None]).items()}
    chunks = [gains(draws_RK) for draws_RK in resampled_counts(table.counts_K, seed)]
    draws = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in value}
    accuracy = newcombe_estimate(table.counts)
    difference = {"accuracy": accuracy}
    for name in AVERAGED:
        drawn = percentile_estimate(float(value[name]), draws[name])
        if table.counts.discordant < MIN_DISAGREEMENTS:  # a resample cannot hold a disagreement that the rows have not
            scale = 2.0 if name == "mcc" else 1.0
            drawn = Estimate(drawn.value, min(drawn.low, scale * accuracy.low), max(drawn.high, scale * accuracy.high))
        difference[name] = drawn
    per_class = {
        label: {name: percentile_estimate(float(value[name][c]), draws[name][:, c]) for name in ("precision", "f1")}
        for c, label in enumerate(labels)
    }
    return difference, per_class


def _by_class(hits_RC: np.ndarray, given_RC: np.ndarray, predicted_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(precision, F1): float64 [R, C] each; 0 where not defined."""
    return hits_RC / np.maximum(predicted_RC, 1), 2 * hits_RC / np.maximum(given_RC + predicted_RC, 1)


def _losses(label_ids_N: np.ndarray, probs_NC: np.ndarray) -> np.ndarray:
    true_N = probs_NC[np.arange(len(label_ids_N)), label_ids_N].astype(np.float64)
    losses_N: np.ndarray = -np.log(np.clip(true_N, EPS, 1 - EPS))
    return losses_N


def p_in_words(p_value: float) -> str:
    """A p value as sentences give it: `0.034`, `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def these(rows: int) -> str:
    return "this 1 row" if rows == 1 else f"these {rows:,} rows"


def _gain_in_words(gain: float) -> str:
    return {0.01: "one point", 0.02: "two points"}.get(gain, f"{100 * gain:g} points")
