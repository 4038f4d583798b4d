"""The page of a search: best first, every figure with its interval, what a seed does, and where to test the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bertray.reports.search import OverSeeds, SearchReport

METRICS = ("loss", "accuracy", "macro_f1", "mcc")


def trial(number, value, status="finished", why="", **point):
    """A row of the table: `value` is its accuracy, 0.05 above the lower end and 0.04 below the upper one."""
    known = value is not None
    figures = dict.fromkeys(METRICS, value)
    figures |= {f"{name}_low": value - 0.05 if known else None for name in METRICS}
    figures |= {f"{name}_high": value + 0.04 if known else None for name in METRICS}
    told = {"trial": number, "status": status, "epochs": 2, "seconds": 61.0, "best_epoch": 2.0, "why": why}
    return told | figures | point


def report(rows, **keys):
    found = SearchReport(
        title="Search of moods",
        metric="accuracy",
        rows=rows,
        keys=tuple(key for key in rows[0] if key == "seed" or key.startswith("training.")),
        best=max((row for row in rows if row["accuracy"] is not None), key=lambda row: row["accuracy"])["trial"],
        facts={"sampler": "tpe"},
        config="output: out\n",
    )
    return replace(found, **keys)


RATES = [
    trial(1, 0.81, **{"training.learning_rate": 1e-5}),
    trial(2, 0.9, **{"training.learning_rate": 1e-4}),
    trial(3, 0.7, "stopped", **{"training.learning_rate": 1e-3}),
    trial(4, None, "failed", "the loss is nan", **{"training.learning_rate": 1.0}),
]


def test_the_headline_and_every_figure_have_an_interval(safe_page):
    page = safe_page(report(RATES).to_html())
    text = " ".join(page.text.split())
    assert (
        "4 trials, 1 ended early because it was behind, 1 failed. Best: trial 2 (learning rate 0.0001), "
        "accuracy 0.900 (95 % interval 0.850 to 0.940)." in text
    )
    for figure in ("0.900 0.850 to 0.940", "0.810 0.760 to 0.850", "0.700 0.650 to 0.740"):
        assert text.count(figure) == len(METRICS)
    assert text.index("0.900 0.850") < text.index("0.810 0.760") < text.index("0.700 0.650") < text.index("is nan")
    assert "no interval knows of that choice" in text
    assert "Over seeds" not in text
    assert page.elements["svg"] == 1


@pytest.mark.parametrize("has_test", [False, True])
def test_the_page_says_where_the_best_is_tested(read_page, has_test):
    text = " ".join(read_page(report(RATES, has_test=has_test).to_html()).text.split())
    assert ("The test rows took no part" in text) == has_test
    assert ("best.yaml and data.test" in text) == (not has_test)


def test_text_from_outside_is_no_mark_up(safe_page, payload):
    safe_page(report([*RATES, trial(5, None, "failed", payload, **{"training.learning_rate": 2.0})]).to_html())


def test_seeds_of_one_setting_have_a_mean_and_a_standard_deviation(safe_page):
    values = {16: [0.8, 0.9, 0.85], 32: [0.9, 0.92, 0.5], 64: [0.99]}
    rows = [
        trial(seed + size, value, "stopped" if value == 0.5 else "finished", seed=seed, **{"training.batch_size": size})
        for size, of_size in values.items()
        for seed, value in enumerate(of_size)
    ]
    rows.append(trial(99, None, "failed", "nan", seed=9, **{"training.batch_size": 16}))
    found = report(rows)
    # By hand: 0.85 with squares 0.0025 + 0.0025 over 2; 0.91 with 0.0001 + 0.0001 over 1; one seed has no spread.
    assert [(over.setting, over.num_seeds, over.left_out) for over in found.over_seeds] == [
        ("batch size 32", 2, 1),
        ("batch size 16", 3, 1),
    ]
    assert [over.mean for over in found.over_seeds] == pytest.approx([0.91, 0.85])
    assert [over.deviation for over in found.over_seeds] == pytest.approx([0.0002**0.5, 0.05])
    text = " ".join(safe_page(found.to_html()).text.split())
    assert "setting seeds mean standard deviation left out" in text
    assert "batch size 32 2 0.910 0.014 1 batch size 16 3 0.850 0.050 1" in text


def test_of_a_loss_the_lowest_mean_comes_first():
    rows = [
        trial(2 * size + seed, value, seed=seed, **{"training.batch_size": size})
        for size, value in ((8, 0.9), (16, 0.4))
        for seed in (0, 1)
    ]
    assert [over.mean for over in report(rows, metric="loss").over_seeds] == pytest.approx([0.4, 0.9])


def test_seeds_alone_are_one_setting(safe_page):
    found = report([trial(number, value, seed=number) for number, value in enumerate((0.8, 0.8, 0.8))])
    near: Any = pytest.approx(0.8)
    assert found.over_seeds == [OverSeeds("as the config has it", 3, near, 0.0, 0)]
    safe_page(found.to_html())


def test_where_no_setting_has_two_seeds_the_page_says_so(read_page):
    rows = [trial(n, 0.8, seed=n, **{"training.learning_rate": 10.0**-n}) for n in (3, 4, 5)]
    assert report(rows).over_seeds == []
    assert "differ in their seed alone" in read_page(report(rows).to_html()).text
