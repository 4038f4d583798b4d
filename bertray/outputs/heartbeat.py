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
from bertray.io.store import Store

log = logging.getLogger(__name__)

NAME = "heartbeat.json"
EVERY_S = 60.0
FRESH = timedelta(seconds=3 * EVERY_S)
PROC = Path("/proc")


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
    once. Of another machine only the clock tells; so it is of a process number that lives, where the kernel does not
    tell when its process started (no `/proc`): another process may have it by now.
    """
    for key in store.keys(folder):
        if not key.endswith(f"/{NAME}"):
            continue
        try:
            seen = json.loads(store.get(key))
            at = datetime.fromisoformat(seen["at"])
            host, pid, then = seen["host"], int(seen["pid"]), seen["started"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # it ended just now, or nobody will ever own it
        here, fresh = _this_process(), datetime.now(UTC) - at < FRESH
        if host != here["host"]:
            alive = fresh
        elif pid == here["pid"] or not is_alive(pid):
            alive = False
        else:
            now = _start_of(pid)
            alive = fresh if None in (then, now) else then == now
        if alive:
            return f"process {pid} on {host}, last seen {at:%Y-%m-%d %H:%M:%S} UTC"
    return None


def _this_process() -> dict[str, object]:
    # Containers may share the name of their machine; their process numbers mean others.
    parts = [socket.gethostname(), _kernel("sys/kernel/random/boot_id").strip()[:8], process_namespace()]
    return {"host": "/".join(filter(None, parts)), "pid": os.getpid(), "started": _start_of(os.getpid())}


def process_namespace() -> str:
    """The number of the space that this process's number belongs to; empty where the kernel does not tell."""
    try:
        return str((PROC / "self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks: a number may be used again. None: unknown."""
    fields = _kernel(f"{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields else None


def _kernel(name: str) -> str:
    """A file of `/proc`; empty where there is none: not Linux, or a container that hides it."""
    try:
        return (PROC / name).read_text()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True
