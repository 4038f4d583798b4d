"""The ledger: one sequence of put-if-absent entries per output. An entry is the commit; publishing follows from it."""

from __future__ import annotations

from collections.abc import Sequence

from bertray.storage.records import CommittedPart, LedgerEntry
from bertray.storage.store import Store

COMMITS = "control/commits"
PUBLISHED = "control/published"


def read_ledger(store: Store) -> list[LedgerEntry]:
    """Every entry, oldest first."""
    return [LedgerEntry.from_bytes(store.get(key), store.uri(key)) for key in store.keys(COMMITS)]


def append(store: Store, entry: LedgerEntry) -> LedgerEntry | None:
    """Commit an entry under its `seq`.

    Returns:
        The entry that stands there if it is of the same plan (ours, or that of a run beside us), else None.
    """
    key = entry_key(entry.seq)
    if store.put_new(key, entry.to_bytes()):
        return entry
    # The reply of a request that did succeed may have been lost: what is stored decides.
    stored = LedgerEntry.from_bytes(store.get(key), store.uri(key))
    same = stored.plan_key == entry.plan_key and stored.slot == entry.slot
    return stored if same else None


def entry_key(seq: int) -> str:
    return f"{COMMITS}/{seq:08d}.json"


def publish(store: Store, entry: LedgerEntry) -> None:
    """Make a committed entry visible; may run any number of times, by anyone."""
    marker = f"{PUBLISHED}/{entry.seq:08d}"
    if store.exists(marker):
        return
    if entry.quarantine_parts:
        store.publish(_staged(entry.quarantine_parts), f"quarantine/{entry.slot}")
    store.publish(_staged(entry.parts), f"data/{entry.slot}")
    store.put(marker, b"")


def publish_all(store: Store, entries: Sequence[LedgerEntry]) -> None:
    """Roll forward whatever a killed run committed but did not publish."""
    for entry in entries:
        publish(store, entry)


def _staged(parts: Sequence[CommittedPart]) -> list[tuple[str, str]]:
    return [(part.key, part.name) for part in parts]
