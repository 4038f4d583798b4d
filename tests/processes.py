"""Finding processes of a test's own, and waiting for them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bertray.benchmark.memory import processes_below

# Children are forked from a clean process that has imported everything, also what a night imports late, and used
# nothing.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "tests.nightly",
        "bertray.runs.night",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
        "obstore",
        "pandas",
        "pyarrow.pandas_compat",
        "tests.kills.test_training",
        "tokie",
        "tokenizers",
        "transformers.tokenization_utils_tokenizers",
    ]
)


ROOT = Path(__file__).resolve().parent.parent


def environment_beside_the_cluster(**names: str) -> dict[str, str]:
    """The environment for a run with a Ray cluster of its own, and some names more.

    Without what the tests' own cluster left there: a token for it, for one, stops the workers of another.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_USAGE_STATS_ENABLED": "0"} | names


def run_beside_the_cluster(module: str, *words: str, seconds: float) -> None:
    """Run a test module as a script with a Ray cluster of its own; fails unless it exits with 0."""
    run = subprocess.run(
        [sys.executable, "-m", module, *words],
        env=environment_beside_the_cluster(RAY_AUTH_MODE="disabled", RAY_worker_niceness="0"),
        cwd=ROOT,
        timeout=seconds,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def descendants(pid: int, title: str = "") -> list[int]:
    """Processes below one, whose command line starts with a title; Ray names its workers after what they do."""
    return [child for child in processes_below(pid) if _command_line(child).startswith(title)]


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    """Look every 20 ms until something is true; fails after a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
