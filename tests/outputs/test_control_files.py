"""Records of control files: counts that add up, and files of an earlier version that are still read."""

from __future__ import annotations

import json

import pytest

from bertray.errors import ConflictError
from bertray.model.profile import Reading
from bertray.outputs.control_files import Agreement, Counts, Receipt, Span
from bertray.outputs.night_profile import NightProfile


def counts(number: int) -> Counts:
    return Counts(
        reasons={"text_empty": number},
        label_counts={"neg": number, f"only{number}": 1},
        score_histogram=[number] * 20,
        token_histogram=[number] * 7,
        tokens=10 * number,
        truncated=number,
        repeated=number,
        needs_review=number,
        scripts={"latin": number},
        reading=Reading(rows=number, letters=number),
        int8=Agreement(rows=number, same_label=number, largest_difference=number / 100),
        precisions={"bf16": number},
        recomputed=number,
        night_profile=NightProfile(rows=number),
    )


def test_counts_of_several_parts_add_up_to_those_of_a_run():
    both = counts(1) + counts(2)
    assert both == Counts(
        reasons={"text_empty": 3},
        label_counts={"neg": 3, "only1": 1, "only2": 1},
        score_histogram=[3] * 20,
        token_histogram=[3] * 7,
        tokens=30,
        truncated=3,
        repeated=3,
        needs_review=3,
        scripts={"latin": 3},
        reading=Reading(rows=3, letters=3),
        int8=Agreement(rows=3, same_label=3, largest_difference=0.02),
        precisions={"bf16": 3},
        recomputed=3,
        night_profile=NightProfile(rows=3),
    )
    assert sum([counts(1), counts(2)], Counts()) == both
    assert counts(1) + Counts() == counts(1)


def test_every_count_takes_part_in_the_sum():
    """A field that `__add__` forgets would stay at its default."""
    both, default = counts(1) + counts(1), Counts()
    for name in Counts.model_fields:
        assert getattr(both, name) not in (getattr(default, name), getattr(counts(1), name)), name


def test_a_receipt_has_its_counts_beside_its_rows_in_the_file_and_comes_back_whole():
    spans = [Span(file_no=0, lo=0, hi=3, rows_scored=2, rows_quarantined=1)]
    receipt = Receipt(spans=spans, seconds=1.0, part=None, quarantine=None, evaluation=None, **dict(counts(1)))
    content = receipt.to_bytes()
    assert json.loads(content)["tokens"] == 10
    assert Receipt.from_bytes(content, "r") == receipt
    assert receipt.counts == counts(1)
    with pytest.raises(ConflictError, match="damaged"):
        Receipt.from_bytes(content.replace(b'"tokens": 10', b'"tokens": 11'), "r")
