"""Review threshold: score below which a person should look at a row, for a precision above it or a share below it.

Shape letters: N held-out rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from bertray.evaluation.intervals import Estimate, wilson_estimate
from bertray.wording import counted

ERROR = 0.05  # of the promise that the rows above a threshold are as precise as asked for
NUM_STEPS = 20  # thresholds that are tried: so many steps from the surest rows to all of them
SPARE = 3  # the steps begin with so many times the rows that would do without an error, or a quarter of all


@dataclass(frozen=True)
class ReviewThreshold:
    """A threshold for `needs_review`, and what held-out rows say of it.

    Args:
        wanted: key of `review` -> its value.
        rows: held-out rows.
        threshold: rows with a lower score need review; None where these rows do not allow for one.
        kept: rows at or above it.
        precision: share of them whose label is right, with its 95 % interval; None without a threshold.
        low: share that is right at least, one-sided, with 95 % confidence.
        needed: rows that the promise takes at least.
    """

    wanted: Mapping[str, float]
    rows: int
    threshold: float | None
    kept: int = 0
    precision: Estimate | None = None
    low: float | None = None
    needed: int = 0

    @property
    def sentence(self) -> str:
        """The threshold and its evidence in plain words."""
        ((name, value),) = self.wanted.items()
        asked = f"`review.{name}={value:g}`"
        if self.threshold is None or self.precision is None or self.low is None:
            few = f"; it takes {self.needed:,} rows at least" if self.rows < self.needed else ""
            few = few or ("; their scores are all the same" if name == "share" else "")
            return (
                f"{asked} cannot be had with {counted(self.rows, 'validation row')}{few}. The bundle has no threshold "
                "for `needs_review`."
            )
        below = wilson_estimate(self.rows - self.kept, self.rows)
        return (
            f"{asked}: a score below {self.threshold:.3f} needs review, as {100 * below.value:.1f} % of "
            f"{counted(self.rows, 'validation row')} have (95 % interval {100 * below.low:.1f} to "
            f"{100 * below.high:.1f} %). Of the others {100 * self.precision.value:.1f} % are right, "
            f"{100 * self.low:.1f} % at least with 95 % confidence."
        )

    def to_json(self) -> dict[str, Any]:
        """Evidence for metrics.json."""
        return {**asdict(self), "wanted": dict(self.wanted), "sentence": self.sentence}


def threshold_for_precision(score_N: np.ndarray, right_N: np.ndarray, precision: float) -> ReviewThreshold:
    """The lowest threshold above which labels are right in at least a share of cases, with 95 % confidence.

    Thresholds are tested one after the other, from the surest rows to all of them, each by Clopper and Pearson's lower
    bound; the last before the first that fails is taken. In that order no correction for their number is needed.

    Args:
        score_N: probability of the predicted label of held-out rows.
        right_N: bool, whether it is the given one.
        precision: the share, in (0, 1).

    Source: Angelopoulos et al. 2021, "Learn then Test", section 2.3 (fixed sequence testing; arXiv:2110.01052).
    """
    rows = len(score_N)
    needed = int(np.ceil(np.log(ERROR) / np.log(precision)))
    wanted = {"precision": precision}
    order = np.argsort(-_as_written(score_N), kind="stable")
    scores, hits = _as_written(score_N)[order], np.cumsum(right_N[order])
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)[:rows]) + 1  # equal scores are on one side
    first = max(needed, min(SPARE * needed, rows // 4))
    found = None
    for least in np.unique(np.linspace(first, rows, NUM_STEPS + 1).round().astype(int)) if rows >= needed else []:
        kept = int(ends[np.searchsorted(ends, least)])
        low = _lower_bound(int(hits[kept - 1]), kept)
        if low < precision:
            break
        found = kept, low
    if found is None:
        return ReviewThreshold(wanted, rows, None, needed=needed)
    kept, low = found
    return ReviewThreshold(
        wanted, rows, _between(scores, kept), kept, wilson_estimate(int(hits[kept - 1]), kept), low, needed
    )


def threshold_for_share(score_N: np.ndarray, right_N: np.ndarray, share: float) -> ReviewThreshold:
    """The threshold below which a share of the rows lies.

    Args:
        score_N, right_N: as for `threshold_for_precision`.
        share: in (0, 1); it takes as many rows as make one of them.
    """
    rows = len(score_N)
    needed = int(np.ceil(1 / share))
    none = ReviewThreshold({"share": share}, rows, None, needed=needed)
    if rows < needed:
        return none
    order = np.argsort(-_as_written(score_N), kind="stable")
    scores = _as_written(score_N)[order]
    ends = np.flatnonzero(np.diff(scores)) + 1  # equal scores are on one side
    if not len(ends):
        return none
    kept = int(ends[np.abs(ends - (rows - round(share * rows))).argmin()])
    hits = int(right_N[order][:kept].sum())
    return ReviewThreshold(
        {"share": share},
        rows,
        _between(scores, kept),
        kept,
        wilson_estimate(hits, kept),
        _lower_bound(hits, kept),
        needed,
    )


def _as_written(score_N: np.ndarray) -> np.ndarray:
    """Scores in the precision of scored rows."""
    rounded_N: np.ndarray = score_N.astype(np.float32).astype(np.float64)
    return rounded_N


def _between(scores: np.ndarray, kept: int) -> float:
    """A threshold between the last row that is kept and the next; below all where every row is kept."""
    last = float(scores[kept - 1])
    return (last + float(scores[kept])) / 2 if kept < len(scores) else last


def _lower_bound(hits: int, rows: int) -> float:
    """Clopper and Pearson's one-sided lower bound of a share."""
    return float(beta.ppf(ERROR, hits, rows - hits + 1)) if hits else 0.0
