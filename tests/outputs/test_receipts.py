"""Receipts: which are used, and when a commit is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertray.errors import ConflictError
from bertray.outputs.control_files import Receipt
from bertray.outputs.receipts import adopt, uncovered, verify_cover, without_overlap
from tests.plans import file, plan, receipt


def test_uncovered_rows_are_the_gaps_between_intervals():
    assert uncovered(10, []) == [(0, 10)]
    assert uncovered(10, [(4, 6), (0, 2)]) == [(2, 4), (6, 10)]
    assert uncovered(10, [(0, 10)]) == []
    assert uncovered(0, []) == []


def test_receipts_are_adopted_when_they_cover_exactly_a_shard_of_the_plan():
    work = [((0, 0, 4),), ((0, 4, 8),), ((1, 0, 4),)]
    whole, again, other_cut, foreign = receipt(0, 0, 4), receipt(0, 0, 4), receipt(0, 4, 7), receipt(2, 0, 4)
    assert adopt(work, [whole, again, other_cut, foreign]) == [whole]


def together(*receipts: Receipt) -> Receipt:
    """The receipt of several small files."""
    return receipts[0].model_copy(update={"spans": [span for one in receipts for span in one.spans]})


def test_a_receipt_of_several_files_is_adopted_whole_or_not_at_all():
    both, first = together(receipt(0, 0, 4), receipt(1, 0, 2)), receipt(0, 0, 4)
    assert adopt([((0, 0, 4), (1, 0, 2))], [first, both]) == [both]
    assert adopt([((0, 0, 4),), ((1, 0, 2),)], [both, first]) == [first]
    assert without_overlap([receipt(1, 1, 2), both, receipt(0, 0, 4)]) == [receipt(0, 0, 4), receipt(1, 1, 2)]


def test_every_file_of_a_receipt_has_to_add_up():
    two = plan(file("a", rows=4), file("b", rows=2))
    verify_cover(two, [together(receipt(0, 0, 4, quarantined=1), receipt(1, 0, 2))])
    shifted = together(receipt(0, 0, 4, scored=3), receipt(1, 0, 2, scored=3))
    assert shifted.rows_in == shifted.rows_scored
    with pytest.raises(ConflictError, match="a rows 0-4: 4 rows in, but 3 scored"):
        verify_cover(two, [shifted])


def test_of_two_receipts_for_the_same_rows_one_is_used():
    first, again, rest = receipt(0, 0, 4), receipt(0, 2, 4), receipt(0, 4, 8)
    assert without_overlap([first, again, rest]) == [first, rest]


def test_a_complete_cover_may_be_committed():
    verify_cover(plan(file("a", rows=10), file("e", rows=0)), [receipt(0, 4, 10, quarantined=2), receipt(0, 0, 4)])


@pytest.mark.parametrize(
    "receipts",
    [
        [receipt(0, 0, 9)],
        [receipt(0, 1, 10)],
        [receipt(0, 0, 6), receipt(0, 5, 10)],
        [receipt(0, 0, 12)],
        [],
        [receipt(0, 0, 10, scored=9)],
    ],
)
def test_a_missing_or_doubled_row_may_not_be_committed(receipts):
    with pytest.raises(ConflictError, match="nothing was committed"):
        verify_cover(plan(file("a", rows=10)), receipts)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12), st.integers(1, 5)), max_size=15))
def test_kept_receipts_never_meet_and_every_other_one_meets_an_earlier(rows):
    receipts = [receipt(file_no, lo, lo + size) for file_no, lo, size in rows]
    expected: list[Receipt] = []
    for one in receipts:
        mine = {(s.file_no, row) for s in one.spans for row in range(s.lo, s.hi)}
        if all(mine.isdisjoint({(s.file_no, row) for s in k.spans for row in range(s.lo, s.hi)}) for k in expected):
            expected.append(one)
    assert without_overlap(receipts) == sorted(expected, key=lambda kept: kept.intervals)
