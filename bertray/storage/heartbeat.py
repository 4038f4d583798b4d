"""Who is working on a plan right now: a file that a live run rewrites. It saves compute; no commit depends on it."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from bertray.errors import BertrayError
from bertray.storage.store import Store

log = logging.getLogger(__name__)

NAME = "heartbeat.json"
EVERY_S = 60.0
FRESH = timedelta(seconds=3 * EVERY_S)


class Heartbeat:
    """Says every minute, from a thread of its own, that an attempt is alive; takes the file away at the end."""

    def __init__(self, store: Store, folder: str, run_id: str) -> None:
        self.key = f"{folder}/{NAME}"
        self._store, self._run_id = store, run_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._tolerant(lambda: self._store.delete(self.key))

    def _keep_beating(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._tolerant(self._beat)

    def _tolerant(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BertrayError as error:
            log.warning("heartbeat: %s", error)

    def _beat(self) -> None:
        at = datetime.now(UTC).isoformat()
        mine = {"schema_version": 1, "at": at, "run_id": self._run_id, **_this_process()}
        self._store.put(self.key, json.dumps(mine).encode())


def live_attempt(store: Store, folder: str) -> str | None:
    """In words, who works below a folder right now; None when nobody does.

    A process of this machine that has ended is not alive, however fresh its file: a killed run can be run again at
    once. Of another machine only the clock tells.
    """
    for key in store.keys(folder):
        if not key.endswith(f"/{NAME}"):
            continue
        try:
            seen = json.loads(store.get(key))
            at = datetime.fromisoformat(seen["at"])
            host, process = seen["host"], (seen["pid"], seen["started"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # it ended just now, or nobody will ever own it
        here = _this_process()
        if host == here["host"]:
            alive = process == (seen["pid"], _start_of(seen["pid"])) and seen["pid"] != here["pid"]
        else:
            alive = datetime.now(UTC) - at < FRESH
        if alive:
            return f"process {seen['pid']} on {host}, last seen {at:%Y-%m-%d %H:%M:%S} UTC"
    return None


def _this_process() -> dict[str, object]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    # Containers may share the name of their machine; their process numbers mean others.
    processes = Path("/proc/self/ns/pid")
    host = "/".join(
        [
            socket.gethostname(),
            *([boot.read_text().strip()[:8]] if boot.exists() else []),
            *([str(processes.stat().st_ino)] if processes.exists() else []),
        ]
    )
    return {"host": host, "pid": os.getpid(), "started": _start_of(os.getpid())}


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks: a number may be used again. None: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
