"""Inputs that the driver opens when Ray runs: none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.config import TextFormat, Workers
from bertray.execution.on_demand import ExecutorFor, OnDemand, in_this_process
from bertray.reviews import file_access
from bertray.reviews.listing import list_inputs
from bertray.reviews.scan import FileScan, ScanSettings, scan_files
from tests.corpus import train_argv

OPENERS = ("open_bytes", "open_random_access")


@pytest.fixture
def opened_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of review files that this process opens; those of Ray's workers are not among them."""
    opened: list[str] = []
    for name in OPENERS:
        original = getattr(file_access, name)

        def spy(path: str, *rest: Any, original: Any = original) -> Any:
            opened.append(Path(path).name)
            return original(path, *rest)

        modules = [m for key, m in sys.modules.items() if key.startswith("bertray.") and isinstance(m, ModuleType)]
        for module in modules:
            if vars(module).get(name) is original:
                monkeypatch.setattr(module, name, spy)
    return opened


def write_inputs(folder: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "a"], "text": ["x", "y"]}), folder / "f.parquet")
    (folder / "f.csv").write_text("id,text\nb,x\nb,y\n")
    (folder / "f.jsonl").write_text('{"id": "c", "text": "x"}\n{"id": "c", "text": "y"}\n')


def repeated(folder: Path, executor_for: ExecutorFor) -> list[tuple[int, ...]]:
    entries = list_inputs([str(folder)], TextFormat())
    scans = scan_files(entries, ScanSettings(ids=True), executor_for)
    return [scan.repeated_ids for scan in scans if isinstance(scan, FileScan)]


@pytest.mark.soak
@pytest.mark.ray
def test_the_driver_opens_no_input_to_scan_it_when_ray_runs(tmp_path, ray_cluster, opened_here):
    write_inputs(tmp_path)
    with OnDemand(Workers()) as executors:
        assert repeated(tmp_path, executors.for_bytes) == [(1,), (1,), (1,)]
    assert opened_here == []


def test_without_ray_this_process_opens_them(tmp_path, opened_here):
    write_inputs(tmp_path)
    assert repeated(tmp_path, in_this_process) == [(1,), (1,), (1,)]
    assert {"f.parquet", "f.csv", "f.jsonl"} <= set(opened_here)


@pytest.mark.slow
@pytest.mark.ray
def test_the_driver_opens_no_input_in_a_whole_score(tmp_path, corpus, ray_cluster, trained, opened_here):
    opened_here.clear()  # of the training behind the fixture
    argv = ["score", f"model={trained / 'model'}", f"input={corpus / 'test.parquet'}", f"output={tmp_path / 'out'}"]
    assert run(argv) == 0
    assert opened_here == []


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_opens_no_input_in_a_whole_training(tmp_path, tiny_encoder, corpus, ray_cluster, opened_here):
    assert run(train_argv(tiny_encoder, corpus, tmp_path / "run")) == 0
    assert opened_here == []
