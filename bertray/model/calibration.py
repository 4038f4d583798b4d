"""Temperature scaling, which makes probabilities honest without changing a label, and offsets, which change labels.

Legend: N reviews, S sequences (more than N where reviews have several windows), C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
_MAX_SWEEPS = 50  # over all classes; two classes need one
_GAP = 1e-5  # leads nearer than that, in proportion, may be rounding
_TINY = 1e-300  # the log of a probability that underflowed


def probs_of_reviews(
    logits_SC: NDArray[Any], rows_S: NDArray[np.int64], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Probabilities [N, C]: softmax(logits / temperature), mean over the sequences of each review.

    Args:
        logits_SC: a value that is not finite makes the row of its review NaN.
        rows_S: the review of each sequence, ascending from 0 without gaps.
        temperature: above 0.
    """
    from scipy.special import softmax

    if not len(logits_SC):
        return np.zeros(logits_SC.shape)
    logits_SC = np.where(np.isfinite(logits_SC), logits_SC, np.nan).astype(np.float64)
    probs_SC = softmax(logits_SC / temperature, axis=1)
    first_N = np.flatnonzero(np.diff(rows_S, prepend=-1))
    num_sequences_N = np.diff(first_N, append=len(rows_S))
    probs_NC: NDArray[np.float64] = np.add.reduceat(probs_SC, first_N, axis=0) / num_sequences_N[:, None]
    return probs_NC


def probs_of_rows(logits_NC: NDArray[Any]) -> NDArray[np.float64]:
    """`probs_of_reviews` where each review has one sequence."""
    return probs_of_reviews(logits_NC, np.arange(len(logits_NC)))


def fit_temperature(logits_NC: NDArray[Any], label_ids_N: NDArray[Any]) -> float:
    """The temperature with the least log loss on held-out rows, between 0.05 and 20.

    Training fits it on one sequence a review, where `long_text` is `windows` on the first window, although scoring
    then averages the probabilities of all windows.

    Args:
        logits_NC: float [N, C].
        label_ids_N: the given labels, in 0..C-1.

    Returns:
        1.0 where fewer than two finite rows are given or no temperature is better than that.

    Raises:
        ValueError: not one label a review.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2 (arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    logits_NC, label_ids_N = np.asarray(logits_NC, np.float64), np.asarray(label_ids_N)
    if len(logits_NC) != len(label_ids_N):
        raise ValueError(f"label_ids_N: expected {len(logits_NC)} labels, one a review, found {len(label_ids_N)}.")
    finite_N = np.isfinite(probs_of_rows(logits_NC)).all(axis=1)
    if finite_N.sum() < 2:
        return 1.0

    def log_loss(log_temperature: float) -> float:
        probs_NC = probs_of_rows(logits_NC / float(np.exp(log_temperature)))[finite_N]
        given_N = probs_NC[np.arange(len(probs_NC)), label_ids_N[finite_N]]
        return float(-np.log(np.maximum(given_N, _TINY)).mean())

    # In the logarithm, so that halving and doubling are alike.
    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    found = minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    if not found.fun < log_loss(0.0):
        return 1.0
    return float(np.clip(np.exp(found.x), MIN_TEMPERATURE, MAX_TEMPERATURE))


def fit_offsets(logits_NC: NDArray[Any], label_ids_N: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Offset of each class and temperature with the least log loss on held-out rows.

    For rows whose class mix is that of the reviews to come and not that of training: the offsets move the decision, and
    with it mean probabilities towards the true shares. They are fitted by maximum likelihood with a penalty as of one
    row, so that few rows move little.

    Args:
        logits_NC: float [N, C], of rows that the model has not learned from; rows that are not finite are left out.
        label_ids_N: the given labels, in 0..C-1.

    Returns:
        (offsets float64 [C] of mean 0, added to the logits; the temperature by which they are then divided). Zeros and
        1.0 where fewer than two finite rows are given.

    Source: Alexandari, Kundaje and Shrikumar 2020, "Maximum Likelihood with Bias-Corrected Calibration is
    Hard-To-Beat at Label Shift Adaptation" (arXiv:1901.06852), section 3.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    logits_NC, label_ids_N = np.asarray(logits_NC, np.float64), np.asarray(label_ids_N)
    finite_N = np.isfinite(logits_NC).all(axis=1)
    logits_NC, label_ids_N = logits_NC[finite_N], label_ids_N[finite_N]
    rows, num_classes = logits_NC.shape
    if rows < 2:
        return np.zeros(num_classes), 1.0
    given = (np.arange(rows), label_ids_N)

    def loss(slope_and_bias: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, bias_C = slope_and_bias[0], slope_and_bias[1:]
        scaled_NC = slope * logits_NC + bias_C
        gradient_NC = softmax(scaled_NC, axis=1)
        gradient_NC[given] -= 1
        value = -log_softmax(scaled_NC, axis=1)[given].sum() + (bias_C**2).sum() / 2
        gradient = np.concatenate([[(gradient_NC * logits_NC).sum()], gradient_NC.sum(axis=0) + bias_C])
        return value / rows, gradient / rows

    start = np.concatenate([[1.0], np.zeros(num_classes)])
    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), *[(None, None)] * num_classes]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    slope, bias_C = float(found.x[0]), found.x[1:]
    centred_C: NDArray[np.float64] = (bias_C - bias_C.mean()) / slope
    return centred_C, 1 / slope


def offsets_to_shares(logits_NC: NDArray[Any], label_ids_N: NDArray[Any]) -> NDArray[np.float64]:
    """Prior correction: logit offsets with which predicted label shares match the true ones, float64 [C], mean 0.

    A classifier says a frequent class more often of reviews it has not seen than of those it learned from, and a rare
    one less; figures that look at every class, such as MCC and macro F1, suffer. Class by class, the decision moves
    into the gap between the rows that are to prefer the class and the others, again and again until the counts are
    right; it stays where it is when it lies in that gap. Rows with equal logits cannot be told apart, so shares are met
    as nearly as gaps allow. A class that does not occur is none of the rows' in the end.

    Args:
        logits_NC: float [N, C], of rows that the model has not learned from; rows that are not finite are left out.
        label_ids_N: the given labels, in 0..C-1.
    """
    logits_NC = np.asarray(logits_NC, np.float64)
    finite_N = np.isfinite(logits_NC).all(axis=1)
    logits_NC, label_ids_N = logits_NC[finite_N], np.asarray(label_ids_N)[finite_N]
    num_classes = logits_NC.shape[1]
    counts_C = np.bincount(label_ids_N, minlength=num_classes)
    offsets_C, moved_NC = np.zeros(num_classes), logits_NC.copy()
    for _ in range(_MAX_SWEEPS):
        before_C = np.bincount(moved_NC.argmax(axis=1), minlength=num_classes)
        if (before_C == counts_C).all():
            break
        for c in np.flatnonzero(counts_C):
            moved_NC[:, c] = -np.inf
            lead_N = logits_NC[:, c] - moved_NC.max(axis=1)  # it is said of rows whose lead is above minus its offset
            offsets_C[c] = -_cut(lead_N, int(counts_C[c]), -offsets_C[c])
            moved_NC[:, c] = logits_NC[:, c] + offsets_C[c]
    centred_C: NDArray[np.float64] = offsets_C - offsets_C.mean()
    return centred_C


def _cut(lead_N: NDArray[np.float64], wanted: int, at: float) -> float:
    """Between the `wanted` largest leads and the others, or in the gap nearest to that; `at`, where it fits."""
    lead_N = np.sort(lead_N)[::-1]
    after_G = np.flatnonzero(lead_N[:-1] - lead_N[1:] > _GAP * np.maximum(1, np.abs(lead_N[1:]))) + 1
    if not len(after_G):
        return at
    after = after_G[np.abs(after_G - wanted).argmin()]
    high, low = lead_N[after - 1], lead_N[after]
    return at if low < at < high else float(high + low) / 2
