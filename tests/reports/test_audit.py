"""The page of an audit: each finding a sentence with its count, the weightiest first; texts as excerpts only."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bertray.evaluation.label_errors import LabelErrorSearch
from bertray.reports.audit import AuditReport, BrokenFile, Example, Leak, Repeats, SplitRows

CLEAN = AuditReport(
    title="Audit a",
    splits=[
        SplitRows(
            "train",
            1,
            100,
            100,
            {"p50": 9, "p90": 20, "p99": 30, "max": 31},
            dict.fromkeys(("p50", "p90", "p99", "max"), 7),
        )
    ],
    repeats={"train": Repeats()},
    near={"train": Repeats()},
    threshold=0.8,
    ids=Repeats(),
    ids_in_two_splits=0,
    leaks=[],
    conflicts={"all": Repeats(), "train": Repeats()},
    broken={"train": {}},
    broken_files=[],
    labels={"train": {"neg": 50, "pos": 50}},
    unlabelled={"train": 0},
    doubt=LabelErrorSearch(100, 100, 0, 0.9, 0.5, 0.8, "a judge"),
    marks={"train": {}},
    damaged=0,
    scripts={"train": {"latin": 100}},
    max_length=128,
    tokenizer="bundled",
)


def finding(report: AuditReport, name: str):
    return next(found for found in report.findings if found.name == name)


def test_a_clean_corpus_is_said_to_be_clean():
    assert CLEAN.headline == "100 rows in 1 file. Nothing serious was found."
    assert {found.name: found.sentences for found in CLEAN.findings if found.name != "labels"} == {
        "broken": ("Every row has a text that can be read.",),
        "conflicts": ("No text has two different labels.",),
        "repeated_ids": ("Every id stands once.",),
        "label_errors": ("No label is in doubt for a judge, right on 90.0 % (the largest class: 50.0 %).",),
        "duplicates": ("No text stands twice in a split.",),
        "near_duplicates": ("No two texts have 80 % or more of their character n-grams alike.",),
        "length": ("No text has more than 128 tokens of bundled.",),
        "marks": ("No control characters, mark-up, entities, links or addresses.",),
    }
    assert finding(CLEAN, "labels").sentences == ("train: the largest of 2 classes is neg with 50.0 % of 100 rows.",)
    assert {found.weight for found in CLEAN.findings if found.name != "labels"} == {"none"}


DIRTY = replace(
    CLEAN,
    splits=[*CLEAN.splits, replace(CLEAN.splits[0], name="test", truncated=30)],
    repeats={"train": Repeats(3, 7, as_stored=3), "test": Repeats()},
    near={"train": Repeats(1, 2, other_labels=1), "test": Repeats()},
    ids=Repeats(1, 2, other_labels=1),
    ids_in_two_splits=1,
    leaks=[Leak("train", "test", 100, 2, 1, 1, other_labels=1)],
    conflicts={"all": Repeats(2, 4), "train": Repeats(1, 2), "test": Repeats()},
    broken={"train": {"text_empty": 1}, "test": {}},
    broken_files=[BrokenFile("train", "in/a.parquet", 100, {"text_empty": 1})],
    labels={"train": {"neg": 90, "pos": 10}, "test": {"neg": 5}},
    unlabelled={"train": 0, "test": 95},
    doubt=LabelErrorSearch(150, 200, 12, 0.9, 0.5, 0.8, "a judge"),
    marks={"train": {"control_characters": 4, "html_tags": 9}, "test": {"html_tags": 1}},
    damaged=4,
    scripts={"train": {"latin": 100}, "test": {"han": 100}},
    examples={
        "duplicates": [Example(("call +49 170 1234567 <b>now</b>",), {"rows": "4", "id": "a1, a2"})],
        "leakage_train_test": [Example(("one text", "another text"), {"alike": "92 %", "test": "t1", "train": "r1"})],
    },
)


def test_every_finding_has_its_count_and_the_weightiest_come_first():
    found = {each.name: (each.weight, " ".join(each.sentences)) for each in DIRTY.findings}
    assert found["leakage_train_test"] == (
        "serious",
        "2 of 100 test rows (1 text) stand in train word for word, 1 more nearly so (80 % or more alike): 3.0 % "
        "of test. 1 of them has another label there.",
    )
    assert found["conflicts"] == (
        "serious",
        "2 texts in 4 rows with different labels (within one split: train 1, test 0).",
    )
    assert found["repeated_ids"] == (
        "look",
        "1 id in 2 rows more than once in one split; 1 has different labels. "
        "1 id stands in two splits, as where each is numbered anew.",
    )
    assert found["broken"] == (
        "minor",
        "1 of 200 rows cannot be used (0.5 %): 1 because nothing is left of the text after cleaning.",
    )
    assert found["label_errors"][0] == "look"
    assert found["label_errors"][1].startswith("12 labels of 150 rows looked at are in doubt (8.0 %).")
    many = replace(DIRTY, doubt=replace(DIRTY.doubt, suspected=15))
    assert "So many doubts say as much of the judge as of the labels." in finding(many, "label_errors").sentences
    assert "So many" not in found["label_errors"][1]
    assert found["duplicates"] == (
        "look",
        "train: 3 texts more than once, in 7 rows; 4 beyond the first, 3 of these the same before cleaning too.",
    )
    assert found["near_duplicates"] == (
        "minor",
        "train: 1 group of different texts with 80 % or more of their character n-grams alike, 2 rows; "
        "1 has different labels.",
    )
    assert found["length"] == (
        "minor",
        "30 of 200 rows (15.0 %) have more than 128 tokens of bundled: a model would not see their end.",
    )
    assert found["marks"] == ("look", "4 rows with control characters; 10 rows with HTML mark-up.")
    assert found["labels"] == (
        "look",
        "train: the largest of 2 classes is neg with 90.0 % of 100 rows. test has no row of pos.",
    )
    weights = [each.weight for each in DIRTY.findings]
    assert weights == sorted(weights, key=["serious", "look", "minor", "none"].index)
    assert DIRTY.headline.startswith(
        "200 rows in 2 files (train 100, test 100). Serious: leakage of test rows into train; conflicting labels."
    )


@pytest.mark.parametrize("report", [CLEAN, DIRTY])
def test_page_and_json_tell_the_same_and_mask_what_names_a_person(report):
    page, content = report.to_html(), json.loads(json.dumps(report.to_json()))
    assert [each["name"] for each in content["findings"]] == [each.name for each in report.findings]
    for each in report.findings:
        assert each.title in page
    for text in (page, json.dumps(content)):
        assert "1234567" not in text
        assert "<b>now" not in page
    if report is DIRTY:
        assert "call [phone] &lt;b&gt;now&lt;/b&gt;" in page
        assert content["findings"][0]["examples"] == [
            {"texts": ["one text", "another text"], "alike": "92 %", "test": "t1", "train": "r1"}
        ]
        assert "in/a.parquet" in page


def test_what_nobody_looked_for_is_not_told_as_not_found():
    report = replace(CLEAN, near=None, ids=None, conflicts=None, labels={"train": {}}, unlabelled={"train": 100})
    assert [found.name for found in report.findings] == ["broken", "duplicates", "length", "marks"]
    skipped = replace(CLEAN, doubt=replace(CLEAN.doubt, skipped="One class only."))
    assert finding(skipped, "label_errors").sentences == ("One class only.",)
    assert "near_duplicates" not in report.to_html()


def test_ids_that_are_numbered_anew_in_each_split_are_no_serious_matter():
    restarted = finding(replace(DIRTY, ids=Repeats(), ids_in_two_splits=90), "repeated_ids")
    assert (restarted.weight, restarted.sentences) == (
        "minor",
        ("90 ids stand in two splits, as where each is numbered anew.",),
    )
    assert restarted.advice.startswith("Join by split and id")


def test_rows_with_one_kind_of_damage_or_the_other_count_together():
    marks = {"train": {"control_characters": 60, "replacement_character": 60}}
    rows = replace(CLEAN.splits[0], rows=10_000, rows_in=10_000)
    assert finding(replace(CLEAN, splits=[rows], marks=marks, damaged=120), "marks").weight == "look"
    assert finding(replace(CLEAN, splits=[rows], marks=marks, damaged=60), "marks").weight == "minor"
