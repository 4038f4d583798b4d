"""Hours of bad luck in less than one: `make soak`. BERTRAY_SOAK_MINUTES sets how long, 50 by default."""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bertray.storage.store import Store
from tests import test_ray_kills
from tests.corpus import write
from tests.nightly import night_config, run_night, visible, write_inbox
from tests.test_damage import damage_control_files, damage_inputs
from tests.test_kills import kill_nights
from tests.test_readers import with_duckdb, with_pandas, with_polars
from tests.training.test_kills import kill_training

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
MINUTES = float(os.environ.get("BERTRAY_SOAK_MINUTES", "50"))


def share(part: float) -> float:
    """The end of a test that may use a part of the time."""
    return time.monotonic() + 60 * MINUTES * part


def changing_readers(chance: random.Random):
    """The folder as pandas, DuckDB, Polars or a plain listing sees it, in turn."""

    def look(store: Store) -> dict[str, Counter[str]]:
        data = Path(store.root) / "data"
        if not data.is_dir() or not any(data.iterdir()):
            return {}
        read = chance.choice([with_pandas, with_duckdb, with_polars, None])
        if read is None:
            return visible(store, "data")
        slots: dict[str, Counter[str]] = {}
        for slot, review in read(data):
            slots.setdefault(f"dt={slot}", Counter())[review] += 1
        return slots

    return look


def test_kills_for_twenty_minutes_while_four_readers_look(tmp_path, tiny_encoder):
    end, seen = share(0.4), Counter[str]()
    for number in itertools.count():
        look = changing_readers(random.Random(number))
        seen.update(kill_nights(tmp_path / str(number), tiny_encoder, kills=200, seed=100 + number, look=look))
        if time.monotonic() > end:
            break
    print(f"\nsoak: {dict(seen)}, 0 rows lost, 0 doubled, 0 partial views")
    assert seen["pairs"] > seen["kills"] / 20


def test_workers_and_drivers_of_ray_are_killed(trained, ray_cluster, tmp_path):
    end, kills = share(0.3), Counter[str]()
    faults = [
        test_ray_kills.test_a_killed_scoring_worker_is_replaced_and_no_row_is_lost_or_doubled,
        test_ray_kills.test_a_killed_driver_leaves_parts_that_the_same_command_uses,
    ]
    while time.monotonic() < end:
        inbox = tmp_path / str(kills.total())
        write(inbox / "in" / "reviews.parquet", test_ray_kills.ROWS, 7, "k")
        fault = faults[kills.total() % len(faults)]
        fault(trained, inbox, ray_cluster)
        kills[fault.__name__] += 1
    print(f"\nsoak: {dict(kills)}")


def test_training_is_killed_twenty_times(tmp_path, tiny_encoder):
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_training(folder, tiny_encoder, kills=5, seed=10 + number)


def test_damage_of_inputs_and_control_files(tmp_path, tiny_encoder):
    end, outcomes = share(0.1), Counter[str]()
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
    end, begun = share(0.15), time.monotonic()
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
