"""What the commit protocol costs, and how long a night that is out of the ordinary takes: part of `make soak`."""

from __future__ import annotations

import functools
import io
import multiprocessing
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.outputs import publish
from bertray.reviews import clean, screening
from bertray.reviews.clean import Cleaning
from bertray.runs import night as nights
from bertray.scoring.stage_part import MakePart
from tests.corpus import sentences
from tests.e2e.test_input_faults import codec_bomb
from tests.nightly import night_config, run_night, write_inbox

pytestmark = pytest.mark.timeout(900)
soak = pytest.mark.soak


@pytest.fixture
def seconds(monkeypatch) -> dict[str, float]:
    """Seconds in each step of the protocol, summed over its calls."""
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, step: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = original(*args, **kwargs)
            spent[step] += time.perf_counter() - begun
            return result

        monkeypatch.setattr(owner, name, call)

    timed(nights, "commit", "commit")
    timed(publish, "publish", "publish")
    timed(MakePart, "_stage", "stage")
    return spent


@pytest.mark.parametrize("rows_per_file", [20, pytest.param(1000, marks=soak)])
def test_many_parts_are_committed_and_a_finished_night_is_nothing_to_do(tiny_encoder, tmp_path, seconds, rows_per_file):
    write_inbox(tmp_path / "in", {f"{i:03d}.parquet": rows_per_file for i in range(10)})
    config = night_config(
        tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=10, max_quarantine_ratio=1
    )
    assert run_night(config) == 0
    data = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").rglob("*")}
    num_parts = sum(path.suffix == ".parquet" for path in data)
    assert set(seconds) == {"commit", "publish", "stage"}
    taken = seconds["commit"] + seconds["publish"]
    begun = time.perf_counter()
    assert run_night(config) == 0
    again = time.perf_counter() - begun
    print(f"\n{num_parts} parts: commit {seconds['commit']:.2f} s, publish {seconds['publish']:.2f} s; "
          f"a finished night again: {again:.2f} s")  # fmt: skip
    assert num_parts == rows_per_file
    assert 0 < taken < 5
    assert again < 5
    assert data == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").rglob("*")}


@soak
def test_the_protocol_costs_little_over_plain_writes_of_a_million_rows(tiny_encoder, tmp_path, seconds):
    (tmp_path / "in").mkdir()
    texts, _ = sentences(100_000, 1)
    for number in range(10):
        ids = [f"{number}:{i}" for i in range(len(texts))]
        pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "in" / f"{number}.parquet")
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=4096)
    begun = time.perf_counter()
    assert run_night(config) == 0
    whole = time.perf_counter() - begun
    protocol = sum(seconds.values())

    parts = [pq.read_table(path) for path in sorted((tmp_path / "out" / "data").rglob("*.parquet"))]
    assert sum(part.num_rows for part in parts) == 1_000_000
    begun = time.perf_counter()
    (tmp_path / "plain").mkdir()
    for number, part in enumerate(parts):
        pq.write_table(part, tmp_path / "plain" / f"{number}.parquet", compression="zstd")
    plain = time.perf_counter() - begun
    more = (protocol - plain) / whole
    print(f"\n1,000,000 rows in {len(parts)} parts: staged, committed and published in {protocol:.1f} s, plain "
          f"write_table {plain:.1f} s; the night without a model {whole:.0f} s: {more:.1%} more")  # fmt: skip
    assert more < 0.05


@soak
def test_ten_thousand_tiny_files_are_one_slot_within_a_minute(tiny_encoder, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(10_000):
        (tmp_path / "in" / f"{number:05}.jsonl").write_bytes(b'{"id": "t%d", "text": "a good film"}\n' % number)
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), rows_per_shard=4096)
    begun = time.perf_counter()
    assert run_night(config) == 0
    taken = time.perf_counter() - begun
    print(f"\n10,000 files of one row: {taken:.0f} s")
    assert taken < 60
    rows = pq.read_table(tmp_path / "out" / "data")["id"].to_pylist()
    assert sorted(rows) == sorted(f"t{number}" for number in range(10_000))


def text_bomb() -> bytes:
    """A Parquet file of some hundred kilobytes that holds four gigabytes of text."""
    sink = io.BytesIO()
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array(["x" * (4 << 20)]))
    pq.write_table(pa.table({"id": [str(i) for i in range(1024)], "text": text}), sink, compression="zstd")
    return sink.getvalue()


def _score_file(encoder: Path, folder: Path, name: str, content: bytes, measured: Any) -> None:
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(content)
    config = night_config(encoder, folder / "in", str(folder / "out"), on_bad_file="quarantine", max_quarantine_ratio=1)
    begun = time.perf_counter()
    code = run_night(config)
    measured.put((code, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


@soak
@pytest.mark.parametrize(("bomb", "rows_scored"), [(codec_bomb, 0), (text_bomb, 1024)], ids=["codec", "text"])
def test_a_bomb_is_refused_or_cut_soon_and_in_little_memory(bomb, rows_scored, tiny_encoder, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    measured = spawn.Queue()
    process = spawn.Process(target=_score_file, args=(tiny_encoder, tmp_path, "bad.parquet", bomb(), measured))
    process.start()
    code, taken, peak_gb = measured.get(timeout=120)
    process.join()
    print(f"\n{bomb.__name__}: exit {code} after {taken:.1f} s, peak {peak_gb:.2f} GB")
    assert code == 0
    assert taken < 10
    assert peak_gb < 2
    scored = [pq.read_table(path) for path in (tmp_path / "out" / "data").rglob("*.parquet")]
    assert sum(part.num_rows for part in scored) == rows_scored
    assert all(part["truncated"].to_pylist() == [True] * part.num_rows for part in scored)


@soak
def test_a_text_of_five_megabytes_is_read_within_a_tenth_of_a_second(tiny_encoder, tmp_path, monkeypatch):
    taken: list[float] = []

    def timed(texts: pa.Array, cleaning: Cleaning) -> pa.Array:
        begun = time.perf_counter()
        cleaned = clean.clean_texts(texts, cleaning)
        taken.append(time.perf_counter() - begun)
        return cleaned

    monkeypatch.setattr(screening, "clean_texts", timed)
    text = "<p>It was&nbsp;good &amp; cheap.</p> " * 137_000
    assert len(text) > 5_000_000
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ["1"], "text": [text]}), tmp_path / "in" / "a.parquet")
    assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))) == 0
    print(f"\na text of {len(text):,} characters: cleaned in {sum(taken):.3f} s")
    assert 0 < sum(taken) < 0.1
