"""Is one model better than another on the same rows? A paired bootstrap, and the answer in words.

Shape letters: N rows, C classes, R draws, K cells of the table (given, prediction of A, prediction of B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bertray.evaluation.intervals import Estimate, percentile_estimate, resampled_counts
from bertray.evaluation.metrics import averages, cell_sums

COMPARED = {"accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC"}
MIN_DISAGREEMENTS = 6  # with fewer rows that only one of the two gets right, no sign test can reach 5 %

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
    differences: dict[str, Difference]  # keys of COMPARED
    verdict: Verdict

    @property
    def sentence(self) -> str:
        """The verdict in plain words, with the numbers."""
        accuracy, macro_f1 = self.differences["accuracy"], self.differences["macro_f1"]
        numbers = f"{_told('accuracy', accuracy)}; {_told('macro F1', macro_f1)}"
        a, b = self.name_a, self.name_b
        if self.verdict == "undecided" and self.only_a_right + self.only_b_right < MIN_DISAGREEMENTS:
            few = self.only_a_right + self.only_b_right
            return (
                f"{_capital(a)} does not beat {b}: the two cannot be told apart on {_rows(self.rows)}, of which "
                f"{few or 'none'} {'is' if few == 1 else 'are'} right with one and wrong with the other ({numbers})."
            )
        opening = {
            "better": f"{_capital(a)} beats {b}",
            "worse": f"{_capital(a)} does not beat {b}: it is worse",
            "undecided": f"{_capital(a)} does not beat {b}: the two cannot be told apart on {_rows(self.rows)}",
            "mixed": f"{_capital(a)} does not clearly beat {b}: better in one figure, worse in the other",
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
) -> Comparison:
    """Paired comparison of two classifiers on the same rows.

    The intervals resample the table of (given, prediction of A, prediction of B), which is the paired row bootstrap.
    A is better when its accuracy or macro F1 is higher with an interval above 0 and neither is lower with an interval
    below 0; worse the other way round; mixed when the two contradict each other.

    Raises:
        ValueError: lengths differ or there is no row.
    """
    if not len(label_ids_N) == len(predictions_a_N) == len(predictions_b_N) > 0:
        lengths = len(label_ids_N), len(predictions_a_N), len(predictions_b_N)
        raise ValueError(f"expected as many labels as predictions of both models, and at least one; found {lengths}.")
    cells_N = (label_ids_N.astype(np.int64) * num_classes + predictions_a_N) * num_classes + predictions_b_N
    cells_K, counts_K = np.unique(cells_N, return_counts=True)
    given_K, a_K, b_K = cells_K // num_classes**2, cells_K // num_classes % num_classes, cells_K % num_classes

    def figures(draws_RK: np.ndarray, predicted_K: np.ndarray) -> dict[str, np.ndarray]:
        hits_K = np.where(predicted_K == given_K, given_K, -1)
        return averages(*(cell_sums(draws_RK, classes_K, num_classes) for classes_K in (hits_K, given_K, predicted_K)))

    value_a, value_b = figures(counts_K[None], a_K), figures(counts_K[None], b_K)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in COMPARED}
    for draws_RK in resampled_counts(counts_K, seed):
        draws_a, draws_b = figures(draws_RK, a_K), figures(draws_RK, b_K)
        for name, chunks in drawn.items():
            chunks.append(draws_a[name] - draws_b[name])
    differences = {}
    for name, chunks in drawn.items():
        a, b = float(value_a[name][0]), float(value_b[name][0])
        differences[name] = Difference(a, b, percentile_estimate(a - b, np.concatenate(chunks)))
    only_a = int(counts_K[(a_K == given_K) & (b_K != given_K)].sum())
    only_b = int(counts_K[(b_K == given_K) & (a_K != given_K)].sum())
    verdict = _verdict(differences) if only_a + only_b >= MIN_DISAGREEMENTS else "undecided"
    return Comparison(name_a, name_b, len(label_ids_N), only_a, only_b, differences, verdict)


def _verdict(differences: dict[str, Difference]) -> Verdict:
    judged = [differences[name].difference for name in ("accuracy", "macro_f1")]
    higher, lower = any(d.low > 0 for d in judged), any(d.high < 0 for d in judged)
    if higher and lower:
        return "mixed"
    return "better" if higher else "worse" if lower else "undecided"


def _told(name: str, d: Difference) -> str:
    low, high = _points(d.difference.low), _points(d.difference.high)
    return f"{name} {d.a:.3f} against {d.b:.3f}, {_points(d.difference.value)} points, 95 % interval {low} to {high}"


def _points(difference: float) -> str:
    return f"{100 * difference + 0.0:+.1f}".replace("-", "−")


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _capital(name: str) -> str:
    return "The" + name[3:] if name.startswith("the ") else name
