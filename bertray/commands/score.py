"""`bertray score`: new review files → labels, committed, with a report; and against given labels its figures."""

from __future__ import annotations

from bertray.config import ScoreConfig
from bertray.runs import night as nights
from bertray.scoring.models import open_model


def run_score(config: ScoreConfig) -> int:
    """Score what is new; the same command again is always safe."""
    return nights.run_night(config, open_model(config), lambda: nights.open_cluster(config.workers))
