"""Characters of texts end to end, their hashed n-grams, and a table of the n-grams that training texts hold.

Shape letters: N texts, U characters of all texts, G n-grams of all texts, W words, B buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray.io.tables import from_ipc, read_if_there, to_ipc

FILE = "seen_ngrams.arrow"
MAX_CHARS = 1000  # of a text that are looked at
TABLE_BITS = 20  # of a hash in the table of seen trigrams and words: 128 KiB each
NUM_BUCKETS = 512  # of the frequencies of hashed n-grams
MIN_TEXTS = 2  # training texts that hold a trigram or word before it counts as seen
MAX_TEXTS = 20_000  # that the table is made from
_SPACE = ord(" ")
_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint64)
_PRIME = np.uint64(0x100000001B3)


@dataclass(frozen=True)
class Characters:
    """Code points of texts end to end; each text stands between two spaces, so that n-grams know its ends.

    Args:
        codes_U: uint64 [U].
        starts_N: first character of each text, int64 [N].
    """

    codes_U: NDArray[np.uint64]
    starts_N: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Characters:
        """The first MAX_CHARS characters of each text."""
        if not len(texts):
            return cls(np.zeros(0, np.uint64), np.zeros(0, np.int64))
        padded = [f" {text[:MAX_CHARS]} " for text in texts]
        codes_U = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        ends_N = np.cumsum([len(text) for text in padded], dtype=np.int64)
        return cls(codes_U, np.concatenate([[0], ends_N[:-1]]).astype(np.int64))

    @cached_property
    def text_of_U(self) -> NDArray[np.int64]:
        """The text of each character, int64 [U]."""
        lens_N = np.diff(self.starts_N, append=len(self.codes_U))
        return np.repeat(np.arange(len(self.starts_N)), lens_N)

    @cached_property
    def trigrams(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """`ngrams(3)`, made once: the seen ones and the frequencies both need them."""
        return self.ngrams(3)

    @cached_property
    def num_ngrams_N(self) -> NDArray[np.int64]:
        """1-, 2- and 3-grams of each text, int64 [N]."""
        lens_N = np.diff(self.starts_N, append=len(self.codes_U))
        return sum((np.maximum(lens_N - less, 0) for less in range(3)), np.zeros(len(lens_N), np.int64))

    def ngrams(self, length: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of the n-grams of one length, uint64 [G], and the text of each, int64 [G]."""
        num_starts = max(len(self.codes_U) - length + 1, 0)
        hash_G = np.zeros(num_starts, np.uint64)
        for at in range(length):
            hash_G += self.codes_U[at : at + num_starts] * _MULTIPLIERS[at]
        text_of_G = self.text_of_U[:num_starts]
        inside_G = text_of_G == self.text_of_U[length - 1 : length - 1 + num_starts]
        return _mixed(hash_G[inside_G] + np.uint64(length)), text_of_G[inside_G]

    def words(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of what stands between spaces, uint64 [W], and the text of each, int64 [W]."""
        inside_U = self.codes_U != _SPACE
        start_W = np.flatnonzero(inside_U & ~np.concatenate([[False], inside_U[:-1]]))
        if not len(start_W):
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return self.hashes_from(start_W, np.where(inside_U, self.codes_U, 0)), self.text_of_U[start_W]

    def hashes_from(self, start_W: NDArray[np.int64], codes_U: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Hash of the codes from each start to the next, uint64 [W]; codes of 0 count nothing."""
        length_W = np.diff(start_W, append=len(codes_U))
        place_U = np.arange(len(codes_U) - start_W[0]) - np.repeat(start_W - start_W[0], length_W)
        powers = np.cumprod(np.full(int(length_W.max(initial=1)), _PRIME), dtype=np.uint64)
        return _mixed(np.add.reduceat(codes_U[start_W[0] :] * powers[place_U], start_W - start_W[0]))


def _mixed(hash_G: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes with every bit depending on all bits. Source: the finalizer of SplitMix64 (Steele et al. 2014)."""
    hash_G = (hash_G ^ (hash_G >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return hash_G ^ (hash_G >> np.uint64(27))


def frequencies(characters: Characters, fold_N: NDArray[np.int64], num_folds: int) -> NDArray[np.float32]:
    """Sums over the texts of each fold of their relative frequencies of hashed 1-, 2- and 3-grams, float32 [F, B].

    Each text adds 1 to its fold.
    """
    weight_N = 1 / np.maximum(characters.num_ngrams_N, 1)
    first_N = fold_N * NUM_BUCKETS
    sums_FB = np.zeros(num_folds * NUM_BUCKETS)
    for hash_G, text_of_G in _hashed(characters):
        place_G = first_N[text_of_G] + (hash_G % np.uint64(NUM_BUCKETS)).astype(np.int64)
        sums_FB += np.bincount(place_G, weights=weight_N[text_of_G], minlength=len(sums_FB))
    return sums_FB.reshape(num_folds, NUM_BUCKETS).astype(np.float32)


def _hashed(characters: Characters) -> tuple[tuple[NDArray[np.uint64], NDArray[np.int64]], ...]:
    return characters.ngrams(1), characters.ngrams(2), characters.trigrams


def mean_weights(characters: Characters, weight_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean weight of the buckets of each text's hashed 1-, 2- and 3-grams, float64 [N]."""
    sums_N = np.zeros(len(characters.starts_N))
    for hash_G, text_of_G in _hashed(characters):
        bucket_G = (hash_G % np.uint64(len(weight_B))).astype(np.int64)
        sums_N += np.bincount(text_of_G, weights=weight_B[bucket_G], minlength=len(sums_N))
    return sums_N / np.maximum(characters.num_ngrams_N, 1)


def _slots(hash_G: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hash_G >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


@dataclass(frozen=True)
class SeenNgrams:
    """Character trigrams and words that at least two training texts hold, by their hash.

    Args:
        trigrams, words: bool [2**TABLE_BITS].
    """

    trigrams: NDArray[np.bool_]
    words: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str]) -> SeenNgrams:
        """Table of some training texts."""
        characters = Characters.of(texts)
        return cls(_in_two_texts(*characters.trigrams), _in_two_texts(*characters.words()))

    def unseen(self, characters: Characters) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of each text's trigrams, and of its words, that training texts do not hold: float64 [N] each."""
        num_texts = len(characters.starts_N)
        return (
            _unseen_share(self.trigrams, *characters.trigrams, num_texts),
            _unseen_share(self.words, *characters.words(), num_texts),
        )

    def to_bytes(self) -> bytes:
        """An Arrow IPC file of two columns of bytes, eight entries each."""
        return to_ipc(pa.table({"trigrams": np.packbits(self.trigrams), "words": np.packbits(self.words)}))

    @classmethod
    def from_bytes(cls, content: bytes) -> SeenNgrams:
        """Raises ValueError or KeyError when it is not such a file."""
        table = from_ipc(content)
        trigrams, words = (np.unpackbits(table[name].to_numpy()).astype(bool) for name in ("trigrams", "words"))
        if len(trigrams) != 1 << TABLE_BITS or len(words) != len(trigrams):
            raise ValueError(f"expected {1 << TABLE_BITS:,} entries, found {len(trigrams):,}")
        return cls(trigrams, words)


def _in_two_texts(hash_G: NDArray[np.uint64], text_of_G: NDArray[np.int64]) -> NDArray[np.bool_]:
    once = np.unique((text_of_G.astype(np.int64) << TABLE_BITS) | _slots(hash_G))
    counts = np.bincount(once & ((1 << TABLE_BITS) - 1), minlength=1 << TABLE_BITS)
    seen: NDArray[np.bool_] = counts >= MIN_TEXTS
    return seen


def _unseen_share(
    seen: NDArray[np.bool_], hash_G: NDArray[np.uint64], text_of_G: NDArray[np.int64], num_texts: int
) -> NDArray[np.float64]:
    total_N = np.bincount(text_of_G, minlength=num_texts)
    unseen_N = np.bincount(text_of_G, weights=~seen[_slots(hash_G)], minlength=num_texts)
    share_N: NDArray[np.float64] = unseen_N / np.maximum(total_N, 1)
    return share_N


def read_seen_ngrams(folder: Path) -> SeenNgrams | None:
    """Seen n-grams of a bundle; None of a model that has none stored.

    Raises:
        ConfigError: the file is damaged.
    """
    return read_if_there(folder / FILE, SeenNgrams.from_bytes, "seen n-grams")
