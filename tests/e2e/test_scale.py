"""What grows with the corpus and the cluster, and what must not: `make scale`.

Ten billion rows are planned and committed on paper; a corpus of 1, 10 and 100 times some rows is scored for real, and
the same corpus on 1, 2 and 4 raylets of one machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.benchmark.memory import private_mb
from bertray.cli import run
from bertray.config import TextFormat
from bertray.execution.executor import DEFAULT, THIS_PROCESS, InProcess, Progress, Stage
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.outputs.commit import make_entry
from bertray.outputs.control_files import (
    SCORE_BINS,
    TOKEN_BANDS,
    FileRecord,
    LedgerEntry,
    Plan,
    Receipt,
    Span,
    StagedFile,
)
from bertray.outputs.receipts import verify_cover, without_overlap
from bertray.reviews.kept_scans import scans_from_bytes, scans_to_bytes
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, work_units
from bertray.reviews.rows import InputFile
from bertray.reviews.scan import FileScan, RowCounts, ScanSettings, scan_file, scan_files
from bertray.scoring import plan as planning
from tests.processes import descendants, run_beside_the_cluster

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]
NUM_FILES, ROWS_PER_FILE = 50_000, 200_000


@contextmanager
def told(what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"scale: {what}: {time.perf_counter() - begun:.1f} s, peak of the driver so far {peak_mb:,} MB", flush=True)


def staged(name: str) -> StagedFile:
    return StagedFile(
        key=f"control/runs/dt=2026-11-21/0123456789abcdef/01234567/{name}", rows=1, bytes=1, sha256="0" * 64
    )


def receipt(spans: list[Span]) -> Receipt:
    name = f"{spans[0].file_no:05d}-{spans[0].lo:012d}-01234567"
    return Receipt(
        spans=spans,
        reasons={"text_empty": 1},
        label_counts={"negative": 1, "positive": 1},
        score_histogram=[1] * SCORE_BINS,
        token_histogram=[1] * (len(TOKEN_BANDS) + 1),
        tokens=1,
        truncated=0,
        repeated=0,
        needs_review=0,
        seconds=1.0,
        part=staged(f"part-{name}.parquet"),
        quarantine=staged(f"q-{name}.parquet"),
        evaluation=None,
    )


def scan_one_file(folder: Path) -> None:
    """A file of 200,000 rows and 100 MB: what a task reads of it, and what the driver gets."""
    path, random = folder / "f.parquet", np.random.default_rng(0)
    letters = random.integers(97, 123, (ROWS_PER_FILE, 500), dtype=np.uint8)
    texts = pa.FixedSizeBinaryArray.from_buffers(pa.binary(500), len(letters), [None, pa.py_buffer(letters)])
    ids = pa.array([f"review-{number:012d}" for number in range(ROWS_PER_FILE)])
    pq.write_table(
        pa.table({"id": ids, "text": texts.cast(pa.binary()).cast(pa.string())}), path, row_group_size=25_000
    )
    [entry] = list_inputs([str(path)], TextFormat())
    scan_file(entry, ScanSettings(ids=True))  # imports
    for settings in (ScanSettings(), ScanSettings(ids=True)):
        read, used, begun = read_so_far(), time.process_time(), time.perf_counter()
        scan = scan_file(entry, settings)
        cpu_s, wall_s = time.process_time() - used, time.perf_counter() - begun
        print(
            f"scale: a file of {entry.size_bytes / 1e6:.0f} MB scanned, ids={settings.ids}: {wall_s:.2f} s, "
            f"{cpu_s:.2f} s of CPU, {(read_so_far() - read) / 1e6:.1f} MB read, {len(pickle.dumps(scan)):,} bytes "
            "for the driver",
            flush=True,
        )
        assert isinstance(scan, FileScan)
        assert scan.file.num_rows == ROWS_PER_FILE


def read_so_far() -> int:
    """Bytes that this process has read."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def plan_and_commit() -> None:
    columns = {"id": "string", "text": "string", "product": "string", "date": "string"}
    paths = [f"s3://reviews/incoming/dt=2026-11-21/part-{number:05d}.parquet" for number in range(NUM_FILES)]
    files = [InputFile(path, path[24:], "parquet", 10**8, "0" * 19, ROWS_PER_FILE, columns) for path in paths]
    rows_per_part = planning.rows_per_part(NUM_FILES * ROWS_PER_FILE)
    entries = [file.entry for file in files]
    found = Scanned(THIS_PROCESS.resources, {file.path: pickle.dumps(FileScan(file)) for file in files})
    with told("scans of all files put together as tasks return them"):
        returned = scan_files(entries, ScanSettings(), lambda _: found)
    assert [scan.file for scan in returned if isinstance(scan, FileScan)] == files
    with told("scans kept and read back"):
        scans = [FileScan(replace(file, fingerprint="0" * 64), counts=RowCounts(ROWS_PER_FILE)) for file in files]
        content = scans_to_bytes(scans, ScanSettings())
        assert scans_from_bytes(content, ScanSettings()) == scans
    print(f"scale: scans of {len(content) / 1e6:.0f} MB", flush=True)
    with told(f"{NUM_FILES * ROWS_PER_FILE:,} rows in {NUM_FILES:,} files cut into work units"):
        work = work_units(plan_shards(files, rows_per_part), rows_per_part)
    records = [
        FileRecord(path=f.path, relative_path=f.relative_path, format=f.format, size_bytes=f.size_bytes,
                   modified=f.modified, num_rows=f.num_rows, digest=None, fingerprint="0" * 64)
        for f in files
    ]  # fmt: skip
    plan = Plan(
        plan_key=planning.plan_key(records, "v", {}), slot="dt=2026-11-21", version=1, seq=1, run_id="0" * 32,
        created_at="2026-11-21T00:00:00", model="m", model_version="v", labels=["negative", "positive"], settings={},
        files=records, rows_per_shard=rows_per_part,
    )  # fmt: skip
    with told("plan written and read back"):
        content = plan.to_bytes()
        assert Plan.from_bytes(content, "plan") == plan
    print(f"scale: plan of {len(content) / 1e6:.0f} MB, {len(work):,} work units of {rows_per_part:,} rows", flush=True)
    with told("receipts read"):
        contents = [
            receipt([Span(file_no=s.file_no, lo=s.lo, hi=s.hi, rows_scored=s.hi - s.lo - 1, rows_quarantined=1)
                     for s in item]).to_bytes()
            for item in work
        ]  # fmt: skip
        receipts = [Receipt.from_bytes(one, "receipt") for one in contents]
    with told("receipts without overlap, and their cover verified"):
        kept = without_overlap(receipts)
        verify_cover(plan, kept)
    with told("ledger entry made, written and read back"):
        entry = make_entry(plan, [], kept, [], adopted=0, seconds=1.0, compute_seconds=1.0)
        content = entry.to_bytes()
        assert LedgerEntry.from_bytes(content, "entry").rows_in == NUM_FILES * ROWS_PER_FILE
    print(f"scale: ledger entry of {len(content) / 1e6:.0f} MB, {len(entry.parts):,} parts", flush=True)


@dataclass(frozen=True)
class Scanned(InProcess):
    """Stands for tasks that have scanned: the driver's share of the work is left."""

    scans: Mapping[str, bytes] = field(default_factory=dict)

    def run(self, items: Iterable[Any], stages: Sequence[Stage], progress: Progress = DEFAULT) -> Iterator[Any]:
        for number, batch in items:
            yield number, [pickle.loads(self.scans[entry.path]) for entry in batch]


def in_a_process(function: Callable[..., None], *given: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=given)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_scan_reads_a_share_of_a_file_and_gives_the_driver_little(tmp_path):
    in_a_process(scan_one_file, tmp_path)


def test_ten_billion_rows_are_planned_and_committed_by_one_driver():
    begun = time.monotonic()
    in_a_process(plan_and_commit)
    assert time.monotonic() - begun < 300


# --- for real --------------------------------------------------------------------------------------------------------


def write_corpus(folder: Path, num_rows: int) -> None:
    """Reviews of some 25 words, in files of 50,000 rows; none twice."""
    folder.mkdir(parents=True)
    words = np.array(["great", "awful", "plot", "actor", "story", "very", "film", "boring", "lovely", "the", "and"])
    for first in range(0, num_rows, 50_000):
        rows = min(50_000, num_rows - first)
        random = np.random.default_rng(first)
        texts = [" ".join(words[random.integers(len(words), size=25)]) for _ in range(rows)]
        ids = [f"r{first + row}" for row in range(rows)]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{first:09d}.parquet")


def score_and_watch(model: str, folder: Path, raylets: int) -> None:
    """Score `folder/in` on so many raylets; writes seconds and the peaks of driver and actors in private MB."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(raylets):
        cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    os.environ["RAY_ADDRESS"] = cluster.address
    ended, peaks = threading.Event(), Counter[str]()

    def watch() -> None:
        while not ended.wait(0.5):
            peaks["driver"] = max(peaks["driver"], private_mb(os.getpid()))
            for pid in descendants(os.getpid(), "ray::MapWorker"):
                peaks["actor"] = max(peaks["actor"], private_mb(pid))
            for pid in descendants(os.getpid(), "ray::MapBatches"):
                peaks["reader"] = max(peaks["reader"], private_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = folder / f"out-{raylets}"
    begun = time.monotonic()
    try:
        assert run(["score", f"model={model}", f"input={folder / 'in'}", f"output={output}"]) == 0
    finally:
        ended.set()
        watcher.join()
    (entry,) = ledger.read_ledger(open_store(str(output)))
    found = {"seconds": time.monotonic() - begun, "compute_seconds": entry.compute_seconds, "rows": entry.rows_scored}
    (folder / f"found-{raylets}.json").write_text(json.dumps({**found, "peak_mb": dict(peaks)}))
    cluster.shutdown()


def scored(trained: Path, folder: Path, raylets: int = 1) -> dict[str, Any]:
    run_beside_the_cluster("tests.e2e.test_scale", str(trained / "model"), str(folder), str(raylets), seconds=1500)
    return json.loads((folder / f"found-{raylets}.json").read_text())


def test_memory_stays_level_and_speed_too_while_the_corpus_grows(trained, tmp_path):
    found = {}
    for times in (1, 10, 100):
        write_corpus(tmp_path / str(times) / "in", 5_000 * times)
        found[times] = scored(trained, tmp_path / str(times))
        print(f"\nscale: {times:3} times 5,000 rows: {found[times]}", flush=True)
    for kind in ("driver", "actor", "reader"):
        assert found[100]["peak_mb"][kind] < 1.3 * found[10]["peak_mb"][kind] + 50
    rate = {times: found[times]["rows"] / found[times]["compute_seconds"] for times in found}
    assert rate[100] > 0.8 * rate[10]


def test_a_node_more_costs_little(trained, tmp_path):
    """One scoring actor, so that the work is the same; what is added is what more raylets take of two cores."""
    write_corpus(tmp_path / "in", 50_000)
    found = {}
    for raylets in (1, 2, 4):
        found[raylets] = scored(trained, tmp_path, raylets)
        print(f"\nscale: {raylets} raylets: {found[raylets]}", flush=True)
    assert found[4]["seconds"] < 2 * found[1]["seconds"]


if __name__ == "__main__":
    score_and_watch(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
