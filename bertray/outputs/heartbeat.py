"""Heartbeats: a file that a live run rewrites. It saves compute; no commit depends on it."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from bertray.errors import BertrayError
from bertray.io.processes import is_alive, machine, started_at
from bertray.io.store import Store

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

    def __exit__(self, *_: object) -> None:
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
    """Name the process that works below a folder right now; None when none does.

    A process of this machine that has ended is not alive, however fresh its file: a killed run can be run again at
    once. Of another machine only the clock tells; so it is of a process number that lives, where the system does not
    tell when its process started: another process may have it by now.
    """
    for key in store.keys(folder):
        if not key.endswith(f"/{NAME}"):
            continue
        try:
            seen = json.loads(store.get(key))
            at = datetime.fromisoformat(seen["at"])
            host, pid, started = seen["host"], int(seen["pid"]), seen["started"]
            then = None if started is None else float(started)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # it ended just now, or nobody will ever own it
        fresh = datetime.now(UTC) - at < FRESH
        if host != machine():
            alive = fresh
        elif pid == os.getpid() or not is_alive(pid, then):
            alive = False
        else:
            alive = fresh or None not in (then, started_at(pid))
        if alive:
            return f"process {pid} on {host}, last seen {at:%Y-%m-%d %H:%M:%S} UTC"
    return None


def _this_process() -> dict[str, object]:
    return {"host": machine(), "pid": os.getpid(), "started": started_at(os.getpid())}
