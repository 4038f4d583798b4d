"""`bertray gc`: shows what an output no longer needs, and removes it with `delete=true`."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

from bertray.config import GcConfig
from bertray.console import say, table
from bertray.errors import ConfigError
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.outputs.garbage import find_garbage, remove
from bertray.wording import counted


def run_gc(config: GcConfig) -> int:
    """Show, then remove when asked to; slots, reports and the ledger are never touched."""
    store = open_store(config.output)
    entries = ledger.read_ledger(store)
    if not entries and not store.keys("control"):
        raise ConfigError(f"{store.root}: not an output of bertray.", "Give the `output` of a score run.")
    garbage = find_garbage(store, entries, datetime.now(UTC), timedelta(days=config.grace_days))
    if not garbage:
        say(f"nothing to remove ({store.root})")
        return 0
    sizes: dict[str, list[int]] = defaultdict(list)
    for item in garbage:
        sizes[item.why].append(item.file.size_bytes)
    rows = [[why, f"{len(found):,}", f"{sum(found) / 1e6:,.1f}"] for why, found in sorted(sizes.items())]
    table("no longer needed", ["", "files", "MB"], rows)
    if config.delete:
        remove(store, garbage)
        say(f"{counted(len(garbage), 'file')} removed")
    else:
        say("nothing was removed; `delete=true` removes them")
    return 0
