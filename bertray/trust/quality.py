"""Quality of a night without its labels: accuracy and macro F1 from calibrated probabilities, with intervals.

The mean probability of the predicted labels estimates accuracy where the probabilities are calibrated for nights like
this one. Prior correction estimates it where only the mix of classes has moved. Which of the two holds cannot be known
without labels, so the interval covers both.

Shape letters: N rows, C classes, R draws, K labelled nights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bertray.evaluation.intervals import Estimate, Z

MIN_LABELLED_NIGHTS = 16  # from which their errors give the interval
MIN_LABELLED_ROWS = 100  # of a night that counts as labelled
LEAST_HALF_WIDTH = 0.04  # of an interval before there are so many
FAR_APART = 0.03  # difference of the two estimates that is said
NUM_DRAWS = 400
_MAX_STEPS = 200
_CLOSE = 1e-6
_TINY = 1e-12


class Figure(NamedTuple):
    """An estimate and its variance by the labels of these very rows being random."""

    value: float
    noise: float


@dataclass(frozen=True)
class NightEstimate:
    """Estimates of one night.

    Args:
        rows: that they are of.
        accuracy, macro_f1: from the probabilities as they are.
        shifted_accuracy, shifted_macro_f1: from probabilities corrected for the class shares of the night.
        shares: class shares by prior correction, [C].
    """

    rows: int
    accuracy: Figure
    shifted_accuracy: Figure
    macro_f1: Figure
    shifted_macro_f1: Figure
    shares: tuple[float, ...]


@dataclass(frozen=True)
class PastError:
    """A labelled night: what was true, and what was estimated.

    Args:
        rows: with a label.
        accuracy, macro_f1: of these rows.
        estimate: of the whole night.
    """

    rows: int
    accuracy: float
    macro_f1: float
    estimate: NightEstimate


@dataclass(frozen=True)
class QualityEstimate:
    """Accuracy and macro F1 of a night, with intervals that hold for nights like the reference.

    Args:
        labelled_nights: that the intervals rest on; fewer than MIN_LABELLED_NIGHTS: a stated minimum.
        apart: difference of the two estimates of the accuracy.
    """

    accuracy: Estimate
    macro_f1: Estimate
    labelled_nights: int
    apart: float


def prior_corrected(
    probs_NC: NDArray[np.float64], prior_C: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Class shares of rows whose P(text | class) is that of training, [C], and probabilities by these shares, [N, C].

    Args:
        probs_NC: calibrated for the shares `prior_C`.

    Source: Saerens, Latinne and Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori
    probabilities" (Neural Computation 14).
    """
    prior_C = np.maximum(prior_C, _TINY)
    shares_C, corrected_NC = prior_C / prior_C.sum(), probs_NC
    for _ in range(_MAX_STEPS):
        weighted_NC = probs_NC * (shares_C / prior_C)
        corrected_NC = weighted_NC / np.maximum(weighted_NC.sum(axis=1, keepdims=True), _TINY)
        before_C, shares_C = shares_C, corrected_NC.mean(axis=0)
        if np.abs(shares_C - before_C).max() < _CLOSE:
            break
    return shares_C, corrected_NC


def estimate_night(probs_NC: NDArray[np.float32], prior_C: Sequence[float], seed: int = 0) -> NightEstimate:
    """Estimates from the probabilities of a night.

    Args:
        probs_NC: float [N, C], N >= 1.
        prior_C: class shares of the rows that the probabilities were calibrated on.
        seed: of the draws.
    """
    exact_NC = probs_NC.astype(np.float64)
    predicted_N = exact_NC.argmax(axis=1)
    shares_C, corrected_NC = prior_corrected(exact_NC, np.asarray(prior_C, np.float64))
    return NightEstimate(
        rows=len(exact_NC),
        accuracy=_accuracy(exact_NC, predicted_N),
        shifted_accuracy=_accuracy(corrected_NC, predicted_N),
        macro_f1=_macro_f1(exact_NC, predicted_N, seed),
        shifted_macro_f1=_macro_f1(corrected_NC, predicted_N, seed),
        shares=tuple(shares_C.tolist()),
    )


def _accuracy(probs_NC: NDArray[np.float64], predicted_N: NDArray[np.int64]) -> Figure:
    right_N = probs_NC[np.arange(len(probs_NC)), predicted_N]
    return Figure(float(right_N.mean()), float((right_N * (1 - right_N)).sum()) / len(right_N) ** 2)


def _macro_f1(probs_NC: NDArray[np.float64], predicted_N: NDArray[np.int64], seed: int) -> Figure:
    """Macro F1 by draws of the labels: counts of true classes among the rows of each predicted class, nearly normal."""
    num_classes = probs_NC.shape[1]
    rng = np.random.default_rng(seed)
    tables_RCC = np.zeros((NUM_DRAWS, num_classes, num_classes))  # row: true class
    for c in range(num_classes):
        of_class_MC = probs_NC[predicted_N == c]
        if not len(of_class_MC):
            continue
        sums_C = of_class_MC.sum(axis=0)
        covariance_CC = np.diag(sums_C) - of_class_MC.T @ of_class_MC
        # Of rank C - 1: rounding makes an eigenvalue of 0 a negative one, which "eigh" takes by its size.
        drawn_RC = rng.multivariate_normal(sums_C, covariance_CC, size=NUM_DRAWS, method="eigh", check_valid="ignore")
        tables_RCC[:, :, c] = np.maximum(drawn_RC, 0)
    drawn_R = macro_f1_of(tables_RCC)
    return Figure(float(drawn_R.mean()), float(drawn_R.var(ddof=1)))


def macro_f1_of(tables_RCC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macro F1 of tables of rows by true (row) and predicted class, [R]; a class that is in neither is left out."""
    hits_RC = np.diagonal(tables_RCC, axis1=-2, axis2=-1)
    sums_RC = tables_RCC.sum(axis=-1) + tables_RCC.sum(axis=-2)
    f1_RC = 2 * hits_RC / np.maximum(sums_RC, _TINY)
    f1_R: NDArray[np.float64] = f1_RC.sum(axis=-1) / np.maximum((sums_RC >= 0.5).sum(axis=-1), 1)
    return f1_R


class _Spread(NamedTuple):
    """Errors of an estimate on labelled nights: bias (shrunk), variance between nights, variance of the bias."""

    bias: float
    between: float
    of_bias: float
    nights: int


def _spread(errors_K: NDArray[np.float64], noise_K: NDArray[np.float64]) -> _Spread:
    num_nights, variance = len(errors_K), float(errors_K.var(ddof=1))
    of_bias, mean = variance / num_nights, float(errors_K.mean())
    # A bias that the few nights do not show for sure is not corrected: the correction would add its own error.
    kept = max(0.0, 1 - of_bias / mean**2) if mean else 0.0
    return _Spread(mean * kept, max(0.0, variance - float(noise_K.mean())), of_bias, num_nights)


def interval(figures: Sequence[Figure], errors: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Estimate:
    """Hull of the 95 % intervals of several estimates of one figure; its value is that of the first.

    Args:
        figures: of tonight.
        errors: for each of them true minus estimated values of labelled nights, and the noise of these, [K] each.
    """
    ends: list[tuple[float, float, float]] = []
    for figure, (errors_K, noise_K) in zip(figures, errors, strict=True):
        if len(errors_K) >= MIN_LABELLED_NIGHTS:
            spread = _spread(errors_K, noise_K)
            variance = figure.noise + spread.between * (1 + 1 / spread.nights) + spread.of_bias
            half = float(student.ppf(0.975, spread.nights - 1)) * math.sqrt(variance)
            value = figure.value + spread.bias
        else:
            half, value = max(Z * math.sqrt(figure.noise), LEAST_HALF_WIDTH), figure.value
        ends.append((value, value - half, value + half))
    value = min(max(ends[0][0], 0.0), 1.0)
    low, high = min(low for _, low, _ in ends), max(high for _, _, high in ends)
    return Estimate(value, min(max(low, 0.0), value), max(min(high, 1.0), value))


def estimate_quality(tonight: NightEstimate, past: Sequence[PastError]) -> QualityEstimate:
    """Accuracy and macro F1 of a night, with intervals from labelled nights where there are enough."""
    counted = [error for error in past if error.rows >= MIN_LABELLED_ROWS]
    accuracy = interval(
        [tonight.accuracy, tonight.shifted_accuracy],
        [_errors(counted, "accuracy", name) for name in ("accuracy", "shifted_accuracy")],
    )
    macro_f1 = interval(
        [tonight.macro_f1, tonight.shifted_macro_f1],
        [_errors(counted, "macro_f1", name) for name in ("macro_f1", "shifted_macro_f1")],
    )
    apart = tonight.shifted_accuracy.value - tonight.accuracy.value
    return QualityEstimate(accuracy, macro_f1, len(counted), apart)


def _errors(past: Sequence[PastError], true: str, estimated: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    figures: list[Figure] = [getattr(error.estimate, estimated) for error in past]
    errors_K = np.array([getattr(error, true) - figure.value for error, figure in zip(past, figures, strict=True)])
    # The noise of the rows that have a label, which may be some of the night's.
    noise_K = np.array(
        [figure.noise * error.estimate.rows / error.rows for error, figure in zip(past, figures, strict=True)]
    )
    return errors_K, noise_K
