"""Points for charts as plain numbers: reliability, ROC, precision and recall, scores of right and wrong rows.

Shape letters: N rows, T distinct thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bertray.evaluation.intervals import Estimate, wilson_estimate
from bertray.evaluation.metrics import NUM_BINS, confidence_bins

MAX_POINTS = 200
SCORE_BINS = 20


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose score lies in (low, high]: how sure the model was, and how often it was right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True)
class Curve:
    """A curve of one class against the rest; `area` is that of the full curve, before points were left out."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    area: float


@dataclass(frozen=True)
class Curves:
    """Everything the charts of an evaluation need."""

    reliability: tuple[ReliabilityBin, ...]  # bins without a row are left out
    roc: dict[str, Curve]  # x false positive rate, y true positive rate; classes with both kinds of rows
    precision_recall: dict[str, Curve]  # x recall, y precision, area = average precision; the same classes
    scores_right: tuple[int, ...]  # rows by score of the predicted label, 20 equal bins over [0, 1]
    scores_wrong: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def curves(label_ids_N: np.ndarray, probs_NC: np.ndarray, labels: Sequence[str]) -> Curves:
    """Points of all charts."""
    confidence_N = probs_NC.max(axis=1).astype(np.float64)
    right_N = probs_NC.argmax(axis=1) == label_ids_N
    score_bin_N = np.clip((confidence_N * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
    roc, precision_recall = {}, {}
    for c, label in enumerate(labels):
        pair = roc_and_precision_recall(label_ids_N == c, probs_NC[:, c])
        if pair is not None:
            roc[label], precision_recall[label] = pair
    return Curves(
        reliability=reliability_bins(confidence_N, right_N),
        roc=roc,
        precision_recall=precision_recall,
        scores_right=tuple(np.bincount(score_bin_N[right_N], minlength=SCORE_BINS).tolist()),
        scores_wrong=tuple(np.bincount(score_bin_N[~right_N], minlength=SCORE_BINS).tolist()),
    )


def reliability_bins(confidence_N: np.ndarray, right_N: np.ndarray) -> tuple[ReliabilityBin, ...]:
    """Confidence against accuracy in the bins of the ECE."""
    bin_N = confidence_bins(confidence_N, NUM_BINS)
    rows_M = np.bincount(bin_N, minlength=NUM_BINS)
    sums_M = np.bincount(bin_N, confidence_N, minlength=NUM_BINS)
    hits_M = np.bincount(bin_N, right_N, minlength=NUM_BINS)
    return tuple(
        ReliabilityBin(
            low=m / NUM_BINS,
            high=(m + 1) / NUM_BINS,
            rows=int(rows_M[m]),
            confidence=float(sums_M[m] / rows_M[m]),
            accuracy=wilson_estimate(int(hits_M[m]), int(rows_M[m])),
        )
        for m in np.flatnonzero(rows_M)
    )


def roc_and_precision_recall(positive_N: np.ndarray, score_N: np.ndarray) -> tuple[Curve, Curve] | None:
    """Both curves from one sort; None when all rows are positive or none is."""
    num_positive = int(positive_N.sum())
    num_negative = len(positive_N) - num_positive
    if not num_positive or not num_negative:
        return None
    order_N = np.argsort(-score_N, kind="stable")
    last_T = np.append(np.flatnonzero(np.diff(score_N[order_N])), len(order_N) - 1)
    hits_T = np.cumsum(positive_N[order_N])[last_T].astype(np.float64)
    chosen_T = last_T + 1.0
    true_rate = np.append(0.0, hits_T / num_positive)
    false_rate = np.append(0.0, (chosen_T - hits_T) / num_negative)
    precision_T = hits_T / chosen_T
    average_precision = float(np.sum(np.diff(true_rate) * precision_T))
    return (
        _thinned(false_rate, true_rate, float(np.trapezoid(true_rate, false_rate))),
        _thinned(true_rate, np.append(1.0, precision_T), average_precision),
    )


def _thinned(x: np.ndarray, y: np.ndarray, area: float) -> Curve:
    """At most `MAX_POINTS` points at even distances along the curve, both ends kept."""
    if len(x) > MAX_POINTS:
        way = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
        kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], MAX_POINTS)).clip(0, len(x) - 1))
        x, y = x[kept], y[kept]
    return Curve(tuple(x.tolist()), tuple(y.tolist()), area)
