"""Vectors of characters, tokens and words: the tokens behind each occurrence, and sums of their contextual vectors.

Legend: N reviews, T tokens end to end, K tokens of the texts themselves, O occurrences, U distinct units, D hidden.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray import schema as s
from bertray.io.tables import one_chunk
from bertray.model.pretrained.weights import input_embeddings, load_encoder
from bertray.model.tokenization import ReviewTokenizer, TokenPlaces, ranges
from bertray.reviews.writing_system import UNSPACED_LETTERS
from bertray.settings import VocabularyUnit

_TEXTS_PER_CALL = 512
_OCCURRENCES_AT_ONCE = 16_384  # whose vectors are held in float64
_WORD = re.compile(f"(?=\\w)[{UNSPACED_LETTERS}]|[^\\W{UNSPACED_LETTERS}]+")


def encode_with_units(tokenizer: ReviewTokenizer, texts: pa.Array, unit: VocabularyUnit) -> pa.Table:
    """Tokenize reviews as `ReviewTokenizer.encode` does, and find the units in what the model reads of them.

    A unit that is not read whole, at the end of a review that is cut, is no occurrence. White space is no character.
    Where the tokenizer reads capital letters as small ones, characters and words are small.

    Args:
        tokenizer: reads a text once, not in windows.
        texts: string [N] without nulls.
        unit: a word is a run of letters, digits and underscores; in scripts without spaces each letter is one.

    Returns:
        The columns of `encode`, then `units`, `unit_starts` and `unit_lens`.
    """
    folds_case, words = tokenizer.folds_case, tokenizer.words
    parts = []
    for start in range(0, max(len(texts), 1), _TEXTS_PER_CALL):
        some = texts.slice(start, _TEXTS_PER_CALL).to_pylist()
        tokens, places = tokenizer.encode_with_places(some)
        ids = one_chunk(tokens[s.INPUT_IDS])
        found = _occurrences(some, ids, places, unit, words, folds_case)
        parts.append(_with_columns(tokens, *found))
    return pa.concat_tables(parts)


def _occurrences(
    texts: list[str], ids: pa.ListArray, places: TokenPlaces, unit: VocabularyUnit, words: pa.Array, folds_case: bool
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """Units of the occurrences, string [O]; the first token of each and the one after its last, among all of ids."""
    if unit == "token":
        at_K = np.flatnonzero(places.side_T == 0)
        return words.take(ids.flatten().take(pa.array(at_K))), at_K, at_K + 1
    lens_N = ids.value_lengths().to_numpy(zero_copy_only=False)
    text_starts_N = np.cumsum([0, *(len(text) + 1 for text in texts)])[: len(texts)]
    spans_T2 = places.spans_T2 + np.repeat(text_starts_N, lens_N)[:, None]
    at_K = np.flatnonzero((places.side_T == 0) & (spans_T2[:, 0] < spans_T2[:, 1]))
    begin_K, end_K = spans_T2[at_K].T
    joined = "\n".join(texts)  # a line feed is part of no unit
    spans = _characters(joined) if unit == "character" else [match.span() for match in _WORD.finditer(joined)]
    begin_O, end_O = np.array(spans, np.int64).reshape(-1, 2).T
    first_O = np.searchsorted(end_K, begin_O, "right")
    last_O = np.searchsorted(begin_K, end_O, "left") - 1
    inside = np.flatnonzero(first_O <= last_O)
    first_O, last_O, begin_O, end_O = first_O[inside], last_O[inside], begin_O[inside], end_O[inside]
    whole_O = (begin_K[first_O] <= begin_O) & (end_K[last_O] >= end_O)
    folded = str.lower if folds_case else str
    units = [
        folded(joined[begin:end]) for begin, end in zip(begin_O[whole_O].tolist(), end_O[whole_O].tolist(), strict=True)
    ]
    return pa.array(units, pa.string()), at_K[first_O[whole_O]], at_K[last_O[whole_O]] + 1


def _characters(text: str) -> list[tuple[int, int]]:
    """Spans of the characters but white space."""
    return [(at, at + 1) for at, character in enumerate(text) if not character.isspace()]


def _with_columns(
    tokens: pa.Table, units: pa.Array, first_O: NDArray[np.int64], after_O: NDArray[np.int64]
) -> pa.Table:
    """Tokenized reviews with the columns of their occurrences."""
    starts_N = one_chunk(tokens[s.INPUT_IDS]).offsets.to_numpy()
    offsets = pa.array(np.searchsorted(first_O, starts_N).astype(np.int32))
    rows_O = np.searchsorted(starts_N, first_O, "right") - 1
    numbers = {s.UNIT_STARTS: first_O - starts_N[rows_O], s.UNIT_LENS: after_O - first_O}
    tokens = tokens.append_column(s.UNITS, pa.ListArray.from_arrays(offsets, units))
    for name, numbers_O in numbers.items():
        tokens = tokens.append_column(name, pa.ListArray.from_arrays(offsets, pa.array(numbers_O, pa.int32())))
    return tokens


class UnitSums:
    """Counts of units and sums of the vectors of their occurrences; those of several parts add up.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self._number: dict[str, int] = {}  # of each unit, in the order of the first occurrences
        self._counts_U = np.zeros(0, np.int64)  # has room for more, as the sums have
        self._sums_UD = np.zeros((0, width))

    def add(self, units: list[str], counts_U: NDArray[np.int64], sums_UD: NDArray[np.float64]) -> None:
        """Add those of a part, in which each unit stands once."""
        numbers_U = np.array([self._number.setdefault(unit, len(self._number)) for unit in units], np.int64)
        if len(self._number) > len(self._counts_U):  # twice as many: units come a few at a time
            new = max(len(self._number), 2 * len(self._counts_U)) - len(self._counts_U)
            self._counts_U = np.concatenate([self._counts_U, np.zeros(new, np.int64)])
            self._sums_UD = np.concatenate([self._sums_UD, np.zeros((new, self._sums_UD.shape[1]))])
        self._counts_U[numbers_U] += counts_U
        self._sums_UD[numbers_U] += sums_UD

    def by_count(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
        """Units, the most frequent first, equal ones by code points; their counts and mean vectors, [U, D]."""
        units = sorted(self._number, key=lambda unit: (-self._counts_U[self._number[unit]], unit))
        order = np.array([self._number[unit] for unit in units], np.int64)
        counts_U = self._counts_U[order]
        return units, counts_U, (self._sums_UD[order] / counts_U[:, None]).astype(np.float32)


def unit_sums(
    table: pa.Table, vectors_TD: NDArray[np.float32]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Units of some reviews, how often each occurs, and the sum of the vectors of its occurrences, [U, D].

    The vector of an occurrence is the mean over its tokens.

    Args:
        table: as `encode_with_units` makes it.
        vectors_TD: of its tokens.
    """
    from scipy.sparse import csr_matrix

    units, starts, lens = (one_chunk(table[name]) for name in (s.UNITS, s.UNIT_STARTS, s.UNIT_LENS))
    tokens_N = one_chunk(table[s.INPUT_IDS]).value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    counts_N = units.value_lengths().to_numpy(zero_copy_only=False)
    first_O = starts.flatten().to_numpy() + np.repeat(np.cumsum(tokens_N) - tokens_N, counts_N)
    lens_O = lens.flatten().to_numpy().astype(np.int64)
    encoded = units.flatten().dictionary_encode()
    unit_O, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    sums_UD = np.zeros((len(names), vectors_TD.shape[1]))
    for start in range(0, len(unit_O), _OCCURRENCES_AT_ONCE):
        some = slice(start, start + _OCCURRENCES_AT_ONCE)
        seen, which_O = np.unique(unit_O[some], return_inverse=True)
        tokens = ranges(first_O[some], lens_O[some])
        first, after = int(tokens.min()), int(tokens.max()) + 1
        shares = np.repeat(1 / lens_O[some], lens_O[some])  # of each token in its occurrence
        rows = np.repeat(which_O, lens_O[some])
        shares_ST = csr_matrix((shares, (rows, tokens - first)), (len(seen), after - first))
        sums_UD[seen] += shares_ST @ vectors_TD[first:after]
    return names, np.bincount(unit_O, minlength=len(names)), sums_UD


@dataclass(frozen=True)
class InputVectors:
    """The encoder's own embeddings of units.

    Attributes:
        vectors_UD: mean over the pieces of each unit; anything where it is not known.
        num_pieces_U: tokens of the unit when it stands alone.
        is_known_U: whether the vocabulary has all of them.
    """

    vectors_UD: NDArray[np.float32]
    num_pieces_U: NDArray[np.int64]
    is_known_U: NDArray[np.bool_]


def input_vectors(folder: Path, units: list[str], unit: VocabularyUnit) -> InputVectors:
    """Input embeddings of units: of a token its own, of others the mean over their pieces when they stand alone."""
    from scipy.sparse import csr_matrix

    words_VD = input_embeddings(folder)
    if words_VD is None:
        weight: Any = load_encoder(folder).get_input_embeddings().weight
        words_VD = weight.detach().float().numpy()
    tokenizer = ReviewTokenizer(folder, 16)
    if unit == "token":
        number = {word: number for number, word in enumerate(tokenizer.words.to_pylist())}
        ids_T, lens_U = np.array([number[word] for word in units], np.int32), np.ones(len(units), np.int64)
    else:
        ids_T, lens_U = tokenizer.pieces(units)
    rows_T = np.repeat(np.arange(len(units)), lens_U)
    shares_UV = csr_matrix((1 / lens_U[rows_T], (rows_T, ids_T)), (len(units), len(words_VD)))
    unknown_U = np.bincount(rows_T, np.isin(ids_T, tokenizer.unknown_ids), minlength=len(units))
    return InputVectors((shares_UV @ words_VD).astype(np.float32), lens_U, (lens_U > 0) & (unknown_U == 0))
