"""Faults, large nights and tables of the Korean nights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.recipes import nights
from tests.recipes.nights import TEXT_FAULTS, Rows, mixed, relabelled, replaced
from tests.trust.nights import ordinary_night

ROWS = Rows(tuple(f"text {n}" for n in range(200)), tuple(["negative"] * 29 + ["positive"] * 171))


@pytest.mark.parametrize("share", [0.02, 0.1, 1.0])
def test_a_fault_is_in_as_many_rows_as_it_says_and_labels_stay(share):
    found = replaced(share, lambda texts, rng: [text.upper() for text in texts])(ROWS, np.random.default_rng(0))
    assert sum(text.isupper() for text in found.texts) == round(200 * share)
    assert found.labels == ROWS.labels


def test_another_mix_of_labels_leaves_out_rows_and_adds_none():
    found = relabelled("negative", 0.29)(ROWS, np.random.default_rng(0))
    assert found.labels.count("negative") == 29
    assert found.labels.count("negative") / len(found.labels) == pytest.approx(0.29, abs=0.005)
    assert set(found.texts) <= set(ROWS.texts)


def test_each_fault_changes_texts():
    texts = ["아주 재미있는 영화를 오늘 저녁에 봤습니다"] * 3
    for fault in TEXT_FAULTS:
        found = fault(texts, np.random.default_rng(0))
        assert len(found) == 3
        assert found[0] != texts[0]


def test_a_large_night_has_the_means_of_what_it_is_mixed_of():
    one, other = ordinary_night(1, 400), ordinary_night(2, 400, positive=0.9)
    night = mixed([(0.25, one), (0.75, other)], 1_000_000, np.random.default_rng(0))
    assert one.profile is not None
    assert other.profile is not None
    assert night.profile is not None
    for name, moments in night.profile.moments.items():
        expected = 0.25 * one.profile.moments[name].mean + 0.75 * other.profile.moments[name].mean
        assert moments.rows == 1_000_000
        assert moments.mean == pytest.approx(expected, abs=0.01)
    assert night.profile.rows == night.rows == 1_000_000
    assert night.profile.ngram_rows == (10_000, 10_000)


def night_of(day: str, **keys: Any) -> dict[str, Any]:
    estimate = {"value": 0.68, "low": 0.64, "high": 0.72}
    found = {"day": day, "rows": 800, "state": "ordinary", "alarms": [], "void": False, "estimate": estimate}
    found |= {"macro_f1_estimate": estimate, "accuracy": 0.67, "macro_f1": 0.65}
    return {**found, "negative": 0.145, "counted": 0.1, "mean_probability": 0.15, **keys}


def test_tables_say_what_was_found_between_their_markers(tmp_path):
    large = {"alarms": [0, 2], "hits": {"spam in 5 %": 20}}
    found = {
        "model": {"rows": 12_000, "accuracy": 0.673, "notes": ["training.method=auto chose TF-IDF.", "another"]},
        "nights": [
            night_of("2015-07-01"),
            night_of("2015-08-01"),
            night_of("2015-08-02", state="alarm", void=True, alarms=[["slow", "short"]]),
        ],
        "splits": {"31": [0, 1, 2, 0], "10": [0]},
        "planted": {"none": {"whole": 0, "small": 1, "of": 20, "why": {}}},
        "large": {str(rows): large for rows in nights.BIG},
        "answered": {"draws": 270, "held": 0.95, "width": 0.1, "alone": 0.13, "bias": 0.0},
        "cost": {
            "encoder": {"rows": 6000, "with": [10.0, 12.0], "without": [10.0, 10.2], "within": [0.1, 0.12]},
            "tfidf": {"rows": 9000, "with": [1.0, 1.2], "without": [1.0, 1.0], "within": [0.1, 0.12]},
        },
    }
    page = tmp_path / "nights.md"
    page.write_text(f"before\n{nights.BEGIN}old\n{nights.END}after\n", encoding="utf-8")
    nights.tell(found, page)
    told = page.read_text(encoding="utf-8")
    assert told.startswith(f"before\n{nights.BEGIN}\nThe model: `training.method=auto` on 12,000 reviews")
    assert told.endswith(f"{nights.END}after\n")
    assert "another" not in told
    assert "| July accepted as the reference, 27 nights of August | 1 (08-02: short) |" in told
    assert "0.8 on average; at most one in 75 %" in told
    assert "| none: the nights as they came | 0 % | 5 % |" in told
    assert "interval held the truth in 1 of 1, 8.0 points wide; mean error 1.0 points" in told
    assert "| tweets, an encoder of 22 M parameters | 6,000 | 11.0 | 10.1 | 0.11 (1.0 %) |" in told
    assert "| film reviews, TF-IDF alone | 9,000 | 1.1 | 1.0 | 0.11 (10.0 %) |" in told
    assert "| 2015-08-02 | 800 | alarm | void | 67.0 % | 10.0 % | 15.0 % | 14.5 % |" in told
    assert "2015-07-01" not in told
