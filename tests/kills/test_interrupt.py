"""A run that is told to stop: one screen, code 130, no process left behind, and the same command finishes it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.corpus import train_argv, write
from tests.processes import descendants, environment_beside_the_cluster, is_alive, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def scratch():
    """Where Ray's files lie while it runs; its sockets lie below it, so the path is short."""
    folder = Path(tempfile.mkdtemp(prefix="ti-", dir="/tmp"))
    yield folder
    folder.rmdir()  # fails where a run left a file behind


def stop(argv: list[str], env: dict[str, str], number: int, ready: Callable[[], bool], *, on_ray: bool = True) -> None:
    """Start a command, stop it when it is ready; it has to leave with 130, in silence, and without processes."""
    process = subprocess.Popen(
        argv,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: ready() or process.poll() is not None, seconds=120)
    assert process.poll() is None, process.communicate()[1]
    started = descendants(process.pid)
    assert bool(started) == on_ray
    assert len(list(Path(env["RAY_TMPDIR"]).iterdir())) == on_ray, "Ray's files"
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "bertray: exit 130 (interrupted): run the same command again to go on"
    assert "Traceback" not in printed
    assert "stack trace" not in printed
    wait_for(lambda: not any(map(is_alive, started)), seconds=60)


@pytest.mark.parametrize(
    ("on_ray", "number"), [pytest.param(True, signal.SIGINT, marks=pytest.mark.soak), (False, signal.SIGTERM)]
)
def test_a_training_that_is_stopped_leaves_with_130_and_goes_on_where_it_was(
    on_ray, number, tiny_encoder, corpus, tmp_path, scratch
):
    """Begun on Ray or in one process; it goes on in one."""
    output, env = tmp_path / "run", environment_beside_the_cluster(RAY_TMPDIR=str(scratch))
    words = ["training.epochs=40", "report.baselines=false", "training.checkpoint_every_s=1"]
    argv = [sys.executable, "-m", "bertray.cli", *train_argv(tiny_encoder, corpus, output, *words)]
    begun = [*argv, "workers.in_process_rows=0"] if on_ray else argv
    stop(begun, env, number, lambda: any(output.glob("checkpoints/step-*/checkpoint.json")), on_ray=on_ray)
    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert "in this process" in again.stderr
    assert "resuming at step" in again.stderr
    assert (output / "report.html").is_file()


def test_a_night_stopped_by_sigterm_leaves_with_130_and_its_parts_are_used(trained, tmp_path, scratch):
    write(tmp_path / "in" / "reviews.parquet", 6000, 7, "k")
    output, env = tmp_path / "out", environment_beside_the_cluster(RAY_TMPDIR=str(scratch))
    words = [f"model={trained / 'model'}", f"input={tmp_path / 'in'}", f"output={output}", "rows_per_shard=50"]
    argv = [sys.executable, "-m", "bertray.cli", "score", *words]
    stop(argv, env, signal.SIGTERM, lambda: len(list(output.rglob("*.receipt.json"))) >= 5)
    assert not (output / "data").exists()
    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert "finished parts of an earlier attempt are used" in again.stderr
    assert Counter(pq.read_table(output / "data")["id"].to_pylist()) == Counter(f"k{i}" for i in range(6000))
