"""Drift: a night against earlier accepted nights, by how much these differ among themselves.

Rows of one night are more alike than rows of two, so a test that takes rows as independent alarms on ordinary nights;
the more rows, the more often. Here the variation between nights is estimated and counts.

Shape letters: K nights of the reference, S statistics, H bins of a histogram, F folds, B buckets of hashed n-grams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bertray.outputs.night_profile import Moments, NightProfile
from bertray.reviews.text_statistics import (
    CHARACTERS_OF,
    LINKS,
    LOG_LENGTH,
    MOSTLY_UNSEEN,
    SHORT,
    TEMPLATED,
    UNSEEN_TRIGRAMS,
    UNSEEN_WORDS,
)
from bertray.scoring.profiled import CONFIDENCE, LOW_CONFIDENCE, PREDICTED_OF, PROBABILITY_OF
from bertray.trust.nights import FOREIGN, SHARE_OF, Night, column_values, depends_on_text, main_scripts

MIN_NIGHTS = 10  # of a reference
MAX_NIGHTS = 31
ERROR_OF_MEANS = 0.005  # false alarms a night, of all statistics together
ERROR_OF_REST = 0.0025  # of the distributions, and of the n-grams
RANGE = 1.25  # times the largest distance of a night of the reference from their median
COPIES = 0.01  # share of rows with one text
COPIES_FACTOR = 3.0  # times the largest such share in the reference
MIN_COPIES = 5  # two people write the same now and then, and of a hundred rows two are 2 %
# A shift below a third of these is no alarm, however certain it is.
_FLOORS = {
    **dict.fromkeys([CONFIDENCE, UNSEEN_TRIGRAMS, UNSEEN_WORDS, MOSTLY_UNSEEN, LINKS, TEMPLATED], 0.02),
    **dict.fromkeys([LOW_CONFIDENCE, SHORT], 0.03),
    LOG_LENGTH: 0.10,
    FOREIGN: 0.01,
}
_FLOORS_OF = {PREDICTED_OF: 0.03, PROBABILITY_OF: 0.03, SHARE_OF: 0.03, CHARACTERS_OF: 0.01}

_NONE = Moments(0, 0.0, 0.0)
_ROWS_OF_PART = 4096  # among which repeated patterns are counted
_SMOOTH = 0.01  # of the mean frequency of a bucket, which a ratio of two adds to both

Kind = Literal["mean", "distribution", "texts", "copies", "slow"]
_READ_FIRST: tuple[Kind, ...] = ("copies", "mean", "slow", "distribution", "texts")
State = Literal["no_profile", "too_few_rows", "no_baseline", "ordinary", "alarm"]


@dataclass(frozen=True)
class Shift:
    """A statistic tonight beside the nights of the reference.

    Args:
        kind: `mean` of a statistic, its whole `distribution`, n-grams of `texts`, `copies` of one text, or a `slow`
            movement of a mean over several nights.
        name: of the statistic.
        tonight, usual: its value, and the mean of the reference.
        low, high: smallest and largest value among the nights of the reference.
        p: of such a value on an ordinary night, before the correction for many statistics; None of copies.
        is_alarm: certain, large enough, and outside the range.
    """

    kind: Kind
    name: str
    tonight: float
    usual: float
    low: float
    high: float
    p: float | None
    is_alarm: bool

    @property
    def size(self) -> float:
        """Distance from the usual value."""
        return self.tonight - self.usual


@dataclass(frozen=True)
class Drift:
    """Verdict on one night.

    Args:
        shifts: every statistic, alarms first, then by p.
        reference: titles of the nights that it was compared with.
        texts_alone: these are of another model, so that only texts were compared.
    """

    state: State
    shifts: tuple[Shift, ...] = ()
    reference: tuple[str, ...] = ()
    texts_alone: bool = False

    @property
    def alarms(self) -> tuple[Shift, ...]:
        return tuple(shift for shift in self.shifts if shift.is_alarm)


def floor_of(name: str) -> float:
    """Shift of a mean that people would act on."""
    return _FLOORS.get(name) or next((size for start, size in _FLOORS_OF.items() if name.startswith(start)), 0.02)


class Reference:
    """Earlier accepted nights, and what is ordinary by them.

    Args:
        nights: K >= MIN_NIGHTS, each with a profile.
        of_texts: compare only what does not depend on the model.
    """

    def __init__(self, nights: Sequence[Night], *, of_texts: bool = False) -> None:
        self.nights = tuple(nights)
        self.of_texts = of_texts
        self.scripts = main_scripts(nights)
        self._columns = column_values(nights)
        found = [night.moments(self.scripts, self._columns, of_texts=of_texts, in_reference=True) for night in nights]
        self.names = [name for name in found[0] if all(moments.get(name, _NONE).rows for moments in found)]
        self.rows_KS = np.array([[moments[name].rows for name in self.names] for moments in found], np.float64)
        self.mean_KS = np.array([[moments[name].mean for name in self.names] for moments in found])
        variance_KS = np.array([[moments[name].variance for name in self.names] for moments in found])
        self.num_nights = len(self.nights)
        self.total_S = self.rows_KS.sum(axis=0)
        self.usual_S = (self.rows_KS * self.mean_KS).sum(axis=0) / self.total_S
        self.within_S = (self.rows_KS * variance_KS).sum(axis=0) / self.total_S
        self.between_S = self._between()

    def _between(self) -> NDArray[np.float64]:
        """Variance of nights beyond sampling, by moments (one-way analysis of variance, unequal sizes)."""
        square_S = (self.rows_KS * (self.mean_KS - self.usual_S) ** 2).sum(axis=0) / (self.num_nights - 1)
        size_S = (self.total_S - (self.rows_KS**2).sum(axis=0) / self.total_S) / (self.num_nights - 1)
        between_S: NDArray[np.float64] = np.maximum((square_S - self.within_S) / size_S, 0.0)
        return between_S

    def known_values(self, column: str) -> tuple[str, ...]:
        """Values of a column that some night of the reference holds."""
        return tuple(self._columns[column].nights_of) if column in self._columns else ()

    def tonight_of(self, night: Night) -> list[Moments]:
        """Moments of a night in the order of `names`; without rows where it does not have one."""
        moments = night.moments(self.scripts, self._columns, of_texts=self.of_texts)
        return [moments.get(name, _NONE) for name in self.names]

    def deviations(self, night: Night, *, with_mean_error: bool = True) -> NDArray[np.float64]:
        """Distance of each mean from the usual one in standard errors, float64 [S]; 0 of what the night does not have.

        Args:
            with_mean_error: the error of the usual value counts, too.
        """
        tonight = self.tonight_of(night)
        rows_S = np.array([max(m.rows, 1) for m in tonight], np.float64)
        mean_S = np.array([m.mean for m in tonight])
        of_reference = (1 / self.num_nights, 1 / self.total_S) if with_mean_error else (0.0, 0.0)
        variance_S = self.between_S * (1 + of_reference[0]) + self.within_S * (1 / rows_S + of_reference[1])
        # One row more or less never counts by itself.
        deviations_S: NDArray[np.float64] = (mean_S - self.usual_S) / np.sqrt(variance_S + 1 / rows_S**2)
        return np.where([m.rows > 0 for m in tonight], deviations_S, 0.0)

    def mean_shifts(self, night: Night) -> list[Shift]:
        """Means of all statistics: a t-test with the variance between nights, beyond a floor and outside the range."""
        p_S = 2 * student.sf(np.abs(self.deviations(night)), self.num_nights - 1)
        median_S = np.median(self.mean_KS, axis=0)
        reach_S = np.abs(self.mean_KS - median_S).max(axis=0)
        shifts = []
        for at, (name, moments) in enumerate(zip(self.names, self.tonight_of(night), strict=True)):
            if not moments.rows:
                continue
            certain = p_S[at] < ERROR_OF_MEANS / len(self.names)
            large = abs(moments.mean - self.usual_S[at]) > floor_of(name) / 3
            outside = abs(moments.mean - median_S[at]) > RANGE * reach_S[at]
            low, high = float(self.mean_KS[:, at].min()), float(self.mean_KS[:, at].max())
            is_alarm = bool(certain and large and outside and self.tells(name, night.rows))
            shifts.append(
                Shift("mean", name, moments.mean, float(self.usual_S[at]), low, high, float(p_S[at]), is_alarm)
            )
        return shifts

    def tells(self, name: str, rows: int) -> bool:
        """Whether a statistic means the same on a night of so many rows: of more texts, more repeat a pattern."""
        usual = sum(min(night.rows, _ROWS_OF_PART) for night in self.nights) / self.num_nights
        return name != TEMPLATED or min(rows, _ROWS_OF_PART) <= 1.25 * usual

    # --- whole distributions

    @cached_property
    def _profiles(self) -> list[NightProfile]:
        return [night.profile for night in self.nights if night.profile is not None]

    @cached_property
    def _distributions(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """By histogram, rows of each night by bin, [K, H], and the distance of each night from the others, [K]."""
        found = {}
        for name in self._profiles[0].histograms:
            of_nights = [profile.histogram(name) for profile in self._profiles]
            if (self.of_texts and not depends_on_text(name)) or any(counts is None for counts in of_nights):
                continue
            counts_KH = np.array(of_nights, np.float64)
            total_H = counts_KH.sum(axis=0)
            found[name] = counts_KH, np.array([_ks(of_one_H, total_H - of_one_H) for of_one_H in counts_KH])
        return found

    def distribution_shifts(self, night: Night) -> list[Shift]:
        """Kolmogorov-Smirnov distance of each histogram, beside that of each night of the reference from the others."""
        assert night.profile is not None
        shifts = []
        for name, (counts_KH, ordinary_K) in self._distributions.items():
            tonight = night.profile.histogram(name)
            if tonight is None or not tonight.sum():
                continue
            distance = _ks(tonight, counts_KH.sum(axis=0)) * self._shrink(tonight.sum(), counts_KH.sum(axis=1))
            log_K = np.log(ordinary_K + 1e-9)
            p = _upper_tail(math.log(distance + 1e-9), log_K, least=0.05)
            usual, low, high = math.exp(log_K.mean()), float(ordinary_K.min()), float(ordinary_K.max())
            is_alarm = p < ERROR_OF_REST / len(self._distributions)
            shifts.append(Shift("distribution", name, distance, usual, low, high, p, is_alarm))
        return shifts

    @staticmethod
    def _shrink(rows: float, rows_K: NDArray[np.float64]) -> float:
        """Factor on a distance of a night smaller than those of the reference, which sampling alone makes larger."""
        usual = len(rows_K) / (1 / np.maximum(rows_K, 1)).sum()
        return math.sqrt(min(rows / usual, 1.0))

    # --- n-grams

    @cached_property
    def _ngrams(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
        """Sampled rows of each night, [K], frequencies of all, [F, B], divergence of each from the others, [K]."""
        found = [_means(profile) for profile in self._profiles]
        if any(means is None for means in found):
            return None
        rows_K = np.array([sum(profile.ngram_rows) for profile in self._profiles], np.float64)
        means_KFB = np.array(found)
        total_FB = (means_KFB * rows_K[:, None, None]).sum(axis=0)
        ordinary_K = [
            divergence(means_FB, (total_FB - rows * means_FB) / (rows_K.sum() - rows))
            for means_FB, rows in zip(means_KFB, rows_K, strict=True)
        ]
        return rows_K, total_FB / rows_K.sum(), np.array(ordinary_K)

    def text_shift(self, night: Night) -> Shift | None:
        """Cross-fitted divergence of hashed n-gram frequencies; None where a night has none.

        Log ratios are learned on one half of the texts of both sides and applied to the other, so that noise adds
        nothing on average: a domain classifier (naive Bayes) reduced to sums.
        """
        assert night.profile is not None
        tonight_FB = _means(night.profile)
        if tonight_FB is None or self._ngrams is None:
            return None
        rows_K, usual_FB, ordinary_K = self._ngrams
        shrink = self._shrink(sum(night.profile.ngram_rows), rows_K) ** 2
        value = divergence(tonight_FB, usual_FB) * shrink
        p = _upper_tail(value, ordinary_K, least=1e-6)
        low, high = float(ordinary_K.min()), float(ordinary_K.max())
        return Shift("texts", "ngrams", value, float(ordinary_K.mean()), low, high, p, p < ERROR_OF_REST)

    def ngram_log_ratios(self, night: Night) -> NDArray[np.float64] | None:
        """Log of how much more frequent the n-grams of each bucket are in a night than in the reference, [B]."""
        assert night.profile is not None
        tonight_FB = _means(night.profile)
        if tonight_FB is None or self._ngrams is None:
            return None
        smooth = _SMOOTH / tonight_FB.shape[1]
        ratios_B: NDArray[np.float64] = np.log(
            (tonight_FB.mean(axis=0) + smooth) / (self._ngrams[1].mean(axis=0) + smooth)
        )
        return ratios_B

    # --- copies

    def copies_shift(self, night: Night) -> Shift:
        """Share of the rows that hold the most frequent text."""
        assert night.profile is not None
        of_nights = [profile.top_share for profile in self._profiles]
        value, most = night.profile.top_share, max(of_nights)
        many = round(value * night.rows) >= MIN_COPIES
        is_alarm = many and value > max(COPIES, COPIES_FACTOR * most)
        usual = sum(of_nights) / len(of_nights)
        return Shift("copies", "most_frequent_text", value, usual, min(of_nights), most, None, is_alarm)

    def judge(self, night: Night) -> list[Shift]:
        """Every shift of a night, alarms first, then by p."""
        texts = self.text_shift(night)
        shifts = [*self.mean_shifts(night), *self.distribution_shifts(night), *([texts] if texts else [])]
        shifts.append(self.copies_shift(night))
        return sorted(shifts, key=_importance)


def _importance(shift: Shift) -> tuple[bool, int, float]:
    """Order of shifts: alarms first, those that people read most easily before distributions and n-grams."""
    return not shift.is_alarm, _READ_FIRST.index(shift.kind), 1.0 if shift.p is None else shift.p


def divergence(one_FB: NDArray[np.float64], other_FB: NDArray[np.float64]) -> float:
    """Cross-fitted Jeffreys divergence of two sets of frequencies, float64 [F, B]; 0 on average of equal ones."""
    total = 0.0
    for fold in range(len(one_FB)):
        smooth = _SMOOTH / one_FB.shape[1]
        ratio_B = np.log((one_FB[fold] + smooth) / (other_FB[fold] + smooth))
        total += float(((one_FB[1 - fold] - other_FB[1 - fold]) * ratio_B).sum())
    return total / len(one_FB)


def _means(profile: NightProfile) -> NDArray[np.float64] | None:
    """Mean n-gram frequencies of each fold, float64 [F, B]."""
    sums_FB = profile.ngram_sums
    return None if sums_FB is None else sums_FB / np.array(profile.ngram_rows)[:, None]


def _ks(one_H: NDArray[Any], other_H: NDArray[Any]) -> float:
    """Largest difference of two cumulative distributions; 0 where one has no row."""
    if not one_H.sum() or not other_H.sum():
        return 0.0
    return float(np.abs(np.cumsum(one_H) / one_H.sum() - np.cumsum(other_H) / other_H.sum()).max())


def _upper_tail(value: float, ordinary: NDArray[np.float64], *, least: float) -> float:
    """Chance of such a value or a larger one, by a t distribution with the mean and spread of ordinary ones.

    Args:
        least: standard deviation that is assumed at least.
    """
    spread = max(float(ordinary.std(ddof=1)), least) * math.sqrt(1 + 1 / len(ordinary))
    return float(student.sf((value - ordinary.mean()) / spread, len(ordinary) - 1))
