"""`bertray evaluate`: metrics and report of a model on labelled reviews."""

from __future__ import annotations

from bertray.config import EvaluateConfig
from bertray.console import say
from bertray.runs.model_evaluation import evaluate


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluate, and print the main metrics with their verdicts."""
    result = evaluate(config)
    if result.already_done:
        say(f"already evaluated: {result.report}")
        return 0
    for line in result.summary:
        say(line)
    say(f"report   {result.report}")
    return 0
