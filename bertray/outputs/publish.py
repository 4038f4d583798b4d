"""From the ledger to what readers see: publishing committed runs, any number of times, by anyone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bertray.errors import ConflictError, InfrastructureError
from bertray.io import faults
from bertray.io.pool import each_in_pool
from bertray.io.store import Store
from bertray.io.store_protocol import SUCCESS
from bertray.outputs.control_files import CommittedPart, LedgerEntry, LedgerRun, part_name
from bertray.outputs.ledger import Ledger, current, read_on, with_parts

PUBLISHED = "control/published"
# Folders that readers see, in the order in which they are published: whoever sees rows can also see what was kept out.
_ROOTS = ("quarantine", "data")


@dataclass
class Markers:
    """Committed runs that are known to be published, and those whose report is known to be written.

    Args:
        finished: every run up to this entry is both, or a later version has replaced it.
        published: entries behind it.
        reported: entries behind it.
        drifted: entries behind it of which a call owes the exit code of drift.
        failed: those of which one has ended with it.
    """

    finished: int = 0
    published: set[int] = field(default_factory=set)
    reported: set[int] = field(default_factory=set)
    drifted: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def is_published(self, run: LedgerRun) -> bool:
        return run.seq <= self.finished or run.seq in self.published

    def is_reported(self, run: LedgerRun) -> bool:
        return run.seq <= self.finished or run.seq in self.reported


def read_markers(store: Store, known: Ledger) -> Markers:
    """Markers of all runs in one request: what the snapshot of the ledger says, and those behind it."""
    markers = Markers(known.finished)
    kinds = {"": markers.published, _REPORTED: markers.reported, _DRIFTED: markers.drifted, _FAILED: markers.failed}
    for key in store.keys(PUBLISHED, after=f"{published_key(known.finished)}{_REPORTED}" if known.finished else ""):
        seq, dot, kind = key.rpartition("/")[2].partition(".")
        if seq.isdigit() and dot + kind in kinds:
            kinds[dot + kind].add(int(seq))
    return markers


_REPORTED, _DRIFTED, _FAILED = ".reported", ".drifted", ".failed"


def published_key(seq: int) -> str:
    """Key of the zero-byte marker that a run is published."""
    return f"{PUBLISHED}/{seq:08d}"


def mark_reported(store: Store, runs: Sequence[LedgerRun], markers: Markers) -> None:
    """Note that the reports of some runs are written, and people told of them."""
    _mark(store, runs, _REPORTED)
    markers.reported |= {run.seq for run in runs}


def mark_drifted(store: Store, runs: Sequence[LedgerRun]) -> None:
    """Note, before they are marked as reported, that the exit code of drift is owed for some runs."""
    _mark(store, runs, _DRIFTED)


def mark_failed(store: Store, runs: Sequence[LedgerRun]) -> None:
    """Note that the command ends with that exit code now."""
    _mark(store, runs, _FAILED)


def _mark(store: Store, runs: Sequence[LedgerRun], kind: str) -> None:
    each_in_pool(lambda run: store.put(published_key(run.seq) + kind, b""), runs, store.num_threads)


def publish(store: Store, known: Ledger, slot: str, markers: Markers, *, again: bool = False) -> Ledger:
    """Make the current runs of a slot what its readers see; may run any number of times, by anyone.

    Others may commit meanwhile, and even publish: then all of it is compared again.

    Args:
        slot: with at least one entry.
        markers: of runs that were published before this one began; the slot's are added.
        again: also the runs that are marked as published.

    Returns:
        The ledger with what was committed meanwhile.

    Raises:
        ConflictError: somebody else put parts there.
    """
    # A run that is published beside us from now on is not settled: it may have been in a folder that we replaced.
    settled = set() if again else {run.seq for run in current(_of_slot(known, slot)) if markers.is_published(run)}
    while True:
        runs = _of_slot(known, slot)
        whole = _publish_runs(store, runs, settled)
        known = read_on(store, known)
        if len(_of_slot(known, slot)) == len(runs):
            break
    if not whole:
        raise ConflictError(
            f"{store.uri(f'data/{slot}')}: expected parts that the ledger names, found others; the slot is committed, "
            "and readers do not see all of it.",
            "Move what you put there somewhere else, then run the same command again.",
        )
    for run in runs:
        if not markers.is_published(run):  # one of an older version never will be
            store.put(published_key(run.seq), b"")
            markers.published.add(run.seq)
    faults.point("marker.after_put")
    return known


def _of_slot(known: Ledger, slot: str) -> list[LedgerRun]:
    return [run for run in known if run.slot == slot]


def _publish_runs(store: Store, of_slot: Sequence[LedgerRun], settled: Collection[int]) -> bool:
    """Publish what the entries of a slot say; False when a later one has been published already."""
    faults.point("publish.before")
    runs = with_parts(store, current(of_slot))
    older = [run for run in of_slot if run.version < runs[0].version]
    keep = {run.run_folder for run in runs if run.seq in settled}
    try:
        whole = True
        for root in _ROOTS:
            shown = {run.run_folder: _staged(run, root) for run in runs if root == "data" or run.quarantine_parts}
            obsolete = _names(older, root) - {f"{run}/{SUCCESS}" for run in shown}
            if shown or obsolete:
                whole &= store.publish(f"{root}/{runs[0].slot}", shown, settled=keep, obsolete=obsolete)
    except InfrastructureError:
        if all(store.exists(published_key(run.seq)) for run in runs):
            return True  # another run was faster, and its staging has been cleared up; or parts were removed by hand
        raise
    faults.point("publish.after")
    return whole


def part_names(run: LedgerRun, root: str) -> list[str]:
    """File names of a run's parts below its folder of `data/` or `quarantine/`."""
    if isinstance(run, LedgerEntry):
        return [part.name for part in _parts(run, root)]
    count = run.num_parts if root == "data" else run.num_quarantine_parts
    return [part_name(number, run.run_id) for number in range(count)]


def _parts(entry: LedgerEntry, root: str) -> Sequence[CommittedPart]:
    return entry.parts if root == "data" else entry.quarantine_parts


def _staged(entry: LedgerEntry, root: str) -> list[tuple[str, str]]:
    return [(part.key, part.name) for part in _parts(entry, root)]


def _names(runs: Sequence[LedgerRun], root: str) -> set[str]:
    """Everything that some runs have published, relative to their slot."""
    return {f"{run.run_folder}/{name}" for run in runs for name in (SUCCESS, *part_names(run, root))}


def publish_all(store: Store, known: Ledger, markers: Markers) -> Ledger:
    """Roll forward whatever a killed run committed but did not publish; returns the ledger as it is then."""
    slots: dict[str, list[LedgerRun]] = {}
    for run in current(known):
        slots.setdefault(run.slot, []).append(run)
    for slot, runs in slots.items():
        if not all(markers.is_published(run) for run in runs):
            known = publish(store, known, slot, markers)
        elif runs[0].version > 1 and runs[-1].seq > markers.finished and not _stands_alone(store, slot, runs):
            # Of two runs that worked on the slot at once, one may have died after the other's marker.
            known = publish(store, known, slot, markers, again=True)
    return known


def _stands_alone(store: Store, slot: str, runs: Sequence[LedgerRun]) -> bool:
    """Whether every part of some runs is in place, and nothing of the versions before them."""
    found = {key.removeprefix(f"data/{slot}/") for key in store.keys(f"data/{slot}")}
    return found == _names(runs, "data")


def committed_files(store: Store, runs: Sequence[LedgerRun]) -> list[str]:
    """Paths or URIs of the part files that are the output right now, published or not."""
    newest = current(runs)
    published = {int(name) for key in store.keys(PUBLISHED) if (name := key.rpartition("/")[2]).isdigit()}
    unpublished = {entry.seq: entry for entry in with_parts(store, [run for run in newest if run.seq not in published])}
    return [
        store.uri(key)
        for run in newest
        for key in (
            [part.key for part in unpublished[run.seq].parts]
            if run.seq in unpublished
            else [f"data/{run.folder}/{name}" for name in part_names(run, "data")]
        )
    ]
