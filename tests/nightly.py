"""A score run without Ray and without a model: everything else is the real thing. And processes to kill it in."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import Cleaning, NightConfig, Workers, build_config
from bertray.errors import BertrayError
from bertray.model.bundle import BundleInfo
from bertray.pipelines import nights
from bertray.pipelines.cluster import Resources
from bertray.pipelines.parts import EmbedSettings, LabelMaker, MakePart, PartSettings, ScoreSettings, VectorMaker
from bertray.pipelines.shards import ReadAndTokenize, ReadSettings, stage_parts
from bertray.reviews.sources import WorkItem
from bertray.storage import faults, ledger
from bertray.storage.records import Receipt
from bertray.storage.store import Store, open_store
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
ANY_NUMBER = 1 << 40


class _HashPredictor:
    """Probabilities that depend on the text alone."""

    repeated_rows = 0

    def probs(self, kept: pa.Table) -> np.ndarray:
        positive_N = kept[s.TEXT_HASH].to_numpy().astype(np.uint64) % np.uint64(1000) / 1000.0
        return np.column_stack([1.0 - positive_N, positive_N])


class _HashEmbedder:
    """Vectors that depend on the text alone."""

    repeated_rows, width = 0, 2

    def vectors(self, kept: pa.Table) -> np.ndarray:
        return _HashPredictor().probs(kept).astype(np.float32)


class _Actor(MakePart):
    def __init__(self, settings: PartSettings) -> None:
        self._settings = settings
        self._store = open_store(settings.output)
        if isinstance(settings, EmbedSettings):
            self._maker = VectorMaker(settings, _HashEmbedder())
        else:
            assert isinstance(settings, ScoreSettings)
            self._maker = LabelMaker(settings, _HashPredictor())


class LoopWorker:
    """Reads, stages and gives receipts as the Ray pipeline does, item after item, with a stand-in for a model."""

    resources = Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0)

    def __call__(self, work: Sequence[WorkItem], read: ReadSettings, settings: PartSettings) -> Iterator[Receipt]:
        reader, actor = ReadAndTokenize(work, read), _Actor(settings)
        for item in work:
            yield actor.make(reader.read(item))


@contextlib.contextmanager
def open_loop_worker() -> Iterator[LoopWorker]:
    yield LoopWorker()


@contextlib.contextmanager
def worker_without_ray(_: Workers) -> Iterator[nights.StagingWorker]:
    """In place of `bertray.pipelines.nights.ray_worker`: the real model, in this process."""
    yield nights.StagingWorker(replace(LoopWorker.resources, in_process_rows=ANY_NUMBER))


@contextlib.contextmanager
def session_alone(*_: object, **__: object) -> Iterator[Resources]:
    """In place of `session_for`: this process alone, where Ray is at hand too."""
    yield Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0, alone=True)


def staged_in_this_process(work: Sequence[WorkItem], read: ReadSettings, settings: PartSettings, resources, **only):
    """In place of `stage_parts`: the same without Ray, however many rows."""
    return stage_parts(work, read, settings, replace(resources, in_process_rows=ANY_NUMBER), **only)


def without_actors(monkeypatch: Any) -> None:
    """Evaluation and nights in this process: the same without Ray."""
    monkeypatch.setattr("bertray.pipelines.evaluation.stage_parts", staged_in_this_process)
    monkeypatch.setattr("bertray.pipelines.nights.ray_worker", worker_without_ray)


def night_config(encoder: Path, inbox: Path, output: str, verb: str = "score", **keys: Any) -> NightConfig:
    settings = {"model": str(encoder), "input": [str(inbox)], "output": output, "rows_per_shard": ROWS_PER_SHARD}
    settings["workers"] = {"in_process_rows": 0}  # or a stand-in for the model would never be asked
    config = build_config(verb, {**settings, **keys})
    assert isinstance(config, NightConfig)
    return config


def run_night(config: NightConfig, info: BundleInfo = INFO) -> int:
    """Run in this process; returns the exit code."""
    try:
        return nights.run_night(config, info, open_loop_worker)
    except BertrayError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code


# --- processes to die ------------------------------------------------------------------------------------------------


def start_night(
    config: NightConfig,
    armed: str = "",
    environment: Mapping[str, str] | None = None,
    *,
    hard_links: bool = True,
    info: BundleInfo = INFO,
) -> multiprocessing.process.BaseProcess:
    """A run in a process of its own; `exitcode` is its exit code, or -9 when it was killed."""
    process = FORKSERVER.Process(target=_child, args=(config, info, armed, dict(environment or {}), hard_links))
    process.start()
    return process


def _child(config: NightConfig, info: BundleInfo, armed: str, environment: dict[str, str], hard_links: bool) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = Path(environment.get("NIGHTLY_LOG", os.devnull)).open("a")  # noqa: SIM115 - to the end
    if not hard_links:
        os.link = _no_link
    faults.arm(armed)
    sys.exit(run_night(config, info))


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
    """What a plain reader finds: slot -> ids in its part files. Raises when something else lies there."""
    slots: dict[str, Counter[str]] = {}
    for key in store.keys(root):
        _, slot, name = key.split("/")
        ids = slots.setdefault(slot, Counter())
        if name != "_SUCCESS":
            assert name.startswith("part-"), key
            assert name.endswith(".parquet"), key
            ids.update(pq.read_table(pa.BufferReader(store.get(key)), columns=["id"])["id"].to_pylist())
    return slots


def check_exact(store: Store, rows_of: Mapping[str, int], *, slots: int = 1) -> None:
    """Every row once in what readers see, in the quarantine, and in the ledger; nothing besides."""
    scored, refused = expected_ids(rows_of)
    entries = ledger.read_ledger(store)
    newest = ledger.current(entries)
    assert len(newest) == slots
    assert sum(visible(store, "data").values(), Counter()) == scored
    assert sum(visible(store, "quarantine").values(), Counter()) == refused
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    for entry in newest:
        names = {f"data/{entry.slot}/{part.name}" for part in entry.parts} | {f"data/{entry.slot}/_SUCCESS"}
        assert set(store.keys(f"data/{entry.slot}")) == names
        assert store.exists(f"reports/{entry.slot}/report.json")
        for file in entry.files:
            assert file.rows_in == file.rows_scored + file.rows_quarantined
    assert Counter({file.path.rpartition("/")[2]: file.rows_in for entry in newest for file in entry.files}) == rows_of
    listed = ledger.committed_files(store, entries)
    assert sorted(listed) == sorted(store.uri(k) for k in store.keys("data") if not k.endswith("_SUCCESS"))
