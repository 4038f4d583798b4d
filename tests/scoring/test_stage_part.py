"""Parts that an actor with a GPU stages while it computes the next ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bertray.execution.resources import READER_CPUS, Resources
from bertray.io.store import LocalStore
from bertray.outputs import ledger
from bertray.runs.evaluation_page import unlike_machines
from bertray.scoring.row_makers import LabelMaker
from bertray.scoring.stage_part import MakePart
from tests import nightly
from tests.nightly import StubExecutor, check_exact, night_config, run_night, write_inbox

ON_GPU = Resources(num_workers=1, threads=1, cpus_per_worker=0.5, gpus_per_worker=1, reader_cpus=1.0)


class SideBySide(StubExecutor):
    """An actor whose calls run in threads, as many as its stage allows."""

    seen: list[tuple[float, int]] = []  # noqa: RUF012 - cleared by the test

    def run(self, items: Any, stages: Any, progress: Any = None) -> Iterator[Any]:
        task, actors = stages
        self.seen.append((task.cpus, actors.calls))
        replica = nightly._with_stub(actors).factory()
        with ThreadPoolExecutor(actors.calls) as pool:
            yield from pool.map(lambda item: replica(task.function(item)), items)


@pytest.mark.parametrize(("resources", "stages"), [(ON_GPU, (1.0, 2)), (nightly.RESOURCES, (READER_CPUS, 1))])
def test_a_call_computes_while_another_stages_on_a_gpu_alone(tiny_encoder, tmp_path, monkeypatch, resources, stages):
    events: list[tuple[str, int]] = []

    def noted(owner: type, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def call(self: Any, *args: Any) -> Any:
            events.append((name, 1))
            time.sleep(seconds)
            result = original(self, *args)
            events.append((name, -1))
            return result

        monkeypatch.setattr(owner, name, call)

    noted(LabelMaker, "make", 0.002)
    noted(MakePart, "_stage", 0.01)
    SideBySide.seen.clear()
    monkeypatch.setattr(nightly, "stub_executor", lambda: SideBySide(resources))
    rows_of = {f"{number}.parquet": 20 for number in range(4)}
    write_inbox(tmp_path / "in", rows_of)
    config = night_config(
        tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=10, max_quarantine_ratio=1
    )
    assert run_night(config) == 0
    store = LocalStore(tmp_path / "out")
    check_exact(store, rows_of)
    assert SideBySide.seen == [stages]
    running = {"make": 0, "_stage": 0}
    most_made, overlapped = 0, False
    for name, change in events:
        running[name] += change
        most_made = max(most_made, running["make"])
        overlapped |= bool(running["make"] and running["_stage"])
    assert most_made == 1  # a model computes one work unit at a time
    assert overlapped == (stages[1] == 2)


def test_seconds_of_a_receipt_are_without_those_it_waited_for_another_call(tiny_encoder, tmp_path, monkeypatch):
    original, began = LabelMaker.make, threading.Event()

    def make(self: Any, kept: Any) -> Any:
        if not began.is_set():
            began.set()
            time.sleep(0.3)
        return original(self, kept)

    monkeypatch.setattr(LabelMaker, "make", make)
    monkeypatch.setattr(nightly, "stub_executor", lambda: SideBySide(ON_GPU))
    write_inbox(tmp_path / "in", {"a.parquet": 20})
    config = night_config(
        tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=10, max_quarantine_ratio=1
    )
    assert run_night(config) == 0
    (entry,) = ledger.read_ledger(LocalStore(tmp_path / "out"))
    assert 0.3 <= entry.compute_seconds < 0.55  # two calls, of which one waited 0.3 s for the other


def test_a_night_that_unlike_gpus_score_says_in_which_formats(tiny_encoder, tmp_path, monkeypatch):
    formats = iter(["bf16", "bf16", "fp16"])
    monkeypatch.setattr(LabelMaker, "precision", property(lambda self: next(formats)))
    write_inbox(tmp_path / "in", {"a.parquet": 30})
    config = night_config(
        tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=10, max_quarantine_ratio=1
    )
    assert run_night(config) == 0
    (entry,) = ledger.read_ledger(LocalStore(tmp_path / "out"))
    assert sum(entry.precisions.values()) == entry.rows_scored
    in_bf16, in_fp16 = entry.precisions["bf16"], entry.precisions["fp16"]
    (page,) = (tmp_path / "out" / "reports").glob("*/*/report.json")
    assert json.loads(page.read_text())["notes"] == [
        f"Machines of unlike kinds computed {in_bf16} reviews in bf16 and {in_fp16} reviews in fp16: numbers of equal "
        "reviews may differ in their third digit."
    ]


def test_rows_of_one_format_need_no_note():
    assert unlike_machines({"bf16": 7}) == unlike_machines({}) == []
