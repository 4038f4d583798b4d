"""How busy a GPU was is read from what its driver prints."""

from __future__ import annotations

import time

import pytest

from bertray.benchmark.gpu import Busy, visible_gpus, watched_gpus


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function that stands in for `nvidia-smi`: notes what it was asked, and prints lines."""

    def install(*lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        told = "\n".join(f"echo '{line}'" for line in lines)
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{told}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_the_mean_of_what_the_driver_says_of_these_gpus(driver, tmp_path):
    driver("50", "[N/A]", "100", "30")
    with watched_gpus(["GPU-a", "GPU-b"]) as busy:
        deadline = time.monotonic() + 20
        while busy.share_of_last(20, until=time.monotonic()) != pytest.approx(0.6) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert busy.share_of_last(40, until=time.monotonic()) == pytest.approx(0.6)
    assert "--id=GPU-a,GPU-b" in (tmp_path / "asked").read_text()
    assert "utilization.gpu" in (tmp_path / "asked").read_text()


def test_only_the_seconds_at_work_count(monkeypatch):
    busy = Busy()
    for at, share in ((10.0, 0.0), (12.0, 0.4), (13.0, 0.8), (15.0, 0.0)):
        monkeypatch.setattr("bertray.benchmark.gpu.time.monotonic", lambda at=at: at)
        busy.add(share)
    assert busy.share_of_last(2.5, until=14.0) == pytest.approx(0.6)
    assert busy.share_of_last(1.0, until=9.0) is None


def test_without_a_driver_or_a_gpu_nothing_is_asked(driver, tmp_path, monkeypatch):
    driver("50")
    with watched_gpus([]):
        pass
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with watched_gpus(["GPU-a"]) as busy:
        pass
    assert busy.share_of_last(60, until=time.monotonic()) is None
    assert visible_gpus("cpu") == []
