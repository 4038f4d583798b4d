"""Texts that are nearly the same: sets of character n-grams, MinHash bands that find candidates, Jaccard that decides.

Legend: N texts, L codepoints of all texts end to end, S shingles of all texts end to end, B bands, R rows of a band.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.reviews.split import group_hash
from bertray.reviews.writing_system import UNSPACED_SCRIPTS

NUM_PERM = 256
SPACED_CHARS, UNSPACED_CHARS = 5, 3  # of a shingle; a Han or Hangul character says as much as several Latin ones
WINDOW = 50  # a text is compared with so many neighbours of each bucket, ordered by the number of shingles
MAX_PAIRS = 5_000_000
_RECALL = 0.99
_SEED = 20  # of the permutations: signatures of all machines must fit together
_CHARS_AT_A_TIME = 4_000_000


def folded(texts: pa.Array) -> pa.Array:
    """Letters and digits alone, in lower case, without spaces: what is the same in two spellings of one text.

    A text without any (`!!!`, emoji) stays as it is.
    """
    bare = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", "")
    return pc.if_else(pc.equal(bare, ""), texts, bare)


@dataclass(frozen=True)
class Shingles:
    """The character n-grams of some texts as hashes.

    hashes_S: uint64, those of one text in the order of the text, repeats included. offsets_N: uint64 [N + 1].
    """

    hashes_S: np.ndarray
    offsets_N: np.ndarray

    def sets(self) -> list[np.ndarray]:
        """For each text its distinct hashes, ascending."""
        offsets = self.offsets_N.astype(np.int64).tolist()
        return [np.unique(self.hashes_S[lo:hi]) for lo, hi in pairwise(offsets)]


def shingles(texts: pa.Array, scripts: pa.Array, pairs: pa.Array | None = None) -> Shingles:
    """N-grams of 5 characters, 3 where the text is mostly Han, Kana or Hangul; a shorter text is one n-gram.

    Args:
        texts: string [N], as `folded` gives them, none empty.
        scripts: string [N], the dominant script of each.
        pairs: string [N], second texts: texts with different ones share no n-gram.
    """
    lens_N = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    unspaced_N = pc.is_in(scripts, pa.array(UNSPACED_SCRIPTS)).to_numpy(zero_copy_only=False)
    size_N = np.where(unspaced_N, UNSPACED_CHARS, SPACED_CHARS)
    num_N = np.maximum(lens_N - size_N + 1, 1)
    joined = "".join(texts.to_pylist())
    codes_L = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    ends_N = np.cumsum(lens_N)
    offsets_N = np.concatenate([[0], np.cumsum(num_N)])
    at_S = np.arange(offsets_N[-1]) + np.repeat(ends_N - lens_N - offsets_N[:-1], num_N)
    end_S, size_S = np.repeat(ends_N, num_N), np.repeat(size_N, num_N)
    hashes_S = np.repeat(np.zeros(len(texts), np.uint64) if pairs is None else group_hash(pairs), num_N)
    with np.errstate(over="ignore"):
        for step in range(SPACED_CHARS):
            inside_S = (step < size_S) & (at_S + step < end_S)
            code_S = np.where(inside_S, codes_L[np.minimum(at_S + step, len(codes_L) - 1)] + np.uint64(1), 0)
            hashes_S = _mixed(hashes_S + code_S.astype(np.uint64))
    return Shingles(hashes_S, offsets_N.astype(np.uint64))


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64: neighbouring numbers become unrelated ones."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """(bands, rows of a band): the longest bands in which texts of this similarity still meet 99 times in 100."""
    found = (NUM_PERM, 1)
    for rows in range(1, NUM_PERM + 1):
        bands = NUM_PERM // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            found = (bands, rows)
    return found


def band_hashes(
    texts: pa.Array, scripts: pa.Array, threshold: float, pairs: pa.Array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [B, N], uint32 [N]): two texts with the same number in a band are candidates; distinct n-grams of each.

    Args:
        texts, scripts, pairs: as for `shingles`.
        threshold: similarity from which on texts must be found.
    """
    from rensa import RMinHash

    bands, rows = bands_and_rows(threshold)
    columns, sizes = [np.empty((bands, 0), np.uint64)], [np.empty(0, np.uint32)]
    for part in _parts(texts):
        some = shingles(texts.take(part), scripts.take(part), None if pairs is None else pairs.take(part))
        digests = RMinHash.digest_matrix_from_flat_token_hashes(some.hashes_S, some.offsets_N, NUM_PERM, _SEED)
        values = np.array(digests.to_rows(), np.uint64)[:, : bands * rows].reshape(len(part), bands, rows)
        hashes_NB = np.zeros((len(part), bands), np.uint64)
        with np.errstate(over="ignore"):
            for row in range(rows):
                hashes_NB = _mixed(hashes_NB + values[:, :, row])
        columns.append(hashes_NB.T)
        sizes.append(np.array([len(found) for found in some.sets()], np.uint32))
    return np.concatenate(columns, axis=1), np.concatenate(sizes)


def shingle_sets(texts: pa.Array, scripts: pa.Array, pairs: pa.Array | None = None) -> list[np.ndarray]:
    """For each text its distinct n-grams as hashes, uint64, ascending; arguments as for `shingles`."""
    sets: list[np.ndarray] = []
    for part in _parts(texts):
        sets += shingles(texts.take(part), scripts.take(part), None if pairs is None else pairs.take(part)).sets()
    return sets


def _parts(texts: pa.Array) -> list[pa.Array]:
    """Positions of the texts, some million characters at a time."""
    ends_N = np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
    part_N = ends_N // _CHARS_AT_A_TIME
    cuts = np.flatnonzero(np.diff(part_N)) + 1
    return [pa.array(part) for part in np.split(np.arange(len(texts)), cuts)] if len(texts) else []


class Candidates:
    """Pairs of texts that meet in a band, collected band by band."""

    def __init__(self, num_shingles_N: np.ndarray) -> None:
        self._num_shingles_N = num_shingles_N
        self._codes = np.empty(0, np.int64)
        self.crowded = 0  # pairs of one bucket that were not compared, because of its size
        self.is_full = False

    def add(self, band_N: np.ndarray, *, threshold: float) -> None:
        """Args: band_N uint64 [N], one row of `band_hashes`; threshold as there."""
        if self.is_full:
            return
        num_texts = len(band_N)
        order = np.lexsort((self._num_shingles_N, band_N))
        sorted_N, sizes_N = band_N[order], self._num_shingles_N[order]
        found, room = [], MAX_PAIRS
        for step in range(1, WINDOW + 1):
            same = np.flatnonzero(sorted_N[step:] == sorted_N[:-step])
            if not len(same):
                break
            # |A ∩ B| / |A ∪ B| cannot reach the threshold where the sizes are too far apart.
            same = same[sizes_N[same] >= threshold * sizes_N[same + step] - 1e-9] if threshold < 1 else same
            first, second = order[same], order[same + step]
            found.append((np.minimum(first, second) * num_texts + np.maximum(first, second))[:room])
            room -= len(found[-1])
            if not room:  # before they take the memory of everything else
                break
        _, counts = np.unique(sorted_N, return_counts=True)
        big = counts[counts > WINDOW + 1].astype(np.float64) - WINDOW
        self.crowded += int((big * (big - 1) / 2).sum())
        if found:
            self._codes = np.unique(np.concatenate([self._codes, *found]))
            self.is_full = not room or len(self._codes) > MAX_PAIRS

    def pairs(self) -> np.ndarray:
        """int64 [P, 2], each pair once, the smaller number first, ascending."""
        num_texts = max(len(self._num_shingles_N), 1)
        return np.stack([self._codes // num_texts, self._codes % num_texts], axis=1)


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Share of what either set has that both have; sets as ascending distinct numbers, neither empty."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


class NumberFile:
    """Arrays of uint64 kept on disk instead of in memory; the file goes with the object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="bertray-audit-")  # noqa: SIM115 - lives as long as the object
        self._end = 0

    def append(self, values: np.ndarray) -> int:
        """Write an array of any shape; returns where it begins."""
        start = self._end
        self._file.seek(start * 8)
        self._file.write(np.ascontiguousarray(values, np.uint64).tobytes())
        self._end += values.size
        return start

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` numbers from `start` on."""
        self._file.seek(start * 8)
        return np.frombuffer(self._file.read(length * 8), np.uint64)

    def close(self) -> None:
        self._file.close()


def components(num_nodes: int, pairs_P2: np.ndarray) -> np.ndarray:
    """int32 [num_nodes]: the same number for nodes that are linked, however long the chain."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = (np.ones(len(pairs_P2)), (pairs_P2[:, 0], pairs_P2[:, 1]))
    _, part_of = connected_components(coo_array(edges, shape=(num_nodes, num_nodes)), directed=False)
    found: np.ndarray = part_of
    return found


def best_of_each(num_nodes: int, pairs_P2: np.ndarray, similarity_P: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 [num_nodes]: the highest similarity among the pairs of each node, 0 without any."""
    best = np.zeros(num_nodes)
    for side in (0, 1):
        np.maximum.at(best, pairs_P2[:, side], similarity_P)
    return best
