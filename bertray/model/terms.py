"""TF-IDF of whole texts: the terms of a corpus, learned by scikit-learn, and a transform that needs only NumPy.

Legend: N texts, F terms, U units (words or characters) end to end, A distinct units, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bertray.reviews.writing_system import UNSPACED_SCRIPTS, dominant_script

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Unit: TypeAlias = Literal["word", "character"]
Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str]

MAX_TERMS = 50_000
SCRIPT_SAMPLE_ROWS = 2000
ROWS_FOR_MIN_DF = 1000  # from here on a term must stand in two texts
_WORD = r"\b\w+\b"
_LONGEST: dict[Unit, int] = {"word": 2, "character": 3}  # units of a term
_ANALYZERS: dict[Unit, dict[str, Any]] = {"word": {"token_pattern": _WORD}, "character": {"analyzer": "char_wb"}}


class NoTerms(ValueError):
    """Texts without a single term."""


class Terms:
    """Word 1-2-grams, or character 1-3-grams within words, with their inverse document frequencies.

    A text is lowercased; its value of a term is (1 + ln count) * idf, and the values of a text have length 1: what
    scikit-learn's `TfidfVectorizer` gives with `sublinear_tf=True`, to rounding.

    Args:
        unit: what terms consist of. Characters: as scikit-learn's `char_wb`, with a space before and after each word.
        terms: F of them, words separated by a space.
        idf_F: float32.
    """

    def __init__(self, unit: Unit, terms: Sequence[str], idf_F: NDArray[np.float32]) -> None:
        self.unit = unit
        self.terms = tuple(terms)
        self.idf_F = np.asarray(idf_F, np.float32)

    @classmethod
    def fit(cls, texts: Texts) -> Terms:
        """The terms of some texts: characters where most are Han, Kana or Hangul, else words; at most MAX_TERMS.

        Raises:
            NoTerms: there is none.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        unit = unit_of(texts)
        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            min_df=2 if len(texts) >= ROWS_FOR_MIN_DF else 1,
            max_features=MAX_TERMS,
            ngram_range=(1, _LONGEST[unit]),
            dtype=np.float32,
            **_ANALYZERS[unit],
        )
        try:
            vectorizer.fit(listed(texts))
        except ValueError as error:  # scikit-learn's word for it
            raise NoTerms("the texts have no term") from error
        return cls(unit, vectorizer.get_feature_names_out().tolist(), vectorizer.idf_)

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def in_words(self) -> str:
        """Kind of the terms, for reports."""
        return terms_in_words(self.unit)

    def features(self, texts: Iterable[str]) -> csr_matrix:
        """Values of the terms in some texts, sparse float32 [N, F]; a row depends on no other."""
        from scipy.sparse import csr_matrix

        units_U, lens_N, joined_U = self._words(texts) if self.unit == "word" else self._characters(texts)
        rows_U = np.repeat(np.arange(len(lens_N)), lens_N)
        width = max(len(self), 1)
        found = [rows_U[starts] * width + columns for starts, columns in self._occurrences(units_U, joined_U)]
        cells, counts = np.unique(np.concatenate([np.empty(0, np.int64), *found]), return_counts=True)
        rows, columns = cells // width, cells % width
        values = (1 + np.log(counts)) * self.idf_F[columns]
        lengths_N = np.sqrt(np.bincount(rows, values**2, minlength=len(lens_N)))
        starts = np.searchsorted(rows, np.arange(len(lens_N) + 1))
        scaled = (values / lengths_N[rows]).astype(np.float32)
        return csr_matrix((scaled, columns, starts), shape=(len(lens_N), len(self)))

    # --- texts as numbers of units ----------------------------------------------------------------------------------

    @cached_property
    def _unit_ids(self) -> dict[str, int]:
        """Number of every word or character that stands in a term."""
        parts = chain.from_iterable(self._parts(term) for term in self.terms)
        return {unit: number for number, unit in enumerate(dict.fromkeys(parts))}

    @cached_property
    def _tables(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For terms of 1, 2, ... units: their codes, ascending, and the column of each."""
        codes: list[list[int]] = [[] for _ in range(_LONGEST[self.unit])]
        columns: list[list[int]] = [[] for _ in codes]
        for column, term in enumerate(self.terms):
            code, parts = 0, self._parts(term)
            for part in parts:
                code = code * len(self._unit_ids) + self._unit_ids[part]
            codes[len(parts) - 1].append(code)
            columns[len(parts) - 1].append(column)
        tables = [(np.array(of_n, np.int64), np.array(of, np.int64)) for of_n, of in zip(codes, columns, strict=True)]
        return [(of_n[order], of[order]) for of_n, of in tables for order in [np.argsort(of_n)]]

    def _parts(self, term: str) -> list[str]:
        return term.split(" ") if self.unit == "word" else list(term)

    @cached_property
    def _character_ids(self) -> NDArray[np.int64]:
        """Number of the character with each code point, int64 [1 + highest]; -1: in no term."""
        points = np.array([ord(character) for character in self._unit_ids], np.int64)
        ids = np.full(points.max(initial=ord(" ")) + 2, -1, np.int64)
        ids[points] = np.arange(len(points))
        return ids

    def _words(self, texts: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Units [U], how many each text has [N], and whether a unit follows the one before it in a text [U]."""
        words = [_find_words(text.lower()) for text in texts]
        lens_N = np.fromiter(map(len, words), np.int64, len(words))
        found = map(self._unit_ids.get, chain.from_iterable(words), repeat(-1))
        joined_U = np.ones(int(lens_N.sum()), bool)
        joined_U[(np.cumsum(lens_N) - lens_N)[lens_N > 0]] = False
        return np.fromiter(found, np.int64, len(joined_U)), lens_N, joined_U

    def _characters(self, texts: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """As `_words`; each word has a space of its own on either side, over which no term reaches."""
        framed = [f" {'  '.join(words)} " if words else "" for words in (text.lower().split() for text in texts)]
        points_U = np.frombuffer("".join(framed).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        lens_N = np.fromiter(map(len, framed), np.int64, len(framed))
        space_U = points_U == ord(" ")
        joined_U = np.ones(len(points_U), bool)
        joined_U[1:] = ~(space_U[1:] & space_U[:-1])  # texts, too, end and begin with one
        return self._character_ids[np.minimum(points_U, len(self._character_ids) - 1)], lens_N, joined_U

    def _occurrences(
        self, units_U: NDArray[np.int64], joined_U: NDArray[np.bool_]
    ) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Starts of the terms of 1, 2, ... units, and their columns."""
        codes, whole = units_U, units_U >= 0
        for num, (known, columns) in enumerate(self._tables, start=1):
            if num > 1:
                last = units_U[num - 1 :]
                codes = codes[: len(last)] * len(self._unit_ids) + last
                whole = whole[: len(last)] & (last >= 0) & joined_U[num - 1 :]
            starts = np.flatnonzero(whole)
            if not len(known):
                continue
            at = np.minimum(np.searchsorted(known, codes[starts]), len(known) - 1)
            is_term = known[at] == codes[starts]
            yield starts[is_term], columns[at[is_term]]


_find_words = re.compile(_WORD).findall


def unit_of(texts: Texts) -> Unit:
    """Unit of the terms of some texts: `character` where most are in a script without spaces between words."""
    step = max(1, len(texts) // SCRIPT_SAMPLE_ROWS)
    sample = pa.array([str(texts[i]) for i in range(0, len(texts), step)], pa.string())
    found = pc.is_in(dominant_script(sample), pa.array(UNSPACED_SCRIPTS))
    is_unspaced = bool(len(sample)) and 2 * (pc.sum(found).as_py() or 0) > len(sample)
    return "character" if is_unspaced else "word"


def terms_in_words(unit: Unit) -> str:
    """Kind of terms, for reports: `words 1-2` or `characters 1-3`."""
    return f"{unit}s 1-{_LONGEST[unit]}"


def listed(texts: Texts) -> list[str]:
    """The texts as Python strings."""
    return texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else list(texts)
