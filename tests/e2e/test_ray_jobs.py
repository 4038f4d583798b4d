"""The same jobs on a real Ray head, by `ray job submit`, as on a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bertray.execution.session import LOCAL_TRAIN_ENV
from bertray.runtime import COMPUTE_ENV
from tests.corpus import write

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"


# Below the ports that the system hands out by itself, of which Ray's own processes take dozens between our look and
# their start, and above those of Ray's workers (10002 to 19999).
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at, each different."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"fewer than {count} of {PORTS} are free")


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head of two CPUs on loopback with a job server; (its address, the environment of its clients)."""
    temporary = Path(tempfile.mkdtemp(prefix="rj-"))  # short: Ray's sockets lie below it
    port, dashboard, agent, client = free_ports(4)
    env = {**os.environ, "RAY_TMPDIR": str(temporary), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    for name in ("RAY_ADDRESS", *LOCAL_TRAIN_ENV, *COMPUTE_ENV):  # of the cluster that other tests use
        env.pop(name, None)
    command = [
        str(RAY), "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--object-store-memory=300000000",
        # Ray's fixed default port of the job agent may belong to another cluster of this machine.
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
    ]  # fmt: skip
    log = (temporary / "head.log").open("wb")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 150
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", dashboard), timeout=1):
                break
            assert process.poll() is None, (temporary / "head.log").read_text()
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.5)
        # The job agent comes up some time after the dashboard; until then a submission is refused.
        while (answer := submit((address, env), "-c", "pass")).returncode != 0:
            said = f"{answer.stdout}{answer.stderr}\n{(temporary / 'head.log').read_text()}"
            assert time.monotonic() < deadline, f"the head takes no job: {said}"
            time.sleep(1)
        yield address, env
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def submit(
    head: tuple[str, dict[str, str]],
    *entrypoint: str,
    env_vars: dict[str, str] | None = None,
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    address, env = head
    command = [
        str(RAY),
        "job",
        "submit",
        f"--address={address}",
        "--working-dir",
        ".",
        *options,
        *(["--runtime-env-json", json.dumps({"env_vars": env_vars})] if env_vars else []),
        "--",
        sys.executable,
        *entrypoint,
    ]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_workers_of_a_cluster_compute_in_our_environment_and_in_what_a_job_chooses(head):
    script = (
        "import os, ray; from bertray.config import Workers; from bertray.execution.session import ray_session; "
        "session = ray_session(Workers()); resources = session.__enter__().resources; "
        "get = ray.remote(lambda name: os.environ.get(name)); compute = "
        "get.options(runtime_env=resources.runtime_env); "
        "names = ('GOMP_SPINCOUNT', 'MALLOC_ARENA_MAX', 'MALLOC_TOP_PAD_'); "
        "print('of a task:', [ray.get(get.remote(name)) for name in names]); "
        "print('that computes:', [ray.get(compute.remote(name)) for name in names])"
    )
    run = submit(head, "-c", script, env_vars={"MALLOC_ARENA_MAX": "7"})
    assert "of a task: ['4000', '7', None]" in run.stdout, run.stdout + run.stderr
    assert "that computes: ['4000', '7', '268435456']" in run.stdout


def test_train_and_score_run_as_submitted_jobs_and_a_failing_one_tells_its_code(head, tiny_encoder, tmp_path):
    write(tmp_path / "train.parquet", 120, 1, "t")
    write(tmp_path / "in" / "a.parquet", 40, 3, "a")
    run = submit(
        head,
        "jobs/train.py",
        f"model={tiny_encoder}",
        f"data.train={tmp_path / 'train.parquet'}",
        f"output={tmp_path / 'run'}",
        "max_length=24",
        "training.epochs=2",
        "report.baselines=false",
        "workers.threads=1",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()

    scored = [
        "jobs/score.py",
        f"model={tmp_path / 'run' / 'model'}",
        f"input={tmp_path / 'in'}",
        f"output={tmp_path / 'scored'}",
        "slot=s",
        "workers.threads=1",
    ]
    run = submit(head, *scored)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(pq.read_table(tmp_path / "scored" / "data" / "s", partitioning=None)) == 40

    run = submit(head, "jobs/score.py", "input=nowhere", f"output={tmp_path / 'scored'}", "model=/no/model")
    assert run.returncode == 1
    log = run.stdout + run.stderr
    assert "model=/no/model: no such folder." in log
    assert "bertray: exit 2 (configuration): Give a trained run's `model` folder, a hub id, or `bundled`." in log


def test_a_job_on_a_head_of_two_cpus_scores_also_where_it_holds_one_of_them(head, trained_alone, tmp_path):
    """By default workers have two threads, which would fill the head."""
    write(tmp_path / "in" / "a.parquet", 12, 3, "a")
    words = [f"model={trained_alone / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "slot=s"]
    run = submit(head, "jobs/score.py", *words, options=["--entrypoint-num-cpus=1"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(pq.read_table(tmp_path / "out" / "data" / "s", partitioning=None)) == 12


def test_a_job_whose_workers_can_never_fit_is_refused_within_half_a_minute(head, trained_alone, tmp_path):
    write(tmp_path / "in" / "a.parquet", 12, 3, "a")
    words = [f"model={trained_alone / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    start = time.monotonic()
    run = submit(head, "jobs/score.py", *words, "workers.threads=3")
    assert run.returncode == 1
    assert "are needed, the cluster has 2 CPUs" in run.stdout
    assert "bertray: exit 2 (configuration): Lower `workers.num_workers` or `workers.threads`" in run.stdout
    assert time.monotonic() - start < 60  # the job's own start aside
