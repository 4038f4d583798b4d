"""The Airflow DAG, parsed with a stand-in of Airflow's modules: its job, its schedule, and what is tried again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bertray.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DAG_FILE = ROOT / "deploy" / "airflow" / "bertray_nightly.py"


class FakeDAG:
    """The arguments of the DAG that was made last."""

    last: Any = None

    def __init__(self, dag_id: str, **settings: Any) -> None:
        self.dag_id, self.settings, self.tasks = dag_id, settings, []

    def __enter__(self) -> FakeDAG:
        FakeDAG.last = self
        return self

    def __exit__(self, *_: object) -> None:
        return None


class FakeSubmit:
    """The operator of Google's provider: it succeeds whatever became of the job."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.cluster_address = settings, settings["cluster_address"]
        FakeDAG.last.tasks.append(self)

    def execute(self, context: Any) -> str:
        return "bertray-20261120-1"


class AirflowException(Exception):
    """A task that is tried again."""


class AirflowFailException(AirflowException):
    """A task that is not."""


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The DAG of the file, imported beside stand-ins."""
    modules: dict[str, dict[str, Any]] = {
        "airflow": {"DAG": FakeDAG},
        "airflow.exceptions": {
            "AirflowException": AirflowException,
            "AirflowFailException": AirflowFailException,
        },
        "airflow.providers": {},
        "airflow.providers.google": {},
        "airflow.providers.google.cloud": {},
        "airflow.providers.google.cloud.operators": {},
        "airflow.providers.google.cloud.operators.ray": {"RaySubmitJobOperator": FakeSubmit},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("bertray_nightly", DAG_FILE)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return FakeDAG.last


def test_one_night_at_a_time_and_no_night_is_caught_up(dag):
    assert dag.settings["max_active_runs"] == 1
    assert dag.settings["catchup"] is False
    assert dag.settings["default_args"]["retries"] == 3


def test_the_job_is_a_command_of_bertray_and_each_try_has_an_id_of_its_own(dag):
    [task] = dag.tasks
    python, script, flag, config, *settings = task.settings["entrypoint"].split(maxsplit=4)
    assert (python, script, flag) == ("python", "jobs/score.py", "-c")
    assert settings == ["input={{ var.value.reviews }} output={{ var.value.scored }}"]
    load_config("score", [str(ROOT / config)], ["input=in", "output=out"])
    assert "try_number" in task.settings["submission_id"]
    assert task.settings["wait_for_job_done"] is True


@pytest.mark.parametrize(
    ("status", "code", "raised"),
    [
        ("SUCCEEDED", 0, None),
        ("FAILED", 7, AirflowException),
        ("FAILED", None, AirflowException),
        ("FAILED", 1, AirflowFailException),
        ("FAILED", 2, AirflowFailException),
        ("FAILED", 4, AirflowFailException),
        ("FAILED", 6, AirflowFailException),
        ("FAILED", 130, AirflowException),
        ("STOPPED", 130, AirflowFailException),
        ("STOPPED", None, AirflowFailException),
    ],
)
def test_a_job_that_failed_fails_its_task_and_only_infrastructure_is_tried_again(
    dag, monkeypatch, status, code, raised
):
    details = SimpleNamespace(status=status, driver_exit_code=code, message="it ended")
    client = SimpleNamespace(get_job_info=lambda job_id: details)
    jobs = ModuleType("ray.job_submission")
    vars(jobs)["JobSubmissionClient"] = lambda address: client
    monkeypatch.setitem(sys.modules, "ray.job_submission", jobs)
    [task] = dag.tasks
    if raised is None:
        assert task.execute({}) == "bertray-20261120-1"
        return
    with pytest.raises(raised) as failed:
        task.execute({})
    assert type(failed.value) is raised
