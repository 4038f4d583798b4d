"""Machines of the cluster at hand, and log lines while those that the workers need are not there yet."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bertray.execution.resources import Machine, Resources, missing

log = logging.getLogger(__name__)

TELL_EVERY_S = 30.0


def machines_of_cluster(*, free: bool = False) -> list[Machine]:
    """Machines of the cluster, with all that they have or with what nobody uses right now."""
    import ray
    from ray._private.state import available_resources_per_node

    if free:
        found = available_resources_per_node().values()
    else:
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in found]


def machine_watch(resources: Resources) -> MachineWatch:
    """Tells, while it is open and whenever it is so, what the cluster lacks for all workers."""
    return MachineWatch(lambda: missing(resources, machines_of_cluster()))


class MachineWatch:
    """A thread that logs a line every `TELL_EVERY_S` while a cluster lacks machines for all workers.

    They may lack at the beginning, and again when one is lost.

    Args:
        missing: what they lack, in words; empty where they lack nothing.
    """

    def __init__(self, missing: Callable[[], str]) -> None:
        self._missing = missing
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="machines", daemon=True)

    def __enter__(self) -> MachineWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)  # it may be asking a cluster that does not answer

    def _watch(self) -> None:
        since: float | None = None
        while not self._ended.is_set():
            words, now = self._asked(), time.monotonic()
            if words and since is not None:
                log.warning("waiting for machines for %.0f s: %s", now - since, words)
            since = (since or now) if words else None
            self._ended.wait(TELL_EVERY_S)

    def _asked(self) -> str:
        from ray.exceptions import RayError

        try:
            return self._missing()
        except (RayError, RuntimeError, OSError) as error:
            return f"the cluster does not answer ({' '.join(str(error).split())[:200]})"
