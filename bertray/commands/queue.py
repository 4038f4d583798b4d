"""`bertray queue`: the reviews worth a person's minutes."""

from __future__ import annotations

from bertray.config import QueueConfig
from bertray.console import say
from bertray.runs.review_queue import queue_reviews


def run_queue(config: QueueConfig) -> int:
    """Draw, and say where the spreadsheet is."""
    result = queue_reviews(config)
    say(result.headline)
    for note in result.notes:
        say(note)
    say(f"queue    {result.queue}")
    return 0
