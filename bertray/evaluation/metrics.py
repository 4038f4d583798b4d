"""Figures of a classifier on labelled rows, each with a 95 % interval, equal to scikit-learn's values.

Rules where a figure is not defined: precision without a prediction of the class, recall without a row of it and F1
without either are 0; a class that is neither given nor predicted is left out of macro averages (scikit-learn's own
default); MCC is 0 when all rows have one label or one prediction.

Intervals: accuracy, precision and recall are shares (Wilson), F1 of one class is a function of the share
hits / (given or predicted); averages over classes and MCC come from multinomial resampling of the confusion matrix.
Resampling cannot imagine an error it has not seen, so where all rows are right, or all wrong, the interval of accuracy
stands in.

Shape letters: N rows, C classes, R draws, K cells of the confusion matrix that hold rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from bertray.evaluation.intervals import (
    Estimate,
    mean_estimate,
    percentile_estimate,
    resampled_counts,
    wilson,
    wilson_estimate,
)

EPS = float(np.finfo(np.float64).eps)  # log loss clips probabilities to [EPS, 1 - EPS], as scikit-learn does
NUM_BINS = 15
FIGURES = {"accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC"}  # the main ones, as sentences call them
AVERAGES = (
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "weighted_precision",
    "weighted_recall",
    "mcc",
)


@dataclass(frozen=True)
class ClassMetrics:
    """Figures of one class against the rest."""

    precision: Estimate
    recall: Estimate
    f1: Estimate
    support: int

    def to_json(self) -> dict[str, object]:
        return {
            "precision": self.precision.to_json(),
            "recall": self.recall.to_json(),
            "f1": self.f1.to_json(),
            "support": self.support,
        }


def check_rows(label_ids_N: np.ndarray, probs_NC: np.ndarray, labels: Sequence[str]) -> None:
    """Refuse rows that cannot be evaluated.

    Raises:
        ValueError: no row, lengths or classes differ, a label id out of range, probabilities that are none.
    """
    if probs_NC.ndim != 2 or probs_NC.shape[1] != len(labels):
        raise ValueError(f"probs_NC: expected {len(labels)} columns ({', '.join(labels)}), found {probs_NC.shape}.")
    if len(label_ids_N) != len(probs_NC):
        raise ValueError(f"expected one label for each of {len(probs_NC)} rows of probs_NC, found {len(label_ids_N)}.")
    if len(label_ids_N) == 0:
        raise ValueError("expected at least one labelled row, found none.")
    if label_ids_N.min() < 0 or label_ids_N.max() >= len(labels):
        raise ValueError(
            f"label_ids_N: expected 0..{len(labels) - 1}, found {label_ids_N.min()}..{label_ids_N.max()}. "
            "Leave rows without a known label out before evaluating."
        )
    if not np.isfinite(probs_NC).all() or probs_NC.min() < 0:
        raise ValueError("probs_NC: expected finite probabilities, found NaN, infinite or negative values.")
    gap = float(np.abs(probs_NC.sum(axis=1) - 1).max())
    if gap > 1e-4:
        raise ValueError(f"probs_NC: expected rows that sum to 1 within 0.0001, found a row off by {gap:.2g}.")


def confusion_matrix(label_ids_N: np.ndarray, predictions_N: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [C, C]: rows are the given label, columns the prediction."""
    cells_N = label_ids_N.astype(np.int64) * num_classes + predictions_N
    return np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def averages(hits_RC: np.ndarray, given_RC: np.ndarray, predicted_RC: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and `AVERAGES` of many tables at once.

    Args:
        hits_RC: rows of the class that were predicted as it.
        given_RC: rows of the class.
        predicted_RC: rows predicted as the class.

    Returns:
        name -> float64 [R].
    """
    hits_RC, given_RC, predicted_RC = (x.astype(np.float64) for x in (hits_RC, given_RC, predicted_RC))
    total_R = given_RC.sum(axis=1)
    present_RC = given_RC + predicted_RC > 0
    per_class = {
        "precision": hits_RC / np.maximum(predicted_RC, 1),
        "recall": hits_RC / np.maximum(given_RC, 1),
        "f1": 2 * hits_RC / np.maximum(given_RC + predicted_RC, 1),
    }
    figures = {"accuracy": hits_RC.sum(axis=1) / total_R}
    for name, values_RC in per_class.items():
        figures[f"macro_{name}"] = (values_RC * present_RC).sum(axis=1) / present_RC.sum(axis=1)
        figures[f"weighted_{name}"] = (values_RC * given_RC).sum(axis=1) / total_R
    spread_R = (total_R**2 - (given_RC**2).sum(axis=1)) * (total_R**2 - (predicted_RC**2).sum(axis=1))
    agreement_R = hits_RC.sum(axis=1) * total_R - (given_RC * predicted_RC).sum(axis=1)
    figures["mcc"] = np.where(spread_R > 0, agreement_R / np.sqrt(np.where(spread_R > 0, spread_R, 1)), 0.0)
    return figures


def cell_sums(draws_RK: np.ndarray, classes_K: np.ndarray, num_classes: int) -> np.ndarray:
    """Sum the cells of each class: int64 [R, C]. A negative class leaves the cell out."""
    cells = np.flatnonzero(classes_K >= 0)
    ones = np.ones(len(cells), np.int64)
    chooser_KC = sparse.csr_array((ones, (cells, classes_K[cells])), shape=(len(classes_K), num_classes))
    return np.asarray(draws_RK @ chooser_KC)


def matrix_metrics(matrix_CC: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Accuracy and `AVERAGES` of a confusion matrix, with intervals."""
    num_classes = len(matrix_CC)
    given_K, predicted_K = np.nonzero(matrix_CC)
    counts_K = matrix_CC[given_K, predicted_K]
    hits_K = np.where(given_K == predicted_K, given_K, -1)

    def figures(draws_RK: np.ndarray) -> dict[str, np.ndarray]:
        return averages(*(cell_sums(draws_RK, classes_K, num_classes) for classes_K in (hits_K, given_K, predicted_K)))

    values = {name: float(value_1[0]) for name, value_1 in figures(counts_K[None]).items()}
    num_hits, num_rows = int(np.trace(matrix_CC)), int(matrix_CC.sum())
    accuracy = wilson_estimate(num_hits, num_rows)
    estimates = {"accuracy": accuracy}
    if num_hits in (0, num_rows):
        for name in AVERAGES:
            low, high = accuracy.low, accuracy.high
            if name == "mcc":  # of two balanced classes
                low, high = 2 * low - 1, 2 * high - 1
            estimates[name] = Estimate(values[name], min(low, values[name]), max(high, values[name]))
        return estimates
    drawn = [figures(draws_RK) for draws_RK in resampled_counts(counts_K, seed)]
    for name in AVERAGES:
        estimates[name] = percentile_estimate(values[name], np.concatenate([chunk[name] for chunk in drawn]))
    estimates["weighted_recall"] = accuracy  # the same figure by another name
    return estimates


def class_metrics(matrix_CC: np.ndarray) -> list[ClassMetrics]:
    """Figures of each class, in the order of the matrix."""
    hits_C, given_C, predicted_C = np.diag(matrix_CC), matrix_CC.sum(axis=1), matrix_CC.sum(axis=0)
    precision, recall = wilson(hits_C, predicted_C), wilson(hits_C, given_C)
    # F1 = 2 J / (1 + J) rises with the share J = hits / rows that are of the class or predicted as it.
    f1 = [2 * share / (1 + share) for share in wilson(hits_C, given_C + predicted_C - hits_C)]
    support = given_C.tolist()
    return [ClassMetrics(_at(precision, c), _at(recall, c), _at(f1, c), support[c]) for c in range(len(matrix_CC))]


def _at(arrays: Sequence[np.ndarray], c: int) -> Estimate:
    value, low, high = (float(array[c]) for array in arrays)
    return Estimate(value, low, high)


def confidence_bins(confidence_N: np.ndarray, num_bins: int) -> np.ndarray:
    """Number of the equal-width bin (m/M, (m+1)/M] of each confidence; 0 belongs to the first."""
    bins_N: np.ndarray = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    return bins_N


def calibration_error(probs_NC: np.ndarray, label_ids_N: np.ndarray, num_bins: int, seed: int) -> Estimate:
    """Expected calibration error: average gap between confidence and accuracy, weighted by the rows in each bin.

    The interval resamples counts by bin and correctness; a bin is too narrow for its inner spread to matter. A
    resampled gap is on average larger than the gap of the sample, so the draws are shifted back by that excess.

    Args:
        probs_NC, label_ids_N: as `check_rows` wants them; a tie between classes goes to the lower id.
        num_bins: equal-width bins of confidence over [0, 1], closed on the right; at least 1.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2 (arXiv:1706.04599).
    """
    confidence_N = probs_NC.max(axis=1).astype(np.float64)
    cells_N = 2 * confidence_bins(confidence_N, num_bins) + (probs_NC.argmax(axis=1) == label_ids_N)
    counts_K = np.bincount(cells_N, minlength=2 * num_bins)
    confidence_K = np.bincount(cells_N, confidence_N, minlength=2 * num_bins) / np.maximum(counts_K, 1)
    right_K = np.tile([0.0, 1.0], num_bins)

    def error(draws_RK: np.ndarray) -> np.ndarray:
        gaps_RM = (draws_RK * (right_K - confidence_K)).reshape(len(draws_RK), num_bins, 2).sum(axis=2)
        total: np.ndarray = np.abs(gaps_RM).sum(axis=1) / counts_K.sum()
        return total

    value = float(error(counts_K[None])[0])
    if len(label_ids_N) == 1:
        return Estimate(value, 0.0, 1.0)
    draws_R = np.concatenate([error(draws_RK) for draws_RK in resampled_counts(counts_K, seed)])
    return percentile_estimate(value, np.clip(draws_R - max(float(draws_R.mean()) - value, 0.0), 0.0, 1.0))


def row_metrics(label_ids_N: np.ndarray, probs_NC: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Log loss and ECE, which no confusion matrix holds."""
    true_N = probs_NC[np.arange(len(label_ids_N)), label_ids_N].astype(np.float64)
    losses_N = -np.log(np.clip(true_N, EPS, 1 - EPS))
    return {
        "log_loss": mean_estimate(losses_N, seed, bounds=(0.0, -float(np.log(EPS)))),
        "ece": calibration_error(probs_NC, label_ids_N, NUM_BINS, seed),
    }


def all_metrics(matrix_CC: np.ndarray, label_ids_N: np.ndarray, probs_NC: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Every figure of `metrics` in metrics.json, in its order."""
    return {**matrix_metrics(matrix_CC, seed), **row_metrics(label_ids_N, probs_NC, seed)}
