"""`bertray promote NAME`: a candidate becomes the model that a name stands for, if it passes the release gate."""

from __future__ import annotations

from bertray.config import PromoteConfig
from bertray.console import say
from bertray.runs.release.promotion import promote


def run_promote(config: PromoteConfig) -> int:
    """Judge and promote; a refusal is an error with exit code 8."""
    result = promote(config)
    if result.already_done:
        say(f"{result.name} stands for {result.version} already ({result.output})")
        return 0
    for sentence in result.sentences:
        say(sentence)
    how = f"forced: {config.reason}" if result.forced else f"before: {result.previous or 'none'}"
    say(f"{result.name} now stands for {result.version} ({how})")
    say(f"model    {result.output}")
    say(f"report   {result.report}")
    return 0
