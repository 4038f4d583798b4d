"""Files of an output: those that are committed, and those that it no longer needs."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from bertray.config import FilesConfig, GcConfig
from bertray.errors import ConfigError
from bertray.io.store import Store, open_store
from bertray.outputs import ledger
from bertray.outputs.garbage import find_garbage, remove
from bertray.outputs.publish import committed_files
from bertray.runs.notices import send
from bertray.runs.results import GarbageResult

log = logging.getLogger(__name__)


def list_files(config: FilesConfig) -> list[str]:
    """Paths or URIs of the committed part files, in the order of slots, runs and parts.

    Raises:
        ConfigError: nothing is committed there.
    """
    store = open_store(config.output)
    runs = ledger.committed_entries(store, config.slot)
    late = _late(config, store)
    if late:
        log.warning(late)
        if config.notify is not None:
            send(config.notify, {"text": f"{store.root}: {late}", "severity": "bad"})
    return list(committed_files(store, runs))


def _late(config: FilesConfig, store: Store) -> str:
    """A sentence where the newest night of all slots is older than the config expects; else empty."""
    if config.expect_every is None:
        return ""
    newest = max(datetime.fromisoformat(run.committed_at) for run in ledger.read_ledger(store))
    hours = (datetime.now(UTC) - newest).total_seconds() / 3600
    if hours <= config.expect_every:
        return ""
    return f"the newest night was committed {hours:,.0f} hours ago, expect_every={config.expect_every:g}."


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
