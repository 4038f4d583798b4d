"""`bertray compare`: model B beside model A, or two outputs joined by id."""

from __future__ import annotations

from bertray.config import CompareConfig
from bertray.console import say
from bertray.runs.release.model_comparison import compare, in_words


def run_compare(config: CompareConfig) -> int:
    """Compare, and print what the evidence says and what these rows could have found."""
    result = compare(config)
    if result.already_done:
        say(f"already compared: {result.report}")
        return 0
    for line in in_words(result):
        say(line)
    if result.queue is not None:
        say(f"queue    {result.queue}")
    say(f"report   {result.report}")
    return 0
