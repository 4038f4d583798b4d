"""Profile of a night's scored rows: sums that add up over its parts; means, variances and shares follow from them.

Shape letters: H bins of a histogram, F folds, B buckets of hashed n-grams.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

NUM_BINS = 100  # of each histogram
NUM_FOLDS = 2  # halves of the texts, by their hash, so that copies of a text stand in one
MAX_REPEATED = 50  # texts whose copies are counted
MAX_GROUPS = 100  # values of a column that are counted apart
OTHER_GROUPS = "(other values)"


class Moments(NamedTuple):
    """Rows, sum and sum of squares of a statistic."""

    rows: int
    total: float
    squares: float

    @classmethod
    def of(cls, values_N: NDArray[Any]) -> Moments:
        """Moments of the values of some rows."""
        values_N = np.asarray(values_N, np.float64)
        return cls(len(values_N), float(values_N.sum()), float((values_N**2).sum()))

    @property
    def mean(self) -> float:
        return self.total / self.rows if self.rows else 0.0

    @property
    def variance(self) -> float:
        """Between rows, unbiased; 0 of fewer than two rows."""
        if self.rows < 2:
            return 0.0
        return max(self.squares - self.rows * self.mean**2, 0.0) / (self.rows - 1)

    def plus(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        return Moments(self.rows + other.rows, self.total + other.total, self.squares + other.squares)


class GroupProfile(BaseModel):
    """Rows of one value of a column.

    Args:
        labels: predicted label -> rows.
        probabilities: label -> sum of its probability.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    labels: dict[str, int]
    probabilities: dict[str, float]

    def __add__(self, other: GroupProfile) -> GroupProfile:
        return GroupProfile(
            rows=self.rows + other.rows,
            labels=_sums(self.labels, other.labels),
            probabilities=_sums(self.probabilities, other.probabilities),
        )


class NightProfile(BaseModel):
    """Statistics of scored rows; those of two parts add up.

    Args:
        rows: that it is of.
        moments: of each statistic; those of n-grams are of a sample of the rows.
        histograms: rows in NUM_BINS bins of a statistic, packed int64 [H].
        ngrams: sums of the n-gram frequencies of sampled rows by fold, packed float32 [F, B]; empty: none.
        ngram_rows: sampled rows of each fold.
        repeated: text hash -> rows of texts that stand in several.
        groups: column -> value -> rows and labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int = 0
    moments: dict[str, Moments] = {}
    histograms: dict[str, str] = {}
    ngrams: str = ""
    ngram_rows: tuple[int, int] = (0, 0)
    repeated: dict[str, int] = {}
    groups: dict[str, dict[str, GroupProfile]] = {}

    def __add__(self, other: NightProfile) -> NightProfile:
        first, second = self.ngram_rows, other.ngram_rows
        return NightProfile.model_construct(  # of values that were checked
            rows=self.rows + other.rows,
            moments=_joined(self.moments, other.moments, Moments.plus),
            histograms=_joined(self.histograms, other.histograms, _packed_sum),
            ngrams=_packed_sum(self.ngrams, other.ngrams),
            ngram_rows=(first[0] + second[0], first[1] + second[1]),
            repeated=most_frequent(_sums(self.repeated, other.repeated)),
            groups=_joined(self.groups, other.groups, _group_sums),
        )

    def histogram(self, name: str) -> NDArray[np.int64] | None:
        """Rows by bin of a statistic, int64 [H]; None where it was not counted."""
        return unpacked(self.histograms[name]) if name in self.histograms else None

    @property
    def ngram_sums(self) -> NDArray[np.float64] | None:
        """Sums of n-gram frequencies, float64 [F, B]; None without sampled rows in each fold."""
        if not self.ngrams or 0 in self.ngram_rows:
            return None
        sums_FB: NDArray[np.float64] = unpacked(self.ngrams).reshape(NUM_FOLDS, -1).astype(np.float64)
        return sums_FB

    @property
    def top_share(self) -> float:
        """Share of rows with the most frequent text."""
        return max(self.repeated.values(), default=0) / self.rows if self.rows else 0.0


def packed(values: NDArray[Any]) -> str:
    """An array as text: its type, then its bytes, compressed; sparse and small counts take little."""
    return f"{values.dtype.str}:{base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode()}"


def unpacked(text: str) -> NDArray[Any]:
    """The flat array of `packed`."""
    kind, _, content = text.partition(":")
    return np.frombuffer(zlib.decompress(base64.b64decode(content)), np.dtype(kind))


def most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """The MAX_REPEATED largest counts, in order of count, then of name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_REPEATED])


def bounded_groups(groups: Mapping[str, GroupProfile]) -> dict[str, GroupProfile]:
    """The largest groups, the rest of them as one."""
    if len(groups) <= MAX_GROUPS:
        return dict(groups)
    order = sorted((name for name in groups if name != OTHER_GROUPS), key=lambda name: (-groups[name].rows, name))
    kept = {name: groups[name] for name in order[: MAX_GROUPS - 1]}
    rest = [groups[name] for name in groups if name not in kept]
    return {**kept, OTHER_GROUPS: sum(rest[1:], rest[0])}


def _group_sums(one: dict[str, GroupProfile], other: dict[str, GroupProfile]) -> dict[str, GroupProfile]:
    return bounded_groups(_joined(one, other, GroupProfile.__add__))


def _packed_sum(one: str, other: str) -> str:
    return packed(unpacked(one) + unpacked(other)) if one and other else one or other


def _sums(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return _joined(one, other, lambda a, b: a + b)


def _joined(one: Mapping[str, Any], other: Mapping[str, Any], add: Any) -> dict[str, Any]:
    """Both mappings, with the values of common keys added."""
    return {**one, **{key: add(one[key], value) if key in one else value for key, value in other.items()}}
