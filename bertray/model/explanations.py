"""Words that decide: how far a probability moves when a word is left out, found by forward passes alone.

The tokens of a word are taken out of the sequence that the model read, so nothing beyond `max_length` moves in, and
all that is needed of a model is that it gives probabilities. A stack counts terms in the whole text: there the word is
taken out of the text, too. Of a text with many words, groups of words are left out first, then the parts of the groups
that moved the probability most: a text costs a few dozen short sequences, however long it is.

Legend: N reviews, T tokens of a review end to end, V shortened reviews, C classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.writing_system import UNSPACED_LETTERS
from bertray.schema import INPUT_IDS, SECOND_LEN, SEQ_LENS

if TYPE_CHECKING:
    from bertray.model.predictor import Predictor

MAX_WORDS = 5  # named of a review
MIN_CHANGE = 0.001  # of a probability: less is no reason
MAX_GROUPS = 24  # of the words of a review, left out first; as many words are left out one by one
OPENED = 3  # groups of a round whose parts are left out in the next
MAX_PARTS = 8  # of each

_OF_UNSPACED = re.compile(f"[{UNSPACED_LETTERS}]")
# A word with its apostrophes and hyphens, or a run of signs that may say something: "!!", an emoji.
_WORD = re.compile(rf"[^\W{UNSPACED_LETTERS}]+(?:['’-][^\W{UNSPACED_LETTERS}]+)*|[^\w\s.,;:()\[\]\"'’“”„«»/\\…·–—-]+")


@dataclass(frozen=True)
class Word:
    """A word of a review and its weight.

    Args:
        text: as it stands in the review.
        start, end: its characters in the cleaned text.
        second: it stands in the second text.
        change: fall of the probability when it is left out; negative where the probability rises.
    """

    text: str
    start: int
    end: int
    second: bool
    change: float


Explanation = tuple[Word, ...]
"""Words of a review that move the probability of a label most, the first most; none where no word moves it."""


class _Piece(NamedTuple):
    """A word by its place."""

    side: int
    start: int
    end: int


class _Group(NamedTuple):
    """Neighbouring words of a review, by number: [lo, hi)."""

    lo: int
    hi: int

    def cut(self, most: int) -> list[_Group]:
        """Groups of nearly equal size, at most so many."""
        bounds = np.linspace(self.lo, self.hi, min(most, self.hi - self.lo) + 1).round().astype(int).tolist()
        return [_Group(lo, hi) for lo, hi in pairwise(bounds)]


@dataclass
class _Review:
    """A tokenized review, its words, and what was found of them."""

    ids_T: NDArray[np.int64]
    seq_lens: list[int]
    second_len: int
    word_T: NDArray[np.int64]  # number of the word that a token is a part of; -1: of none
    words: list[_Piece]
    sides: tuple[str, str | None]  # text and second text
    changes: dict[_Group, float] = field(default_factory=dict)

    def without(self, group: _Group) -> tuple[NDArray[np.int64], list[int], int]:
        """Ids, lengths of sequences and of the second segment, when these words are left out."""
        stays_T = (self.word_T < group.lo) | (self.word_T >= group.hi)
        first_stays = stays_T[: self.seq_lens[0]]
        ends = np.cumsum(self.seq_lens)
        lens = [int(stays_T[end - length : end].sum()) for end, length in zip(ends, self.seq_lens, strict=True)]
        second_len = int(first_stays[len(first_stays) - self.second_len :].sum())
        return self.ids_T[stays_T], lens, second_len

    def texts_without(self, group: _Group) -> list[str | None]:
        """Text and second text, when these words are left out."""
        found = list(self.sides)
        for side, start, end in sorted(self.words[group.lo : group.hi], reverse=True):
            whole = found[side] or ""
            found[side] = whole[:start] + whole[end:]
        return found


def explain(
    predictor: Predictor,
    tokenizer: ReviewTokenizer,
    texts: Sequence[str],
    pairs: Sequence[str | None] | None,
    label_ids_N: NDArray[np.int64],
) -> list[Explanation]:
    """Words without which the probability of a label would be another one.

    Args:
        predictor: the model.
        tokenizer: of the model, with the length and the way of cutting by which the reviews were scored.
        texts: cleaned.
        pairs: second texts; None where a review has none.
        label_ids_N: the label of each review that is to be explained.

    Returns:
        An explanation for each review. Where it has more than `MAX_GROUPS` words, the search is greedy: a word may be
        missed whose group did not move the probability.
    """
    if not texts:
        return []
    reviews = _open(tokenizer, texts, pairs)
    whole_N = _probs(predictor, tokenizer, reviews, [(n, None) for n in range(len(reviews))], label_ids_N)
    open_groups = [
        (n, group) for n, review in enumerate(reviews) for group in _Group(0, len(review.words)).cut(MAX_GROUPS)
    ]
    while open_groups:
        probs_V = _probs(predictor, tokenizer, reviews, open_groups, label_ids_N)
        for (n, group), prob in zip(open_groups, probs_V.tolist(), strict=True):
            reviews[n].changes[group] = float(whole_N[n]) - prob
        open_groups = [
            (n, part)
            for n in dict.fromkeys(n for n, _ in open_groups)
            for group in _most_moving(reviews[n], [group for m, group in open_groups if m == n])
            for part in group.cut(MAX_PARTS)
        ]
    return [
        _named(review, text, pairs[n] if pairs is not None else None)
        for n, (review, text) in enumerate(zip(reviews, texts, strict=True))
    ]


def _most_moving(review: _Review, measured: Sequence[_Group]) -> list[_Group]:
    """Groups of several words that moved the probability most."""
    several = [group for group in measured if group.hi - group.lo > 1]
    return sorted(several, key=lambda group: -abs(review.changes[group]))[:OPENED]


def _named(review: _Review, text: str, pair: str | None) -> Explanation:
    singles = [(group.lo, change) for group, change in review.changes.items() if group.hi - group.lo == 1]
    singles = [(number, change) for number, change in singles if abs(change) >= MIN_CHANGE]
    singles.sort(key=lambda found: (-abs(found[1]), found[0]))
    words = []
    for number, change in singles[:MAX_WORDS]:
        side, start, end = review.words[number]
        of = (pair or "") if side else text
        words.append(Word(of[start:end], start, end, bool(side), change))
    return tuple(words)


def _probs(
    predictor: Predictor,
    tokenizer: ReviewTokenizer,
    reviews: Sequence[_Review],
    without: Sequence[tuple[int, _Group | None]],
    label_ids_N: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Probability of its label for each review without a group of its words, float64 [V]."""
    nothing = _Group(0, 0)
    shortened = [reviews[n].without(group or nothing) for n, group in without]
    ids = np.concatenate([ids for ids, _, _ in shortened])
    lens = [length for _, seq_lens, _ in shortened for length in seq_lens]
    table = pa.table(
        {
            INPUT_IDS: _lists(pa.array(ids, tokenizer.id_type), [len(ids) for ids, _, _ in shortened]),
            SEQ_LENS: _lists(pa.array(lens, pa.int32()), [len(seq_lens) for _, seq_lens, _ in shortened]),
            SECOND_LEN: pa.array([second_len for _, _, second_len in shortened], pa.int32()),
        }
    )
    if predictor.term_scorer is not None:  # its terms are counted in the text
        texts, pairs = zip(*(reviews[n].texts_without(group or nothing) for n, group in without), strict=True)
        table = predictor.term_scorer.appended_to(table, pa.array(texts, pa.string()), pa.array(pairs, pa.string()))
    probs_VC = predictor.probs(table)
    wanted_V = label_ids_N[[n for n, _ in without]]
    return np.nan_to_num(probs_VC[np.arange(len(wanted_V)), wanted_V].astype(np.float64))


def _lists(values: pa.Array, lens: Sequence[int]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)), values)


# --- words -----------------------------------------------------------------------------------------------------------


def _open(tokenizer: ReviewTokenizer, texts: Sequence[str], pairs: Sequence[str | None] | None) -> list[_Review]:
    table, places = tokenizer.encode_with_places(list(texts), None if pairs is None else list(pairs))
    ids_T = table[INPUT_IDS].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    reviews, start = [], 0
    for n, (lens, second_len) in enumerate(
        zip(table[SEQ_LENS].to_pylist(), table[SECOND_LEN].to_pylist(), strict=True)
    ):
        stop = start + sum(lens)
        sides = (texts[n], (pairs[n] or "") if pairs is not None else "")
        words, word_T = _words(sides, places.side_T[start:stop], places.spans_T2[start:stop])
        given = (texts[n], pairs[n] if pairs is not None else None)
        reviews.append(_Review(ids_T[start:stop], lens, second_len, word_T, words, given))
        start = stop
    return reviews


def _words(
    sides: tuple[str, str], side_T: NDArray[np.int64], spans_T2: NDArray[np.int64]
) -> tuple[list[_Piece], NDArray[np.int64]]:
    """Words of which the model reads a token, and the number of the word of each token.

    Between spaces; where a script has none, a word is a token of the model's tokenizer.
    """
    word_of = [np.full(len(text), -1, np.int64) for text in sides]
    words: list[_Piece] = []
    for side, text in enumerate(sides):
        for match in _WORD.finditer(_marks_as_letters(text)):
            word_of[side][match.start() : match.end()] = len(words)
            words.append(_Piece(side, match.start(), match.end()))
    number_T = np.full(len(side_T), -1, np.int64)
    for at, (side, (start, end)) in enumerate(zip(side_T.tolist(), spans_T2.tolist(), strict=True)):
        if side < 0:
            continue
        text = sides[side]
        while start < end and text[start].isspace():
            start += 1
        if start == end:
            continue
        if word_of[side][start] < 0 and _OF_UNSPACED.match(text, start):
            word_of[side][start:end] = len(words)
            words.append(_Piece(side, start, end))
        number_T[at] = word_of[side][start]
    read = np.unique(number_T[number_T >= 0])
    renumbered = np.full(len(words) + 1, -1, np.int64)
    order = sorted(read.tolist(), key=lambda number: words[number])
    renumbered[order] = np.arange(len(order))
    return [words[number] for number in order], renumbered[number_T]


def _marks_as_letters(text: str) -> str:
    """The text with combining marks, which Python counts as no part of a word, as letters; of the same length."""
    if text.isascii():
        return text
    return "".join(
        "a" if unicodedata.category(letter).startswith("M") and not _OF_UNSPACED.match(letter) else letter
        for letter in text
    )
