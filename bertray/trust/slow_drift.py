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
# Nights of the reference -> threshold that any of 30 independent statistics crosses within NUM_NIGHTS ordinary nights
# in 5 % of cases, by 4,000 simulations with normal nights; the reference's own errors count. Real statistics move
# together, so that real months cross it less often.
_THRESHOLDS = {10: 29.8, 15: 21.2, 20: 17.4, 31: 13.3}


def threshold(num_nights: int) -> float:
    """Threshold of the cumulative sums for a reference of so many nights, interpolated."""
    return float(np.interp(num_nights, list(_THRESHOLDS), list(_THRESHOLDS.values())))


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
    for at in np.flatnonzero(sums_S > threshold(reference.num_nights)):
        name, usual = reference.names[at], float(reference.usual_S[at])
        last = [(night, reference.tonight_of(night)[at]) for night in seen[-NUM_RECENT:]]
        means = [moments.mean for night, moments in last if moments.rows and reference.tells(name, night.rows)]
        recent = float(np.mean(means)) if means else usual
        if abs(recent - usual) > floor_of(name):
            low, high = float(reference.mean_KS[:, at].min()), float(reference.mean_KS[:, at].max())
            found.append(Shift("slow", name, recent, usual, low, high, None, is_alarm=True))
    return found
