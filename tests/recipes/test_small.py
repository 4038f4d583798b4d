"""Rows, lines and tables of the runs on small sets."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.recipes import small
from tests.recipes.small import Difference, Job, Round, Small


def line(kind: str, seed: int, right: list[int], *, tfidf: list[int] | None = None, **more: Any) -> dict[str, Any]:
    found = {"name": "a set", "rows": 100, "seed": seed, "kind": kind, "balanced": False, "classes": 2, "cpu_s": 10.0}
    found |= {"tested": len(right), "accuracy": float(np.mean(right)), "right": small.packed(np.array(right, bool))}
    if tfidf is not None:
        found |= {"tfidf_logreg_accuracy": float(np.mean(tfidf)), "tfidf_right": small.packed(np.array(tfidf, bool))}
    return {**found, "chosen": "contrast", **more}


def test_every_run_stands_once_and_the_default_of_each_set_comes_first():
    jobs = small.jobs()
    assert len(set(jobs)) == len(jobs)
    cells = sum(len(of.sizes) for of in small.SETS.values())
    assert {job.kind for job in jobs[:cells]} == {"auto"}
    assert {(job.name, job.rows) for job in jobs[:cells]} == {
        (name, rows) for name, of in small.SETS.items() for rows in of.sizes
    }
    assert Job("a", 1, 0, "finetune 1e-4").words == ("training.method=finetune", "training.learning_rate=1e-4")
    assert Job("a", 1, 0).words == ()


def test_train_rows_hold_every_class_and_no_test_row(tmp_path, monkeypatch):
    labels = ["a"] * 180 + ["b"] * 16 + ["c"] * 4
    ids = [str(number) for number in range(200)]
    pq.write_table(pa.table({"id": ids, "text": ids, "label": labels}), tmp_path / "all.parquet")
    monkeypatch.setattr(small, "TESTED", 20)
    monkeypatch.setitem(small.SETS, "a set", Small("all", "all", (30,)))
    train, test = small.drawn(tmp_path, Job("a set", 30, 0))
    assert (train.num_rows, test.num_rows) == (30, 20)
    assert not set(train["id"].to_pylist()) & set(test["id"].to_pylist())
    assert all(train["label"].to_pylist().count(name) >= 2 for name in "abc")
    again, same_test = small.drawn(tmp_path, Job("a set", 30, 1))
    assert again != train
    assert same_test == test
    balanced, _ = small.drawn(tmp_path, Job("a set", 3, 0, balanced=True))
    assert sorted(balanced["label"].to_pylist()) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_a_run_that_is_there_is_not_done_again(tmp_path):
    done = Round(tmp_path, tmp_path / "runs", None)
    assert not done.is_done(Job("a set", 100, 0))
    (tmp_path / "runs" / "runs.jsonl").write_text(json.dumps(line("auto", 0, [1, 0])) + "\n")
    assert done.is_done(Job("a set", 100, 0))
    assert not done.is_done(Job("a set", 100, 1))
    assert not done.is_done(Job("a set", 100, 0, balanced=True))


def test_an_interval_covers_test_rows_and_draws():
    one, other = np.array([1.0, 1, 1, 0]), np.array([1.0, 0, 0, 0])
    found = Difference.of([0.5, 0.3], [(one, other), (one, other)])
    # Gains 0, 1, 1, 0: variance 1/3 over 4 rows; draws: variance 0.02 over 2.
    assert (found.value, found.half) == pytest.approx((40.0, 196 * (1 / 12 + 0.01) ** 0.5))
    assert Difference.of([0.5], [(one, other)]).half == pytest.approx(196 * (1 / 12) ** 0.5)


def test_the_page_tells_what_was_reached_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(small, "SETS", {"a set": Small("all", "all", (100,)), "not run": Small("all", "all", (50,))})
    monkeypatch.setattr(small, "FEW", ("a set",))
    right, tfidf = [1] * 8 + [0] * 2, [1] * 5 + [0] * 5
    lines = [line("auto", seed, right, tfidf=tfidf) for seed in (0, 1)]
    lines += [line("stack", seed, [1] * 9 + [0]) for seed in (0, 1)] + [line("finetune 1e-4", 0, [1] * 10)]
    lines += [line(kind, 0, right, tfidf=tfidf, balanced=True, rows=8) for kind in ("auto", "contrast")]
    lines += [line("setfit", 0, tfidf, balanced=True, rows=8)]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{small.BEGIN}old\n{small.END}after\n")
    small.tell(lines, page)
    text = page.read_text()
    assert text.startswith(f"before\n{small.BEGIN}")
    assert text.endswith(f"{small.END}after\n")
    assert (
        "| a set | English | 2 | 100 | 2 | contrast | 80.0 | 50.0 | +30.0 ± 29.9 | 90.0 stack | -10.0 ± 19.6 |" in text
    )
    assert "Against TF-IDF: better on 1 of 1, more than 1 points behind on 0" in text
    assert "Against the best of the grid: better on 0 of 1, more than 1.5 points behind on 1" in text
    assert "| a set | 8 | 80.0 | 80.0 | 50.0 | +30.0 ± 29.9 | 10 / 10 |" in text
    assert "not run" not in text
    small.tell(lines, page)
    assert page.read_text() == text
