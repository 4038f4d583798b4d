"""Rows that repeat others, contradict them or stand in two splits, found by hashes alone.

Legend: N rows, V different texts (folded ones count once), P pairs of such texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertray.auditing.near_duplicates import best_of_each, components

ALONE = -1


def repeats(*keys: np.ndarray) -> np.ndarray:
    """int64 [N]: the same number for rows that are equal in all keys, by first appearance; ALONE where there is one."""
    number_N = _numbers(*keys)
    counts = np.bincount(number_N)
    return _renumbered(np.where(counts[number_N] > 1, number_N, ALONE))


def contradictions(key_N: np.ndarray, label_ids_N: np.ndarray) -> np.ndarray:
    """int64 [N]: the same number for rows with one text, of which some have different labels; else ALONE.

    Args:
        key_N: uint64, hashes of the texts.
        label_ids_N: int; negative: no label, and no part of it.
    """
    number_N = _numbers(key_N)
    labelled = np.flatnonzero(label_ids_N >= 0)
    cells = np.unique(np.stack([number_N[labelled], label_ids_N[labelled]], axis=1), axis=0)
    labels_of = np.bincount(cells[:, 0], minlength=int(number_N.max(initial=-1)) + 1)
    mixed_N = (labels_of[number_N] > 1) & (label_ids_N >= 0)
    return _renumbered(np.where(mixed_N, number_N, ALONE))


def num_groups(group_N: np.ndarray) -> int:
    """Number of groups; ALONE is none."""
    return int(group_N.max(initial=ALONE)) + 1


@dataclass(frozen=True)
class NearTexts:
    """Texts that are nearly the same.

    node_N: int64 [N], the text of each row, texts that only differ in case, spaces and punctuation being one.
    pairs_P2: int64 [P, 2] of texts; similarity_P: float64 [P], their Jaccard similarity.
    """

    node_N: np.ndarray
    num_nodes: int
    pairs_P2: np.ndarray
    similarity_P: np.ndarray

    def groups(self, key_N: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Groups among some rows: of two different texts at least, linked by pairs.

        Args:
            key_N: uint64 [N], hashes of the texts as they are cleaned.
            rows: positions, ascending.

        Returns:
            (int64 [len(rows)] group or ALONE, float64 [len(rows)] the highest similarity to another text there).
        """
        node = self.node_N[rows]
        inside_V = np.zeros(self.num_nodes, bool)
        inside_V[node] = True
        both_P = inside_V[self.pairs_P2].all(axis=1)
        pairs = self.pairs_P2[both_P]
        part = components(self.num_nodes, pairs)[node]
        texts = np.unique(np.stack([part, _numbers(key_N[rows])], axis=1), axis=0)
        num_texts = np.bincount(texts[:, 0], minlength=self.num_nodes)
        spellings = np.unique(np.stack([node, _numbers(key_N[rows])], axis=1), axis=0)
        num_spellings = np.bincount(spellings[:, 0], minlength=self.num_nodes)
        best = best_of_each(self.num_nodes, pairs, self.similarity_P[both_P])[node]
        best[num_spellings[node] > 1] = 1.0
        group = _renumbered(np.where(num_texts[part] > 1, part, ALONE))
        return group, np.where(group == ALONE, 0.0, best)

    def nearest(self, key_N: np.ndarray, rows: np.ndarray) -> tuple[int, int]:
        """Positions of the two most similar rows of a group of `groups`.

        Args:
            key_N: as there.
            rows: positions of the rows of the group, ascending.
        """
        node = self.node_N[rows]
        inside_P = np.isin(self.pairs_P2, node).all(axis=1)
        nodes, similarity = self.pairs_P2[inside_P], self.similarity_P[inside_P]
        # The first row of each spelling; a text with two of them is nearest to itself.
        spellings, first = np.unique(np.stack([node, _numbers(key_N[rows])], axis=1), axis=0, return_index=True)
        again = np.flatnonzero(np.diff(spellings[:, 0]) == 0)
        if len(again):
            pair = min((sorted((first[at], first[at + 1])) for at in again.tolist()), key=lambda pair: pair[0])
            return int(rows[pair[0]]), int(rows[pair[1]])
        first, second = nodes[np.argmax(similarity)]
        return int(rows[node == first][0]), int(rows[node == second][0])


@dataclass(frozen=True)
class Leaks:
    """Rows of a later split that stand in an earlier one.

    later, earlier: int64 [M] positions of the row and of the one it repeats; similarity: float64 [M], 1 for exact ones
    and for those that differ in case, spaces and punctuation only; exact: bool [M].
    """

    later: np.ndarray
    earlier: np.ndarray
    similarity: np.ndarray
    exact: np.ndarray


def leaks(key_N: np.ndarray, near: NearTexts, earlier_rows: np.ndarray, later_rows: np.ndarray) -> Leaks:
    """Exact ones first, then near ones that are not exact, each in the order of the later split."""
    first_of, is_in = _first_matches(key_N[earlier_rows], key_N[later_rows])
    exact_later, exact_earlier = later_rows[is_in], earlier_rows[first_of[is_in]]
    rest = later_rows[~is_in]
    first_V = np.full(near.num_nodes, -1)
    first_V[near.node_N[earlier_rows][::-1]] = earlier_rows[::-1]
    best_V = np.zeros(near.num_nodes)
    match_V = np.full(near.num_nodes, -1)
    for this, other in ((0, 1), (1, 0)):
        there = first_V[near.pairs_P2[:, other]] >= 0
        nodes, others = near.pairs_P2[there, this], near.pairs_P2[there, other]
        # Ascending, so that the last to be written is the best.
        order = np.argsort(near.similarity_P[there], kind="stable")
        better = near.similarity_P[there][order] > best_V[nodes[order]]
        match_V[nodes[order][better]] = first_V[others[order][better]]
        best_V[nodes[order][better]] = near.similarity_P[there][order][better]
    spelled_V = first_V >= 0
    match_V[spelled_V], best_V[spelled_V] = first_V[spelled_V], 1.0
    nodes = near.node_N[rest]
    found = match_V[nodes] >= 0
    return Leaks(
        np.concatenate([exact_later, rest[found]]),
        np.concatenate([exact_earlier, match_V[nodes[found]]]),
        np.concatenate([np.ones(len(exact_later)), best_V[nodes[found]]]),
        np.arange(len(exact_later) + int(found.sum())) < len(exact_later),
    )


def _first_matches(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(position in `values` of the first equal one, is there one) for each of `wanted`."""
    if not len(values):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    distinct, first = np.unique(values, return_index=True)
    at = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
    return first[at], distinct[at] == wanted


def _numbers(*keys: np.ndarray) -> np.ndarray:
    """int64 [N] in 0..: equal for rows that are equal in all keys."""
    number_N = np.zeros(len(keys[0]), np.int64)
    for key_N in keys:
        _, inverse_N = np.unique(key_N, return_inverse=True)
        _, number_N = np.unique(number_N * (int(inverse_N.max(initial=0)) + 1) + inverse_N, return_inverse=True)
    return number_N


def _renumbered(group_N: np.ndarray) -> np.ndarray:
    """Groups numbered 0, 1, ... by their first row; ALONE stays."""
    members = np.flatnonzero(group_N != ALONE)
    found_N = np.full(len(group_N), ALONE, np.int64)
    _, first, inverse = np.unique(group_N[members], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    found_N[members] = rank[inverse]
    return found_N
