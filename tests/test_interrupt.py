"""A run that is told to stop: one screen, code 130, no process left behind, and the same command finishes it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_jobs import train_argv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_training_leaves_with_130_and_goes_on_where_it_was(number, tiny_encoder, corpus, tmp_path):
    output = tmp_path / "run"
    words = ["training.epochs=40", "report.baselines=false", "training.checkpoint_every_s=1"]
    argv = [sys.executable, "-m", "bertray.cli", *train_argv(tiny_encoder, corpus, output, *words)]
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        argv, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    _wait_for(lambda: any(output.glob("checkpoints/step-*")), seconds=120)
    started = _descendants(process.pid)
    assert started, "Ray's processes should be there"
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "bertray: exit 130 (interrupted): run the same command again to go on"
    assert "Traceback" not in printed
    assert "stack trace" not in printed
    _wait_for(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()], seconds=30)

    again = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stderr
    assert (output / "report.html").is_file()


def _wait_for(condition, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has just ended
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]
