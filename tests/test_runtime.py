"""CPUs of this process: those of the machine, and no more than a container's limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bertray.runtime import num_cpus

EIGHT = frozenset(range(8))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight CPUs without limits; the process is in the group /kube/pod."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: EIGHT)
    (tmp_path / "own").write_text("0::/kube/pod\n")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "300000 100000"}, 3),  # inside a container its own group is the root
        ({"kube/pod/cpu.max": "400000 100000", "kube/cpu.max": "250000 100000"}, 2),
        ({"kube/pod/cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "", "kube/cpu.max": "many 1"}, 8),
    ],
)
def test_a_process_has_the_cpus_that_its_control_groups_pay_for(machine, files, expected):
    for name, content in files.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(content)
    assert num_cpus(machine, machine / "own") == expected


def test_a_process_has_no_more_cpus_than_it_may_run_on(tmp_path):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert num_cpus(tmp_path, tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)


def test_no_other_module_counts_the_cpus_of_the_whole_machine():
    package = Path(__file__).resolve().parents[1] / "bertray"
    assert [path for path in package.rglob("*.py") if "cpu_count" in path.read_text(encoding="utf-8")] == []
