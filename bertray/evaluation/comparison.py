"""Is one model better than another on the same rows? A paired bootstrap, and the answer in words.

Shape letters: N rows, C classes, R draws, K cells of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bertray.evaluation.intervals import Estimate, percentile_estimate, resampled_counts
from bertray.evaluation.metrics import FIGURES
from bertray.evaluation.paired import MIN_DISAGREEMENTS, PairedTable
from bertray.wording import counted, decimal, points, signed

# Figures that decide which of two models is better, by `training.best_metric`.
JUDGED_BY: dict[str, tuple[str, ...]] = {"loss": ("accuracy", "macro_f1"), **{name: (name,) for name in FIGURES}}

Verdict = Literal["better", "worse", "undecided", "mixed"]


@dataclass(frozen=True)
class Difference:
    """One figure of both models on the same rows, and A minus B."""

    a: float
    b: float
    difference: Estimate

    def to_json(self) -> dict[str, object]:
        return {"a": self.a, "b": self.b, "difference": self.difference.to_json()}


@dataclass(frozen=True)
class Comparison:
    """Model A beside model B."""

    name_a: str
    name_b: str
    rows: int
    only_a_right: int
    only_b_right: int
    differences: dict[str, Difference]  # keys of FIGURES
    verdict: Verdict
    judged_by: tuple[str, ...] = JUDGED_BY["loss"]

    @property
    def numbers(self) -> str:
        """Two figures of both models with the interval of their difference, those that decide first."""
        shown = [*self.judged_by, *(name for name in JUDGED_BY["loss"] if name not in self.judged_by)][:2]
        return "; ".join(_told(name, self.differences[name]) for name in shown)

    @property
    def sentence(self) -> str:
        """The verdict in plain words, with the numbers."""
        a, b, numbers = self.name_a, self.name_b, self.numbers
        if self.verdict == "undecided" and self.only_a_right + self.only_b_right < MIN_DISAGREEMENTS:
            few = self.only_a_right + self.only_b_right
            return (
                f"{capital(a)} does not beat {b}: the two cannot be told apart on {_rows(self.rows)}, of which "
                f"{few or 'none'} {'is' if few == 1 else 'are'} right with one and wrong with the other ({numbers})."
            )
        opening = {
            "better": f"{capital(a)} beats {b}",
            "worse": f"{capital(a)} does not beat {b}: it is worse",
            "undecided": f"{capital(a)} does not beat {b}: the two cannot be told apart on {_rows(self.rows)}",
            "mixed": f"{capital(a)} does not clearly beat {b}: better in one figure, worse in the other",
        }[self.verdict]
        return f"{opening} ({numbers})."

    def to_json(self) -> dict[str, object]:
        return {
            "a": self.name_a,
            "b": self.name_b,
            "rows": self.rows,
            "only_a_right": self.only_a_right,
            "only_b_right": self.only_b_right,
            "differences": {name: difference.to_json() for name, difference in self.differences.items()},
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def compare(
    label_ids_N: np.ndarray,
    predictions_a_N: np.ndarray,
    predictions_b_N: np.ndarray,
    num_classes: int,
    *,
    name_a: str,
    name_b: str,
    seed: int,
    best_metric: str = "loss",
) -> Comparison:
    """Paired comparison of two classifiers on the same rows.

    The intervals resample the table of (given, prediction of A, prediction of B), which is the paired row bootstrap.
    A is better when a figure that decides is higher with an interval above 0 and none is lower with an interval below
    0; worse the other way round; mixed when two contradict each other. `best_metric` decides, and where that is the
    loss, which is no figure of predictions, accuracy and macro F1.

    Raises:
        ValueError: lengths differ or there is no row.
    """
    table = PairedTable(label_ids_N, predictions_a_N, predictions_b_N, num_classes)
    value_a, value_b = (table.figures(table.counts_K[None], predicted_K) for predicted_K in (table.a_K, table.b_K))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    for draws_RK in resampled_counts(table.counts_K, seed):
        draws_a, draws_b = table.figures(draws_RK, table.a_K), table.figures(draws_RK, table.b_K)
        for name, chunks in drawn.items():
            chunks.append(draws_a[name] - draws_b[name])
    differences = {}
    for name, chunks in drawn.items():
        a, b = float(value_a[name][0]), float(value_b[name][0])
        differences[name] = Difference(a, b, percentile_estimate(a - b, np.concatenate(chunks)))
    judged_by = JUDGED_BY[best_metric]
    verdict: Verdict = "undecided"
    if table.counts.discordant >= MIN_DISAGREEMENTS:
        verdict = _verdict([differences[name].difference for name in judged_by])
    only_a, only_b = table.counts.only_a, table.counts.only_b
    return Comparison(name_a, name_b, table.rows, only_a, only_b, differences, verdict, judged_by)


def _verdict(judged: Sequence[Estimate]) -> Verdict:
    higher, lower = any(d.low > 0 for d in judged), any(d.high < 0 for d in judged)
    if higher and lower:
        return "mixed"
    return "better" if higher else "worse" if lower else "undecided"


def _told(name: str, d: Difference) -> str:
    if name == "mcc":  # a correlation, not a share
        value, low, high = (signed(each) for each in (d.difference.value, d.difference.low, d.difference.high))
        compared = f"difference {value}"
    else:
        value, low, high = (points(each) for each in (d.difference.value, d.difference.low, d.difference.high))
        compared = f"{value} points"
    return f"{FIGURES[name]} {decimal(d.a)} against {decimal(d.b)}, {compared}, 95 % interval {low} to {high}"


def _rows(count: int) -> str:
    return counted(count, "row")


def capital(name: str) -> str:
    return "The" + name[3:] if name.startswith("the ") else name
