"""The evaluation page says what is true, holds everything, and cannot be broken by what it shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from bertray.reports.html import decimal


def test_the_headline_comes_first_with_rows_accuracy_interval_and_the_sentence(make_report, read_page):
    report = make_report()
    accuracy = report.evaluation.metrics["accuracy"]
    page = read_page(report.to_html())
    text = re.sub(r"\s+", " ", page.text.replace("\u00a0", " "))
    headline = (
        f"On 120 test reviews, BERT is right on {100 * accuracy.value:.1f} % "
        f"(95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %)."
    )
    sentence = report.evaluation.comparisons["majority"].sentence
    assert sentence.startswith("BERT beats the majority baseline (accuracy ")
    assert text.index("Evaluation of BERT") < text.index(headline) < text.index(sentence) < text.index("Classes")


def test_every_figure_of_metrics_json_stands_on_the_page(make_report, read_page):
    report = make_report()
    text = read_page(report.to_html()).text
    evaluation = report.evaluation
    wanted = [figure for name, figure in evaluation.metrics.items() if name != "accuracy"]
    wanted += [getattr(row, name) for row in evaluation.per_class.values() for name in ("precision", "recall", "f1")]
    wanted += [
        getattr(row, name)
        for values in evaluation.slices.values()
        for row in values.values()
        for name in ("accuracy", "macro_f1")
    ]
    wanted += [evaluation.baselines["majority"][name] for name in ("accuracy", "macro_f1", "mcc", "log_loss", "ece")]
    for figure in wanted:
        assert decimal(figure.value) in text
        assert f"{decimal(figure.low)} to {decimal(figure.high)}" in text


def test_the_page_holds_every_section_and_chart(make_report, safe_page):
    page = safe_page(make_report().to_html())
    sections = ["classes", "confusion", "learning", "scores", "curves", "slices", "mistakes", "baselines", "run"]
    assert [v for tag, name, v in page.attributes if (tag, name) == ("section", "id")] == sections
    assert page.elements["svg"] == 6
    assert "Validation loss rises since epoch 1 (0.450 to 0.550)" in page.text
    assert "2026-11-20 04:00 UTC" in page.text


def test_the_confusion_matrix_shows_counts_with_their_share_of_the_row(make_report):
    report = make_report()
    html = report.to_html()
    given, hits = report.evaluation.per_class["negative"].support, report.evaluation.confusion_matrix[0][0]
    assert f'class="hit" style="--share: {100 * hits / given:.1f}%">{hits}<' in html


def test_small_slices_are_grey(make_report):
    report = make_report()
    small = sum(row.small for values in report.evaluation.slices.values() for row in values.values())
    assert small > 0
    assert make_report().to_html().count('<tr class="small">') == small


@pytest.fixture(scope="module")
def harmless_elements(make_report, read_page):
    return read_page(make_report(facts={"model": "x"}).to_html()).elements


def test_hostile_text_stays_text(make_report, payload, safe_page, harmless_elements):
    labels = (payload, f"{payload} 2", "positive")
    report = make_report(labels=labels, text=payload, name=payload, facts={payload: payload}, created=payload)
    page = safe_page(report.to_html())
    assert page.elements == harmless_elements
    assert payload.replace("\x00", "") in page.text


def test_control_characters_and_lone_surrogates_do_not_reach_the_page(make_report):
    report = make_report(text="a\x00b\x1b[0m\u202ec", name="m\x07", title="\ud800")
    html = replace(report, notes=["\udfff"], mistakes=[{**report.mistakes[0], "text": "\ud800 x"}]).to_html()
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)


def test_contact_data_in_mistakes_is_masked_on_the_page_and_in_json(make_report):
    report = make_report()
    text = "Ask jane@example.com, +1 415 555 0134, card 4111 1111 1111 1111. " + "long " * 100
    report = replace(report, mistakes=[{**report.mistakes[0], "text": text}])
    for content in (report.to_html(), json.dumps(report.to_json())):
        assert "Ask [e-mail], [phone], card [card]. long" in content
        assert "jane" not in content
        assert "555 0134" not in content
        assert "long " * 60 not in content


def test_chinese_korean_and_arabic_pass_unharmed(make_report, read_page):
    words = "질량이 좋아요 质量很好 とても良い رائع جدا"
    page = read_page(make_report(text=words, labels=("부정", "中性", "好評")).to_html())
    assert words in page.text
    assert "好評" in page.text
    assert ("blockquote", "dir", "auto") in page.attributes


def test_json_is_strict_and_holds_metrics_json(make_report):
    report = make_report(history=[{"kind": "eval", "step": 1, "epoch": 1.0, "loss": 0.4, "accuracy": 0.8}])
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["metrics"] == json.loads(json.dumps(report.metrics_json()))
    assert (content["kind"], content["title"], content["headline"]) == ("evaluation", report.title, report.headline)
    assert content["comparisons"]["majority"]["verdict"] == "better"
    assert content["mistakes"][0]["score"] == 0.987


def test_the_same_report_gives_the_same_page(make_report):
    assert make_report().to_html() == make_report().to_html()


def test_a_report_of_one_row_without_history_mistakes_or_baselines_is_a_page(make_report, safe_page):
    report = make_report(num_rows=1, history=(), mistakes=(), facts={}, config="", notes=(), created="")
    report = replace(report, evaluation=replace(report.evaluation, baselines={}, comparisons={}, slices={}))
    page = safe_page(report.to_html())
    assert "On 1 test review, BERT is right on" in page.text
    assert [v for tag, name, v in page.attributes if (tag, name) == ("section", "id")] == [
        "classes",
        "confusion",
        "scores",
        "run",
    ]


def test_many_classes_are_shown_by_their_confusions_and_weakest_curves(make_report, safe_page):
    labels = [f"class {n:02d}" for n in range(40)]
    report = make_report(labels=labels, num_rows=1000)
    page = safe_page(report.to_html())
    assert "Confusion matrix" not in page.text
    assert "The most frequent confusions." in page.text
    weakest = sorted(labels, key=lambda label: report.evaluation.curves.roc[label].area)[:6]
    legend = page.text[page.text.index("Precision against recall") : page.text.index("Shown are the 6 of 40 classes")]
    assert {label for label in labels if label in legend} == set(weakest)


def test_the_sentence_is_about_the_baseline_that_is_hardest_to_beat(make_report):
    report = make_report()
    easy = report.evaluation.comparisons["majority"]
    gain = easy.differences["accuracy"]
    hard = replace(
        easy,
        name_b="the TF-IDF baseline",
        differences={**easy.differences, "accuracy": replace(gain, difference=replace(gain.difference, value=0.01))},
    )
    report = replace(
        report, evaluation=replace(report.evaluation, comparisons={"majority": easy, "tfidf_logreg": hard})
    )
    assert report.hardest == hard
