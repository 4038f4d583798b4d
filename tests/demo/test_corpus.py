"""The demo's reviews: enough of each kind, no leakage, and exactly the broken rows that the demo is meant to show."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

REVIEWS = Path(str(files("bertray") / "demo" / "reviews"))
COLUMNS = ["id", "text", "label", "product", "date", "language"]
NIGHT_1 = ["night-1/2026-11-19-app.jsonl", "night-1/2026-11-19-web.jsonl"]
NIGHT_2 = ["night-2/2026-11-20-app.jsonl", "night-2/2026-11-20-web.jsonl"]
EVERY_FILE = ["train.jsonl", "test.jsonl", *NIGHT_1, *NIGHT_2]


def _lines(name: str) -> list[str]:
    return (REVIEWS / name).read_text(encoding="utf-8").splitlines()


def _reason(row: dict[str, Any], seen: set[str]) -> str | None:
    """Why a row cannot be scored, found without the package's own cleaning."""
    if row["text"] is None:
        return "text_null"
    if not re.sub(r"<[^>]*>", "", row["text"]).strip():
        return "text_empty"
    if row["id"] is None:
        return "id_null"
    return "id_duplicate" if row["id"] in seen else None


def _read(*names: str) -> tuple[list[dict[str, Any]], list[tuple[str, int, str]]]:
    """Good rows of the files, and (file, row from 0, reason) of the others."""
    good, bad = [], []
    for name in names:
        seen: set[str] = set()
        for row_no, line in enumerate(_lines(name)):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                bad.append((name, row_no, "row_malformed"))
                continue
            assert list(row) == COLUMNS
            reason = _reason(row, seen)
            if reason:
                bad.append((name, row_no, reason))
            else:
                good.append(row)
            seen.add(row["id"])
    return good, bad


def test_files_are_the_two_splits_and_two_files_a_night():
    found = sorted(str(path.relative_to(REVIEWS)) for path in REVIEWS.rglob("*") if path.is_file())
    assert found == sorted(EVERY_FILE)


def test_corpus_is_small_enough_to_ship():
    assert sum((REVIEWS / name).stat().st_size for name in EVERY_FILE) < 250_000


def test_counts_of_rows_are_those_the_demo_prints():
    assert {name: len(_lines(name)) for name in EVERY_FILE} == {
        "train.jsonl": 339,
        "test.jsonl": 123,
        "night-1/2026-11-19-app.jsonl": 31,
        "night-1/2026-11-19-web.jsonl": 45,
        "night-2/2026-11-20-app.jsonl": 32,
        "night-2/2026-11-20-web.jsonl": 46,
    }


def test_broken_rows_are_exactly_the_planted_ones():
    assert _read(*EVERY_FILE)[1] == [
        ("night-1/2026-11-19-app.jsonl", 30, "row_malformed"),
        ("night-1/2026-11-19-web.jsonl", 6, "id_duplicate"),
        ("night-1/2026-11-19-web.jsonl", 17, "text_null"),
        ("night-2/2026-11-20-app.jsonl", 5, "text_empty"),
        ("night-2/2026-11-20-app.jsonl", 20, "id_null"),
        ("night-2/2026-11-20-web.jsonl", 8, "text_empty"),
        ("night-2/2026-11-20-web.jsonl", 30, "text_empty"),
    ]


def test_the_three_empty_texts_are_nothing_whitespace_and_a_tag():
    def text(name: str, row_no: int) -> str:
        return str(json.loads(_lines(name)[row_no])["text"])

    assert text(NIGHT_2[1], 8) == ""
    assert text(NIGHT_2[0], 5).isspace()
    assert text(NIGHT_2[1], 30) == "<br />"


def test_ids_are_unique_over_all_files_but_for_the_planted_one():
    ids = [json.loads(line)["id"] for name in EVERY_FILE for line in _lines(name) if line.endswith("}")]
    repeated = {key: count for key, count in Counter(filter(None, ids)).items() if count > 1}
    assert repeated == {"rv-41472": 2}


def test_no_text_stands_in_two_places_but_for_the_duplicates_inside_train():
    where: dict[str, list[str]] = {}
    for name in EVERY_FILE:
        for row in _read(name)[0]:
            where.setdefault(" ".join(row["text"].split()).casefold(), []).append(name)
    repeated = {text: names for text, names in where.items() if len(names) > 1}
    assert repeated == {"great!": ["train.jsonl"] * 3, "meh": ["train.jsonl"] * 2}


@pytest.mark.parametrize("names", [["train.jsonl"], ["test.jsonl"], NIGHT_1, NIGHT_2], ids=lambda names: names[0])
def test_each_label_has_a_fifth_and_each_language_some_rows(names: list[str]):
    rows, _ = _read(*names)
    labels = Counter(row["label"] for row in rows)
    assert sorted(labels) == ["negative", "neutral", "positive"]
    assert min(labels.values()) >= 0.2 * len(rows)
    languages = Counter(row["language"] for row in rows)
    assert sorted(languages) == ["en", "ko", "zh"]
    assert languages["ko"] >= 0.05 * len(rows)
    assert languages["zh"] >= 0.05 * len(rows)


def test_language_is_the_script_of_the_text():
    for row in _read(*EVERY_FILE)[0]:
        has_hangul, has_han = re.search("[가-힣]", row["text"]), re.search("[一-鿿]", row["text"])
        assert row["language"] == ("ko" if has_hangul else "zh" if has_han else "en"), row["id"]


def test_dates_are_of_the_autumn_and_of_each_night():
    dates = {name: {row["date"] for row in _read(name)[0]} for name in EVERY_FILE}
    for name in ("train.jsonl", "test.jsonl"):
        assert min(dates[name]) >= "2026-10-01"
        assert max(dates[name]) <= "2026-11-18"
        assert len(dates[name]) > 30
    assert [dates[name] for name in NIGHT_1] == [{"2026-11-19"}] * 2
    assert [dates[name] for name in NIGHT_2] == [{"2026-11-20"}] * 2


def test_every_split_has_reviews_of_all_twelve_products():
    for names in (["train.jsonl"], ["test.jsonl"], NIGHT_1, NIGHT_2):
        assert len({row["product"] for row in _read(*names)[0]}) == 12, names


@pytest.mark.parametrize(
    ("kind", "pattern", "at_least"),
    [
        ("line-break tags", r"<br ?/?>", 2),
        ("entities", r"&(amp|lt|quot|#39);", 3),
        ("mojibake", "â€™|Ã©", 3),
        ("capitals", r"\b[A-Z]{4,}( [A-Z]{2,}){3}", 3),
        ("emoji", "[\U0001f300-\U0001faff]", 15),
        ("one word", r"(?s)\A\S+\Z", 10),
        ("a page", r"(?s)\A.{1800,}\Z", 8),
        ("numbers with units", r"\d ?(km|kg|g|l|W|min|h|cm|m)\b", 15),
    ],
)
def test_corpus_has_texts_as_people_write_them(kind: str, pattern: str, at_least: int):
    rows, _ = _read(*EVERY_FILE)
    assert sum(bool(re.search(pattern, row["text"])) for row in rows) >= at_least, kind
