"""`bertray rollback NAME`: a name stands for an earlier version again."""

from __future__ import annotations

from bertray.config import RollbackConfig
from bertray.console import say
from bertray.runs.release.registered import roll_back


def run_rollback(config: RollbackConfig) -> int:
    """Move the pointer back, and print where it stands."""
    found = roll_back(config)
    say(f"{found.name} now stands for {found.version}")
    say(f"model    {found.model}")
    return 0
