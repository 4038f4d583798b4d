"""The page on two models: what it shows, and that other people's text stays text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bertray.evaluation.paired import compare_paired
from bertray.evaluation.summary import evaluate_predictions
from bertray.evaluation.verdicts import Finding
from bertray.reports.comparison import ComparedModel, ComparisonReport, Flips, ShownText
from bertray.reports.plain import Mark


def make_comparison(
    labels=("negative", "neutral", "positive"), text="fine", rows=400, labelled=True
) -> ComparisonReport:
    rng = np.random.default_rng(0)
    given_N = rng.integers(0, 3, size=rows)
    models = []
    for accuracy in (0.7, 0.85):
        right_N = rng.random(rows) < accuracy
        predicted_N = np.where(right_N, given_N, (given_N + 1) % 3)
        probs_NC = np.full((rows, 3), 0.1)
        probs_NC[np.arange(rows), predicted_N] = 0.8
        models.append(probs_NC)
    comparison = compare_paired(
        given_N,
        models[0],
        models[1],
        labels,
        seed=0,
        slices={text: [text if i % 5 else "x" for i in range(rows)]},
    )
    sides = []
    for name, probs_NC in zip("AB", models, strict=True):
        evaluation = evaluate_predictions(given_N, probs_NC, labels, split="input", seed=0)
        figures = evaluation.metrics if labelled else {}
        sides.append(ComparedModel(name, text, "0123", figures, 1234.5, evaluation if labelled else None))
    kinds = ["of-a", "of-b"]
    flip = {
        "id": text,
        "label": labels[0],
        "label_a": labels[1],
        "label_b": labels[0],
        "score_a": 0.9,
        "score_b": 0.8,
    }
    marks = [Mark(0, len(text), 0.25, "of-a")]
    return ComparisonReport(
        title=text,
        rows=rows,
        a=sides[0],
        b=sides[1],
        comparison=comparison if labelled else None,
        flips=Flips(
            99,
            20,
            70,
            9,
            {(labels[1], labels[0]): 99},
            [{**flip, "texts": [ShownText(text, marks, kinds)]}, {**flip, "texts": [ShownText(text)] * 2}],
        ),
        findings=[Finding("warning", text)],
        notes=[text],
        facts={text: text},
        config=text,
        gate=[text, text] if labelled else [],
        passed=False if labelled else None,
        created="2026-11-30 07:00 UTC",
    )


@pytest.fixture(scope="module")
def harmless_elements(read_page):
    return read_page(make_comparison().to_html()).elements


def test_hostile_text_stays_text(payload, safe_page, harmless_elements):
    page = safe_page(make_comparison(labels=(payload, f"{payload} 2", "positive"), text=payload).to_html())
    assert page.elements == harmless_elements
    assert payload.replace("\x00", "") in page.text


def test_page_says_what_the_rows_could_have_found_and_who_was_right(read_page):
    text = " ".join(read_page(make_comparison().to_html()).text.replace("\u00a0", " ").split())
    assert "B is better than A on 400 labelled rows" in text
    assert "With these 400 rows a gain of one point would be found in " in text
    assert "Of 99 changes, A was right in 20, B in 70, neither in 9." in text
    assert "B is right" in text


def test_without_labels_the_page_says_that_nothing_is_known_of_quality(safe_page):
    report = make_comparison(labelled=False)
    text = safe_page(report.to_html()).text
    assert "A and B give different labels to 99 of 400 reviews" in text
    assert "Without labels nothing can be said of which is better." in text
    found = report.to_json()
    assert (found["verdict"], found["difference"], found["mcnemar_p"]) == ("no labels", {}, None)


def test_json_has_what_the_contract_names():
    found = json.loads(json.dumps(make_comparison().to_json(), allow_nan=False))
    assert {
        "schema_version",
        "rows",
        "a",
        "b",
        "difference",
        "mcnemar_p",
        "per_class",
        "slices",
        "flips",
        "verdict",
    } <= set(found)
    assert set(found["difference"]) == {"accuracy", "macro_f1", "mcc", "log_loss"}
    assert set(found["difference"]["accuracy"]) == {"value", "low", "high"}
