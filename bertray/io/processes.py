"""Processes of this machine: whether one lives, and names of the machine whose numbers they have."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil


def is_alive(pid: int, started: float | None = None) -> bool:
    """Whether a process has a number, and is not known to be another than the one meant.

    Args:
        pid: of this machine; a number may be used again.
        started: what `started_at` gave for the process that is meant; None: any.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    now = started_at(pid)
    return None in (started, now) or abs(started - now) < 1.0  # type: ignore[operator]


def started_at(pid: int) -> float | None:
    """Seconds from the machine's start to that of a process; None where the system does not tell.

    Clocks that are set meanwhile do not change it.
    """
    try:
        boot = psutil.boot_time()
        return psutil.Process(pid).create_time() - boot
    except (psutil.Error, OSError, RuntimeError, ValueError):
        return None


def machine() -> str:
    """Name of this machine, this boot of it and this container: process numbers of another mean other processes."""
    return "/".join(filter(None, (socket.gethostname(), _boot_id(), process_namespace())))


def process_namespace() -> str:
    """The number of the space that this process's number belongs to; empty where the kernel does not tell."""
    try:
        return str(Path(psutil.PROCFS_PATH, "self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _boot_id() -> str:
    try:
        return Path(psutil.PROCFS_PATH, "sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""
