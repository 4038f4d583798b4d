"""What a run has to do: tonight's files against the ledger, the key that pins a plan, and what is left of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from bertray.errors import ConflictError, InfrastructureError
from bertray.io import faults
from bertray.io.store import Store
from bertray.outputs.control_files import FileCount, FileRecord, LedgerEntry, Plan, Receipt
from bertray.outputs.ledger import current

log = logging.getLogger(__name__)

Verdict = Literal["score", "scored", "duplicate", "changed"]

ROWS_PER_PART = 4096  # enough reviews to sort by length before they are packed
MOST_ROWS_PER_PART = 16 * ROWS_PER_PART  # a part has to fit into the memory of a worker, tokens and all
MANY_PARTS = 20_000  # from here on parts grow instead


@dataclass(frozen=True)
class FileDecision:
    """Why one listed file is in tonight's run or out of it."""

    file: FileRecord
    verdict: Verdict
    why: str
    slot: str | None = None  # that holds the file


def decide_files(files: Sequence[FileRecord], entries: Sequence[LedgerEntry]) -> list[FileDecision]:
    """Compare listed files with everything the ledger holds, file by file, in the order given.

    A file is known by path, size and etag or mtime; content that was delivered under another name is known by size
    and digest. Of a slot that was replaced, only the newest version counts.
    """
    entries = current(entries)
    by_path = owners(entries)
    by_content = {
        (file.size_bytes, file.digest): (file.path, entry.slot)
        for entry in entries
        for file in entry.files
        if file.digest is not None
    }
    decisions: list[FileDecision] = []
    tonight: dict[tuple[int, str], str] = {}
    for file in files:
        known = by_path.get(file.path)
        content = (file.size_bytes, file.digest) if file.digest is not None else None
        if known is not None:
            before, entry = known
            same = before.size_bytes == file.size_bytes and (
                before.modified == file.modified or (before.digest is not None and before.digest == file.digest)
            )
            if not same and before.reason is not None:
                decisions.append(FileDecision(file, "score", f"repaired since slot {entry.slot} quarantined it"))
            elif same:
                decisions.append(FileDecision(file, "scored", f"scored in slot {entry.slot}", entry.slot))
            else:
                why = f"changed since it was scored in slot {entry.slot}"
                decisions.append(FileDecision(file, "changed", why, entry.slot))
        elif content is not None and content in by_content and file.reason is None:
            other, slot = by_content[content]
            decisions.append(FileDecision(file, "duplicate", f"same content as {other}, scored in slot {slot}"))
        elif content is not None and content in tonight and file.reason is None:
            decisions.append(FileDecision(file, "duplicate", f"same content as {tonight[content]}"))
        else:
            why = "new" if file.reason is None else f"new, cannot be read: {file.reason}"
            decisions.append(FileDecision(file, "score", why))
            if content is not None:
                tonight[content] = file.path
    return decisions


def owners(entries: Sequence[LedgerEntry]) -> dict[str, tuple[FileCount, LedgerEntry]]:
    """Of every path the file as it was scored last, and the entry that did: a repaired file moves to another slot."""
    in_order = sorted(current(entries), key=lambda entry: entry.seq)
    return {file.path: (file, entry) for entry in in_order for file in entry.files}


def plan_key(files: Iterable[FileRecord], model_version: str, settings: Mapping[str, Any], *, version: int = 1) -> str:
    """16 hex digits over input files, model, settings and slot version; the order of listing does not matter."""
    pinned = sorted((f.path, f.size_bytes, f.modified, f.num_rows, f.digest, f.reason or "") for f in files)
    content = json.dumps([pinned, model_version, settings, version], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def versions(entries: Sequence[LedgerEntry]) -> dict[str, int]:
    """The newest version of each committed slot."""
    return {entry.slot: entry.version for entry in current(entries)}


def rows_per_part(num_rows: int) -> int:
    """Rows of one unit of work and one part: more where a plan would otherwise have very many."""
    steps = -(-num_rows // (MANY_PARTS * ROWS_PER_PART))
    return min(max(steps, 1) * ROWS_PER_PART, MOST_ROWS_PER_PART)


def pin_plan(store: Store, plan: Plan) -> Plan:
    """Store a plan, or join the equal one that another run stored first.

    Raises:
        InfrastructureError: it is gone again, see `gc`.
    """
    key = f"control/plans/{plan.slot}/{plan.plan_key}.json"
    faults.point("plan.before_put")
    try:
        store.put_new(key, plan.to_bytes())
        faults.point("plan.after_put")
        return Plan.from_bytes(store.get(key), store.uri(key))
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"{store.uri(key)}: committed by another run, and cleared away.", "Run the same command again."
        ) from error


def open_plans(store: Store, entries: Sequence[LedgerEntry]) -> list[Plan]:
    """Plans that no ledger entry has committed, newest last."""
    committed = {(entry.slot, entry.plan_key) for entry in entries}
    plans = []
    for key in store.keys("control/plans"):
        with contextlib.suppress(FileNotFoundError):  # cleared away by gc since it was listed: nobody resumes it
            plans.append(Plan.from_bytes(store.get(key), store.uri(key)))
    return sorted((p for p in plans if (p.slot, p.plan_key) not in committed), key=lambda p: p.created_at)


# --- receipts as intervals --------------------------------------------------------------------------------------------


def staging_folder(plan: Plan) -> str:
    return f"control/runs/{plan.slot}/{plan.plan_key}"


def stored_receipts(store: Store, plan: Plan) -> list[Receipt]:
    """Receipts of every attempt at this plan, in the order of their names; damaged ones are left out, and logged."""
    receipts = []
    for key in store.keys(staging_folder(plan)):
        if key.endswith(".receipt.json"):
            try:
                receipts.append(Receipt.from_bytes(store.get(key), store.uri(key)))
            except FileNotFoundError:
                log.info("%s: cleared away by gc, since another run has committed this plan", store.uri(key))
            except ConflictError:
                log.warning("%s: damaged; its rows are scored again", store.uri(key))
    return receipts


def is_whole(store: Store, receipt: Receipt) -> bool:
    """Is everything that a receipt names there, byte for byte?"""
    for staged in filter(None, (receipt.part, receipt.quarantine, receipt.evaluation)):
        try:
            content = store.get(staged.key)
        except FileNotFoundError:
            return False
        if hashlib.sha256(content).hexdigest() != staged.sha256:
            log.warning("%s: damaged; its rows are scored again", store.uri(staged.key))
            return False
    return True


def without_overlap(receipts: Iterable[Receipt]) -> list[Receipt]:
    """Keep a receipt only if no earlier one covers any of its rows: a retried task leaves two of the same rows."""
    kept: list[Receipt] = []
    taken: dict[int, list[tuple[int, int]]] = {}  # of each file, apart from each other and ascending
    for receipt in receipts:
        if all(_is_free(taken.get(span.file_no, []), span.lo, span.hi) for span in receipt.spans):
            for span in receipt.spans:
                insort(taken.setdefault(span.file_no, []), (span.lo, span.hi))
            kept.append(receipt)
    return kept


def _is_free(taken: list[tuple[int, int]], lo: int, hi: int) -> bool:
    """Does [lo, hi) meet none of some ascending intervals? Only its two neighbours can tell."""
    after = bisect_left(taken, (lo, lo))
    return (after == 0 or taken[after - 1][1] <= lo) and (after == len(taken) or hi <= taken[after][0])


def uncovered(num_rows: int, intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Row ranges of [0, num_rows) that no interval covers, ascending."""
    gaps: list[tuple[int, int]] = []
    position = 0
    for lo, hi in sorted(intervals):
        if lo > position:
            gaps.append((position, lo))
        position = max(position, hi)
    if position < num_rows:
        gaps.append((position, num_rows))
    return gaps


def adopt(work: Iterable[tuple[tuple[int, int, int], ...]], receipts: Iterable[Receipt]) -> list[Receipt]:
    """Receipts of earlier attempts that cover exactly one piece of this plan's work, one each.

    Args:
        work: (file_no, lo, hi) of the shards of each piece, ascending.
        receipts: whole ones, of this plan.
    """
    waiting = set(work)
    adopted = []
    for receipt in receipts:
        if receipt.intervals in waiting:
            waiting.remove(receipt.intervals)
            adopted.append(receipt)
    return adopted


def verify_cover(plan: Plan, receipts: Sequence[Receipt]) -> None:
    """Every row of every readable file stands in exactly one receipt, and every receipt adds up.

    Raises:
        ConflictError: a row is missing or stands twice; nothing may be committed.
    """
    intervals: dict[int, list[tuple[int, int]]] = {}
    for span in (span for receipt in receipts for span in receipt.spans):
        if span.hi - span.lo != span.rows_scored + span.rows_quarantined:
            raise ConflictError(
                f"{plan.files[span.file_no].path} rows {span.lo}-{span.hi}: {span.hi - span.lo} rows in, but "
                f"{span.rows_scored} scored and {span.rows_quarantined} quarantined; nothing was committed.",
                "This is a bug: please report it with the control/ folder.",
            )
        intervals.setdefault(span.file_no, []).append((span.lo, span.hi))
    for file_no, file in enumerate(plan.files):
        if file.reason is not None or file.num_rows is None:
            continue
        spans = sorted(intervals.get(file_no, []))
        twice = any(hi > next_lo for (_, hi), (next_lo, _) in pairwise(spans))
        gaps = uncovered(file.num_rows, spans)
        if twice or gaps or (spans and spans[-1][1] > file.num_rows):
            raise ConflictError(
                f"{file.path}: rows {gaps or spans} are missing or stand twice; nothing was committed.",
                "Run the same command again; it rescored what is missing.",
            )


def verify_staged(store: Store, plan: Plan, entry: LedgerEntry) -> None:
    """Everything that an entry is about to name is still there.

    Raises:
        InfrastructureError: somebody took files away under the run; nothing may be committed.
    """
    there = set(store.keys(staging_folder(plan)))
    for part in (*entry.parts, *entry.quarantine_parts, *entry.evaluation_parts):
        if part.key not in there:
            raise InfrastructureError(
                f"{store.uri(part.key)}: was staged, and is no longer there; nothing was committed.",
                "Run the same command again; it scores what is missing.",
            )
