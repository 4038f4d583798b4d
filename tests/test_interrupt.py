"""A run that is told to stop: one screen, code 130, no process left behind, and the same command finishes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.corpus import train_argv
from tests.processes import descendants, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_training_leaves_with_130_and_goes_on_where_it_was(number, tiny_encoder, corpus, tmp_path):
    output = tmp_path / "run"
    words = ["training.epochs=40", "report.baselines=false", "training.checkpoint_every_s=1"]
    argv = [sys.executable, "-m", "bertray.cli", *train_argv(tiny_encoder, corpus, output, *words)]
    # Ray's sockets lie below it, so it is short.
    scratch = Path(tempfile.mkdtemp(prefix="ti-", dir="/tmp"))
    env = os.environ | {"RAY_TMPDIR": str(scratch)}
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        argv,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: any(output.glob("checkpoints/step-*")), seconds=120)
    started = descendants(process.pid)
    assert started, "Ray's processes should be there"
    assert len(list(scratch.iterdir())) == 1, "Ray's files should be there"
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "bertray: exit 130 (interrupted): run the same command again to go on"
    assert "Traceback" not in printed
    assert "stack trace" not in printed
    wait_for(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()], seconds=60)

    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stderr
    assert (output / "report.html").is_file()
    scratch.rmdir()  # fails where either run left a file behind
