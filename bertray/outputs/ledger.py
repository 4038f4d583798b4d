"""The ledger: one sequence of put-if-absent entries per output. An entry is the commit; publishing follows from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bertray.errors import ConfigError, ConflictError, InfrastructureError, did_you_mean
from bertray.io import faults
from bertray.io.store_protocol import SUCCESS, Store
from bertray.outputs.control_files import CommittedPart, LedgerEntry

COMMITS = "control/commits"
PUBLISHED = "control/published"
# Folders that readers see, in the order in which they are published, and the parts of an entry in each.
_ROOTS: dict[str, Callable[[LedgerEntry], Sequence[CommittedPart]]] = {
    "quarantine": lambda entry: entry.quarantine_parts,
    "data": lambda entry: entry.parts,
}


def read_ledger(store: Store) -> list[LedgerEntry]:
    """Every entry, oldest first.

    Raises:
        ConflictError: an entry is damaged, or the output has the form of another bertray version.
    """
    entries = [LedgerEntry.from_bytes(store.get(key), store.uri(key)) for key in store.keys(COMMITS)]
    if not entries:
        _refuse_parts_without_run(store)
    return entries


def _refuse_parts_without_run(store: Store) -> None:
    for key in store.keys("data"):
        if key.count("/") == 2 and key.endswith(".parquet"):
            raise ConflictError(
                f"{store.uri(key)}: expected parts below data/<slot>/run=<n>/, found one without a run.",
                "Choose a new `output`, or use the bertray version that wrote this one.",
            )


def current(entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """The runs of the newest version of each slot, ascending; slots in the order in which they were first committed."""
    newest = {entry.slot: entry.version for entry in entries}  # versions of a slot only grow
    slots: dict[str, list[LedgerEntry]] = {slot: [] for slot in newest}
    for entry in entries:
        if entry.version == newest[entry.slot]:
            slots[entry.slot].append(entry)
    return [entry for runs in slots.values() for entry in runs]


def num_runs(entries: Sequence[LedgerEntry], slot: str, version: int) -> int:
    """Runs of one version of a slot among some entries."""
    return sum((entry.slot, entry.version) == (slot, version) for entry in entries)


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


def publish(store: Store, slot: str, *, again: bool = False) -> None:
    """Make the current runs of a slot what its readers see; may run any number of times, by anyone.

    Others may commit meanwhile, and even publish: then all of it is compared again.

    Args:
        store: the output.
        slot: with at least one entry.
        again: also the runs that are marked as published.

    Raises:
        ConflictError: somebody else put parts there.
    """
    entries = _of_slot(store, slot)
    # A run that is published beside us from now on is not settled: it may have been in a folder that we replaced.
    settled = set() if again else {entry.seq for entry in current(entries) if is_published(store, entry)}
    while True:
        seen, whole = entries, _publish_runs(store, entries, settled)
        entries = _of_slot(store, slot)
        if entries == seen:
            break
    if not whole:
        raise ConflictError(
            f"{store.uri(f'data/{slot}')}: expected parts that the ledger names, found others; the slot is committed, "
            "and readers do not see all of it.",
            "Move what you put there somewhere else, then run the same command again.",
        )
    for entry in entries:
        if not is_published(store, entry):  # one of an older version never will be
            store.put(_marker(entry), b"")
    faults.point("marker.after_put")


def _of_slot(store: Store, slot: str) -> list[LedgerEntry]:
    return [entry for entry in read_ledger(store) if entry.slot == slot]


def _publish_runs(store: Store, entries: Sequence[LedgerEntry], settled: Collection[int]) -> bool:
    """Publish what some entries of a slot say; False when a later one has been published already."""
    faults.point("publish.before")
    runs = current(entries)
    older = [entry for entry in entries if entry.version < runs[0].version]
    keep = {entry.run_folder for entry in runs if entry.seq in settled}
    try:
        # Quarantine first: whoever sees the slot's rows can also see what was kept out.
        whole = True
        for root, parts in _ROOTS.items():
            shown = {run.run_folder: _staged(parts(run)) for run in runs if root == "data" or parts(run)}
            obsolete = _names(older, parts) - {f"{run}/{SUCCESS}" for run in shown}
            whole &= store.publish(f"{root}/{runs[0].slot}", shown, settled=keep, obsolete=obsolete)
    except InfrastructureError:
        if all(is_published(store, run) for run in runs):
            return True  # another run was faster, and its staging has been cleared up; or parts were removed by hand
        raise
    faults.point("publish.after")
    return whole


def _names(entries: Sequence[LedgerEntry], parts: Callable[[LedgerEntry], Sequence[CommittedPart]]) -> set[str]:
    """Everything that some entries have published, relative to their slot."""
    return {f"{entry.run_folder}/{name}" for entry in entries for name in (SUCCESS, *(p.name for p in parts(entry)))}


def publish_all(store: Store, entries: Sequence[LedgerEntry]) -> None:
    """Roll forward whatever a killed run committed but did not publish."""
    markers = set(store.keys(PUBLISHED))
    slots: dict[str, list[LedgerEntry]] = {}
    for entry in current(entries):
        slots.setdefault(entry.slot, []).append(entry)
    for slot, runs in slots.items():
        if not all(_marker(run) in markers for run in runs):
            publish(store, slot)
        elif runs[0].version > 1 and not _stands_alone(store, slot, runs):
            # Of two runs that worked on the slot at once, one may have died after the other's marker.
            publish(store, slot, again=True)


def _stands_alone(store: Store, slot: str, runs: Sequence[LedgerEntry]) -> bool:
    """Is every part of some runs in place, and nothing of the versions before them?"""
    found = {key.removeprefix(f"data/{slot}/") for key in store.keys(f"data/{slot}")}
    return found == _names(runs, _ROOTS["data"])


def committed_entries(store: Store, slot: str | None) -> list[LedgerEntry]:
    """The ledger of an output, or what it says of one slot.

    Raises:
        ConfigError: nothing is committed there.
    """
    entries = read_ledger(store)
    if not entries:
        raise ConfigError(f"{store.root}: no committed slot.", "Give the `output` of a score run that has finished.")
    if slot is None:
        return entries
    slots = list(dict.fromkeys(entry.slot for entry in current(entries)))
    entries = [entry for entry in entries if entry.slot == slot]
    if not entries:
        raise ConfigError(f"slot={slot}: not committed.{did_you_mean(slot, slots)}", f"Slots: {', '.join(slots[-10:])}")
    return entries


def committed_files(store: Store, entries: Sequence[LedgerEntry]) -> list[str]:
    """Paths or URIs of the part files that are the output right now, published or not."""
    files = []
    for entry in current(entries):
        published = is_published(store, entry)
        files += [store.uri(f"data/{entry.folder}/{part.name}" if published else part.key) for part in entry.parts]
    return files


def _marker(entry: LedgerEntry) -> str:
    return f"{PUBLISHED}/{entry.seq:08d}"


def _staged(parts: Sequence[CommittedPart]) -> list[tuple[str, str]]:
    return [(part.key, part.name) for part in parts]
