"""Drift, quality, neighbours and the index: what people read, and that hostile text stays text."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from dataclasses import replace

import pytest

from bertray.console import heading, say, table
from bertray.evaluation.intervals import Estimate
from bertray.evaluation.validation_profile import log_findings
from bertray.evaluation.verdicts import Finding
from bertray.io.tables import csv_bytes, unguarded
from bertray.reports.drift import DriftReport, title_of
from bertray.reports.night import FileRows, NightBefore
from bertray.reports.nights_index import NightLine, NightsIndex
from bertray.reports.quality import LabelledNight, QualityReport
from bertray.reports.shares import GroupLine, SharesReport, name_of
from bertray.runs.label_shares import shares_table
from bertray.trust.drift import Drift, Shift
from bertray.trust.quality import QualityEstimate
from bertray.wording import visible
from tests.reports.hostile import HOSTILE

UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u2028-\u202e\u2066\ufeff]")
LENGTH = Shift("mean", "log_length", 2.3978952728, 3.4339872045, 3.2, 3.6, 1e-9, True)  # 10 and 30 characters
NEGATIVE = Shift("mean", "predicted:negative", 0.29, 0.145, 0.12, 0.17, 1e-7, True)
ORDINARY = Shift("distribution", "confidence", 0.05, 0.04, 0.02, 0.08, 0.4, False)
REFERENCE = tuple(f"dt=2026-10-{day:02d}" for day in range(1, 32))
ALARM = Drift("alarm", (LENGTH, NEGATIVE, ORDINARY), REFERENCE)
ESTIMATE = QualityEstimate(Estimate(0.82, 0.78, 0.86), Estimate(0.7, 0.65, 0.75), 20, 0.01)


def words(page):
    return re.sub(r"\s+", " ", page.text.replace("\u00a0", " "))


def test_an_alarm_names_the_statistic_how_far_and_the_band(make_night, safe_page):
    drift = DriftReport(ALARM, {"log_length": ["Short. [phone]"]}, "`bertray score drift.accept=dt=2026-11-20`")
    report = make_night(drift=drift, verdicts=drift.findings)
    assert report.findings[0] == Finding("bad", drift.headline)
    page = safe_page(report.to_html())
    text = words(page)
    assert "text length 10 characters, usually 30 characters (earlier nights 24 characters to 36 characters)" in text
    assert "rows labelled negative 29.0 %, usually 14.5 % (earlier nights 12.0 % to 17.0 %)" in text
    assert "Reviews that drive it: Short. [phone]" in text
    assert "distribution of the mean score 0.050 0.040 0.020 to 0.080" in text
    assert "negative 25.4 % 12.0 % to 17.0 % 30" in text  # the band beside the label
    assert page.text.count("alarm") >= 2


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (Drift("no_baseline", reference=REFERENCE[:3]), "No baseline yet: 3 nights of the 10 that a comparison needs."),
        (Drift("too_few_rows"), "Not compared with earlier nights: fewer than 100 rows."),
        (Drift("no_profile"), "Not compared with earlier nights: these rows have no profile."),
        (Drift("ordinary", (ORDINARY,), REFERENCE), "Like the 31 nights of the reference, by every statistic."),
    ],
)
def test_a_night_without_alarm_says_why(make_night, safe_page, drift, said):
    drift_report = DriftReport(drift)
    report = make_night(drift=drift_report, verdicts=drift_report.findings)
    page = safe_page(report.to_html())
    assert said in words(page)
    assert report.findings == ([Finding("good", said)] if drift.state == "ordinary" else [])
    assert ("lead verdict good" in page.values("class")) == (drift.state == "ordinary")
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["drift"]["state"] == drift.state


def test_of_many_alarms_three_are_told_and_the_others_counted():
    drift = Drift("alarm", tuple(Shift("mean", f"predicted:{n}", 0.9, 0.1, 0, 0.2, 0.0, True) for n in range(5)))
    assert DriftReport(drift).headline.endswith("; and 2 more.")


def test_a_page_says_for_how_many_alarms_it_shows_reviews(make_night, safe_page):
    shifts = tuple(Shift("mean", f"predicted:{n}", 0.9, 0.1, 0, 0.2, 0.0, True) for n in range(6))
    for num_shown, said in ((4, True), (6, False)):
        examples = {shift.name: ["Short."] for shift in shifts[:num_shown]}
        drift = DriftReport(Drift("alarm", shifts, REFERENCE), examples, "`x`")
        text = words(safe_page(make_night(drift=drift, verdicts=drift.findings).to_html()))
        assert ("Reviews are shown for 4 of 6 alarms." in text) == said


def test_rows_without_a_value_have_the_same_sign_in_drift_and_shares():
    assert title_of(Shift("mean", "share:product=", 0.5, 0.1, 0.0, 0.2, 1e-9, True)) == "rows with product=–"
    assert [name_of(group) for group in ((None,), ("",), ("a", None), ())] == ["–", "–", "a · –", "all rows"]


def test_the_page_of_shares_says_how_many_runs_it_is_about(safe_page):
    lines = [GroupLine((), label, 10, 0.5, Estimate(0.5, 0.4, 0.6), "answers", 5) for label in ("neg", "pos")]
    page = safe_page(SharesReport((), ["neg", "pos"], lines, runs=3).to_html())
    assert "runs of score 3" in words(page)


def test_the_estimate_is_shown_with_its_interval_and_void_when_the_night_drifts(make_night, safe_page):
    labelled = [LabelledNight("dt=2026-11-19", 300, 0.8, True), LabelledNight("dt=2026-11-18", 300, 0.7, False)]
    shown = words(safe_page(make_night(quality=QualityReport(ESTIMATE, labelled=labelled)).to_html()))
    assert "Estimated without labels: accuracy 82.0 % (78.0 % to 86.0 %), macro F1 70.0 % (65.0 % to 75.0 %)" in shown
    assert "Checked: of 2 labelled nights the interval held the true accuracy in 1 (50.0 %)." in shown
    void = words(safe_page(make_night(quality=QualityReport(ESTIMATE, void=True, labelled=labelled)).to_html()))
    assert "No estimate without labels: the night drifts" in void
    assert "82.0 %" not in void
    assert "Last measured: 70.0 % on 300 rows of dt=2026-11-18." in void


def test_few_labelled_nights_and_estimates_far_apart_are_said():
    few = QualityReport(QualityEstimate(ESTIMATE.accuracy, ESTIMATE.macro_f1, 3, -0.05))
    said = " ".join(few.sentences)
    assert "a stated minimum of 4.0 points on either side: 3 labelled nights of the 16" in said
    assert "If only the mix of labels has moved, accuracy is −5.0 points from that" in said
    assert "No estimate without labels: the model does not know" in " ".join(QualityReport(None).sentences)


def test_a_night_leads_to_the_night_before_and_says_what_changed(make_night, safe_page):
    before = NightBefore(
        "dt=2026-11-19",
        "../../dt%3D2026-11-19/run%3D1/report.html",
        100,
        {"negative": 40},
        "old",
        "dt=2026-11-19/run=1",
    )
    page = safe_page(make_night(before=before, price=1.5).to_html())
    assert "../../dt%3D2026-11-19/run%3D1/report.html" in page.values("href")
    assert "../../index.html" in page.values("href")
    text = words(page)
    assert "118 rows scored, 100 in dt=2026-11-19." in text
    assert "Largest move of a label: positive, +74.6 points." in text
    assert "Another model: abc123, old before." in text
    assert "price 1.50" in text


def test_the_slowest_files_are_told(make_night, safe_page):
    files = [FileRows(f"/in/{n}.parquet", 10, 10, 0, None, seconds) for n, seconds in enumerate([1.0, 9.0, 2.0])]
    counts = {"label_counts": {"negative": 10, "positive": 20}}
    text = words(safe_page(make_night(files=files, quarantined={}, **counts).to_html()))
    assert "1.parquet 9 s 1 2.parquet 2 s 5 0.parquet 1 s 10" in text


def line(title="dt=2026-11-20", drift="ordinary", quarantined=0, **keys):
    folder = "dt=2026-11-20/run=1"
    told = "Like the 31 nights of the reference, by every statistic."
    defaults: dict = {"labels": {"negative": 30, "positive": 70}, "needs_review": 5, "model_version": "abc"}
    counts = (100, 100 - quarantined, quarantined)
    of_this = {"measured": 0.81, **defaults, **keys}
    at = of_this.pop("committed_at", "2026-11-20T02:30:00+00:00")
    return NightLine(title, folder, at, *counts, drift, told, **of_this)


EARLIER = line("dt=2026-11-19", committed_at="2026-11-19T02:30:00+00:00")
ODD = Finding("warning", "100 % of the rows are in a script that the model was not validated on.")


@pytest.mark.parametrize(
    ("nights", "severity", "said"),
    [
        ([line(), EARLIER], "good", "Nothing to do: dt=2026-11-20, 100 rows."),
        ([line(drift="alarm"), EARLIER], "bad", "Look at dt=2026-11-20. Like the"),
        ([line(drift="alarm", is_accepted=True), EARLIER], "good", "Nothing to do: dt=2026-11-20"),
        ([line(finding=ODD), EARLIER], "warning", "Look at dt=2026-11-20. 100 % of the rows are in a script"),
        ([line(quarantined=2), EARLIER], "warning", "2.0 % of the rows were kept out"),
        ([line(quarantined=100), EARLIER], "warning", "dt=2026-11-20: no row was scored."),
        ([line(), replace(EARLIER, drift="alarm")], "warning", "dt=2026-11-19 drifted, and nobody has accepted or"),
        ([line(), replace(EARLIER, drift="alarm", is_accepted=True)], "good", "Nothing to do: dt=2026-11-20"),
        ([line()] * 8 + [replace(EARLIER, drift="alarm")], "good", "Nothing to do"),  # long ago
        # A slot that was replaced, or got a second run, after the last one of the list.
        ([EARLIER, line("dt=2026-11-01", drift="alarm")], "bad", "Look at dt=2026-11-01."),
    ],
)
def test_the_index_says_whether_anybody_has_to_act(safe_page, nights, severity, said):
    index = NightsIndex("scored", nights, created="2026-11-20 04:00 UTC")
    page = safe_page(index.to_html())
    assert said in words(page)
    assert f"verdict {severity}" in page.values("class")[0] or f"lead verdict {severity}" in page.values("class")
    assert page.elements.get("svg", 0) == (2 if nights[0].rows_scored else 0)  # one night alone has no trend
    content = json.loads(json.dumps(index.to_json(), allow_nan=False))
    assert (content["schema_version"], content["severity"], len(content["nights"])) == (1, severity, len(nights))


@pytest.mark.parametrize(
    ("nights", "columns"),
    [
        ([line(measured=None), line()], ["measured accuracy", "needs review"]),
        ([line(measured=None), line(measured=None, needs_review=0)], ["needs review"]),
        ([line(needs_review=0)], ["measured accuracy"]),
        ([line(measured=None, needs_review=0)], []),
    ],
)
def test_the_index_has_no_column_in_which_nothing_stands(safe_page, nights, columns):
    text = words(safe_page(NightsIndex("scored", nights).to_html()))
    assert [name for name in ("measured accuracy", "needs review") if name in text] == columns


def test_a_night_that_drifts_stands_out_in_the_index(safe_page):
    nights = [line(), line("dt=2026-11-19", drift="alarm"), line("dt=2026-11-18", drift="no_baseline")]
    assert safe_page(NightsIndex("scored", nights).to_html()).values("class").count("tag bad") == 1


def test_the_index_says_when_the_next_night_is_due(safe_page):
    index = NightsIndex("scored", [line()], expect_every_h=26, created="2026-11-20 04:00 UTC")
    assert "The next night is due by 2026-11-21 04:30 UTC." in words(safe_page(index.to_html()))


@pytest.mark.slow  # 180 pages
def test_nothing_of_sixty_hostile_texts_is_alive_on_a_page(make_night, read_page):
    assert len(set(HOSTILE)) == 60

    def pages(word):
        shift = Shift("mean", f"share:{word}={word}", 0.5, 0.1, 0.0, 0.2, 1e-9, True)
        drift = DriftReport(Drift("alarm", (shift,), (word,)), {shift.name: [word] * 5}, f"`{word}`")
        before = NightBefore(word, "../../x/report.html", 10, {word: 3}, word, "x")
        quality = QualityReport(ESTIMATE, void=True, labelled=[LabelledNight(word, 10, 0.5, True)])
        night = make_night(
            drift=drift, verdicts=drift.findings, quality=quality, before=before, label_counts={word: 118}
        )
        nights = [replace(line(word, "alarm", labels={word: 10}), told=drift.headline)] * 2
        index = NightsIndex(word, nights, created=word)
        share = GroupLine((word, word), word, 10, 0.1, Estimate(0.2, 0.1, 0.3), word, 5)
        shares = SharesReport((word, "week"), [word], [share, share], [word], 1, word, word)
        reports = (night, index, shares)
        return [report.to_html() for report in reports], [json.dumps(one.to_json()) for one in reports[:2]]

    plain = [read_page(html) for html in pages("x")[0]]
    for word in HOSTILE:
        found, machine = pages(word)
        for html, expected in zip(found, plain, strict=True):
            page = read_page(html)
            assert {**page.elements, "code": 1} == {**expected.elements, "code": 1}, word  # backticks are code
            names = [(element, name) for element, name, _ in page.attributes]
            assert names == [(element, name) for element, name, _ in expected.attributes], word
            assert not page.unclosed
            assert not UNSEEN.search(html), word
            assert html.count("<!-- next night -->") <= 1
        assert not UNSEEN.search("".join(json.loads(text)["headline"] for text in machine)), word


def test_nothing_of_sixty_hostile_texts_is_alive_in_a_table_a_log_or_a_message(caplog, capsys):
    shares = [GroupLine((word, word), word, 10, 0.1, Estimate(0.2, 0.1, 0.3), word, 5) for word in HOSTILE]
    content = csv_bytes(shares_table(SharesReport(("shop", "day"), list(HOSTILE), shares))).decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert len(rows) == 61
    for cut in (*rows, *(re.split("[;\t]", piece) for piece in re.split("[\r\n]+", content))):
        cells = [cell.lstrip('"') if cut not in rows else cell for cell in cut]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r"))]
    assert not UNSEEN.search(content.replace("\r\n", "\n"))
    for column in map(rows[0].index, ("shop", "day", "label", "method")):
        assert [unguarded(row[column]) for row in rows[1:]] == [visible(word) for word in HOSTILE]
    for word in HOSTILE:
        shift = Shift("mean", f"share:{word}={word}", 0.5, 0.1, 0.0, 0.2, 1e-9, True)
        said = DriftReport(Drift("alarm", (shift,), REFERENCE)).headline
        assert not UNSEEN.search(said), word
        assert len(said.splitlines()) == 1, word
        with caplog.at_level(logging.WARNING):
            log_findings([Finding("bad", said)], "slot dt=1")
        table(word, ["group", word], [[name_of((word,)), word]] * 2)
        say(word)
        heading(word, word)
    assert not UNSEEN.search(capsys.readouterr().out)
    assert len(caplog.records) == 60
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


def test_hostile_text_stays_text(make_night, payload, read_page, safe_page):
    def pages(word):
        shift = Shift("mean", f"share:{word}={word}", 0.5, 0.1, 0.0, 0.2, 1e-9, True)
        drift = DriftReport(Drift("alarm", (shift,), (word,)), {shift.name: [word] * 5}, f"`{word}`")
        before = NightBefore(word, "../../x/report.html", 10, {word: 3}, word, "x")
        labelled = [LabelledNight(word, 10, 0.5, True)]
        night = make_night(
            drift=drift,
            verdicts=drift.findings,
            quality=QualityReport(ESTIMATE, void=True, labelled=labelled),
            before=before,
            label_counts={word: 118},
        )
        index = NightsIndex(word, [line(word, "alarm", labels={word: 10})] * 2, created=word)
        share = GroupLine((word, word), word, 10, 0.1, Estimate(0.2, 0.1, 0.3), word, 5)
        shares = SharesReport((word, "week"), [word], [share, share], [word], 1, word, word)
        return [report.to_html() for report in (night, index, shares)]

    for html, plain in zip(pages(payload), pages("x"), strict=True):
        page = safe_page(html)
        assert page.elements == read_page(plain).elements
        assert page.text.count(payload.replace("\x00", "")) >= 3
