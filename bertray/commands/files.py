"""`bertray files`: the committed part files of an output, for readers that want exactly what was committed."""

from __future__ import annotations

from bertray.config import FilesConfig
from bertray.console import say
from bertray.errors import ConfigError, did_you_mean
from bertray.io.store import Store, open_store
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerEntry


def run_files(config: FilesConfig) -> int:
    """Print one path or URI a line, in the order of slots, runs and parts."""
    store = open_store(config.output)
    for path in ledger.committed_files(store, committed_entries(store, config.slot)):
        say(path)
    return 0


def committed_entries(store: Store, slot: str | None) -> list[LedgerEntry]:
    """The ledger of an output, or what it says of one slot.

    Raises:
        ConfigError: nothing is committed there.
    """
    entries = ledger.read_ledger(store)
    if not entries:
        raise ConfigError(f"{store.root}: no committed slot.", "Give the `output` of a score run that has finished.")
    if slot is None:
        return entries
    slots = list(dict.fromkeys(entry.slot for entry in ledger.current(entries)))
    entries = [entry for entry in entries if entry.slot == slot]
    if not entries:
        raise ConfigError(f"slot={slot}: not committed.{did_you_mean(slot, slots)}", f"Slots: {', '.join(slots[-10:])}")
    return entries
