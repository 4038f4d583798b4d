"""The ledger: one sequence of put-if-absent entries per output. An entry is the commit; publishing follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, overload

from bertray.errors import ConfigError, ConflictError, InfrastructureError, did_you_mean
from bertray.io import faults
from bertray.io.pool import in_pool
from bertray.io.store import Store
from bertray.outputs import snapshots
from bertray.outputs.control_files import LedgerEntry, LedgerRun

COMMITS = "control/commits"
RunT = TypeVar("RunT", bound=LedgerRun)


@dataclass(frozen=True)
class Ledger(Sequence[LedgerRun]):
    """Every entry of an output, oldest first, as one reading found them.

    A run reads it once and passes it on; `read_on` adds what others have committed since.

    Args:
        runs: entry `seq` stands at `seq - 1`.
        snapshot: entries up to this one were read from a snapshot, without their lists of parts; 0: none.
        finished: entries up to this one are known to be published and reported, or replaced; see `snapshots.Snapshot`.
        damaged: last entries of snapshots that are damaged.
    """

    runs: tuple[LedgerRun, ...] = ()
    snapshot: int = 0
    finished: int = 0
    damaged: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, index: int) -> LedgerRun: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LedgerRun]: ...

    def __getitem__(self, index: int | slice) -> LedgerRun | Sequence[LedgerRun]:
        return self.runs[index]

    def followed_by(self, entries: Iterable[LedgerEntry]) -> Ledger:
        """The ledger with further entries at its end."""
        return replace(self, runs=(*self.runs, *entries))


def read_ledger(store: Store) -> Ledger:
    """Every entry: the newest snapshot, and the entries after it.

    Raises:
        ConflictError: an entry is damaged, or the output has the form of another bertray version.
    """
    snapshot, damaged = snapshots.newest_snapshot(store)
    known = Ledger(damaged=frozenset(damaged))
    if snapshot is not None:
        known = replace(known, runs=tuple(snapshot.entries), snapshot=len(snapshot.entries), finished=snapshot.finished)
    known = read_on(store, known)
    if not known:
        _refuse_parts_without_run(store)
    return known


def read_on(store: Store, known: Ledger) -> Ledger:
    """A ledger as it is now: only entries behind the known ones are read.

    Raises:
        ConflictError: an entry is damaged.
    """
    keys = store.keys(COMMITS, after=entry_key(len(known)))
    return known.followed_by(_read_entries(store, keys)) if keys else known


def _read_entries(store: Store, keys: Sequence[str]) -> list[LedgerEntry]:
    contents = in_pool(store.get, keys, store.num_threads)
    return [LedgerEntry.from_bytes(content, store.uri(key)) for key, content in zip(keys, contents, strict=True)]


def with_parts(store: Store, runs: Sequence[LedgerRun]) -> list[LedgerEntry]:
    """Entries with their lists of parts: those that a snapshot holds without them are read."""
    summarised = [run.seq for run in runs if not isinstance(run, LedgerEntry)]
    read = {entry.seq: entry for entry in _read_entries(store, [entry_key(seq) for seq in summarised])}
    return [run if isinstance(run, LedgerEntry) else read[run.seq] for run in runs]


def write_due_snapshot(store: Store, known: Ledger, finished: int) -> Ledger:
    """Write the snapshot of the last tenth entry where there is none; returns the ledger that knows of it.

    Args:
        finished: entries up to this one were found published and reported, or were made so, by this run.
    """
    due = len(known) // snapshots.EVERY * snapshots.EVERY
    if due <= known.snapshot:
        return known
    damaged = due in known.damaged
    if not snapshots.write_snapshot(store, known[:due], min(finished, due), damaged=damaged):
        return known
    return replace(known, snapshot=due, damaged=known.damaged - {due})


def _refuse_parts_without_run(store: Store) -> None:
    for key in store.keys("data"):
        if key.count("/") == 2 and key.endswith(".parquet"):
            raise ConflictError(
                f"{store.uri(key)}: expected parts below data/<slot>/run=<n>/, found one without a run.",
                "Choose a new `output`, or use the bertray version that wrote this one.",
            )


def current(entries: Sequence[RunT]) -> list[RunT]:
    """The runs of the newest version of each slot, ascending; slots in the order in which they were first committed."""
    newest = {entry.slot: entry.version for entry in entries}  # versions of a slot only grow
    slots: dict[str, list[RunT]] = {slot: [] for slot in newest}
    for entry in entries:
        if entry.version == newest[entry.slot]:
            slots[entry.slot].append(entry)
    return [entry for runs in slots.values() for entry in runs]


def num_runs(entries: Sequence[LedgerRun], slot: str, version: int) -> int:
    """Runs of one version of a slot among some entries."""
    return sum((entry.slot, entry.version) == (slot, version) for entry in entries)


def committed_entries(store: Store, slot: str | None) -> Sequence[LedgerRun]:
    """Entries of an output, or of one slot.

    Raises:
        ConfigError: nothing is committed there.
    """
    entries: Sequence[LedgerRun] = read_ledger(store)
    if not entries:
        raise ConfigError(f"{store.root}: no committed slot.", "Give the `output` of a score run that has finished.")
    if slot is None:
        return entries
    slots = list(dict.fromkeys(entry.slot for entry in current(entries)))
    entries = [entry for entry in entries if entry.slot == slot]
    if not entries:
        raise ConfigError(f"slot={slot}: not committed.{did_you_mean(slot, slots)}", f"Slots: {', '.join(slots[-10:])}")
    return entries


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
