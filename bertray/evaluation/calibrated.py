"""Calibration on held-out rows: reliability before and after, each row judged by what was fitted on the others.

Shape letters: V held-out rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertray.evaluation.curves import ReliabilityBin, reliability_bins
from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import all_metrics, confusion_matrix, row_metrics
from bertray.evaluation.review_threshold import ReviewThreshold
from bertray.model.calibration import probs_of_rows

NUM_FOLDS = 5
MIN_ROWS = 2 * NUM_FOLDS

Fit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]
"""(logits [V, C], label ids [V]) to what is added to the logits, and the temperature by which they are then divided."""


@dataclass(frozen=True)
class Reliability:
    """Scores beside how often they are right."""

    ece: Estimate
    log_loss: Estimate
    bins: tuple[ReliabilityBin, ...]

    @classmethod
    def of(cls, probs_VC: np.ndarray, label_ids_V: np.ndarray, seed: int) -> Reliability:
        figures = row_metrics(label_ids_V, probs_VC, seed)
        right_V = probs_VC.argmax(axis=1) == label_ids_V
        return cls(figures["ece"], figures["log_loss"], reliability_bins(probs_VC.max(axis=1), right_V))

    def to_json(self) -> dict[str, Any]:
        return {"ece": self.ece.to_json(), "log_loss": self.log_loss.to_json()}


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model, judged on held-out rows.

    Args:
        rows: held-out rows.
        temperature, offsets: of the bundle; label -> what is added to its logit, empty without.
        before, after: on the held-out rows; None with fewer than `MIN_ROWS`.
        figures: values of `training.best_metric` -> of the calibrated model on the held-out rows; empty with none.
        review: threshold of `needs_review`, where one was asked for.
    """

    rows: int
    temperature: float
    offsets: dict[str, float]
    before: Reliability | None = None
    after: Reliability | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    review: ReviewThreshold | None = None

    @property
    def sentences(self) -> list[str]:
        """Notes for the report."""
        return [] if self.review is None else [self.review.sentence]

    def to_json(self) -> dict[str, Any]:
        """Content of `calibration` in metrics.json."""
        return {
            "rows": self.rows,
            "temperature": self.temperature,
            "offsets": self.offsets,
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
            "validation": dict(self.figures),
            "review": None if self.review is None else self.review.to_json(),
        }


def judge_calibration(
    logits_VC: np.ndarray,
    label_ids_V: np.ndarray,
    fit: Fit,
    labels: Sequence[str],
    *,
    seed: int,
    review: Callable[[np.ndarray, np.ndarray], ReviewThreshold] | None = None,
) -> Calibration:
    """Calibrate by all held-out rows, and judge it by five-fold cross-fitting on the same rows.

    Args:
        logits_VC: of rows that the model has not learned from; rows that are not finite are left out.
        label_ids_V: given labels.
        fit: the calibration.
        labels: names by label id.
        seed: of folds and intervals.
        review: (score, right) of the rows to a threshold; the order of scores hardly depends on the calibration.
    """
    finite_V = np.isfinite(logits_VC).all(axis=1)
    logits_VC, label_ids_V = logits_VC[finite_V].astype(np.float64), label_ids_V[finite_V]
    offsets_C, temperature = fit(logits_VC, label_ids_V)
    offsets = dict(zip(labels, offsets_C.tolist(), strict=True)) if offsets_C.any() else {}
    rows = len(logits_VC)
    enough = rows >= MIN_ROWS
    # A threshold is on the scale of the bundle's own scores.
    final_VC = probs_of_rows((logits_VC + offsets_C) / temperature)
    score_V, right_V = final_VC.max(axis=1), final_VC.argmax(axis=1) == label_ids_V
    after_VC = cross_fitted(logits_VC, label_ids_V, fit, seed) if enough else final_VC
    return Calibration(
        rows,
        temperature,
        offsets,
        Reliability.of(probs_of_rows(logits_VC), label_ids_V, seed) if enough else None,
        Reliability.of(after_VC, label_ids_V, seed) if enough else None,
        _figures(after_VC, label_ids_V, seed) if rows else {},
        None if review is None else review(score_V, right_V),
    )


def _figures(probs_VC: np.ndarray, label_ids_V: np.ndarray, seed: int) -> dict[str, float]:
    matrix_CC = confusion_matrix(label_ids_V, probs_VC.argmax(axis=1), probs_VC.shape[1])
    found = all_metrics(matrix_CC, label_ids_V, probs_VC, seed)
    return {"loss": found["log_loss"].value, **{name: found[name].value for name in ("accuracy", "macro_f1", "mcc")}}


def cross_fitted(logits_VC: np.ndarray, label_ids_V: np.ndarray, fit: Fit, seed: int) -> np.ndarray:
    """Probabilities [V, C], each fold's by a calibration that was fitted on the others."""
    fold_V = np.random.default_rng(seed).permutation(len(logits_VC)) % NUM_FOLDS
    probs_VC = np.empty(logits_VC.shape)
    for fold in range(NUM_FOLDS):
        others_V = fold_V != fold
        offsets_C, temperature = fit(logits_VC[others_V], label_ids_V[others_V])
        probs_VC[~others_V] = probs_of_rows((logits_VC[~others_V] + offsets_C) / temperature)
    return probs_VC
