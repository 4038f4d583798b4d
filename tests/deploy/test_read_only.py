"""A read-only root file system, as in the image: only /tmp and the output can be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.corpus import write
from tests.deploy.test_image import instructions
from tests.processes import environment_beside_the_cluster, wait_for

ROOT = Path(__file__).resolve().parents[2]
# In a mount namespace of its own every mount becomes read-only but those of the kernel; /tmp is the folder of the test.
LOCKED = """
set -e
mount --make-rprivate /
mount --bind "$1" /tmp
shift
while read -r _ _ _ _ at _; do
  case "$at" in /tmp|/proc*|/sys*|/dev*) ;; *) mount -o remount,ro,bind "$at" ;; esac
done < /proc/self/mountinfo
cd /tmp
if touch /var/tmp/x 2>/dev/null || touch "$HOME_BEFORE/x" 2>/dev/null; then echo "not read-only"; exit 99; fi
exec "$@"
"""


def variables_of_the_image() -> dict[str, str]:
    [said] = [rest for word, rest in instructions() if word == "ENV"]
    return dict(pair.split("=", 1) for pair in re.split(r"\s+", said))


def locked(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A command with `folder` as /tmp, in the environment of the image; nothing else can be written."""
    kept = environment_beside_the_cluster(HOME_BEFORE=os.environ["HOME"], RAY_AUTH_MODE="disabled")
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", LOCKED, "locked", str(folder), *words],
        env={name: value for name, value in kept.items() if name != "TMPDIR"} | variables_of_the_image(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """What it wrote to stderr, and its exit code where that is not 0."""
    _, text = process.communicate(timeout=250)
    return text + (f"exit code {process.returncode}" if process.returncode else "")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_read_only_root_trains_scores_and_reports(tmp_path):
    if any(Path(place).is_relative_to("/tmp") for place in (ROOT, sys.prefix, sys.base_prefix)):
        pytest.skip("the program lies below /tmp, which the test takes for its own")
    if "exit code" in (tried := said(locked(tmp_path, "true"))):
        pytest.skip(f"no file system can be made read-only here: {tried.strip()}")
    for name, rows in (("train", 80), ("test", 40), ("night", 60)):
        write(tmp_path / f"{name}.parquet", rows, seed=len(name), prefix=name)
    bertray = str(Path(sys.executable).parent / "bertray")
    keys = ("data.train=train.parquet", "data.test=test.parquet", "training.method=stack", "output=run")
    trained = said(locked(tmp_path, bertray, "train", *keys))
    assert "exit code" not in trained, trained
    keys = ("model=run/model", "input=night.parquet", "output=scored", "workers.in_process_rows=0")
    scoring = locked(tmp_path, bertray, "score", *keys)
    wait_for(lambda: any(tmp_path.glob("*/session_*")), seconds=200)  # of Ray, which takes its files away again
    scored = said(scoring)
    assert "exit code" not in scored, scored
    assert pq.read_table(tmp_path / "scored/data").num_rows == 60
    assert (tmp_path / "run/report.html").is_file()
