"""Utilization of GPUs while something runs, by nvidia-smi; unknown elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import numpy as np
import torch

_EVERY_MS = 100
_PATIENCE_S = 5  # with a driver that hangs


def visible_gpus(device: str) -> list[str]:
    """Ids, for `nvidia-smi`, of the GPUs that `device` may mean: all of `cuda`, one of `cuda:1`, none of `cpu`."""
    if not device.startswith("cuda"):
        return []
    index = torch.device(device).index
    numbers = range(torch.cuda.device_count()) if index is None else [index]
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in numbers]


class Busy:
    """Samples of the share of time in which a GPU had something to do."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def add(self, share: float) -> None:
        """A sample of now."""
        self._samples.append((time.monotonic(), share))

    def share_of_last(self, seconds: float, until: float) -> float | None:
        """Mean of the samples of so many seconds before `until`, by the clock of `time.monotonic`; None without any."""
        inside = [share for at, share in self._samples if until - seconds <= at <= until]
        return float(np.mean(inside)) if inside else None


@contextmanager
def watched_gpus(gpus: Sequence[str]) -> Iterator[Busy]:
    """Let `nvidia-smi` look at GPUs ten times a second.

    What the driver says is of the last second or less, so a run should take some seconds. A GPU under MIG has no such
    figure, and there are none without GPUs or without `nvidia-smi`.
    """
    busy = Busy()
    program = shutil.which("nvidia-smi") if gpus else None
    if program is None:
        yield busy
        return
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={_EVERY_MS}"]
    process = subprocess.Popen(  # noqa: S603 - arguments are ours
        [program, *query, f"--id={','.join(gpus)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    listener = threading.Thread(target=_listen, args=(process.stdout, busy), name="gpu", daemon=True)
    try:
        listener.start()
        yield busy
    finally:
        process.kill()  # it has nothing to put away
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)
        listener.join(_PATIENCE_S)


def _listen(lines: IO[str], busy: Busy) -> None:
    for line in lines:
        if (percent := line.strip()).isdecimal():  # not "[N/A]"
            busy.add(int(percent) / 100)
