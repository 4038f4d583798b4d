"""What is told of runs that took turns."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from bertray.benchmark.measure import Runs, in_turn


def test_a_ratio_is_of_runs_of_the_same_round_so_that_a_slow_minute_slows_both():
    ours = Runs(rows=10, tokens=100, flops=1.0, seconds=[1.0, 10.0, 2.0])
    theirs = Runs(rows=5, tokens=50, flops=1.0, seconds=[1.5, 15.0, 8.0])
    assert ours.faster_by(theirs) == pytest.approx(3.0)  # of medians: 8
    assert ours.faster_by(ours) == 1.0


def test_the_share_of_the_limit_is_of_what_the_machine_could_do_at_that_moment():
    runs = Runs(rows=10, tokens=100, flops=6.0, seconds=[1.0, 2.0, 1.0], limits=[12.0, 6.0, 8.0])
    assert runs.share_of_limit == pytest.approx(0.5)  # of medians: 0.75


def test_the_limit_of_a_round_is_the_best_seen_in_it():
    seconds = iter([2.0, 1.0, 0.25, 0.5])  # of 1e12 operations: before each run of two ways, twice
    limit = SimpleNamespace(pid=0, seconds=lambda: next(seconds))
    trial: Any = SimpleNamespace(
        device="cpu", runs=lambda _: Runs(rows=1, tokens=1, flops=1.0), contestant=lambda _: nullcontext(limit)
    )

    def way(_, runs):
        runs.seconds.append(1.0)

    measured = in_turn(trial, {"bertray": way, "engine": way}, 2, lambda _: None)
    assert [runs.limits for runs in measured.values()] == [[1e12, 4e12], [1e12, 4e12]]
