"""Nights that cannot make sense are told in one sentence; ordinary ones say nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bertray.evaluation.plausibility import judge_rows, judge_training_texts
from bertray.model.profile import Profile, Reading

READ = Reading(rows=100, letters=10_000, letters_unread=50, latin_words=2_000, latin_tokens=2_200)
UNREAD = Reading(rows=100, rows_unread=99, letters=10_000, letters_unread=9_940)
MIXED = Reading(rows=100, rows_unread=20, letters=10_000, letters_unread=2_000)
VALIDATION = Profile(
    rows=200,
    predicted={"negative": 0.6, "positive": 0.4},
    given={"negative": 0.62, "positive": 0.38},
    truncated=0.03,
    scripts={"latin": 0.99, "other": 0.01},
    n_tokens={"p1": 5, "p50": 22, "p99": 60},
    reading=READ,
)
CALM = replace(VALIDATION, rows=1000, given={})


def night(**changes) -> Profile:
    return replace(CALM, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as validation"),
        pytest.param({"rows": 0, "predicted": {}, "truncated": 0.0}, id="no rows"),
        pytest.param({"rows": 20, "predicted": {"negative": 1.0}}, id="few rows of one label"),
        pytest.param({"predicted": {"negative": 0.9, "positive": 0.1}}, id="a bad day"),
        pytest.param({"truncated": 0.3}, id="somewhat longer"),
        pytest.param({"n_tokens": {"p50": 2}}, id="shorter"),
        pytest.param({"scripts": {"latin": 0.95, "hangul": 0.05}}, id="some foreign rows"),
        pytest.param({"reading": replace(READ, letters_unread=2_000)}, id="typos and codes"),
        pytest.param({"reading": Reading()}, id="no letters were sampled"),
    ],
)
def test_calm(changes):
    assert judge_rows(night(**changes), VALIDATION) == []


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"reading": UNREAD}, "bad", "cannot read these texts: 99.4 % of their letters"),
        (
            {"truncated": 0.978, "predicted": {"negative": 1.0}},
            "bad",
            "cannot be trusted: 97.8 % of the texts are longer than the model reads (validation: 3.0 %), and 100.0 % "
            "are labelled negative (validation: 62.0 %).",
        ),
        ({"truncated": 0.978}, "warning", "unlike those that the model was validated on: 97.8 %"),
        ({"predicted": {"negative": 0.98, "positive": 0.02}}, "warning", "98.0 % are labelled negative"),
        ({"n_tokens": {"p50": 129}}, "warning", "half of the texts are longer than 99 % of the validation rows"),
        ({"scripts": {"hangul": 0.9, "latin": 0.1}}, "warning", "90.0 % of the rows are in a script (hangul)"),
        ({"reading": MIXED}, "warning", "20.0 % of the rows are in a language that its tokenizer cannot read"),
        ({"reading": MIXED, "scripts": {"han": 0.2, "latin": 0.8}}, "bad", "cannot be trusted"),
        (
            {"n_tokens": {"p50": 129}, "predicted": {"positive": 1.0}},
            "bad",
            "and 100.0 % are labelled positive (validation: 40.0 %)",
        ),
    ],
)
def test_one_finding_for_a_night_that_makes_no_sense(changes, severity, words):
    (finding,) = judge_rows(night(**changes), VALIDATION)
    assert finding.severity == severity
    assert words in finding.sentence


@pytest.mark.parametrize(
    ("num_validation", "changes", "severity"),
    [
        (30, {"scripts": {"hangul": 0.15, "latin": 0.85}}, None),  # of 30 rows one would miss it by chance
        (30, {"scripts": {"hangul": 0.9, "latin": 0.1}}, "warning"),
        (9, {"predicted": {"negative": 1.0}}, None),
        (20, {"predicted": {"negative": 1.0}}, "warning"),
        (9, {"n_tokens": {"p50": 129}}, None),
    ],
)
def test_few_validation_rows_say_less(num_validation, changes, severity):
    found = judge_rows(night(**changes), replace(VALIDATION, rows=num_validation))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_rows_without_letters():
    profile = replace(VALIDATION, scripts={"latin": 1.0})
    (finding,) = judge_rows(night(scripts={"other": 0.6, "latin": 0.4}), profile)
    assert "60.0 % of the rows hold no letters" in finding.sentence


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({}, None),
        ({"predicted": {"negative": 1.0}}, None),
        ({"truncated": 0.85}, None),
        ({"truncated": 0.95}, "warning"),
        ({"truncated": 0.95, "predicted": {}}, None),  # vectors of the starts of long texts are in order
        ({"reading": UNREAD}, "bad"),
        ({"reading": UNREAD, "predicted": {}}, "bad"),
    ],
)
def test_of_a_model_without_a_profile_only_what_is_wrong_anyway(changes, severity):
    assert [finding.severity for finding in judge_rows(night(**changes), None)] == ([severity] if severity else [])


def test_a_model_that_was_trained_on_what_its_encoder_cannot_read():
    """Its training page is red; its nights say it again, and no louder than that."""
    profile = replace(VALIDATION, reading=UNREAD)
    (finding,) = judge_rows(night(reading=UNREAD), profile)
    assert finding.severity == "warning"


def test_what_an_encoder_cannot_read_says_nothing_of_a_model_that_leaves_it_out():
    profile = replace(VALIDATION, reading=UNREAD)
    assert judge_rows(night(reading=UNREAD, truncated=0.99), profile, left_out=True) == []
    (finding,) = judge_rows(night(reading=UNREAD, scripts={"hangul": 1.0}), profile, left_out=True)
    assert finding.sentence.startswith(
        "These rows are unlike those that the model was validated on: 100.0 % of the rows are in a script"
    )


@pytest.mark.parametrize(
    ("reading", "severity"),
    [
        (READ, None),
        (Reading(), None),
        (UNREAD, "bad"),
        (MIXED, "warning"),
        (replace(READ, latin_tokens=3_400), "note"),
        (replace(READ, latin_tokens=2_900), None),
    ],
)
def test_texts_to_learn_from(reading, severity):
    found = judge_training_texts(reading, "bundled")
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    if severity == "bad":
        assert "from_scratch=true" in found[0].sentence
        assert "model=" in found[0].sentence
