"""The page of a night counts every row and says what became of it."""

from __future__ import annotations

import json
import re

import pytest

from bertray.evaluation.verdicts import Finding, worst_first
from bertray.reports.night import FileRows
from bertray.schema import REASON_WORDS, Reason


def words(page):
    return re.sub(r"\s+", " ", page.text.replace("\u00a0", " "))


def test_the_headline_counts_and_the_page_says_that_it_adds_up(make_night, safe_page):
    report = make_night()
    assert (report.rows_in, report.rows_scored, report.rows_quarantined, report.adds_up) == (121, 118, 3, True)
    text = words(safe_page(report.to_html()))
    assert (
        "121 reviews came in with 3 files: 118 scored, 3 quarantined. 74.6 % of the scored ones are positive." in text
    )
    assert "It adds up: 121 rows in = 118 scored + 3 quarantined, in every file" in text
    assert "the rows of 1 unreadable file are unknown" in text


def test_a_lost_row_is_an_alarm_at_the_file_that_lost_it(make_night):
    files = [FileRows("/in/a.parquet", 100, 97, 2), FileRows("/in/b.parquet", 21, 21, 0)]
    report = make_night(files=files)
    html = report.to_html()
    assert not report.adds_up
    assert report.findings == [
        Finding(
            "bad",
            "It does not add up: 121 rows in, 118 scored, 2 quarantined. Look at the table of files before you use "
            "these rows.",
        )
    ]
    assert '<p class="lead verdict bad">' in html
    assert re.search(r"a\.parquet <span class=\"tag\">does not add up", html)
    assert not re.search(r"b\.parquet <span", html)
    assert json.loads(json.dumps(report.to_json()))["adds_up"] is False


def test_labels_that_do_not_count_the_scored_rows_do_not_add_up(make_night):
    assert not make_night(label_counts={"negative": 30, "positive": 87}).adds_up


def test_files_stand_below_their_common_folder(make_night, read_page):
    text = words(read_page(make_night().to_html()))
    assert "What became of each input file, below /in/reviews/." in text
    assert "a.parquet 100 98 2 b.parquet 21 20 1 c.parquet file_corrupt unknown 0 0 3 files 121 118 3" in text


def test_shares_speed_and_lengths_are_told(make_night, read_page):
    text = words(read_page(make_night(needs_review=4, needs_review_below=0.6).to_html()))
    assert "negative 25.4 % 30 positive 74.6 % 88" in text
    assert "Needs review 4 score below 0.6" in text
    assert "150 rows/s at work, 2 s in all" in text
    assert "9 were longer than the model reads." in text


@pytest.mark.parametrize(
    ("histogram", "sentence"),
    [
        (
            (59, 50, 9),
            "20 tokens on average; half of the reviews have at most 16, 90 % at most 64, 7.6 % more than 64.",
        ),
        ((59, 59, 0), "20 tokens on average; half of the reviews have at most 16, 90 % at most 64, 99 % at most 64."),
        ((20, 20, 78), "20 tokens on average; 66.1 % of the reviews have more than 64."),
        ((0, 0, 118), "20 tokens on average; 100.0 % of the reviews have more than 64."),
    ],
)
def test_lengths_are_told_in_a_sentence_that_is_true(make_night, read_page, histogram, sentence):
    report = make_night(token_histogram=histogram)
    assert sentence in words(read_page(report.to_html()))


def test_the_title_says_data_model_and_slot(make_night):
    one = [FileRows("s3://shop/in/reviews/a.parquet", 118, 118, 0)]
    assert make_night().title == "Scored reviews: 3 files of in/reviews, model imdb, slot dt=2026-11-20"
    night = make_night(files=one, verb="embedded", slot="day", created="2026-11-21T04:00:00Z")
    assert night.title == "Embedded reviews: reviews/a.parquet, model imdb, slot day"
    assert re.findall(r"<(?:h1|title)>(.*?)<", night.to_html()) == [
        f"{night.title}, 2026-11-21 · bertray",
        f"{night.title}, 2026-11-21",
    ]
    assert make_night(files=[]).title == "Scored reviews: no file, model imdb, slot dt=2026-11-20"


def test_headings_are_the_words_that_people_look_for(make_night):
    assert re.findall(r"<h2>(.*?)</h2>", make_night().to_html()) == [
        "Label distribution",
        "Text length",
        "Input files",
        "Quarantine",
        "Run and data",
    ]


def test_intervals_are_explained_where_there_are_any(make_night, make_report):
    explained = "Intervals are 95 % confidence intervals"
    assert explained not in make_night().to_html()
    assert explained in make_night(evaluation=make_report()).to_html()


@pytest.mark.parametrize(
    ("verdicts", "colours"),
    [
        ((), []),
        ((Finding("note", "a"),), ["note", "note"]),
        ((Finding("good", "a"), Finding("warning", "b")), ["warning", "warning", "good"]),
    ],
)
def test_the_headline_takes_the_colour_of_the_worst_finding(make_night, read_page, verdicts, colours):
    report = make_night(verdicts=verdicts)
    page = read_page(report.to_html())
    assert [value.split()[-1] for value in page.values("class") if "verdict" in value.split()] == colours
    assert report.to_json()["findings"] == [
        {"severity": f.severity, "sentence": f.sentence} for f in worst_first(verdicts)
    ]


def test_token_percentiles_are_read_off_the_bins(make_night):
    assert make_night().token_percentiles == {"p50": 16, "p90": 64, "p99": None}  # 59, 109 and 118 of 118 rows
    assert make_night(token_histogram=(0, 0, 0)).token_percentiles == {}


def test_every_reason_has_words():
    assert set(REASON_WORDS) == set(Reason)


def test_quarantine_is_told_by_reason_most_frequent_first(make_night, read_page):
    text = words(read_page(make_night().to_html()))
    first = "text_empty nothing is left of the text after cleaning 2"
    second = "file_corrupt the file is damaged 1"
    assert text.index(first) < text.index(second)


def test_skipped_files_are_named_with_their_reason(make_night, read_page):
    report = make_night(skipped=[{"path": "/in/old.parquet", "why": "scored in slot dt=2026-11-19"}])
    assert "/in/old.parquet scored in slot dt=2026-11-19" in words(read_page(report.to_html()))
    assert report.to_json()["skipped"] == [{"path": "/in/old.parquet", "why": "scored in slot dt=2026-11-19"}]


def test_of_very_many_files_the_page_shows_those_that_need_a_look(make_night, read_page):
    files = [FileRows(f"/in/{number:04}.csv", 1, 1, 0) for number in range(1200)]
    files[700], files[900] = FileRows("/in/0700.csv", 1, 0, 1), FileRows("/in/0900.csv", None, 0, 0, "file_corrupt")
    skipped = [{"path": f"/in/old-{number:04}.csv", "why": "scored"} for number in range(501)]
    report = make_night(files=files, skipped=skipped)
    text = words(read_page(report.to_html()))
    assert "quarantined 0700.csv 1 0 1 0900.csv file_corrupt unknown 0 0 0000.csv 1 1 0 0001.csv 1 1 0" in text
    assert "0497.csv 1 1 0 700 more, in report.json 1,200 files" in text
    assert "old-0499.csv scored 1 more, in report.json" in text
    assert "old-0500.csv" not in text
    assert len(report.to_json()["files"]) == 1200
    assert len(report.to_json()["skipped"]) == 501


def test_an_empty_night_is_a_page(make_night, safe_page):
    report = make_night(
        files=[],
        label_counts={"negative": 0, "positive": 0},
        score_histogram=[0] * 20,
        token_histogram=(0, 0, 0),
        tokens=0,
        truncated=0,
        quarantined={},
        seconds=0.0,
    )
    page = safe_page(report.to_html())
    assert "0 reviews came in with 0 files: 0 scored, none quarantined." in words(page)
    assert report.adds_up


def test_a_labelled_night_holds_the_evaluation_with_unique_ids(make_night, make_report, safe_page):
    report = make_night(evaluation=make_report())
    page = safe_page(report.to_html())
    assert page.elements["svg"] == 7
    assert page.text.count("BERT beats the majority baseline") == 2  # at the top, and beside the baselines
    assert report.findings == report.evaluation.evaluation.findings
    levels = [tag for tag in page.elements if re.fullmatch(r"h\d", tag)]
    assert sorted(levels) == ["h1", "h2", "h3"]
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["evaluation"]["metrics"]["rows"] == 120


def test_hostile_names_stay_text(make_night, payload, read_page, safe_page):
    def night(word, path):
        return make_night(
            slot=word,
            run_id=word,
            model=word,
            model_version=word,
            files=[FileRows(path, 118, 118, 0, word)],
            label_counts={word: 118},
            quarantined={word: 1},
            skipped=[{"path": path, "why": word}],
            facts={word: word},
            config=word,
            notes=[word],
            created=word,
        ).to_html()

    page = safe_page(night(payload, f"/in/{payload}.parquet"))
    assert page.elements == read_page(night("x", "/in/x.parquet")).elements
    assert page.text.count(payload.replace("\x00", "")) >= 10
