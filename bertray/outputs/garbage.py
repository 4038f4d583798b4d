"""What an output no longer needs: staging of attempts that are over, replaced versions, half-written files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bertray.io import faults
from bertray.io.store_protocol import PUBLISHING, TRASH, Store, StoredFile, is_temporary
from bertray.outputs.control_files import LedgerEntry
from bertray.outputs.heartbeat import NAME as HEARTBEAT
from bertray.outputs.ledger import COMMITS, PUBLISHED, current

RUNS = "control/runs"
PLANS = "control/plans"
# Left alone this long, whatever it is: somebody may be at work whom we cannot see.
MIN_AGE = timedelta(days=1)


@dataclass(frozen=True)
class Garbage:
    file: StoredFile
    why: str


def find_garbage(store: Store, entries: Sequence[LedgerEntry], now: datetime, grace: timedelta) -> list[Garbage]:
    """Files that nothing needs any more.

    Args:
        store: the output.
        entries: its ledger.
        now: the time that ages are taken at.
        grace: age below which staging of an unfinished plan, and replaced versions, are kept: a run may be resumed,
            and a reader may still have them open.

    A file that an entry names and that is not yet published is never garbage, nor are the rows behind the report of a
    current version.
    """
    published = set(store.keys(PUBLISHED))
    latest = {entry.seq for entry in current(entries)}
    needed: set[str] = set()
    for entry in entries:
        if f"{PUBLISHED}/{entry.seq:08d}" not in published:
            needed |= {part.key for part in (*entry.parts, *entry.quarantine_parts)}
        if entry.seq in latest:
            needed |= {part.key for part in entry.evaluation_parts}
    committed = {(entry.slot, entry.plan_key) for entry in entries}
    files = store.listing("control")
    # A live attempt uses the finished parts of the attempts before it, and its plan.
    beating = {
        tuple(file.key.split("/")[2:4])
        for file in files
        if file.key.startswith(f"{RUNS}/") and file.key.endswith(f"/{HEARTBEAT}") and now - file.modified < MIN_AGE
    }
    garbage = []
    for file in files:
        age = now - file.modified
        why = ""
        if file.key in needed or file.key.startswith((COMMITS, PUBLISHED)):
            continue
        if is_temporary(file.key) or file.key.startswith((f"{PUBLISHING}/", "control/probe-")):
            why = "half-written by a run that died" if age >= MIN_AGE else ""
        elif file.key.startswith(f"{TRASH}/"):
            why = "of a version that was replaced" if age >= grace else ""
        elif file.key.startswith(f"{RUNS}/"):
            slot, plan_key = file.key.split("/")[2:4]
            if (slot, plan_key) in beating:
                why = ""
            elif (slot, plan_key) in committed:
                why = "staged and committed; readers have it elsewhere" if age >= MIN_AGE else ""
            else:
                why = "of an unfinished run" if age >= grace else ""
        elif file.key.startswith(f"{PLANS}/"):
            slot, _, plan_key = file.key.removeprefix(f"{PLANS}/").removesuffix(".json").partition("/")
            if (slot, plan_key) in beating:
                why = ""
            elif (slot, plan_key) in committed:
                why = "plan that was committed" if age >= MIN_AGE else ""
            else:
                why = "plan of an unfinished run" if age >= grace else ""
        if why:
            garbage.append(Garbage(file, why))
    return garbage


def remove(store: Store, garbage: Sequence[Garbage]) -> None:
    """Delete what was found; a plan goes first, so that nothing resumes into a half-removed staging folder."""
    for item in sorted(garbage, key=lambda item: not item.file.key.startswith(PLANS)):
        store.delete(item.file.key)
        faults.point("gc.half")
