"""Statistics of texts by row, whose nightly means and histograms show that tonight's reviews are of another kind.

Shape letters: N texts, U characters of all texts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bertray.reviews.ngrams import Characters, SeenNgrams

CHARACTER_CLASSES = ("hangul", "jamo", "lower", "upper", "digit", "han_kana", "punctuation", "space", "other")
LOG_LENGTH, SHORT, LINKS, TEMPLATED = "log_length", "short", "links_or_numbers", "templated"
UNSEEN_TRIGRAMS, UNSEEN_WORDS, MOSTLY_UNSEEN = "unseen_trigrams", "unseen_words", "mostly_unseen"
CHARACTERS_OF = "characters:"  # and the class: share of a text's characters
MIN_TEMPLATE_CHARS = 10  # of a text that counts as a copy of another
_SHORT_WORDS = 2
_LINK_OR_NUMBER = r"(?i)https?://|www\.|[0-9]{4,}"
_LOWER, _UPPER, _DIGIT, _SPACE = 2, 3, 4, 7


def _class_of(code: int) -> int:
    letter = chr(code)
    if 0xAC00 <= code <= 0xD7A3:
        return 0
    if 0x3130 <= code <= 0x318F or 0x1100 <= code <= 0x11FF:
        return 1
    if letter.isascii():
        classes = ((_LOWER, letter.islower()), (_UPPER, letter.isupper()), (_DIGIT, letter.isdigit()))
        known = next((number for number, holds in classes if holds), None)
        return known if known is not None else _SPACE if letter.isspace() else 6 if code >= 32 else 8
    if 0x4E00 <= code <= 0x9FFF or 0x3040 <= code <= 0x30FF:
        return 5
    category = unicodedata.category(letter)[0]
    return _SPACE if category == "Z" else 6 if category == "P" else 8


_CLASS_OF = np.array([_class_of(code) for code in range(0x10000)], np.int64)


def statistics(texts: pa.Array, characters: Characters) -> dict[str, NDArray[np.float64]]:
    """Statistics of each text by name, float64 [N].

    Args:
        texts: string [N], cleaned, without nulls.
        characters: of these texts.
    """
    num_texts, num_classes = len(texts), len(CHARACTER_CLASSES)
    class_U = _CLASS_OF[np.minimum(characters.codes_U, 0xFFFF).astype(np.int64)]
    counts_NK = np.bincount(characters.text_of_U * num_classes + class_U, minlength=num_texts * num_classes)
    counts_NK = counts_NK.reshape(num_texts, num_classes)
    counts_NK[:, _SPACE] -= 2  # the spaces around each text
    shares_NK = counts_NK / np.maximum(counts_NK.sum(axis=1), 1)[:, None]
    lengths_N = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
    words_N = np.bincount(characters.words()[1], minlength=num_texts)
    found = {
        LOG_LENGTH: np.log1p(lengths_N),
        SHORT: words_N <= _SHORT_WORDS,
        LINKS: pc.match_substring_regex(texts, _LINK_OR_NUMBER).to_numpy(zero_copy_only=False),
        TEMPLATED: _repeats(_template_hashes(characters, class_U), lengths_N),
        **{f"{CHARACTERS_OF}{name}": shares_NK[:, number] for number, name in enumerate(CHARACTER_CLASSES)},
    }
    return {name: np.asarray(values_N, np.float64) for name, values_N in found.items()}


def unseen_statistics(characters: Characters, seen: SeenNgrams) -> dict[str, NDArray[np.float64]]:
    """Shares of each text that training texts do not hold, float64 [N]."""
    trigrams_N, words_N = seen.unseen(characters)
    mostly_N = (trigrams_N > 0.5).astype(np.float64)
    return {UNSEEN_TRIGRAMS: trigrams_N, UNSEEN_WORDS: words_N, MOSTLY_UNSEEN: mostly_N}


def _template_hashes(characters: Characters, class_U: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash of each text in which digits are one digit and Latin letters one letter, uint64 [N]."""
    masked_U = characters.codes_U.copy()
    masked_U[class_U == _DIGIT] = ord("0")
    masked_U[(class_U == _LOWER) | (class_U == _UPPER)] = ord("a")
    return characters.hashes_from(characters.starts_N, masked_U) if len(characters.starts_N) else masked_U


def _repeats(hash_N: NDArray[np.uint64], lengths_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [N]: texts of some length whose hash another of them has."""
    long_N = lengths_N >= MIN_TEMPLATE_CHARS
    _, which, counts = np.unique(hash_N[long_N], return_inverse=True, return_counts=True)
    repeats_N = np.zeros(len(hash_N), bool)
    repeats_N[long_N] = counts[which] > 1
    return repeats_N


def most_repeated(
    text_hash_N: NDArray[np.uint64], lengths: Sequence[int] | NDArray[np.int64], most: int
) -> dict[int, int]:
    """Hash -> rows of the texts of some length that stand in more than one row, the most frequent first."""
    long_N = np.asarray(lengths) >= MIN_TEMPLATE_CHARS
    hashes, counts = np.unique(text_hash_N[long_N], return_counts=True)
    order = np.lexsort((hashes, -counts))[:most]
    return {int(hashes[at]): int(counts[at]) for at in order if counts[at] > 1}
