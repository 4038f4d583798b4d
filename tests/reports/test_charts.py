"""Charts are drawn the same each time, in the colours of the page, and never clash with each other."""

from __future__ import annotations

import itertools
import re

import pytest

from bertray.evaluation.curves import Curve, ReliabilityBin
from bertray.evaluation.intervals import Estimate
from bertray.reports.charts import MAX_SERIES, Charts

CURVE = Curve((0.0, 0.2, 1.0), (0.0, 0.9, 1.0), 0.85)
BINS = (ReliabilityBin(0.8, 0.9, 5, 0.85, Estimate(0.8, 0.4, 0.96)),)


def draw_all(charts):
    return [
        charts.reliability(BINS),
        charts.scores([0, 4, 9], [1, 2, 0]),
        charts.scores([0, 0, 0], None),
        charts.roc([CURVE] * MAX_SERIES),
        charts.precision_recall([CURVE]),
        charts.losses([(0.5, 0.7)], [(1.0, 0.6)], [(1.0, 0.5)]),
        charts.losses([], [], []),
        charts.validation([[(1.0, 0.8), (2.0, 0.9)]]),
    ]


def test_the_same_data_gives_the_same_chart():
    assert draw_all(Charts()) == draw_all(Charts())


def test_ids_of_charts_on_one_page_never_repeat():
    ids = re.findall(r'\bid="([^"]+)"', "".join(draw_all(Charts())))
    assert len(ids) > 100
    assert len(ids) == len(set(ids))


def test_references_inside_a_chart_lead_to_its_own_elements():
    for svg in draw_all(Charts()):
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert references
        assert {a or b for a, b in references} <= ids


def test_every_colour_is_a_variable_of_the_page():
    for svg in draw_all(Charts()):
        styles = " ".join(re.findall(r'style="([^"]*)"', svg))
        assert "var(--ink)" in styles
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b|\b(black|white|rgb)\b", styles)


def test_a_chart_carries_no_address_date_or_style_sheet():
    for svg in draw_all(Charts()):
        assert svg.startswith('<svg viewBox="0 0 ')
        for word in ("http", "xmlns", "<metadata", "<style", "<?xml", "<!", "DejaVu"):
            assert word not in svg


@pytest.mark.parametrize(
    "values",
    [
        [1e-5, 2.65e-4],
        [4.22e-5, 5e-5, 2.65e-4],
        [1e-6, 1e-2],
        [1e-7, 1e1],
        [0.01, 0.0871],
        [0.0, 0.1],
        [16, 32],
        [1, 2, 3, 1000],
        [0.00001234, 0.00001235],
        [100_000, 900_000],
    ],
)
def test_labels_of_a_setting_do_not_run_into_each_other(values):
    log = min(values) > 0 and max(values) / min(values) > 8
    points = [(value, 0.5 + 0.1 * n) for n, value in enumerate(values)]
    svg = Charts().tried(points, points[0], xlabel="setting", ylabel="accuracy", log=log)
    axis = svg[svg.index('-matplotlib.axis_1"') : svg.index('-matplotlib.axis_2"')]
    labels = [
        (float(x), text)
        for style, x, text in re.findall(r'<text style="([^"]*)" x="([\d.]+)"[^>]*>([^<]*)</text>', axis)
        if "middle" in style and text != "setting"
    ]
    ends = [(x - 0.3 * 10.5 * len(text), x + 0.3 * 10.5 * len(text)) for x, text in labels]  # 0.6 em a letter
    assert 1 <= len(labels) <= 6
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(ends)), labels
