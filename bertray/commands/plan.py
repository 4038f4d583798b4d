"""`bertray plan`: what `train` or `score` would do, file by file, with a forecast; nothing is written."""

from __future__ import annotations

from bertray.config import ScoreConfig, TrainConfig
from bertray.console import say, table
from bertray.runs.forecast import plan


def run_plan(config: ScoreConfig | TrainConfig) -> int:
    """Print the plan of a train or score config."""
    for part in plan(config).parts:
        if isinstance(part, str):
            say(part)
        else:
            table(part.title, list(part.columns), [list(row) for row in part.rows])
    return 0
