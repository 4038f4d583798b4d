"""`bertray files`: the committed part files of an output, for readers that want exactly what was committed."""

from __future__ import annotations

from bertray.config import FilesConfig
from bertray.console import say
from bertray.io.store import open_store
from bertray.outputs.ledger import committed_entries
from bertray.outputs.publish import committed_files


def run_files(config: FilesConfig) -> int:
    """Print one path or URI a line, in the order of slots, runs and parts."""
    store = open_store(config.output)
    for path in committed_files(store, committed_entries(store, config.slot)):
        say(path)
    return 0
