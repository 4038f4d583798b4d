"""The systemd units: options that `ray start` takes, the token pinned, the job server on loopback."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "own-machines"


def start_of(unit: str) -> list[str]:
    """Words after `ray start` in a unit."""
    [line] = re.findall(r"^ExecStart=(.*)$", (UNITS / unit).read_text(encoding="utf-8"), flags=re.MULTILINE)
    program, verb, *words = shlex.split(line.replace("${HEAD_ADDRESS}", "10.0.0.10"))
    assert (Path(program).name, verb) == ("ray", "start")
    return words


@pytest.mark.parametrize("unit", ["ray-head.service", "ray-worker.service"])
def test_ray_takes_the_options_and_stays_in_the_foreground(unit):
    from ray.scripts.scripts import start

    context = start.make_context("start", start_of(unit))
    assert context.params["block"] is True
    text = (UNITS / unit).read_text(encoding="utf-8")
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/etc/bertray/ray_token" in text


def test_the_head_does_no_work_and_its_job_server_listens_on_loopback():
    from ray.scripts.scripts import start

    head = start.make_context("start", start_of("ray-head.service")).params
    assert (head["head"], head["num_cpus"], head["dashboard_host"]) == (True, 0, "127.0.0.1")
    worker = start.make_context("start", start_of("ray-worker.service")).params
    assert worker["address"] == "10.0.0.10:6379"


@pytest.mark.parametrize("unit", ["ray-head.service", "ray-worker.service"])
def test_jobs_find_the_environment_and_a_firewall_the_ports(unit):
    """Ray runs `python` of a job by its own path, and takes random ports for what no option names."""
    from ray.scripts.scripts import start

    text = (UNITS / unit).read_text(encoding="utf-8")
    assert re.search(r"^Environment=PATH=/srv/bertray/\.venv/bin:", text, flags=re.MULTILINE)
    given = start.make_context("start", start_of(unit)).params
    ports = ("node_manager", "object_manager", "runtime_env_agent", "dashboard_agent_listen", "dashboard_agent_grpc")
    assert [given[f"{name}_port"] for name in ports] == [6380, 6381, 6382, 52365, 52366]
    assert given["metrics_export_port"] == 52367
    page = (UNITS.parents[1] / "docs/own-machines.md").read_text(encoding="utf-8")
    assert "| 6380 to 6382, 52365 to 52367 |" in page
    assert f"| {given['min_worker_port']} to {given['max_worker_port']} |" in page
