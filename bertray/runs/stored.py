"""Files of an output: those that are committed, and those that it no longer needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bertray.config import FilesConfig, GcConfig
from bertray.errors import ConfigError
from bertray.io.store import open_store
from bertray.outputs import ledger, publish
from bertray.outputs.garbage import find_garbage, remove
from bertray.runs.results import GarbageResult


def committed_files(config: FilesConfig) -> list[str]:
    """Paths or URIs of the committed part files, in the order of slots, runs and parts.

    Raises:
        ConfigError: nothing is committed there.
    """
    store = open_store(config.output)
    return list(publish.committed_files(store, ledger.committed_entries(store, config.slot)))


def collect_garbage(config: GcConfig) -> GarbageResult:
    """Find files that no slot needs, and remove them where the config asks for it; slots and reports always stay.

    Raises:
        ConfigError: the folder is no output.
    """
    store = open_store(config.output)
    entries = ledger.read_ledger(store)
    if not entries and not store.keys("control"):
        raise ConfigError(f"{store.root}: not an output of bertray.", "Give the `output` of a score run.")
    garbage = find_garbage(store, entries, datetime.now(UTC), timedelta(days=config.grace_days))
    files: dict[str, tuple[int, int]] = {}
    for item in garbage:
        count, size = files.get(item.why, (0, 0))
        files[item.why] = count + 1, size + item.file.size_bytes
    if config.delete:
        remove(store, garbage)
    return GarbageResult(store.root, files=dict(sorted(files.items())), removed=config.delete)
