"""Where a local run lets Ray lay its files: a folder of its own, short enough, and nobody's leftovers stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertray.errors import InfrastructureError
from bertray.pipelines.cluster import LONGEST_FOLDER, _temporary_folder


@pytest.fixture
def base(monkeypatch) -> Path:
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
    with pytest.raises(InfrastructureError, match="too long a path") as caught:
        _temporary_folder()
    allowed = int("".join(c for c in caught.value.remedy if c.isdigit()))
    assert not long.exists()
    assert allowed + len("/bertray-ffff-1234567-0") == LONGEST_FOLDER


def test_a_folder_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/x")
    with pytest.raises(InfrastructureError, match="/dev/null/x: no folder for Ray's files can be made here"):
        _temporary_folder()
