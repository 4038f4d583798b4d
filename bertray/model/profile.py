"""Profile of rows: lengths, scripts, letters that a tokenizer can read, and labels, as a small record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

PROFILE_VERSION = 1
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class Reading:
    """Letters of a sample of rows, and those that a tokenizer cannot read; see `model.coverage`.

    Args:
        rows: sampled rows that hold a letter.
        rows_unread: of them, those with more than half of their letters unread.
        letters, letters_unread: of the sampled rows.
        latin_words: words in Latin script.
        latin_tokens: tokens that these words are cut into.
    """

    rows: int = 0
    rows_unread: int = 0
    letters: int = 0
    letters_unread: int = 0
    latin_words: int = 0
    latin_tokens: int = 0

    @property
    def unread(self) -> float:
        """Share of letters unread; 0 without letters."""
        return self.letters_unread / self.letters if self.letters else 0.0

    @property
    def mostly_unread(self) -> float:
        """Share of rows with more than half of their letters unread."""
        return self.rows_unread / self.rows if self.rows else 0.0

    @property
    def tokens_per_word(self) -> float:
        """Tokens of a word in Latin script; 0 without such words."""
        return self.latin_tokens / self.latin_words if self.latin_words else 0.0

    @classmethod
    def of_rows(cls, letters_R: np.ndarray, unread_R: np.ndarray, words_R: np.ndarray, tokens_R: np.ndarray) -> Reading:
        """Sums of counts by sampled row, int [R] each."""
        return cls(
            rows=int((letters_R > 0).sum()),
            rows_unread=int((2 * unread_R > letters_R).sum()),
            letters=int(letters_R.sum()),
            letters_unread=int(unread_R.sum()),
            latin_words=int(words_R.sum()),
            latin_tokens=int(tokens_R.sum()),
        )


def add_readings(readings: Iterable[Reading]) -> Reading:
    """Counts of several samples together."""
    names = Reading.__dataclass_fields__
    listed = list(readings)
    return Reading(**{name: sum(getattr(reading, name) for reading in listed) for name in names})


@dataclass(frozen=True)
class Profile:
    """Lengths, scripts and labels of some rows, as a model reads them.

    Args:
        rows: that it is of.
        predicted: predicted label -> share; empty where nothing is predicted (embeddings).
        truncated: share of rows of which the model does not see all.
        scripts: dominant script -> share.
        n_tokens: `p50` and other percentiles of the length in tokens, before truncation.
        reading: letters that the tokenizer can read, of a sample.
        given: given label -> share; empty without labels.
        mean_score: mean probability of the predicted label; None where nothing is predicted.
        version: of this record.
    """

    rows: int
    predicted: Mapping[str, float]
    truncated: float
    scripts: Mapping[str, float]
    n_tokens: Mapping[str, int]
    reading: Reading
    given: Mapping[str, float] = field(default_factory=dict)
    mean_score: float | None = None
    version: int = PROFILE_VERSION

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Raises TypeError or KeyError when fields are missing or unknown."""
        return cls(**{**data, "reading": Reading(**data["reading"])})


def percentiles_of(n_tokens_N: np.ndarray) -> dict[str, int]:
    """`n_tokens` of a profile, from the rows."""
    if not len(n_tokens_N):
        return {}
    values = np.percentile(n_tokens_N, PERCENTILES, method="inverted_cdf")
    return {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def percentiles_at_least(histogram: Sequence[int], bounds: Sequence[int]) -> dict[str, int]:
    """`n_tokens` of a profile, from a histogram: the lower end of the bin that each percentile falls into.

    Args:
        histogram: rows by bin; one more than bounds.
        bounds: upper ends of the bins; the last bin is open.
    """
    starts = [1, *(bound + 1 for bound in bounds)]
    return {f"p{percent}": starts[bin_of(percent, histogram)] for percent in PERCENTILES if any(histogram)}


def bin_of(percent: int, histogram: Sequence[int]) -> int:
    """The first bin of a histogram up to which so many per cent of its rows lie; there is a row."""
    total = sum(histogram)
    return next(n for n, rows in enumerate(accumulate(histogram)) if 100 * rows >= percent * total)


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Counts as shares of their sum, without what does not occur."""
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items() if count}
