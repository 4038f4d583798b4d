"""Hours of bad luck in less than one: `make soak`. BERTRAY_SOAK_MINUTES sets how long, 44 by default."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.benchmark.memory import private_mb
from bertray.cli import run
from bertray.io.store import Store
from tests.corpus import write
from tests.e2e.test_damage import damage_control_files, damage_inputs
from tests.e2e.test_readers import with_duckdb, with_pandas, with_polars
from tests.kills import test_ray as test_ray_kills
from tests.kills.test_nights import kill_nights
from tests.kills.test_training import kill_training
from tests.nightly import night_config, run_night, visible_runs, write_inbox
from tests.processes import FORKSERVER, descendants, run_beside_the_cluster

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
MINUTES = float(os.environ.get("BERTRAY_SOAK_MINUTES", "44"))


def share(part: float) -> float:
    """The end of a test that may use a part of the time."""
    return time.monotonic() + 60 * MINUTES * part


def changing_readers(chance: random.Random):
    """The folder as pandas, DuckDB, Polars or a plain listing sees it, in turn."""

    def look(store: Store) -> dict[tuple[str, int], Counter[str]]:
        data = Path(store.root) / "data"
        if not data.is_dir() or not any(data.iterdir()):
            return {}
        read = chance.choice([with_pandas, with_duckdb, with_polars, None])
        if read is None:
            return visible_runs(store, "data")
        runs: dict[tuple[str, int], Counter[str]] = {}
        for day, number, review in read(data):
            runs.setdefault((f"dt={day}", number), Counter())[review] += 1
        return runs

    return look


def kill_until(folder: Path, encoder: Path, first_seed: int, end: float) -> Counter[str]:
    """Outputs of 200 kills each, one after the other, until a time."""
    seen = Counter[str]()
    for seed in itertools.count(first_seed):
        look = changing_readers(random.Random(seed))
        output = folder / str(seed)
        seen.update(kill_nights(output, encoder, kills=200, seed=seed, look=look, look_every_s=0.1, pairs=0.4))
        if time.monotonic() > end:
            return seen
    raise AssertionError


def test_kills_while_four_readers_look(tmp_path, tiny_encoder):
    end, seen = share(0.3), Counter[str]()
    with ProcessPoolExecutor(3, mp_context=FORKSERVER) as pool:  # a run waits for its disk most of the time
        for done in [pool.submit(kill_until, tmp_path, tiny_encoder, 1000 * i, end) for i in (1, 2, 3)]:
            seen.update(done.result())
    print(f"\nsoak: {dict(seen)}, 0 rows lost, 0 doubled, 0 partial views")
    assert seen["pairs"] > 0.3 * seen["kills"]


def test_workers_and_drivers_of_ray_are_killed(trained, ray_cluster, tmp_path):
    end, kills, chance = share(0.34), Counter[str](), random.Random(0)
    write(tmp_path / "whole" / "in" / "reviews.parquet", test_ray_kills.ROWS, 7, "k")
    begun = time.monotonic()
    assert run(test_ray_kills.score_argv(trained, tmp_path / "whole")) == 0
    whole_s = time.monotonic() - begun
    for night in itertools.count():
        inbox = tmp_path / str(night)
        write(inbox / "in" / "reviews.parquet", test_ray_kills.ROWS, 7, "k")
        afters = sorted(chance.sample(range(1, 110), 5 if night % 3 == 2 else 10))
        if night % 3 < 2:
            kills["worker"] += test_ray_kills.lose_workers(trained, inbox, *afters)
        else:
            until_s, rest_s = test_ray_kills.lose_the_driver(trained, inbox, *afters)
            kills["driver"] += len(afters)
            print(f"\nsoak: driver killed at {afters} of 120 parts in {until_s:.1f} s, five starts included; the "
                  f"rest took {rest_s:.1f} s, an uninterrupted run without start {whole_s:.1f} s")  # fmt: skip
            assert rest_s < 1.3 * whole_s
        if time.monotonic() > end:
            break
    print(f"\nsoak: {dict(kills)}")


def test_training_is_killed_twenty_times(tmp_path, tiny_encoder):
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_training(folder, tiny_encoder, kills=5, seed=10 + number)


def test_damage_of_inputs_and_control_files(tmp_path, tiny_encoder):
    end, outcomes = share(0.08), Counter[str]()
    write_inbox(tmp_path / "in", {"a.parquet": 40, "b.parquet": 9})
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))
    assert run_night(config) == 0
    for number in itertools.count():
        outcomes.update(damage_control_files(config, tmp_path / "out", times=100, seed=number))
        codes = damage_inputs(tiny_encoder, tmp_path / f"inputs-{number}", times=50, seed=number)
        outcomes.update({f"input: {code}": count for code, count in codes.items()})
        if time.monotonic() > end:
            break
    print(f"\nsoak: {dict(outcomes)}")


def test_memory_stays_level_over_nights(tmp_path, tiny_encoder):
    """A process that scores night after night: less than 1 MB a minute."""
    end, begun = share(0.12), time.monotonic()
    minutes, resident_mb = [], []
    for number in itertools.count():
        write_inbox(tmp_path / "in", {f"{number}.parquet": 400})
        assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / f"out-{number // 20}"))) == 0
        gc.collect()
        minutes.append((time.monotonic() - begun) / 60)
        resident_mb.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
        if number % 20 == 19:  # a folder of its own, so that listings do not grow
            for path in (tmp_path / "in").iterdir():
                path.unlink()
        if time.monotonic() > end:
            break
    settled = len(minutes) // 3
    slope = np.polyfit(minutes[settled:], resident_mb[settled:], 1)[0]
    print(f"\nsoak: {len(minutes)} nights, {resident_mb[settled]:.0f} to {resident_mb[-1]:.0f} MB, {slope:.2f} MB/min")
    assert slope < 1.0


OBJECT_STORE_MB = 80


def score_large(model: str, folder: Path) -> int:
    """Score on a cluster that has a small object store; writes the peaks of its processes."""
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,
        object_store_memory=OBJECT_STORE_MB << 20,
        log_to_driver=False,
        _system_config={"automatic_object_spilling_enabled": True},
    )
    ended, peaks = threading.Event(), Counter[str]()

    def watch() -> None:
        while not ended.wait(0.5):
            sizes = {"driver": private_mb(os.getpid())}
            for title in ("ray::MapWorker", "ray::MapBatches"):
                sizes |= {f"{title} {pid}": private_mb(pid) for pid in descendants(os.getpid(), title)}
            for name, size in sizes.items():
                kind = name.split()[0]
                peaks[kind] = max(peaks[kind], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = run(["score", f"model={model}", f"input={folder / 'in'}", f"output={folder / 'out'}"])
    finally:
        ended.set()
        watcher.join()
    (folder / "peaks.json").write_text(json.dumps(peaks))
    return code


def test_a_corpus_of_twenty_times_the_object_store_is_streamed(trained, tmp_path):
    (tmp_path / "in").mkdir()
    words = np.array(["great", "awful", "plot", "actor", "story", "very", "film", "boring", "lovely", "the", "and"])
    texts = [" ".join(row) for row in words[np.random.default_rng(0).integers(len(words), size=(4_000, 900))]]
    num_files = -(-20 * (OBJECT_STORE_MB << 20) // sum(map(len, texts)))
    for number in range(num_files):
        ids = [f"{number}:{i}" for i in range(len(texts))]
        pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "in" / f"{number:03d}.parquet")
    written = num_files * sum(map(len, texts))
    begun = time.monotonic()
    run_beside_the_cluster("tests.kills.test_soak", str(trained / "model"), str(tmp_path), seconds=1800)
    seconds = time.monotonic() - begun
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    print(f"\nsoak: {num_files * len(texts):,} rows, {written >> 20} MB of text with {OBJECT_STORE_MB} MB of object "
          f"store in {seconds:.0f} s; peak private MB: {peaks}")  # fmt: skip
    assert max(peaks.values()) < 1500
    assert pq.ParquetDataset(tmp_path / "out" / "data").read(columns=["id"]).num_rows == num_files * len(texts)


if __name__ == "__main__":
    sys.exit(score_large(sys.argv[1], Path(sys.argv[2])))
