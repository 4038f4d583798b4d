"""Workers on any cluster leave room for the tasks that read, or are refused; a pipeline that waits says so."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.config import Workers
from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.execution import session, stalls
from bertray.execution.executor import Progress, Task
from bertray.execution.ray_data import RayData
from bertray.execution.remote_errors import as_known
from bertray.execution.resources import READER_CPUS, Machine, Resources, plan_resources
from tests.corpus import write
from tests.processes import environment_beside_the_cluster
from tests.properties import examples

UNIT = 10_000  # Ray counts in ten-thousandths


def units(cpus: float) -> int:
    return round(cpus * UNIT)


@st.composite
def clusters(draw) -> list[float]:
    sizes = st.one_of(st.integers(0, 65).map(float), st.sampled_from([0.25, 0.5, 0.75, 1.5, 2.5, 7.9]))
    return draw(st.lists(sizes, max_size=6))


@settings(max_examples=examples(400))
@given(
    cpus=clusters(),
    num_workers=st.integers(1, 40),
    threads=st.one_of(st.none(), st.integers(1, 64)),
    local=st.booleans(),
)
def test_wherever_ray_places_the_workers_one_reading_task_has_room(cpus, num_workers, threads, local):
    """Ray may fill machine after machine: the workers that leave no room anywhere are more than there are."""
    machines = [Machine(size) for size in cpus]
    workers = Workers(num_workers=num_workers, threads=threads)
    try:
        found = plan_resources(workers, machines, local=local)
    except ConfigError:
        assert not local
        assert num_workers > sum(size // (threads or 1) for size in cpus) or max(cpus) < 1
        return
    except InfrastructureError:
        assert max(cpus, default=0.0) <= READER_CPUS
        return
    share, reader = units(found.cpus_per_worker), units(READER_CPUS)
    sizes = [units(size) for size in cpus]
    assert share > 0
    assert sum(size // share for size in sizes) >= num_workers  # all are placed
    fewest_without_room = sum((size - reader) // share + 1 for size in sizes if size >= reader)
    assert num_workers < fewest_without_room


@settings(max_examples=examples(200))
@given(
    machines=st.lists(st.builds(Machine, st.integers(0, 32).map(float), st.integers(0, 8).map(float)), max_size=5),
    num_workers=st.integers(1, 20),
)
def test_workers_on_gpus_leave_room_for_a_reading_task_beside_them(machines, num_workers):
    workers = Workers(num_workers=num_workers, use_gpu=True)
    try:
        found = plan_resources(workers, machines, local=False)
    except BertrayError:
        assert num_workers > sum(m.gpus for m in machines) or not any(m.cpus > READER_CPUS for m in machines)
        return
    # However the workers lie: with as many on each machine as it has GPUs, the largest has room for one that reads.
    assert max(m.cpus - int(m.gpus) * found.cpus_per_worker for m in machines) >= READER_CPUS - 1e-9
    assert math.isclose(found.cpus_per_worker, READER_CPUS) or found.cpus_per_worker < READER_CPUS


@pytest.mark.parametrize(
    ("cpus", "threads", "num_workers", "expected"),
    [
        ([1.0], None, 1, (1, 0.5)),
        ([2.0], None, 1, (2, 1.5)),
        ([3.0], None, 1, (2, 2.0)),  # one is left anyway
        ([3.0], None, 2, (1, 0.8333)),  # two of two threads would not fit
        ([0.0, 2.0], None, 1, (2, 1.5)),  # a head without CPUs
        ([1.0, 1.0], None, 2, (1, 0.5)),
        ([1.5], None, 1, (1, 1.0)),
        ([0.8], None, 1, (1, 0.3)),
    ],
)
def test_small_clusters_are_used_as_they_are(cpus, threads, num_workers, expected):
    found = plan_resources(
        Workers(num_workers=num_workers, threads=threads), [Machine(size) for size in cpus], local=False
    )
    assert (found.threads, found.cpus_per_worker) == expected


@pytest.mark.parametrize(
    ("cpus", "config", "kind", "said"),
    [
        ([], {}, InfrastructureError, "the cluster has 0 CPUs"),
        ([0.0], {}, InfrastructureError, "the cluster has 0 CPUs"),
        ([1.0], {"threads": 2}, ConfigError, "1 workers (workers.num_workers) of 2 CPUs (workers.threads) are needed"),
        ([1.0, 1.0], {"threads": 2}, ConfigError, "the cluster has 2 (1 + 1) CPUs"),
        ([2.0], {"num_workers": 3}, ConfigError, "3 workers (workers.num_workers) of 1 CPUs are needed"),
        ([2.0], {"use_gpu": True}, ConfigError, "1 GPUs asked for, this cluster has 0"),
    ],
)
def test_workers_that_can_never_fit_are_refused_with_what_they_want_and_what_there_is(cpus, config, kind, said):
    with pytest.raises(kind) as caught:
        plan_resources(Workers(**config), [Machine(size) for size in cpus], local=False)
    assert said in caught.value.message
    assert caught.value.remedy
    growing = plan_resources(Workers(**config), [Machine(size) for size in cpus], local=False, growing=True)
    assert growing.num_workers == config.get("num_workers", 1)


@pytest.mark.parametrize(
    ("nodes", "grows"),
    [
        ({"node_" + "0af1" * 14: 1}, False),  # `ray start`: only watched
        ({"head-group": 1}, True),  # KubeRay
        ({"node_" + "0af1" * 14: 1, "ray.worker.default": 2}, True),  # `ray up`
        ({}, None),
        (None, None),
    ],
)
def test_a_cluster_grows_where_an_autoscaler_names_types_of_machines(nodes, grows, monkeypatch):
    status = None if nodes is None else json.dumps({"autoscaler_report": {"active_nodes": nodes}}).encode()
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda _: status)
    assert session._grows() is grows


@pytest.mark.parametrize("grows", [True, False, None])
def test_too_small_a_cluster_is_waited_for_and_refused_unless_it_may_grow(grows, monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(session, "WAIT_FOR_MACHINES_S", 0.2)
    monkeypatch.setattr(session, "machines_of_cluster", lambda **_: [Machine(0.0)])
    monkeypatch.setattr(session, "_grows", lambda: grows)
    with caplog.at_level(logging.WARNING, "bertray"):
        if grows is False:
            with pytest.raises(InfrastructureError, match="the cluster has 0 CPUs"):
                session._planned(Workers())
        else:
            assert session._planned(Workers()).cpus_per_worker == 1.5
    assert "the cluster has 0 CPUs" in caplog.text


def test_workers_wait_aloud_for_cpus_that_other_jobs_hold(monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    free = {True: [Machine(1.0)], False: [Machine(4.0)]}
    monkeypatch.setattr(session, "machines_of_cluster", lambda **of: free[of.get("free", False)])
    assert session._planned(Workers()).threads == 1  # what is free is enough for one thread
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "bertray"):
        assert session._planned(Workers(threads=4)).cpus_per_worker == 3.5
    assert "Ray: 1 CPUs are free; waiting for other jobs" in caplog.text
    assert "--entrypoint-num-cpus" in caplog.text


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "localhost:{port}", "127.0.0.1:99999"])
def test_an_address_at_which_nobody_answers_is_refused_at_once(address):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"nobody answers at RAY_ADDRESS=.*RAY_ADDRESS to its head"):
        session._check_answers(address.format(port=port))
    assert time.monotonic() - start < 15


@pytest.mark.ray
def test_a_stage_without_progress_names_the_items_that_wait_and_the_free_cpus(ray_cluster, monkeypatch, caplog):
    monkeypatch.setattr(stalls, "FIRST_S", 0.5)
    resources = Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0)

    def slowly(item: str) -> str:
        time.sleep(6 if item == "c" else 0)
        return item

    with caplog.at_level(logging.WARNING, "bertray"):
        made = list(RayData(resources).run(["a", "b", "c"], [Task(slowly)], Progress("trying")))
    assert sorted(made) == ["a", "b", "c"]
    lines = [record.getMessage() for record in caplog.records if "no progress" in record.getMessage()]
    # The task holds half a CPU; Ray may keep half a one more for the next task of that kind.
    line = r"trying: no progress for \d+ s; 1 of 3 items wait: c \(3(\.5)? of 4 CPUs are free\)"
    assert re.fullmatch(line, lines[-1])


@pytest.mark.slow
def test_a_watch_waits_longer_each_time_and_begins_again_after_progress(monkeypatch, caplog):
    monkeypatch.setattr(stalls, "FIRST_S", 1.0)
    monkeypatch.setattr(stalls, "_free_cpus", str)
    with caplog.at_level(logging.WARNING, "bertray"), stalls.StallWatch("training", lambda: "nothing yet") as watch:
        time.sleep(3.5)  # lines after 1 s and 2 s; the next would come after 4 s
        watch.progressed()
        time.sleep(1.5)
    assert [record.getMessage() for record in caplog.records] == [
        f"training: no progress for {seconds} s; nothing yet" for seconds in (1, 2, 1)
    ]


@pytest.fixture
def full_cluster(ray_cluster):
    """Something holds all CPUs but those of one task that reads."""
    import ray

    class Holds:
        def ping(self) -> None: ...

    actor = ray.remote(num_cpus=4 - READER_CPUS)(Holds).remote()
    ray.get(actor.ping.remote(), timeout=60)
    yield
    ray.kill(actor)


@pytest.mark.ray
@pytest.mark.timeout(90)
def test_tasks_run_in_the_room_of_one_reading_task(full_cluster):
    """`ray.data.range` would ask for a whole CPU, which workers that fill a machine do not leave."""
    resources = Resources(num_workers=1, threads=1, cpus_per_worker=1.0, gpus_per_worker=0, stall_timeout_s=45)
    assert sorted(RayData(resources).run(range(3), [Task(lambda number: 2 * number)])) == [0, 2, 4]


ON_CPUS = """
import sys, ray
from bertray.cli import run
ray.init(address="local", num_cpus={cpus}, include_dashboard=False, object_store_memory=100 << 20, logging_level=40)
sys.exit(run(sys.argv[1:]))
"""


def on_cluster_of(cpus: int, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ON_CPUS.format(cpus=cpus), *argv]
    return subprocess.run(
        command, env=environment_beside_the_cluster(), capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, *(pytest.param(cpus, marks=pytest.mark.soak) for cpus in (2, 3))])
def test_a_cluster_of_few_cpus_scores(cpus, trained_alone, tmp_path):
    write(tmp_path / "in" / "a.parquet", 12, 3, "a")
    run = on_cluster_of(
        cpus, "score", f"model={trained_alone / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert sum(pq.read_metadata(part).num_rows for part in (tmp_path / "out" / "data").rglob("*.parquet")) == 12


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "cpus"),
    [
        ("finetune", 1),
        *(
            pytest.param(method, cpus, marks=pytest.mark.soak)
            for method, cpus in itertools.product(("finetune", "features"), (1, 2, 3))
            if (method, cpus) != ("finetune", 1)
        ),
    ],
)
def test_a_cluster_of_few_cpus_trains(cpus, method, tiny_encoder, corpus, tmp_path):
    run = on_cluster_of(
        cpus,
        "train",
        f"model={tiny_encoder}",
        f"data.train={corpus / 'train.parquet'}",
        f"output={tmp_path / 'run'}",
        "max_length=24",
        f"training.method={method}",
        "training.epochs=1",
        "report.baselines=false",
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.ray
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("ModuleNotFoundError: No module named 'bertray.none'", ConfigError),
        ("ImportError: cannot import name 'x' from 'statistics' (/home/me/statistics.py)", ConfigError),
        ("KeyError: 'a bug'", type(None)),
    ],
)
def test_an_actor_that_dies_at_each_start_is_no_matter_of_running_it_again(words, kind, ray_cluster):
    import ray

    name, _, text = words.partition(": ")
    error = {"ModuleNotFoundError": ModuleNotFoundError, "ImportError": ImportError, "KeyError": KeyError}[name](text)

    class Dies:
        def __init__(self) -> None:
            raise error

        def ping(self) -> None: ...

    actor = ray.remote(num_cpus=0)(Dies).remote()
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(actor.ping.remote())
    assert type(as_known(caught.value)) is kind


NAMES = ["statistics", "random", "queue", "types", "json", "logging", "socket", "uuid", "enum", "copy"]


@pytest.mark.ray
@pytest.mark.soak
def test_files_of_the_user_that_have_names_of_pythons_modules_do_no_harm_on_ray(trained_alone, tmp_path):
    write(tmp_path / "in" / "a.parquet", 12, 3, "a")
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user')")
    words = [f"model={trained_alone / 'model'}", "input=in", "output=out", "workers.in_process_rows=0"]
    run = subprocess.run(
        [str(Path(sys.executable).parent / "bertray"), "score", *words],
        cwd=tmp_path,
        env=environment_beside_the_cluster(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert list((tmp_path / "out" / "data").iterdir())
