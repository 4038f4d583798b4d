"""Figures of classes in an order (stars; negative < neutral < positive): errors count by their distance.

Shape letters: N rows, C classes, R draws, K cells of the confusion matrix that hold rows.
"""

from __future__ import annotations

import numpy as np

from bertray.evaluation.intervals import Estimate, percentile_estimate, resampled_counts, wilson_estimate

TITLES = {
    "mean_absolute_error": "mean absolute error, in classes",
    "quadratic_weighted_kappa": "quadratic weighted kappa",
    "off_by_more_than_one": "share off by more than one class",
}


def ordered_metrics(matrix_CC: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Mean absolute error, quadratic weighted kappa and the share of rows off by more than one class.

    Kappa is 0 where all rows have one label and one prediction. The first two have intervals from resampling the
    matrix, the share has Wilson's.

    Args:
        matrix_CC: confusion matrix (row = given), classes in their order; at least one row.
        seed: of the resampling.

    Source: Cohen 1968, "Weighted kappa: nominal scale agreement with provision for scaled disagreement".
    """
    given_K, predicted_K = np.nonzero(matrix_CC)
    counts_K = matrix_CC[given_K, predicted_K]
    distance_K = np.abs(given_K - predicted_K)

    def figures(draws_RK: np.ndarray) -> dict[str, np.ndarray]:
        rows_R = draws_RK.sum(axis=1)
        squared_R = draws_RK @ (distance_K**2) / rows_R
        given_mean_R, predicted_mean_R = draws_RK @ given_K / rows_R, draws_RK @ predicted_K / rows_R
        spread_R = draws_RK @ (given_K**2 + predicted_K**2) / rows_R
        expected_R = spread_R - 2 * given_mean_R * predicted_mean_R  # of independent labels with these margins
        kappa_R = np.where(expected_R > 1e-12, 1 - squared_R / np.maximum(expected_R, 1e-12), 0.0).round(12)
        return {"mean_absolute_error": draws_RK @ distance_K / rows_R, "quadratic_weighted_kappa": kappa_R}

    value = figures(counts_K[None])
    chunks = [figures(draws_RK) for draws_RK in resampled_counts(counts_K, seed)]
    found = {
        name: percentile_estimate(float(value[name][0]), np.concatenate([chunk[name] for chunk in chunks]))
        for name in value
    }
    far = int(counts_K[distance_K > 1].sum())
    return {**found, "off_by_more_than_one": wilson_estimate(far, int(counts_K.sum()))}
