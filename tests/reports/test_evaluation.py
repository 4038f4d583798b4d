"""The evaluation page says what is true, holds everything, and cannot be broken by what it shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from bertray.wording import decimal


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
    title = text.index("Evaluation of BERT, 2026-11-20 ")
    assert title < text.index(headline) < text.index(f"Good. {sentence}") < text.index("Metrics by class")


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
    sentence = report.evaluation.comparisons["majority"].sentence
    assert content["findings"] == [{"severity": "good", "sentence": sentence}]
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
    assert "Most frequent confusions" in page.text
    weakest = sorted(labels, key=lambda label: report.evaluation.curves.roc[label].area)[:6]
    legend = page.text[page.text.index("Precision against recall") : page.text.index("Shown are the 6 of 40 classes")]
    assert {label for label in labels if label in legend} == set(weakest)


def beside(report, **verdicts):
    """The same report beside other models."""
    easy = report.evaluation.comparisons["majority"]
    made = {name: replace(easy, name_b=f"the {name}", verdict=verdict) for name, verdict in verdicts.items()}
    return replace(report, evaluation=replace(report.evaluation, comparisons=made))


def page_text(page):
    return " ".join(page.text.replace("\u00a0", " ").split())


@pytest.mark.parametrize(
    ("verdicts", "colours"),
    [
        ({"majority": "better", "tfidf_logreg": "better"}, ["good", "good", "good"]),
        ({"majority": "better", "tfidf_logreg": "undecided"}, ["warning", "warning", "good"]),
        ({"majority": "better", "tfidf_logreg": "worse"}, ["bad", "bad", "good"]),
        ({"majority": "undecided", "tfidf_logreg": "worse"}, ["bad", "bad", "warning"]),
    ],
)
def test_the_worst_verdict_comes_first_and_gives_the_headline_its_colour(make_report, read_page, verdicts, colours):
    report = beside(make_report(), **verdicts)
    page = read_page(report.to_html())
    classes = [value.split() for value in page.values("class") if "verdict" in value.split()]
    assert [value[-1] for value in classes] == colours
    first = report.evaluation.findings[0]
    assert f"{report.headline} {first.severity.capitalize()}. {first.sentence}" in page_text(page)


def test_a_student_is_headed_by_what_it_keeps_of_its_teacher(make_report, read_page):
    report = make_report(name="the student")
    evaluation = report.evaluation
    easy = evaluation.comparisons["majority"]
    accuracy = replace(easy.differences["accuracy"], a=0.873, b=0.9)
    differences = {**easy.differences, "accuracy": accuracy}
    comparison = replace(easy, name_b="its teacher", verdict="worse", differences=differences)
    report = replace(report, evaluation=replace(evaluation, comparisons={"teacher": comparison}, speedup=2.54))
    assert report.headline.startswith(
        "The student keeps 97.0 % of the teacher's accuracy (0.873 of 0.900) at 2.5 times the speed. "
        "On 120 test reviews, the student is right on "
    )
    assert report.headline in page_text(read_page(report.to_html()))


def test_headings_are_the_words_that_people_look_for(make_report, read_page):
    html = make_report().to_html()
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Metrics by class",
        "Confusion matrix",
        "Learning curves",
        "Calibration",
        "ROC and precision-recall curves",
        "Metrics by slice",
        "Most confident errors",
        "Baselines",
        "Run and data",
    ]
    text = page_text(read_page(html))
    assert "class precision recall F1 ROC AUC average precision support" in text
    assert "Intervals are 95 % confidence intervals" in text


def test_each_epoch_has_its_own_time(make_report, read_page):
    evals = [
        {"kind": "eval", "step": n, "epoch": float(n), "loss": 0.5, "train_loss": 0.5, "seconds": end}
        for n, end in enumerate((75.0, 135.0), 1)
    ]
    text = page_text(read_page(make_report(history=evals).to_html()))
    assert "epoch training loss validation loss time 1 0.500 0.500 1 min 15 s 2 0.500 0.500 1 min 00 s" in text
    without = [{**row, "seconds": None} for row in evals]
    assert "validation loss time" not in page_text(read_page(make_report(history=without).to_html()))
