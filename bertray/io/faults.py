"""Named points at which a test can make a run die, fail or wait. Unarmed, as in production, they cost one comparison.

`arm("commit.before_put:1:kill,part.after_put:3:raise")`: at the n-th passage of a point in a process. Nothing but a
test's own process calls it. Actions: `kill` (SIGKILL), `raise` (an error of ours that a retry would mend), `enospc`
(the disk is full), `lost_reply` (a request that reached the store times out), `sleep` (4 s).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

from bertray.errors import ConfigError, InfrastructureError

ACTIONS = ("kill", "raise", "enospc", "lost_reply", "sleep")
POINTS = (
    "plan.before_put",
    "plan.after_put",
    "put.half_written",
    "part.after_put",
    "receipt.after_put",
    "verify.before",
    "commit.before_put",
    "commit.after_put",
    "publish.before",
    "publish.half",
    "publish.between_renames",
    "publish.after",
    "index.after_put",
    "reported.before_put",
    "marker.after_put",
    "snapshot.before_put",
    "snapshot.after_put",
    "gc.half",
    "registry.version_half",
    "registry.before_put",
    "registry.after_put",
)
SLEEP_S = 4.0

_armed: dict[tuple[str, int], str] = {}
_passed: Counter[str] = Counter()


def arm(faults: str) -> None:
    """Set the faults of this process; an empty text disarms all.

    Raises:
        ConfigError: not of the form `point:n:action[,...]`.
    """
    _armed.clear()
    _passed.clear()
    for item in filter(None, faults.split(",")):
        name, _, rest = item.partition(":")
        number, _, action = rest.partition(":")
        if name not in POINTS or not number.isdigit() or action not in ACTIONS:
            raise ConfigError(
                f"faults: expected point:n:action, found {item!r}.",
                f"Points: {', '.join(POINTS)}. Actions: {', '.join(ACTIONS)}.",
            )
        _armed[name, int(number)] = action


def point(name: str) -> None:
    """Pass a named point; does nothing unless a fault is armed for this passage."""
    if _armed:
        _pass(name)


def _pass(name: str) -> None:
    assert name in POINTS, name
    _passed[name] += 1
    action = _armed.get((name, _passed[name]))
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "raise":
        raise InfrastructureError(f"{name}: failed on request of a test.", "Run the same command again.")
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    elif action == "lost_reply":
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), name)
    elif action == "sleep":
        time.sleep(SLEEP_S)
