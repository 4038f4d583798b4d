"""A score run without Ray and without a model: everything else is the real thing. And processes to kill it in."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray import schema as s
from bertray.commands.score import show_end, show_run
from bertray.config import NightConfig, build_config
from bertray.errors import BertrayError
from bertray.execution.executor import DEFAULT, THIS_PROCESS, Actors, Executor, InProcess, Progress, Stage
from bertray.execution.resources import Resources
from bertray.io import faults
from bertray.io.store import Store, open_store
from bertray.model.bundle import BundleInfo
from bertray.outputs import ledger, snapshots
from bertray.outputs.publish import committed_files, part_names
from bertray.reviews.clean import Cleaning
from bertray.runs import night as nights
from bertray.runs.night_results import ScoreResult
from bertray.scoring.row_makers import EmbedSettings, LabelMaker, PartSettings, ScoreSettings, VectorMaker
from bertray.scoring.stage_part import MakePart, MakeParts
from tests.processes import FORKSERVER

INFO = BundleInfo(
    labels=("neg", "pos"),
    label_values={"neg": "neg", "pos": "pos"},
    max_length=24,
    long_text="head",
    cleaning=Cleaning(),
    model_version="stub-1",
)
ROWS_PER_SHARD = 16


class _HashPredictor:
    """Probabilities that depend on the text alone."""

    repeated_rows = recomputed_rows = 0
    precision = "fp32"

    def probs(self, kept: pa.Table) -> np.ndarray:
        positive_N = kept[s.TEXT_HASH].to_numpy().astype(np.uint64) % np.uint64(1000) / 1000.0
        return np.column_stack([1.0 - positive_N, positive_N])


class _HashEmbedder:
    """Vectors that depend on the text alone."""

    repeated_rows, width, precision = 0, 2, "fp32"

    def vectors(self, kept: pa.Table) -> np.ndarray:
        return _HashPredictor().probs(kept).astype(np.float32)


class _Actor(MakePart):
    def __init__(self, settings: PartSettings) -> None:
        self._settings = settings
        self._store = open_store(settings.output)
        self._computing = threading.Lock()
        if isinstance(settings, EmbedSettings):
            self._maker = VectorMaker(settings, _HashEmbedder())
        else:
            assert isinstance(settings, ScoreSettings)
            predictor: Any = _HashPredictor()
            self._maker = LabelMaker(settings, predictor)


class _Actors(MakeParts):
    def __init__(self, settings: Sequence[PartSettings]) -> None:
        self._makers = [_Actor(each) for each in settings]


RESOURCES = Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0)


class StubExecutor(InProcess):
    """Reads, stages and gives receipts as the pipeline does, item after item, with a stand-in for a model."""

    def run(self, items: Iterable[Any], stages: Sequence[Stage], progress: Progress = DEFAULT) -> Iterator[Any]:
        with_stub = [_with_stub(stage) for stage in stages]
        return super().run(items, with_stub, progress)


def _with_stub(stage: Stage) -> Stage:
    if not isinstance(stage, Actors):
        return stage
    assert isinstance(stage.factory, partial)
    return Actors(partial(_Actors, *stage.factory.args))


def stub_executor() -> Executor:
    return StubExecutor(RESOURCES)


class _Stubbed:
    """Executors of a run: files are scanned in this process, rows are worked on by the stub."""

    def for_bytes(self, num_bytes: int) -> Executor:
        return THIS_PROCESS

    def for_rows(self, num_rows: int) -> Executor:
        return stub_executor()

    def session(self, num_rows: int | None) -> AbstractContextManager[Executor]:
        return nullcontext(stub_executor())


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """This process alone, with the real model, where Ray is at hand too."""
    patch.setattr("bertray.execution.on_demand.OnDemand._executor", lambda *_: InProcess(RESOURCES))


def night_config(encoder: Path, inbox: Path, output: str, verb: str = "score", **keys: Any) -> NightConfig:
    settings = {"model": str(encoder), "input": [str(inbox)], "output": output, "rows_per_shard": ROWS_PER_SHARD}
    settings["workers"] = {"in_process_rows": 0}  # or a stand-in for the model would never be asked
    if verb == "score":
        settings["report"] = {"explain": 0}  # the stand-in has no words to leave out
    config = build_config(verb, {**settings, **keys})
    assert isinstance(config, NightConfig)
    return config


def run_night(config: NightConfig, info: BundleInfo = INFO, *, day: str | None = None) -> int:
    """Run in this process, today or on another day; returns the exit code."""
    try:
        with clock_at(day):
            output, runs, num_listed, _ = nights.run_night(config, info, _Stubbed(), show_run)
            show_end(ScoreResult(output, runs=runs, num_listed=num_listed))
            return 0
    except BertrayError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code


@contextlib.contextmanager
def clock_at(day: str | None) -> Iterator[None]:
    """Let nights take a day, as in `2026-11-29`, for today; None: as it is."""
    if day is None:
        yield
        return

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=tz)

    with mock.patch("bertray.scoring.next_plan.datetime", Clock):
        yield


# --- processes to die ------------------------------------------------------------------------------------------------


def start_night(
    config: NightConfig,
    armed: str = "",
    environment: Mapping[str, str] | None = None,
    *,
    hard_links: bool = True,
    info: BundleInfo = INFO,
    day: str | None = None,
    snapshot_every: int = 1,
) -> multiprocessing.process.BaseProcess:
    """A run in a process of its own; `exitcode` is its exit code, or -9 when it was killed.

    It writes a snapshot of the ledger after every entry, or as often as said.
    """
    args = (config, info, armed, dict(environment or {}), hard_links, day, snapshot_every)
    process = FORKSERVER.Process(target=_child, args=args)
    process.start()
    return process


def _child(
    config: NightConfig,
    info: BundleInfo,
    armed: str,
    environment: dict[str, str],
    hard_links: bool,
    day: str | None,
    snapshot_every: int,
) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = Path(environment.get("NIGHTLY_LOG", os.devnull)).open("a")  # noqa: SIM115 - to the end
    if not hard_links:
        os.link = _no_link
    snapshots.EVERY = snapshot_every
    faults.arm(armed)
    sys.exit(run_night(config, info, day=day))


def _no_link(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


# --- what there is, and what has to be -------------------------------------------------------------------------------


def write_inbox(folder: Path, rows_of: Mapping[str, int]) -> None:
    """Files of reviews `name -> number of rows`; every seventh row has no text and will be quarantined."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, num_rows in rows_of.items():
        ids = [f"{name}:{i}" for i in range(num_rows)]
        texts = [None if i % 7 == 6 else f"the film was good and {name} {i}" for i in range(num_rows)]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / name)


def expected_ids(rows_of: Mapping[str, int]) -> tuple[Counter[str], Counter[str]]:
    """(ids to be scored, ids to be quarantined), each once."""
    ids = [(f"{name}:{i}", i % 7 == 6) for name, num_rows in rows_of.items() for i in range(num_rows)]
    return Counter(i for i, empty in ids if not empty), Counter(i for i, empty in ids if empty)


def visible(store: Store, root: str) -> dict[str, Counter[str]]:
    """Ids in what a plain reader finds, by slot. Raises when something else lies there."""
    slots: dict[str, Counter[str]] = {}
    for (slot, _), ids in visible_runs(store, root).items():
        slots[slot] = slots.get(slot, Counter()) + ids
    return slots


def visible_runs(store: Store, root: str) -> dict[tuple[str, int], Counter[str]]:
    """Ids in what a plain reader finds, by slot and run. Raises when something else lies there."""
    runs: dict[tuple[str, int], Counter[str]] = {}
    for key in store.keys(root):
        _, slot, run, name = key.split("/")
        assert re.fullmatch(r"run=[1-9]\d*", run), key
        ids = runs.setdefault((slot, int(run.removeprefix("run="))), Counter())
        if name != "_SUCCESS":
            assert name.startswith("part-"), key
            assert name.endswith(".parquet"), key
            ids.update(pq.read_table(pa.BufferReader(store.get(key)), columns=["id"])["id"].to_pylist())
    return runs


def check_exact(store: Store, rows_of: Mapping[str, int], *, slots: int = 1) -> None:
    """Every row once in what readers see, in the quarantine, and in the ledger; nothing besides."""
    scored, refused = expected_ids(rows_of)
    entries = ledger.read_ledger(store)
    newest = ledger.current(entries)
    assert len({entry.slot for entry in newest}) == slots
    assert sum(visible(store, "data").values(), Counter()) == scored
    assert sum(visible(store, "quarantine").values(), Counter()) == refused
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    for entry in newest:
        names = {f"data/{entry.folder}/{name}" for name in ("_SUCCESS", *part_names(entry, "data"))}
        assert set(store.keys(f"data/{entry.folder}")) == names
        assert store.exists(f"reports/{entry.folder}/report.json")
        for file in entry.files:
            assert file.rows_in == file.rows_scored + file.rows_quarantined
    assert Counter({file.path.rpartition("/")[2]: file.rows_in for entry in newest for file in entry.files}) == rows_of
    numbers: dict[str, list[int]] = {}
    for entry in newest:
        numbers.setdefault(entry.slot, []).append(entry.run)
    assert all(runs == list(range(1, len(runs) + 1)) for runs in numbers.values())
    for root in ("data", "quarantine", "reports"):
        runs_there = {tuple(key.split("/")[1:3]) for key in store.keys(root) if not key.startswith("reports/index.")}
        assert runs_there <= {(entry.slot, entry.run_folder) for entry in newest}
    listed = committed_files(store, entries)
    assert sorted(listed) == sorted(store.uri(k) for k in store.keys("data") if not k.endswith("_SUCCESS"))
