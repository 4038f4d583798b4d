"""Slow drift: cumulative sums of each mean over the nights since the reference (CUSUM), which a single night hides.

Shape letters: S statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bertray.trust.drift import Reference, Shift, floor_of
from bertray.trust.nights import Night

NUM_NIGHTS = 27  # that are looked back over; the threshold holds for so many
SLACK = 0.5  # standard errors a night that add nothing
NUM_RECENT = 5  # nights whose average has to be beyond the floor
LARGEST = 4.0  # standard errors that one night counts as at most
# Nights of the reference -> threshold that any of so many independent statistics crosses within NUM_NIGHTS ordinary
# nights in 5 % of cases, by 2,000,000 simulated statistics with normal nights; the reference's own errors count. Real
# statistics move together, so that real months cross it less often.
_STATISTICS = (10, 30, 100, 400)
_THRESHOLDS = {
    10: (23.9, 29.8, 36.2, 43.8),
    15: (17.1, 21.3, 25.9, 30.8),
    20: (14.0, 17.3, 21.1, 25.1),
    31: (11.1, 13.5, 16.1, 19.2),
}


def threshold(num_nights: int, num_statistics: int) -> float:
    """Threshold of the cumulative sums for a reference of so many nights and so many statistics, interpolated.

    It grows with the logarithm of their number, as there are more chances of a false alarm.
    """
    of_nights = [np.interp(np.log(num_statistics), np.log(_STATISTICS), of_S) for of_S in _THRESHOLDS.values()]
    return float(np.interp(num_nights, list(_THRESHOLDS), of_nights))


def cumulative_sums(deviations_TS: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of deviations beyond the slack, upwards and downwards, after the last of T nights, float64 [S] each.

    Source: Page 1954, "Continuous inspection schemes" (Biometrika 41).
    """
    up_S = down_S = np.zeros(deviations_TS.shape[1])
    for deviations_S in np.clip(deviations_TS, -LARGEST, LARGEST):
        up_S = np.maximum(0.0, up_S + deviations_S - SLACK)
        down_S = np.maximum(0.0, down_S - deviations_S - SLACK)
    return up_S, down_S


def slow_shifts(reference: Reference, nights: Sequence[Night]) -> list[Shift]:
    """Means that have moved away over several nights.

    Args:
        reference: that each night is compared with.
        nights: since the reference, oldest first, tonight last.

    Returns:
        Only those above the threshold whose average of the last five nights is beyond the whole floor: seasons move
        every mean a little.
    """
    seen = [night for night in nights if night.is_comparable][-NUM_NIGHTS:]
    if len(seen) < 2:
        return []
    tells_TS = [[reference.tells(name, night.rows) for name in reference.names] for night in seen]
    deviations_TS = np.stack([reference.deviations(night, with_mean_error=False) for night in seen]) * tells_TS
    sums_S = np.maximum(*cumulative_sums(deviations_TS))
    found = []
    for at in np.flatnonzero(sums_S > threshold(reference.num_nights, len(reference.names))):
        name, usual = reference.names[at], float(reference.usual_S[at])
        last = [(night, reference.tonight_of(night)[at]) for night in seen[-NUM_RECENT:]]
        means = [moments.mean for night, moments in last if moments.rows and reference.tells(name, night.rows)]
        recent = float(np.mean(means)) if means else usual
        if abs(recent - usual) > floor_of(name):
            low, high = float(reference.mean_KS[:, at].min()), float(reference.mean_KS[:, at].max())
            found.append(Shift("slow", name, recent, usual, low, high, None, is_alarm=True))
    return found
