"""Machines that a cluster has, may still start, or can never have; and what Ray Train says of its workers."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest

from bertray.config import Workers
from bertray.errors import ConfigError, InfrastructureError
from bertray.execution import machines, ray_train, session
from bertray.execution.executor import Rank, Training
from bertray.execution.machines import MachineWatch
from bertray.execution.remote_errors import as_known
from bertray.execution.resources import READER_CPUS, Machine, Resources, missing, plan_resources

HEAD = Machine(0.0)


# --- how many GPUs there can be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "told"),
    [(2.0, "workers: 4 GPUs asked for, this cluster can have at most 2."), (4.0, ""), (None, "")],
)
def test_more_gpu_workers_than_a_growing_cluster_can_ever_have_are_refused(most, told):
    workers = Workers(num_workers=4, use_gpu=True)

    def plan() -> Resources:
        return plan_resources(workers, [HEAD], local=False, growing=True, most_gpus=most)

    if told:
        with pytest.raises(ConfigError) as caught:
            plan()
        assert caught.value.message == told
        assert "workers.num_workers" in caught.value.remedy
    else:
        assert (plan().num_workers, plan().device) == (4, "cuda")


def test_the_ceiling_of_ray_up_is_read_from_what_it_leaves_on_the_head(monkeypatch, tmp_path):
    from ray._private.state import state

    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
    monkeypatch.setattr(session, "BOOTSTRAP_CONFIG", tmp_path / "ray_bootstrap_config.yaml")
    assert session._most_gpus() is None
    types = "{head: {resources: {CPU: 0}}, gpu: {max_workers: 2, resources: {CPU: 8, GPU: 1}}, "
    types += "big: {max_workers: 3, resources: {GPU: 4}}, cpu: {max_workers: 10, resources: {CPU: 8}}}"
    (tmp_path / "ray_bootstrap_config.yaml").write_text(f"cluster_name: x\navailable_node_types: {types}\n")
    assert session._most_gpus() == 14.0
    (tmp_path / "ray_bootstrap_config.yaml").write_text("[")
    assert session._most_gpus() is None
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"GPU": 8, "CPU": 64})
    assert session._most_gpus() == 8.0


def test_a_growing_cluster_whose_ceiling_is_too_low_refuses_before_any_wait(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(session, "machines_of_cluster", lambda **_: [HEAD])
    monkeypatch.setattr(session, "_grows", lambda: True)
    monkeypatch.setattr(session, "_most_gpus", lambda: 2.0)
    began = time.monotonic()
    with pytest.raises(ConfigError, match="4 GPUs asked for, this cluster can have at most 2"):
        session._planned(Workers(num_workers=4, use_gpu=True))
    assert time.monotonic() - began < 5
    assert session._planned(Workers(num_workers=2, use_gpu=True)).num_workers == 2


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([Machine(16.0, 1.0)], (READER_CPUS, 1.0)),
        ([Machine(1.0, 1.0)], (READER_CPUS, READER_CPUS)),  # too small for a whole CPU beside the worker
        ([Machine(8.0, 2.0), Machine(8.0)], (READER_CPUS, 1.0)),
    ],
)
def test_a_task_that_reads_for_a_gpu_takes_a_whole_cpu_where_there_is_one(there, expected):
    found = plan_resources(Workers(use_gpu=True), there, local=False)
    assert (found.cpus_per_worker, found.reader_cpus) == expected
    assert plan_resources(Workers(), there, local=False).reader_cpus == READER_CPUS


# --- waiting for them ------------------------------------------------------------------------------------------------


def test_what_machines_lack_is_told_in_words():
    on_gpus, on_cpus = Resources(2, 1, 0.5, 1), Resources(3, 2, 2.0, 0)
    assert missing(on_gpus, [HEAD, Machine(8.0, 1.0)]) == (
        "2 workers of 1 GPU are needed, the machines that are there hold 1"
    )
    assert missing(on_gpus, [Machine(8.0, 1.0), Machine(8.0, 1.0)]) == ""
    assert missing(on_cpus, [Machine(3.9)]) == "3 workers of 2 CPUs are needed, the machines that are there hold 1"
    assert missing(on_cpus, [Machine(4.0), Machine(2.0)]) == ""


def test_a_line_says_that_machines_are_waited_for_until_they_are_there_and_when_one_is_lost(monkeypatch, caplog):
    monkeypatch.setattr(machines, "TELL_EVERY_S", 0.02)
    answers = iter(["2 are needed", "2 are needed", "1 is needed", "", "", "1 is lost", "1 is still lost", ""])
    all_given = threading.Event()

    def missing() -> str:
        words = next(answers, None)
        if words is None:
            all_given.set()
        return words or ""

    with caplog.at_level(logging.WARNING, "bertray"), MachineWatch(missing) as watch:
        assert all_given.wait(10)
    assert not watch._thread.is_alive()
    lines = [record.getMessage().split(": ", 1) for record in caplog.records]
    assert [words for _, words in lines] == ["2 are needed", "1 is needed", "1 is still lost"]
    assert all(line.startswith("waiting for machines for ") for line, _ in lines)
    assert float(lines[2][0].split()[-2]) < 1  # since it was lost


def test_no_line_is_told_where_the_machines_are_there(caplog):
    with caplog.at_level(logging.WARNING, "bertray"), MachineWatch(lambda: ""):
        pass
    assert not caplog.records


def test_ray_train_waits_half_an_hour_for_machines_of_a_cluster(monkeypatch):
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    monkeypatch.setattr(os, "environ", dict(os.environ) | {"RAY_ADDRESS": "auto"})
    monkeypatch.setattr(ray, "init", lambda **_: None)
    session._connect(None)
    assert get_env_vars_to_propagate()["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "1800"


# --- what Ray Train says ---------------------------------------------------------------------------------------------


def test_errors_of_ray_train_itself_are_ours_and_those_of_workers_stay_what_they_are():
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal import exceptions as train

    too_many = train.InsufficientClusterResourcesError("Insufficient cluster resources: {'GPU': 4.0}, at most 2.")
    known = as_known(ControllerError(too_many))
    assert type(known) is ConfigError
    assert known.message == "workers: Insufficient cluster resources: {'GPU': 4.0}, at most 2."

    for error in (train.WorkerGroupStartupTimeoutError(4), train.WorkerGroupStartupFailedError("a node died")):
        found = as_known(ControllerError(error))
        assert type(found) is InfrastructureError
        assert found.message.startswith("Ray Train: ")
    unhealthy = train.WorkerHealthCheckFailedError("lost", OSError(28, "No space left on device"))
    assert "No space left" in as_known(WorkerGroupError("", {0: unhealthy})).message
    assert as_known(ControllerError(KeyError("x"))) is None
    assert as_known(WorkerGroupError("", {0: KeyError("x")})) is None
    refused = ConfigError("a.", "b.")
    assert as_known(WorkerGroupError("", {1: train.UserExceptionWithTraceback(refused, "trace")})) is refused


class _Trainers:
    """Fits that end in turn: with an error, or with a result; each may get the run on first."""

    def __init__(self, *outcomes: object) -> None:
        self._outcomes, self.names, self.step = list(outcomes), [], 0

    def __call__(self, body, training, resources, name):
        self.names.append(name)
        return self

    def fit(self):
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, tuple):
            self.step, outcome = outcome
        if isinstance(outcome, Exception):
            raise outcome
        return type("Result", (), {"return_value": outcome})


def run_with(monkeypatch, trainers: _Trainers, max_failures: int = 3) -> object:
    monkeypatch.setattr(ray_train, "_trainer", trainers)
    monkeypatch.setattr(ray_train, "machine_watch", lambda resources: MachineWatch(lambda: ""))
    training = Training("run", "/nowhere", max_failures, progress=lambda: trainers.step)
    return ray_train.run_ranks(lambda rank: rank, training, Resources(1, 1, 1.0, 0))


def test_lost_workers_are_counted_from_the_last_checkpoint_that_moved(monkeypatch, caplog):
    lost = InfrastructureError("Ray: a node died.", "Run again.")
    trainers = _Trainers((3, lost), (8, lost), (12, "done"))
    with caplog.at_level(logging.WARNING, "bertray"):
        assert run_with(monkeypatch, trainers) == "done"
    assert trainers.names == ["run-0", "run-1", "run-2"]  # Ray Train would resume a name that it knows
    assert caplog.text.count("a node died. Training goes on from its last checkpoint.") == 2


@pytest.mark.parametrize(
    ("outcome", "max_failures"),
    [
        (InfrastructureError("lost.", ""), 3),  # and nothing has moved
        ((5, InfrastructureError("lost.", "")), 0),  # the user wants no second start
        ((5, ConfigError("wrong.", "")), 3),
        ((5, KeyError("a bug")), 3),
    ],
)
def test_what_another_start_would_not_mend_ends_the_run(monkeypatch, outcome, max_failures):
    trainers = _Trainers(outcome, "done")
    expected = outcome[1] if isinstance(outcome, tuple) else outcome
    with pytest.raises(type(expected)):
        run_with(monkeypatch, trainers, max_failures)
    assert trainers.names == ["run-0"]


def test_a_rank_on_a_machine_that_does_not_see_the_output_says_so_before_work(tmp_path):
    from bertray.training.rank import TrainJob, train_rank
    from bertray.training.tokenized_data import TokenizedData
    from tests.training.test_loop import SETTINGS

    data = TokenizedData(str(tmp_path / "out"), ["control/tokens/a.arrow"], None, None, 0.1, 0)
    found = train_rank(TrainJob(data, "bundled", SETTINGS), Rank(0, 1, "cpu"))
    assert isinstance(found, ConfigError)
    assert found.message.startswith(f"output={tmp_path / 'out'}: the machine ")
    assert "a shared disk" in found.remedy
