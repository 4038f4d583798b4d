"""Files that an output no longer needs: staging of attempts that are over, replaced versions, half-written files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bertray.io import faults
from bertray.io.store import Store
from bertray.io.store_protocol import PUBLISHING, TRASH, StoredFile, is_temporary
from bertray.outputs.control_files import PLANS, RUNS, LedgerRun
from bertray.outputs.heartbeat import NAME as HEARTBEAT
from bertray.outputs.ledger import current, with_parts
from bertray.outputs.publish import PUBLISHED
from bertray.outputs.snapshots import SNAPSHOTS, snapshot_seq

# Left alone this long, whatever it is: somebody may be at work whom we cannot see.
MIN_AGE = timedelta(days=1)
SNAPSHOTS_KEPT = 2  # the newest, and one to fall back to

Work = tuple[str, str]  # (slot, plan_key), to which staging and plans belong


@dataclass(frozen=True)
class Garbage:
    """A file that nothing needs, and why it is there."""

    file: StoredFile
    why: str


@dataclass(frozen=True)
class _Output:
    """Everything that tells whether a file below `control/` is still needed.

    Args:
        grace: age up to which unfinished staging and replaced versions are kept.
        needed: keys of staged parts that a publication or a report may still read.
        committed: work that an entry names.
        live: work of attempts whose heartbeat is fresh; they use the finished parts of the attempts before them.
        old_snapshots: keys of snapshots that newer ones follow.
    """

    grace: timedelta
    needed: set[str]
    committed: set[Work]
    live: set[Work]
    old_snapshots: set[str]


def find_garbage(store: Store, entries: Sequence[LedgerRun], now: datetime, grace: timedelta) -> list[Garbage]:
    """Files that nothing needs any more.

    Args:
        now: the time that ages are taken at.
        grace: age below which staging of an unfinished plan, and replaced versions, are kept: a run may be resumed,
            and a reader may still have them open.

    A file that an entry names and that is not yet published is never garbage, nor are the rows behind the report of a
    current version.
    """
    published = set(store.keys(PUBLISHED))
    files = store.listing("control")
    output = _Output(
        grace,
        needed=_needed(store, entries, published),
        committed={(entry.slot, entry.plan_key) for entry in entries},
        live={_work_of(file.key) for file in files if _is_fresh_heartbeat(file, now)},
        old_snapshots=set([file.key for file in files if snapshot_seq(file.key)][:-SNAPSHOTS_KEPT]),
    )
    garbage = []
    for file in files:
        least_age, why = _rule_of(file.key)(output, file.key)
        if why and now - file.modified >= least_age:
            garbage.append(Garbage(file, why))
    return garbage


def remove(store: Store, garbage: Sequence[Garbage]) -> None:
    """Delete what was found; a plan goes first, so that nothing resumes into a half-removed staging folder."""
    for item in sorted(garbage, key=lambda item: not item.file.key.startswith(PLANS)):
        store.delete(item.file.key)
        faults.point("gc.half")


def _needed(store: Store, entries: Sequence[LedgerRun], published: set[str]) -> set[str]:
    """Keys of staged parts of entries that are not published, and of those behind reports of current versions."""
    latest = {entry.seq for entry in current(entries)}
    hidden = {entry.seq for entry in entries if f"{PUBLISHED}/{entry.seq:08d}" not in published}
    reported = {entry.seq for entry in entries if entry.seq in latest and entry.num_evaluation_parts}
    needed: set[str] = set()
    for entry in with_parts(store, [entry for entry in entries if entry.seq in hidden | reported]):
        if entry.seq in hidden:
            needed |= {part.key for part in (*entry.parts, *entry.quarantine_parts)}
        if entry.seq in reported:
            needed |= {part.key for part in entry.evaluation_parts}
    return needed


def _is_fresh_heartbeat(file: StoredFile, now: datetime) -> bool:
    is_heartbeat = file.key.startswith(f"{RUNS}/") and file.key.endswith(f"/{HEARTBEAT}")
    return is_heartbeat and now - file.modified < MIN_AGE


def _work_of(key: str) -> Work:
    """The work that a file below `control/runs/` or `control/plans/` belongs to."""
    slot, plan_key = key.split("/")[2:4]
    return slot, plan_key.removesuffix(".json")


# --- rules: the least age of a file that may go, and why; without a reason it stays ----------------------------------

Verdict = tuple[timedelta, str]
_STAYS: Verdict = (MIN_AGE, "")


def _half_written(_: _Output, __: str) -> Verdict:
    return MIN_AGE, "half-written by a run that died"


def _replaced(output: _Output, _: str) -> Verdict:
    return output.grace, "of a version that was replaced"


def _old_snapshot(output: _Output, key: str) -> Verdict:
    return (MIN_AGE, "snapshot of the ledger that newer ones follow") if key in output.old_snapshots else _STAYS


def _of_work(committed: str, unfinished: str) -> Callable[[_Output, str], Verdict]:
    def rule(output: _Output, key: str) -> Verdict:
        work = _work_of(key)
        if key in output.needed or work in output.live:
            return _STAYS
        return (MIN_AGE, committed) if work in output.committed else (output.grace, unfinished)

    return rule


_RULES: dict[str, Callable[[_Output, str], Verdict]] = {
    f"{PUBLISHING}/": _half_written,
    "control/probe-": _half_written,
    f"{TRASH}/": _replaced,
    f"{RUNS}/": _of_work("staged and committed; readers have it elsewhere", "of an unfinished run"),
    f"{PLANS}/": _of_work("plan that was committed", "plan of an unfinished run"),
    f"{SNAPSHOTS}/": _old_snapshot,
}


def _rule_of(key: str) -> Callable[[_Output, str], Verdict]:
    """The rule for a file below `control/`; entries, markers, claims and what is unknown stay."""
    if is_temporary(key):
        return _half_written
    return next((rule for prefix, rule in _RULES.items() if key.startswith(prefix)), lambda _output, _key: _STAYS)
