"""Fault points: armed by a test for its own process, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bertray.errors import ConfigError, InfrastructureError
from bertray.io import faults


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    faults.arm("")


def test_a_point_acts_at_the_passage_that_was_named():
    faults.arm("gc.half:2:raise")
    faults.point("gc.half")
    with pytest.raises(InfrastructureError, match=r"gc\.half"):
        faults.point("gc.half")
    faults.point("gc.half")


@pytest.mark.parametrize("wrong", ["gc.half", "gc.half:x:kill", "gc.half:1:explode", "nowhere:1:kill"])
def test_what_names_no_fault_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected point:n:action"):
        faults.arm(wrong)


def test_the_environment_of_a_run_arms_nothing():
    script = "from bertray.io import faults; faults.point('gc.half'); print('alive')"
    environment = {**os.environ, "BERTRAY_FAULTS": "gc.half:1:kill"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "alive"
