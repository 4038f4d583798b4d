"""Analysis of the rows of all splits as numbers: duplicates, leakage and contradictions.

Legend: N rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bertray.auditing.duplicates import ALONE, Leaks, NearTexts, contradictions, leaks, num_groups, repeats
from bertray.auditing.near_duplicates import Candidates
from bertray.reviews.fetch import row_keys


@dataclass(frozen=True)
class AuditRows:
    """The usable rows of all splits, in the order of split, file and row; about sixty bytes a row.

    split_N int; file_no_N, row_no_N int; key_N, stored_N, id_N, folded_N uint64 hashes of the cleaned text, of the
    text as it is stored, of the id, and of `near.folded`; label_N int, negative: none; chars_N, tokens_N,
    num_shingles_N int; truncated_N bool; marks_N as `marks_of`.
    """

    split_N: np.ndarray
    file_no_N: np.ndarray
    row_no_N: np.ndarray
    key_N: np.ndarray
    stored_N: np.ndarray
    id_N: np.ndarray
    folded_N: np.ndarray
    label_N: np.ndarray
    chars_N: np.ndarray
    tokens_N: np.ndarray
    num_shingles_N: np.ndarray
    truncated_N: np.ndarray
    marks_N: np.ndarray

    def __len__(self) -> int:
        return len(self.key_N)

    def of(self, split: int) -> np.ndarray:
        """Positions of the rows of a split, ascending."""
        return np.flatnonzero(self.split_N == split)

    def positions(self, file_no_M: np.ndarray, row_no_M: np.ndarray) -> np.ndarray:
        """int64 [M]: where rows stand here, by file and row number; each has to be one of these."""
        return np.searchsorted(self._place_N, row_keys(file_no_M, row_no_M))

    @functools.cached_property
    def _place_N(self) -> np.ndarray:
        return row_keys(self.file_no_N, self.row_no_N)


@dataclass(frozen=True)
class Found:
    """Groups of rows, int64 [N] each, ALONE where a row is in none.

    duplicate_N: of one text in one split. near_N: of nearly equal texts in one split, with similarity_N to the nearest
    of them; None without a search. conflict_N: of one text with different labels, over all splits; conflicts_in: the
    same within each split. id_N: of one id, over all splits; None where there are no ids. leaks: by (earlier split,
    later split); leaking: positions of every row of the earlier one that stands in the later one, by the same.
    """

    duplicate_N: np.ndarray
    near_N: np.ndarray | None
    similarity_N: np.ndarray
    conflict_N: np.ndarray
    conflicts_in: dict[int, np.ndarray]
    id_N: np.ndarray | None
    leaks: dict[tuple[int, int], Leaks]
    leaking: dict[tuple[int, int], np.ndarray]


def find(rows: AuditRows, near: NearTexts | None, num_splits: int, *, has_ids: bool) -> Found:
    """Findings on all rows, from their numbers alone.

    Args:
        rows: of all splits.
        near: near-duplicate texts; None: not searched.
        num_splits: splits are 0..num_splits-1.
        has_ids: ids were given, not made up.
    """
    near_N, similarity_N = np.full(len(rows), ALONE, np.int64), np.zeros(len(rows))
    conflicts_in, found_leaks, leaking = {}, {}, {}
    for split in range(num_splits):
        here = rows.of(split)
        conflicts_in[split] = contradictions(rows.key_N[here], rows.label_N[here])
        if near is not None:
            group, similarity_N[here] = near.groups(rows.key_N, here)
            near_N[here] = np.where(group == ALONE, ALONE, group + num_groups(near_N))
    texts = near or _different_texts(rows.key_N)
    for earlier, later in combinations(range(num_splits), 2):
        found_leaks[earlier, later] = leaks(rows.key_N, texts, rows.of(earlier), rows.of(later))
        leaking[earlier, later] = leaks(rows.key_N, texts, rows.of(later), rows.of(earlier)).later
    return Found(
        duplicate_N=repeats(rows.split_N, rows.key_N),
        near_N=None if near is None else near_N,
        similarity_N=similarity_N,
        conflict_N=contradictions(rows.key_N, rows.label_N),
        conflicts_in=conflicts_in,
        id_N=repeats(rows.id_N) if has_ids else None,
        leaks=found_leaks,
        leaking=leaking,
    )


def _different_texts(key_N: np.ndarray) -> NearTexts:
    """Texts of which none is near another."""
    keys, node_N = np.unique(key_N, return_inverse=True)
    return NearTexts(node_N, len(keys), np.empty((0, 2), np.int64), np.empty(0))


def labels_differ(group_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """int64: the groups that have rows with different labels; rows without one do not count."""
    members = np.flatnonzero((group_N != ALONE) & (label_N >= 0))
    cells = np.unique(np.stack([group_N[members], label_N[members]], axis=1), axis=0)
    groups, counts = np.unique(cells[:, 0], return_counts=True)
    different: np.ndarray = groups[counts > 1]
    return different


@dataclass(frozen=True)
class DistinctTexts:
    """Texts that differ in more than case, spaces and punctuation: `first_V` rows that have them first, and of each
    row its text."""

    first_V: np.ndarray
    node_N: np.ndarray


def distinct_texts(rows: AuditRows) -> DistinctTexts:
    _, first, node_N = np.unique(rows.folded_N, return_index=True, return_inverse=True)
    return DistinctTexts(first, node_N)


def candidates(rows: AuditRows, texts: DistinctTexts, bands: Iterable[np.ndarray], threshold: float) -> Candidates:
    """Pairs of texts that are to be compared.

    Args:
        bands: of each band, read one after the other, uint64 [N] of every row.
    """
    found = Candidates(rows.num_shingles_N[texts.first_V])
    for band_N in bands:
        found.add(band_N[texts.first_V], threshold=threshold)
    return found
