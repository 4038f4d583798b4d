"""The ledger: one sequence of put-if-absent entries per output. An entry is the commit; publishing follows from it."""

from __future__ import annotations

from collections.abc import Sequence

from bertray.errors import InfrastructureError
from bertray.storage import faults
from bertray.storage.records import CommittedPart, LedgerEntry
from bertray.storage.store import SUCCESS, Store

COMMITS = "control/commits"
PUBLISHED = "control/published"


def read_ledger(store: Store) -> list[LedgerEntry]:
    """Every entry, oldest first."""
    return [LedgerEntry.from_bytes(store.get(key), store.uri(key)) for key in store.keys(COMMITS)]


def current(entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """The newest version of each slot, in the order in which the slots were first committed."""
    return list({entry.slot: entry for entry in entries}.values())


def append(store: Store, entry: LedgerEntry) -> LedgerEntry | None:
    """Commit an entry under its `seq`.

    Returns:
        The entry that stands there if it is of the same plan (ours, or that of a run beside us), else None.

    Raises:
        InfrastructureError: the store failed, and our entry does not stand there.
    """
    key = entry_key(entry.seq)
    failure: Exception | None = None
    try:
        faults.point("commit.before_put")
        created = store.put_new(key, entry.to_bytes())
        faults.point("commit.after_put")
        if created:
            return entry
    except (InfrastructureError, TimeoutError) as error:
        failure = error
    # The reply of a request that did succeed may have been lost: what is stored decides.
    try:
        stored = LedgerEntry.from_bytes(store.get(key), store.uri(key))
    except FileNotFoundError:
        words = failure or "there, and not there a moment later"
        raise InfrastructureError(f"{store.uri(key)}: {words}", "Run the same command again.") from failure
    same = stored.plan_key == entry.plan_key and stored.slot == entry.slot
    return stored if same else None


def entry_key(seq: int) -> str:
    return f"{COMMITS}/{seq:08d}.json"


def is_published(store: Store, entry: LedgerEntry) -> bool:
    return store.exists(_marker(entry))


def publish(store: Store, entry: LedgerEntry) -> None:
    """Make a committed entry what readers of its slot see; may run any number of times, by anyone.

    A newer version may be committed meanwhile, and even published: what was copied too late is then put right.
    """
    *older, newest = [other for other in read_ledger(store) if other.slot == entry.slot]
    if not is_published(store, newest):
        _publish_version(store, newest, older)
    while True:
        published = newest
        *older, newest = [other for other in read_ledger(store) if other.slot == entry.slot]
        if newest == published:
            break
        _publish_version(store, newest, older)
    for old in older:
        if not is_published(store, old):  # it never will be
            store.put(_marker(old), b"")


def _publish_version(store: Store, entry: LedgerEntry, older: Sequence[LedgerEntry]) -> None:
    faults.point("publish.before")
    try:
        # Quarantine first: whoever sees the slot's rows can also see what was kept out.
        obsolete = {part.name for old in older for part in old.quarantine_parts}
        if entry.quarantine_parts:
            store.publish(_staged(entry.quarantine_parts), f"quarantine/{entry.slot}", obsolete)
        elif obsolete:
            store.unpublish(f"quarantine/{entry.slot}", obsolete)
        store.publish(_staged(entry.parts), f"data/{entry.slot}", {part.name for old in older for part in old.parts})
    except InfrastructureError:
        if is_published(store, entry):
            return  # another run was faster, and its staging has been cleared up
        raise
    faults.point("publish.after")
    store.put(_marker(entry), b"")
    faults.point("marker.after_put")


def publish_all(store: Store, entries: Sequence[LedgerEntry]) -> None:
    """Roll forward whatever a killed run committed but did not publish."""
    markers = set(store.keys(PUBLISHED))
    for entry in current(entries):
        # Of two runs that replaced a slot of an object store at once, one may have died after the other's marker.
        half_replaced = entry.version > 1 and not store.exists(f"data/{entry.slot}/{SUCCESS}")
        if half_replaced:
            store.delete(_marker(entry))
        if half_replaced or _marker(entry) not in markers:
            publish(store, entry)


def committed_files(store: Store, entries: Sequence[LedgerEntry]) -> list[str]:
    """Paths or URIs of the part files that are the output right now, published or not."""
    files = []
    for entry in current(entries):
        published = is_published(store, entry)
        files += [store.uri(f"data/{entry.slot}/{part.name}" if published else part.key) for part in entry.parts]
    return files


def _marker(entry: LedgerEntry) -> str:
    return f"{PUBLISHED}/{entry.seq:08d}"


def _staged(parts: Sequence[CommittedPart]) -> list[tuple[str, str]]:
    return [(part.key, part.name) for part in parts]
