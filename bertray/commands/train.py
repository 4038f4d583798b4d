"""`bertray train`: a model bundle and its report from labelled reviews."""

from __future__ import annotations

from bertray.config import TrainConfig
from bertray.console import say
from bertray.runs.fit.training import train


def run_train(config: TrainConfig) -> int:
    """Train, and print the main metrics with their verdicts."""
    result = train(config)
    if result.already_done:
        say(f"already trained: {result.report}")
        return 0
    for line in result.summary:
        say(line)
    say(f"model    {result.model}")
    say(f"report   {result.report}")
    return 0
