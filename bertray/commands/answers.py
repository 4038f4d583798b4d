"""`bertray answers`: filled-in queues back, versioned."""

from __future__ import annotations

from bertray.config import AnswersConfig
from bertray.console import say
from bertray.runs.taken_answers import take_answers


def run_answers(config: AnswersConfig) -> int:
    """Take them, and say what they agree on."""
    result = take_answers(config)
    say(result.headline)
    for note in result.notes:
        say(note)
    say(f"answers  {result.answers}")
    return 0
