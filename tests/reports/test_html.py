"""Titles, and colours of the style sheet that can be read in light and in dark."""

from __future__ import annotations

import re

import pytest

from bertray.reports.html import TEMPLATES, data_title, model_title, prose

CSS = (TEMPLATES / "style.css").read_text("utf-8")
LIGHT, DARK = (
    dict(re.findall(r"(--[\w-]+): ([^;]+);", block))
    for block in re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)[:2]
)
THEMES = {"light": LIGHT, "dark": LIGHT | DARK}


def luminance(colour):
    """Relative luminance of WCAG 2.2 of an sRGB colour of three numbers up to 255."""
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (c / 255 for c in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return tuple(int(digits[start : start + 2], 16) for start in (0, 2, 4))


def test_the_contrast_of_black_on_white_is_that_of_the_standard():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast(rgb("#777"), rgb("#fff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("--ink", "--page"),
        ("--ink", "--surface"),
        *(("--ink", ground) for ground in ("--soft", "--good-soft", "--bad-soft", "--plain-soft")),
        *(("--muted", ground) for ground in ("--page", "--surface")),
        ("--accent", "--page"),
        ("--bad", "--bad-soft"),
        ("--plain", "--plain-soft"),
    ],
)
def test_text_can_be_read_on_its_ground(theme, text, ground):
    colours = THEMES[theme]
    assert contrast(rgb(colours[text]), rgb(colours[ground])) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("series", "mix"), [("--series-1", "--matrix-hit"), ("--series-2", "--matrix-miss")])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_every_cell_of_the_confusion_matrix_can_be_read(theme, series, mix, share):
    assert f"color-mix(in srgb, var({series}) calc(var(--share) * var({mix})), var(--soft))" in CSS
    colours = THEMES[theme]
    part = share * float(colours[mix])
    ground = [part * a + (1 - part) * b for a, b in zip(rgb(colours[series]), rgb(colours["--soft"]), strict=True)]
    assert contrast(rgb(colours["--ink"]), ground) >= 4.5


def test_the_first_column_stays_in_sight_on_phones():
    phone = CSS[CSS.index("@media (max-width: 40rem)") : CSS.index("@media print")]
    assert re.search(r"thead th:first-child:not\(\.text\), tbody th\) \{ position: sticky; left: 0;", phone)


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("bundled", "all-MiniLM-L6-v2"),
        ("runs/imdb/model", "imdb"),
        ("/data/runs/imdb/model/", "imdb"),
        ("s3://bucket/runs/imdb/model", "imdb"),
        ("google/bert_uncased_L-4@abc", "google/bert_uncased_L-4@abc"),
        ("/models/minilm", "minilm"),
        ("./runs/minilm", "minilm"),
        ("~/minilm", "minilm"),
        ("model", "model"),
    ],
)
def test_a_model_is_called_by_its_run_its_hub_id_or_its_folder(model, title):
    assert model_title(model) == title


@pytest.mark.parametrize(
    ("paths", "title"),
    [
        (["/data/imdb/train.parquet"], "imdb/train.parquet"),
        (["train.parquet"], "train.parquet"),
        (["in/*.csv"], "in/*.csv"),
        (["s3://bucket/in/2026/"], "in/2026"),
        (["s3://bucket"], "bucket"),
        (["a/b.csv", "a/c.csv", "a/d.csv"], "a/b.csv and 2 more"),
    ],
)
def test_data_is_called_by_its_folder_and_name(paths, title):
    assert data_title(paths) == title


def test_a_title_gets_the_date_once(make_report):
    def headings(title):
        return re.findall(r"<(?:h1|title)>(.*?)<", make_report(title=title).to_html())

    assert headings("Evaluation of a on b") == [
        "Evaluation of a on b, 2026-11-20 · bertray",
        "Evaluation of a on b, 2026-11-20",
    ]
    assert headings("Slot dt=2026-11-20") == ["Slot dt=2026-11-20 · bertray", "Slot dt=2026-11-20"]


def test_backticks_are_code_and_nothing_else_is_markup():
    said = prose("Set `labels={<a>: b}` to 5 %, <script>`x` & `unclosed")
    assert said == ("Set <code>labels={&lt;a&gt;: b}</code> to 5\u00a0%, &lt;script&gt;<code>x</code> &amp; `unclosed")
