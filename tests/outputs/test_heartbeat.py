"""A killed run holds its output no longer, whatever the kernel tells of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from bertray.io.processes import started_at
from bertray.io.store import LocalStore
from bertray.outputs.heartbeat import FRESH, Heartbeat, live_attempt


@pytest.fixture(params=["kernel tells", "no /proc", "/proc of nobody"])
def store(request, monkeypatch, tmp_path) -> LocalStore:
    if request.param == "no /proc":
        monkeypatch.setattr(psutil, "PROCFS_PATH", "/nowhere")
    elif request.param == "/proc of nobody":  # a file where folders are looked for: another error of the system
        (tmp_path / "file").touch()
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "file"))
    return LocalStore(tmp_path / "out")


def beat_of(store: LocalStore, pid: int, *, age: timedelta = timedelta(), **other: object) -> None:
    """A heartbeat as a run in process `pid` of this machine left it some time ago."""
    beat = Heartbeat(store, "control/runs/r", "r")
    beat._beat()
    seen = json.loads(store.get(beat.key))
    seen |= {"pid": pid, "started": started_at(pid), "at": (datetime.now(UTC) - age).isoformat(), **other}
    store.put(beat.key, json.dumps(seen).encode())


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_live_run_is_seen(store, sleeper):
    beat_of(store, sleeper.pid)
    assert f"process {sleeper.pid} on " in str(live_attempt(store, "control/runs"))


def test_a_killed_run_holds_its_output_no_longer_at_once(store, sleeper):
    beat_of(store, sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert live_attempt(store, "control/runs") is None


def test_a_process_that_got_the_number_of_a_killed_run_holds_nothing_for_ever(store):
    """Where the kernel tells when a process started, not for a moment; else until the file is old."""
    beat_of(store, os.getppid(), age=FRESH, started=1.5)
    assert live_attempt(store, "control/runs") is None
    beat_of(store, os.getppid(), age=FRESH, started=None)
    assert live_attempt(store, "control/runs") is None


def test_the_number_of_this_very_process_is_of_a_run_before_it(store):
    beat_of(store, os.getpid())
    assert live_attempt(store, "control/runs") is None


@pytest.mark.parametrize(("age", "alive"), [(timedelta(), True), (FRESH, False)])
def test_of_another_machine_only_the_clock_tells(store, age, alive):
    beat_of(store, os.getpid(), age=age, host="elsewhere/0/1")
    assert (live_attempt(store, "control/runs") is not None) == alive


@pytest.mark.parametrize("pid", ["x", None, 2**70])
def test_a_heartbeat_that_nobody_can_own_holds_nothing(store, pid):
    beat_of(store, os.getppid())
    key = "control/runs/r/heartbeat.json"
    store.put(key, json.dumps(json.loads(store.get(key)) | {"pid": pid}).encode())
    assert live_attempt(store, "control/runs") is None
