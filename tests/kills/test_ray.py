"""Scoring on Ray loses a worker, its driver, or waits for one that hangs: the rows stay exact."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial

import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.io.store import open_store
from bertray.outputs import ledger
from tests.corpus import write
from tests.processes import descendants, is_alive, wait_for

pytestmark = pytest.mark.ray
ROWS = 6000


def score_argv(trained, folder, *words: str) -> list[str]:
    keys = [f"model={trained / 'model'}", f"input={folder / 'in'}", f"output={folder / 'out'}", "rows_per_shard=50"]
    return ["score", *keys, "workers.in_process_rows=0", *words]


def _all_ended(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


@pytest.fixture
def inbox(tmp_path):
    write(tmp_path / "in" / "reviews.parquet", ROWS, 7, "k")
    return tmp_path


def receipts(folder) -> list[str]:
    return [key for key in open_store(str(folder / "out")).keys("control/runs") if key.endswith("receipt.json")]


def check_rows(folder) -> None:
    ids = Counter(pq.read_table(folder / "out" / "data")["id"].to_pylist())
    assert ids == Counter(f"k{i}" for i in range(ROWS))


def lose_workers(trained, folder, *afters: int) -> int:
    """Kill the process that scores each time so many of the 120 parts are there; how many were met."""
    killed: list[int] = []
    ended = threading.Event()

    def parts_or_end(after: int) -> bool:
        return ended.is_set() or len(receipts(folder)) >= after

    def living() -> list[int]:
        return [pid for pid in descendants(os.getpid(), "ray::MapWorker") if pid not in killed]

    def kill() -> None:
        for after in afters:
            wait_for(functools.partial(parts_or_end, after), seconds=120)
            wait_for(lambda: ended.is_set() or bool(living()), seconds=60)
            if ended.is_set():
                break
            (victim, *_) = living()
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert run(score_argv(trained, folder)) == 0
    finally:
        ended.set()
        killer.join(10)
    check_rows(folder)
    return len(killed)


def lose_the_driver(trained, folder, *afters: int) -> tuple[float, float]:
    """Kill the command each time so many parts are there, run it again; (seconds up to then, seconds of the rest)."""
    begun = time.monotonic()
    for after in afters:
        driver = subprocess.Popen(
            [sys.executable, "-m", "bertray.cli", *score_argv(trained, folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(functools.partial(lambda parts: len(receipts(folder)) >= parts, after), seconds=120)
        started = descendants(driver.pid)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait(10)
        died = time.monotonic()
        wait_for(partial(_all_ended, started), seconds=60)
        assert not (folder / "out" / "data").exists()
    left = len(receipts(folder))
    resumed = time.monotonic()
    assert run(score_argv(trained, folder)) == 0
    rest_s = time.monotonic() - resumed
    check_rows(folder)
    (entry,) = ledger.read_ledger(open_store(str(folder / "out")))
    assert entry.adopted_receipts >= left > 0
    return died - begun, rest_s


@pytest.mark.slow
def test_a_killed_scoring_worker_is_replaced_and_no_row_is_lost_or_doubled(trained, inbox, ray_cluster):
    assert lose_workers(trained, inbox, 5) == 1


@pytest.mark.soak
@pytest.mark.parametrize("after", [1, 60])
def test_a_worker_is_killed_early_and_late(after, trained, inbox, ray_cluster):
    assert lose_workers(trained, inbox, after) == 1


@pytest.mark.slow
def test_a_killed_driver_leaves_parts_that_the_same_command_uses(trained, inbox, ray_cluster):
    lose_the_driver(trained, inbox, 20)


@pytest.mark.soak
@pytest.mark.parametrize("after", [1, 60])
def test_a_driver_is_killed_early_and_late(after, trained, inbox, ray_cluster):
    lose_the_driver(trained, inbox, after)


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_with_7_and_names_the_rows(trained, inbox, ray_cluster, capsys):
    stopped: list[int] = []

    def stop() -> None:
        wait_for(lambda: len(receipts(inbox)) >= 5, seconds=120)
        stopped.extend(descendants(os.getpid(), "ray::MapWorker"))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        assert run(score_argv(trained, inbox, "workers.stall_timeout_s=8")) == 7
    finally:
        stopper.join(10)
        for pid in stopped:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    printed = capsys.readouterr().err
    assert "nothing was finished for 8 s" in printed
    assert "reviews.parquet rows " in printed
    assert run(score_argv(trained, inbox)) == 0
    check_rows(inbox)
