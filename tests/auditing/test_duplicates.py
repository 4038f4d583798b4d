"""Which rows repeat, contradict or leak, told from hashes."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertray.auditing.analysis import AuditRows, candidates, distinct_texts, find, labels_differ
from bertray.auditing.duplicates import ALONE, NearTexts, contradictions, leaks, num_groups, repeats

NO_PAIRS = np.empty((0, 2), np.int64)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_groups_are_numbered_by_their_first_row():
    assert repeats(numbers(9, 5, 9, 7, 5, 9)).tolist() == [0, 1, 0, ALONE, 1, 0]
    assert repeats(numbers(1, 1, 1), numbers(2, 3, 2)).tolist() == [0, ALONE, 0]
    assert repeats(numbers()).tolist() == []
    assert num_groups(repeats(numbers(1, 2))) == 0


def test_a_contradiction_needs_two_labels_and_rows_without_one_take_no_part():
    keys = numbers(1, 1, 2, 2, 3, 3, 1)
    labels = np.array([0, 1, 0, 0, 0, -3, -1])
    assert contradictions(keys, labels).tolist() == [0, 0, ALONE, ALONE, ALONE, ALONE, ALONE]
    assert labels_differ(repeats(keys), labels).tolist() == [0]


def test_near_groups_hold_different_texts_of_one_split_only():
    """Texts by node: 0 in two spellings, 1 near 0, 2 near nothing, 3 near 2 but not among the rows."""
    near = NearTexts(np.array([0, 0, 1, 2, 3, 2]), 4, np.array([[0, 1], [2, 3]]), np.array([0.85, 0.9]))
    keys = numbers(10, 11, 12, 13, 14, 13)
    group, similarity = near.groups(keys, np.array([0, 1, 2, 3, 5]))
    assert group.tolist() == [0, 0, 0, ALONE, ALONE]  # rows 3 and 5 are one text: duplicates, not near ones
    assert similarity.tolist() == [1.0, 1.0, 0.85, 0.0, 0.0]
    assert near.nearest(keys, np.array([0, 1, 2])) == (0, 1)
    assert near.nearest(keys, np.array([0, 2])) == (0, 2)
    group, similarity = near.groups(keys, np.array([2, 3, 4]))
    assert group.tolist() == [ALONE, 0, 0]
    assert similarity.tolist() == [0.0, 0.9, 0.9]


def test_leaks_are_exact_else_spellings_else_the_most_similar():
    """Earlier rows 0-3 are texts 0, 1, 2, 2'; later rows 4-8: text 0, another spelling of 0, near 1 and 2, new, 2'."""
    near = NearTexts(
        np.array([0, 1, 2, 2, 0, 0, 3, 4, 2]), 5, np.array([[1, 3], [2, 3], [3, 4]]), np.array([0.8, 0.95, 0.9])
    )
    keys = numbers(10, 11, 12, 13, 10, 14, 15, 16, 13)
    found = leaks(keys, near, np.arange(4), np.arange(4, 9))
    assert found.later.tolist() == [4, 8, 5, 6]
    assert found.earlier.tolist() == [0, 3, 0, 2]
    assert found.similarity.tolist() == [1.0, 1.0, 1.0, 0.95]
    assert found.exact.tolist() == [True, True, False, False]
    nothing = leaks(keys, near, np.empty(0, np.int64), np.arange(4, 9))
    assert nothing.later.tolist() == []


def audit_rows(**columns: Any) -> AuditRows:
    size = len(next(iter(columns.values())))
    empty = {name: np.zeros(size, np.uint64) for name in AuditRows.__dataclass_fields__}
    return AuditRows(**(empty | {name: np.array(values) for name, values in columns.items()}))


def test_each_finding_is_about_its_own_rows():
    rows = audit_rows(
        split_N=[0, 0, 0, 1, 1],
        key_N=[1, 1, 2, 1, 3],
        folded_N=[1, 1, 2, 1, 2],
        id_N=[7, 8, 9, 9, 6],
        label_N=[0, 1, 0, 0, 1],
        row_no_N=[0, 1, 2, 0, 1],
    )
    texts = distinct_texts(rows)
    assert (texts.first_V.tolist(), texts.node_N.tolist()) == ([0, 2], [0, 0, 1, 0, 1])
    found = find(rows, NearTexts(texts.node_N, 2, NO_PAIRS, np.empty(0)), 2, has_ids=True)
    assert found.duplicate_N.tolist() == [0, 0, ALONE, ALONE, ALONE]
    assert found.near_N is not None
    assert found.near_N.tolist() == [ALONE] * 5  # 2 and 3 are spellings of one text, in two splits
    assert found.conflict_N.tolist() == [0, 0, ALONE, 0, ALONE]
    assert {split: group.tolist() for split, group in found.conflicts_in.items()} == {0: [0, 0, ALONE], 1: [ALONE] * 2}
    assert found.id_N is not None
    assert found.id_N.tolist() == [ALONE, ALONE, 0, 0, ALONE]
    leak = found.leaks[0, 1]
    assert (leak.later.tolist(), leak.earlier.tolist(), leak.exact.tolist()) == ([3, 4], [0, 2], [True, False])
    assert found.leaking[0, 1].tolist() == [0, 1, 2]
    without = find(rows, None, 2, has_ids=False)
    assert without.near_N is None
    assert without.id_N is None
    assert without.leaks[0, 1].later.tolist() == [3]


def test_candidates_are_pairs_of_different_texts():
    rows = audit_rows(folded_N=[5, 5, 3, 4], num_shingles_N=[10, 10, 9, 2])
    band = np.array([1, 1, 1, 1], np.uint64)
    found = candidates(rows, distinct_texts(rows), [band], 0.8)
    assert found.pairs().tolist() == [[0, 2]]  # of the texts 3, 4, 5: the sizes 9 and 10


def test_positions_are_found_by_file_and_row():
    rows = audit_rows(file_no_N=[0, 0, 1, 1], row_no_N=[3, 8, 0, 3])
    assert rows.positions(np.array([1, 0]), np.array([3, 8])).tolist() == [3, 1]
