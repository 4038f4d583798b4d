"""Where a local run lets Ray lay its files: a folder of its own, short enough, and nobody's leftovers stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertray.errors import ConfigError
from bertray.execution import session
from bertray.execution.session import LONGEST_FOLDER, _temporary_folder
from tests.corpus import write
from tests.processes import environment_beside_the_cluster


@pytest.fixture
def base(monkeypatch) -> Iterator[Path]:
    folder = Path("/tmp") / f"t{os.getpid()}"  # short, as the sockets need it
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    for left in folder.iterdir():
        left.rmdir()
    folder.rmdir()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_folders_of_dead_runs_go_and_those_of_others_stay(base):
    mine = Path(_temporary_folder())
    prefix = mine.name.removesuffix(f"{os.getpid()}-0")
    dead, alive, foreign = base / f"{prefix}{dead_pid()}", base / f"{prefix}{os.getppid()}", base / "bertray-zzzz-7"
    for folder in (dead, alive, foreign):
        folder.mkdir()
    again = Path(_temporary_folder())  # a folder that is in use, or not ours, is nobody's hindrance
    assert again.name == f"{prefix}{os.getpid()}-1"
    assert sorted(base.iterdir()) == sorted([mine, again, alive, foreign])
    assert mine.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_sockets_is_refused_before_ray_starts(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 40)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(ConfigError, match="too long a path") as caught:
        _temporary_folder()
    allowed = int("".join(c for c in caught.value.remedy if c.isdigit()))
    assert not long.exists()
    assert allowed + len("/bertray-ffff-1234567-0") == LONGEST_FOLDER


def test_a_folder_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/x")
    with pytest.raises(ConfigError, match="/dev/null/x: no folder for Ray's files can be made here"):
        _temporary_folder()


HOMES = {"not there": "/proc/nohome", "not writable": "/proc", "a file": "/dev/null", "unset": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("home", "rows"),
    [
        pytest.param("unset", 2500, id="in process-unset"),
        *(pytest.param(home, 2500, marks=pytest.mark.soak, id=f"in process-{home}") for home in list(HOMES)[:-1]),
        *(pytest.param(home, 0, marks=[pytest.mark.ray, pytest.mark.soak], id=f"on Ray-{home}") for home in HOMES),
    ],
)
def test_a_home_folder_that_cannot_be_used_is_not_needed(home, rows, trained_alone, tmp_path):
    write(tmp_path / "in" / "a.parquet", 12, 3, "a")
    env = environment_beside_the_cluster()
    env.pop("RAY_AUTH_MODE", None)
    env.pop("HOME", None)
    if HOMES[home] is not None:
        env["HOME"] = HOMES[home]
    words = [f"model={trained_alone / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    run = subprocess.run(
        [str(Path(sys.executable).parent / "bertray"), "score", *words, f"workers.in_process_rows={rows}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("home", ["/proc/nohome", "/dev/null", "/proc"])
def test_ray_gets_its_token_from_us_where_it_could_not_write_one(home, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    before = dict(os.environ)
    session._provide_token()
    token = os.environ.pop("RAY_AUTH_TOKEN")
    assert len(token) == 64
    assert dict(os.environ) == before
    session._provide_token()  # a process that starts two clusters has one token: Ray reads it once
    assert os.environ.pop("RAY_AUTH_TOKEN") == token
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # what the user says holds
    session._provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_ray_keeps_its_token_in_a_home_that_can_be_written(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    session._provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
