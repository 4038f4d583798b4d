"""The page of topics: escaped, masked, in order, self-contained, and the same as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bertray.evaluation.groups import compare_groupings
from bertray.reports.charts import MAX_TOPIC_COLOURS, topic_colour, topic_map
from bertray.reports.topics import GroupComparison, Topic, TopicsReport, name_of

BAD = "<script>alert('x')</script>"


def make_topic(number: int, size: int, share: float, **keys: Any) -> Topic:
    words = [("engine", 0.5), ("engines", 0.4), (BAD, 0.3), ("dealer", 0.2)]
    shown = [{"id": f"<b>{number}", "text": f"{BAD} call 555 123 4567 or a@b.com"}]
    counts = {"neg": size // 4, "pos": size - size // 4}
    return Topic(
        number, name_of(words), words, size, share, **{"label_counts": counts, "representatives": shown, **keys}
    )


def make_report(**keys: Any) -> TopicsReport:
    groups = np.repeat([0, 1], 50)
    agreed = compare_groupings(groups, groups, np.zeros(100, int), 0)
    random = np.random.default_rng(0)
    points = [(float(x), float(y), n % 4 - 1) for n, (x, y) in enumerate(random.normal(size=(200, 2)))]
    report = TopicsReport(
        title=f"Topics of {BAD}",
        rows=120,
        rows_refused=3,
        sampled=100,
        topics=[make_topic(0, 60, 0.5, mean_score=0.875), make_topic(1, 40, 1 / 3)],
        outliers=Topic(-1, "outliers", (), 20, 1 / 6, {"neg": 20, "pos": 0}),
        labels=("neg", "pos"),
        label_source="predicted",
        agreement=0.875,
        comparisons=[GroupComparison("<i>group", "all", agreed)],
        points=points,
        facts={"model": "bundled"},
        notes=["a note"],
    )
    return replace(report, **keys)


def test_the_page_needs_nothing_else_and_shows_no_text_as_mark_up():
    page = make_report().to_html()
    assert BAD not in page
    assert "&lt;script&gt;" in page
    assert "<b>0" not in page
    assert "<i>group" not in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "<script" not in page
    assert len(page.encode()) < 60_000


def test_reviews_are_masked_on_the_page_and_in_json():
    report = make_report()
    for told in (report.to_html(), json.dumps(report.to_json())):
        assert "[phone]" in told
        assert "[e-mail]" in told
        assert "a@b.com" not in told
        assert "4567" not in told


def test_figures_are_on_the_page():
    page = make_report().to_html()
    for said in ("120 reviews have 2 topics", "16.7\u00a0% are outliers", "87.5\u00a0%", "0.875", "3 more had no text"):
        assert said in page, said
    # Of the topics three quarters are positive, of all 75 of 120: the interval of the larger one lies above that.
    assert page.count('<span class="tag">more</span>') == 2 + 1  # with the one that explains it: outliers are negative
    assert "NMI 1.000 against 0.000 of TF-IDF + k-means" in page


def test_json_has_every_topic_and_share():
    content = make_report().to_json()
    assert [(t["topic"], t["size"]) for t in content["topics"]] == [(0, 60), (1, 40), (-1, 20)]
    assert content["topics"][0]["label_shares"] == {"neg": 0.25, "pos": 0.75}
    assert content["topics"][0]["words"][0] == {"word": "engine", "weight": 0.5}
    assert content["comparisons"][0]["agreement"]["figures"]["ari"]["value"] == 1.0
    assert json.loads(json.dumps(content)) == content


def test_without_labels_map_and_groups_their_sections_are_left_out():
    bare = [replace(topic, label_counts={}, mean_score=None) for topic in make_report().topics]
    outliers = Topic(-1, "outliers", (), 0, 0.0)
    page = make_report(topics=bare, outliers=outliers, labels=(), comparisons=[], points=[], sampled=120).to_html()
    for section in ("labels", "groups", "map"):
        assert f'id="{section}"' not in page
        assert f'href="#{section}"' not in page
    assert "Topics were found on all of these reviews" in page


def test_of_many_labels_the_most_frequent_are_named():
    names = tuple(f"group{number}" for number in range(8))
    counts = dict(zip(names, (1, 0, 50, 0, 3, 0, 6, 0), strict=True))
    topics = [replace(make_topic(0, 60, 1.0), label_counts=counts)]
    outliers = Topic(-1, "outliers", (), 0, 0.0, dict.fromkeys(names, 0))
    page = make_report(topics=topics, outliers=outliers, labels=names, label_source="given").to_html()
    assert "group2 83.3\u00a0%, group6 10.0\u00a0%, group4 5.0\u00a0%</td>" in page
    assert 'class="stack"' not in page


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([("car", 3), ("cars", 2), ("engine", 1), ("oil", 1), ("wheel", 1)], "car, engine, oil"),
        ([("手机", 3)], "手机"),
        ([], ""),
    ],
)
def test_a_name_says_no_word_twice(words, name):
    assert name_of(words) == name


def test_the_map_draws_every_dot_once_in_the_colour_of_its_topic():
    random = np.random.default_rng(1)
    topics = [-1] * 30 + [0] * 20 + [MAX_TOPIC_COLOURS + 2] * 10
    points = [(float(x), float(y), t) for (x, y), t in zip(random.normal(size=(60, 2)), topics, strict=True)]
    svg = str(topic_map(points, {0: BAD, MAX_TOPIC_COLOURS + 2: "small"}))
    drawn = {
        colour: path.count("M")
        for path, colour in re.findall(r'<path d="([^"]*)" style="stroke: ([^;]*); stroke-width', svg)
    }
    assert drawn == {"var(--faint)": 30, topic_colour(0): 20, "var(--muted)": 10}
    assert re.findall(r"<text[^>]*>(.*?)</text>", svg) == ["0", "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"]
    places = [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", svg)]
    assert all(0 <= x <= 440 and 0 <= y <= 330 for x, y in places)


def test_each_topic_of_the_map_has_a_colour_of_its_own():
    colours = [topic_colour(topic) for topic in range(MAX_TOPIC_COLOURS)]
    assert len(set(colours)) == MAX_TOPIC_COLOURS == 40
    page = make_report().to_html()
    for name in ("--topic-0", "--topic-1", "--topic-2"):
        assert page.count(f"{name}: ") == 2  # light and dark


def test_names_on_the_map_cover_no_other_label():
    # Two centres side by side and two far off: names as long as 40 % of the map fit on one side at most.
    centres = {0: (50.0, 50.0), 1: (52.0, 50.0), 2: (0.0, 0.0), 3: (100.0, 100.0)}
    points = [(x + dx, y, topic) for topic, (x, y) in centres.items() for dx in (-0.1, 0.0, 0.1)]
    svg = str(topic_map(points, {topic: f"name {topic} " + "x" * 40 for topic in centres}))
    boxes = []
    for side, x, y, text in re.findall(r'<text class="name (\w+)" x="([\d.]+)" y="([\d.]+)">(.*?)<', svg):
        width = 3.7 * len(text)
        low = float(x) if side == "start" else float(x) - width
        assert -0.1 <= low < low + width <= 440.1  # coordinates are rounded to a tenth
        boxes.append((low, low + width, float(y)))
    assert len(boxes) == 4
    for n, (low, high, y) in enumerate(boxes):
        assert all(high < other[0] or other[1] < low or abs(y - other[2]) > 7.9 for other in boxes[:n])


def test_a_map_of_four_thousand_reviews_is_light():
    points = [(float(n % 97), float(n % 89), n % 20 - 1) for n in range(4000)]
    assert len(topic_map(points, {n: f"topic {n}" for n in range(20)})) < 80_000
