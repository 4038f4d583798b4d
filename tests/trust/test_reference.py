"""The reference: the first accepted nights of a model, and what a person decides."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from bertray.errors import ConfigError
from bertray.outputs.decisions import Acceptance
from bertray.trust.nights import Night
from bertray.trust.reference import judge_nights, slots_of
from tests.trust.nights import ordinary_night


class _Run:
    def __init__(self, night):
        self.slot, self.version, self.night = night.slot, 1, night


def runs_of(nights) -> Any:
    """Stand-ins for entries of the ledger, each with its night."""
    return [_Run(night) for night in nights]


def judged(nights, acceptances=()):
    with mock.patch.object(Night, "of", lambda run: run.night):
        return judge_nights(runs_of(nights), acceptances)


def states(nights, acceptances=()):
    return [one.drift.state for one in judged(nights, acceptances)]


def accepted(slots, after_seq):
    return Acceptance(after_seq=after_seq, slots=slots, reason="a sale", at="", by="")


def test_the_first_nights_have_no_baseline_and_later_ones_are_compared_with_them():
    nights = [ordinary_night(seq) for seq in range(1, 14)]
    found = judged(nights)
    assert [one.drift.state for one in found] == ["no_baseline"] * 10 + ["ordinary"] * 3
    assert len(found[5].drift.reference) == 5
    assert found[-1].drift.reference == tuple(f"dt={n:03d}" for n in range(1, 13))


def test_the_reference_stays_when_it_has_thirty_one_nights():
    found = judged([ordinary_night(seq) for seq in range(1, 41)])
    assert {len(one.drift.reference) for one in found[31:]} == {31}
    assert found[-1].drift.reference == tuple(f"dt={n:03d}" for n in range(1, 32))


def test_a_night_that_alarms_does_not_join_the_reference():
    nights = [ordinary_night(seq, positive=0.95 if seq == 12 else 0.6) for seq in range(1, 15)]
    found = judged(nights)
    assert [one.drift.state for one in found[10:]] == ["ordinary", "alarm", "ordinary", "ordinary"]
    assert "dt=012" not in found[-1].drift.reference


def test_small_nights_neither_alarm_nor_join():
    nights = [
        ordinary_night(seq, 60 if seq == 11 else 400, positive=0.99 if seq == 11 else 0.6) for seq in range(1, 13)
    ]
    assert states(nights)[10:] == ["too_few_rows", "ordinary"]


def test_one_accepted_night_joins_and_widens_the_range():
    nights = [ordinary_night(seq, positive=0.9 if seq in (12, 14) else 0.6) for seq in range(1, 15)]
    assert states(nights)[11:] == ["alarm", "ordinary", "alarm"]
    found = judged(nights, [accepted(["dt=012"], after_seq=12)])
    assert [one.drift.state for one in found[11:]] == ["alarm", "ordinary", "ordinary"]
    assert "dt=012" in found[-1].drift.reference


def test_ten_accepted_nights_are_a_new_reference():
    nights = [ordinary_night(seq, positive=0.6 if seq < 13 else 0.9) for seq in range(1, 26)]
    assert set(states(nights)[12:]) == {"alarm"}
    new = [f"dt={n:03d}" for n in range(13, 24)]
    found = judged(nights, [accepted(new, after_seq=23)])
    assert [one.drift.state for one in found[22:]] == ["alarm", "ordinary", "ordinary"]
    assert found[23].drift.reference == tuple(new)


def test_nights_of_another_model_are_compared_by_texts_until_there_are_ten_of_it():
    old = [ordinary_night(seq) for seq in range(1, 13)]
    new = [ordinary_night(seq, positive=0.9, version="m2") for seq in range(13, 26)]
    found = judged([*old, *new])
    assert [one.drift.state for one in found[10:]] == ["ordinary"] * 15
    assert [one.drift.texts_alone for one in found[12:]] == [True] * 10 + [False] * 3
    assert {s.name for s in found[12].drift.shifts if ":" in s.name} == {
        f"characters:{kind}"
        for kind in ("hangul", "jamo", "lower", "upper", "digit", "han_kana", "punctuation", "space", "other")
    }
    assert found[-1].drift.reference[0] == "dt=013"


def test_slots_are_named_alone_or_from_one_to_another():
    runs = runs_of([ordinary_night(seq) for seq in range(1, 5)])
    assert slots_of(runs, "dt=002") == ["dt=002"]
    assert slots_of(runs, "dt=002..dt=004") == ["dt=002", "dt=003", "dt=004"]
    for wanted, said in (
        ("dt=020", "no committed slot 'dt=020'. Did you mean"),
        ("dt=003..dt=001", "expected SLOT or"),
    ):
        with pytest.raises(ConfigError, match=said):
            slots_of(runs, wanted)
