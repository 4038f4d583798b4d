"""Counters on Ray's own metrics endpoint, for Prometheus; nothing happens without Ray."""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal

ROWS, TOKENS, QUARANTINED = "bertray_rows", "bertray_tokens", "bertray_quarantined_rows"
SECONDS, ALARMS = "bertray_stage_seconds", "bertray_drift_alarms"
_TOLD = {
    ROWS: "Reviews that were scored or embedded",
    TOKENS: "Tokens of these reviews, before truncation",
    QUARANTINED: "Rows that were kept out",
    SECONDS: "Seconds of work by stage: read, or model",
    ALARMS: "Nights that drifted",
}
Stage = Literal["read", "model", ""]


@functools.lru_cache
def _counter(name: str) -> Any:
    from ray.util.metrics import Counter

    return Counter(name, description=_TOLD[name], tag_keys=("stage",))


def add(name: str, value: float, stage: Stage = "") -> None:
    """Add to a counter of this process, where it belongs to a Ray session.

    Args:
        name: one of this module's.
        value: 0 adds nothing.
        stage: of SECONDS.
    """
    ray = sys.modules.get("ray")
    if value > 0 and ray is not None and ray.is_initialized():
        _counter(name).inc(value, {"stage": stage})
