"""`bertray registry`: names of a registry, their versions, who let them in, and when."""

from __future__ import annotations

from bertray.config import RegistryConfig
from bertray.console import say
from bertray.runs.release.registered import list_names
from bertray.trust.registry import HistoryEntry
from bertray.wording import counted, points


def run_registry(config: RegistryConfig) -> int:
    """Print each name with its current version, then a line an entry, the oldest first."""
    names = list_names(config)
    if not names:
        say(f"no model was promoted yet ({config.registry})")
    for found in names:
        say(f"{found.name} → {found.version or 'no version yet'}")
        for entry in found.history:
            say(f"  {_in_words(entry)}")
    return 0


def _in_words(entry: HistoryEntry) -> str:
    what = {"promote": "promoted", "refuse": "refused", "rollback": "rolled back to"}[entry.kind]
    how = ", forced" if entry.forced else ""
    judged = f", {points(entry.gate['gain'])} points on {counted(entry.rows, 'row')}" if entry.gate else ""
    reason = " ".join(entry.reason.split())  # of another person: one line
    why = f": {reason}" if reason else ""
    return f"{entry.seq:>4} {entry.at} {what} {entry.version} by {entry.by}{how}{judged}{why}"
