"""Plan of a run: listed files against the ledger, the key that pins a plan, and its unfinished rows."""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from bertray.errors import ConflictError, InfrastructureError
from bertray.io import faults
from bertray.io.pool import in_pool
from bertray.io.store import Store
from bertray.io.store_protocol import StoredFile
from bertray.outputs.control_files import (
    PLANS,
    RUNS,
    CommittedRun,
    FileCount,
    FileRecord,
    LedgerEntry,
    Plan,
    Receipt,
    StagedFile,
)
from bertray.outputs.ledger import current
from bertray.reviews.scan import FileScan, ScanSettings, scans_from_bytes, scans_to_bytes

log = logging.getLogger(__name__)

RECEIPT_SUFFIX = ".receipt.json"

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
    twin: str | None = None  # path of the file whose content it has
    is_unsure: bool = False  # it looks like a scored file that is gone


def decide_files(
    files: Sequence[FileRecord],
    entries: Sequence[CommittedRun],
    *,
    digests: Mapping[str, str] | None = None,
    gone: AbstractSet[str] = frozenset(),
) -> list[FileDecision]:
    """Compare listed files with everything the ledger holds, file by file, in the order given.

    A file is known by path, size and etag or mtime; content that was delivered under another name is known by size
    and digest. Of a slot that was replaced, only the newest version counts.

    Args:
        files: as listed; those that look like another have a digest.
        entries: the ledger.
        digests: of scored files whose entry has none, by path.
        gone: paths of scored files that look like a listed one and cannot be read any more.
    """
    entries = current(entries)
    by_path = owners(entries)
    digests = digests or {}
    by_content: dict[tuple[int, str], tuple[str, str]] = {}
    lost: dict[tuple[int, str | None], tuple[str, str]] = {}
    for old, slot in ((old, entry.slot) for entry in entries for old in entry.files):
        if digest := old.digest or digests.get(old.path):
            by_content[old.size_bytes, digest] = (old.path, slot)
        elif old.path in gone:
            lost[old.size_bytes, old.fingerprint] = (old.path, slot)
    decisions: list[FileDecision] = []
    tonight: dict[tuple[int, str], str] = {}
    for file in files:
        known = by_path.get(file.path)
        content = (file.size_bytes, file.digest) if file.digest is not None else None
        if known is not None:
            before, entry = known
            same = _is_same(before, file)
            if not same and before.reason is not None:
                decisions.append(FileDecision(file, "score", f"repaired since slot {entry.slot} quarantined it"))
            elif same:
                decisions.append(FileDecision(file, "scored", f"scored in slot {entry.slot}", entry.slot))
            else:
                why = f"changed since it was scored in slot {entry.slot}"
                if (before.size_bytes, before.fingerprint) == (file.size_bytes, file.fingerprint):
                    why = (
                        f"written again since it was scored in slot {entry.slot}, with the same size, beginning and "
                        "end; whether the middle changed cannot be told"
                    )
                decisions.append(FileDecision(file, "changed", why, entry.slot))
        elif content is not None and content in by_content and file.reason is None:
            other, slot = by_content[content]
            why = f"same content as {other}, scored in slot {slot}"
            decisions.append(FileDecision(file, "duplicate", why, twin=other))
        elif content is not None and content in tonight and file.reason is None:
            other = tonight[content]
            decisions.append(FileDecision(file, "duplicate", f"same content as {other}", twin=other))
        else:
            why = "new" if file.reason is None else f"new, cannot be read: {file.reason}"
            lost_twin = lost.get((file.size_bytes, file.fingerprint)) if file.reason is None else None
            if lost_twin is not None:
                why += (
                    f"; size, beginning and end are those of {lost_twin[0]}, scored in slot {lost_twin[1]}, which is "
                    "gone and cannot be compared: taken for another file"
                )
            decisions.append(FileDecision(file, "score", why, is_unsure=lost_twin is not None))
            if content is not None:
                tonight[content] = file.path
    return decisions


def _is_same(before: FileCount, file: FileRecord) -> bool:
    """Whether a file of the same path holds what was scored, although it may have been written again."""
    return before.size_bytes == file.size_bytes and (
        before.modified == file.modified or (before.digest is not None and before.digest == file.digest)
    )


def owners(entries: Sequence[CommittedRun]) -> dict[str, tuple[FileCount, CommittedRun]]:
    """For every path the file as it was scored last, and the entry that did: a repaired file moves to another slot."""
    in_order = sorted(current(entries), key=lambda entry: entry.seq)
    return {file.path: (file, entry) for entry in in_order for file in entry.files}


def plan_key(files: Iterable[FileRecord], model_version: str, settings: Mapping[str, Any], *, version: int = 1) -> str:
    """16 hex digits over input files, model, settings and slot version; the order of listing does not matter."""
    pinned = sorted(file.identity for file in files)
    content = json.dumps([pinned, model_version, settings, version], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def versions(entries: Sequence[CommittedRun]) -> dict[str, int]:
    """The newest version of each committed slot."""
    return {entry.slot: entry.version for entry in current(entries)}


def rows_per_part(num_rows: int) -> int:
    """Rows of one unit of work and one part: more where a plan would otherwise have very many."""
    steps = -(-num_rows // (MANY_PARTS * ROWS_PER_PART))
    return min(max(steps, 1) * ROWS_PER_PART, MOST_ROWS_PER_PART)


@dataclass(frozen=True)
class PinnedPlan:
    """A plan as it is stored.

    Args:
        plan: ours, or the equal one of another run.
        is_new: ours is the first, so that nobody is at work on it, and nothing is staged.
    """

    plan: Plan
    is_new: bool


def pin_plan(store: Store, plan: Plan) -> PinnedPlan:
    """Store a plan, or join the equal one that another run stored first.

    Raises:
        InfrastructureError: it is gone again, see `gc`.
    """
    key = f"{PLANS}/{plan.slot}/{plan.plan_key}.json"
    faults.point("plan.before_put")
    created = store.put_new(key, plan.to_bytes())
    faults.point("plan.after_put")
    if created:
        return PinnedPlan(plan, is_new=True)
    try:
        return PinnedPlan(Plan.from_bytes(store.get(key), store.uri(key)), is_new=False)
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"{store.uri(key)}: committed by another run, and cleared away.", "Run the same command again."
        ) from error


def open_plans(store: Store, entries: Sequence[CommittedRun]) -> list[Plan]:
    """Plans that no ledger entry has committed, newest last; those that are committed are not read."""
    committed = {f"{PLANS}/{entry.slot}/{entry.plan_key}.json" for entry in entries}
    keys = [key for key in store.keys(PLANS) if key not in committed]
    contents = in_pool(partial(_get_if_there, store), keys, store.num_threads)
    plans = [Plan.from_bytes(c, store.uri(key)) for key, c in zip(keys, contents, strict=True) if c is not None]
    return sorted(plans, key=lambda plan: plan.created_at)


def _get_if_there(store: Store, key: str) -> bytes | None:
    """A value; None where gc has cleared it away since it was listed: its plan is committed, or nobody resumes it."""
    try:
        return store.get(key)
    except FileNotFoundError:
        return None


SCANS = "scans.parquet"  # in the staging folder of a plan
KEPT_ABOVE_BYTES = 1 << 20  # of input; less is scanned again sooner than a request is answered


def keep_scans(store: Store, plan: Plan, scans: Sequence[FileScan], settings: ScanSettings) -> None:
    """Store the scans of a plan's files, so that a run that resumes it need not scan them again."""
    if sum(scan.file.size_bytes for scan in scans) < KEPT_ABOVE_BYTES:
        return
    store.put(f"{staging_folder(plan)}/{SCANS}", scans_to_bytes(scans, settings))


def kept_scans(store: Store, plans: Sequence[Plan], settings: ScanSettings) -> dict[tuple[str, int, str], FileScan]:
    """Scans that unfinished plans keep and that were made with the same settings, by `FileEntry.stamp`."""
    found: dict[tuple[str, int, str], FileScan] = {}
    keys = [f"{staging_folder(plan)}/{SCANS}" for plan in plans]
    for content in in_pool(partial(_get_if_there, store), keys, store.num_threads):
        if content is not None:
            found |= {scan.file.entry.stamp: scan for scan in scans_from_bytes(content, settings)}
    return found


# --- receipts as intervals --------------------------------------------------------------------------------------------


def staging_folder(plan: Plan) -> str:
    """Folder of all attempts at a plan."""
    return f"{RUNS}/{plan.slot}/{plan.plan_key}"


def whole_receipts(store: Store, folder: str) -> list[Receipt]:
    """Receipts below a folder whose files are there, byte for byte, in the order of their names.

    One listing, and at most two requests a receipt, in a pool: the receipt, and its files where the store has no tag
    of their content, or another than it gave for what was written. Damaged ones are left out, and logged.
    """
    found = {file.key: file for file in store.listing(folder)}
    keys = [key for key in found if key.endswith(RECEIPT_SUFFIX)]
    receipts = in_pool(partial(_whole_receipt, store, found), keys, store.num_threads)
    return [receipt for receipt in receipts if receipt is not None]


def _whole_receipt(store: Store, found: Mapping[str, StoredFile], key: str) -> Receipt | None:
    content = _get_if_there(store, key)
    if content is None:
        return None
    try:
        receipt = Receipt.from_bytes(content, store.uri(key))
    except ConflictError:
        log.warning("%s: damaged; its rows are scored again", store.uri(key))
        return None
    staged = filter(None, (receipt.part, receipt.quarantine, receipt.evaluation))
    return receipt if all(_is_whole(store, found.get(file.key), file) for file in staged) else None


def _is_whole(store: Store, found: StoredFile | None, staged: StagedFile) -> bool:
    """Whether a staged file is what its receipt says, by the store's tag of its content, or else by its sha256."""
    if found is None:
        return False
    if staged.etag is not None and (found.etag, found.size_bytes) == (staged.etag, staged.bytes):
        return True
    try:
        whole = store.digest(staged.key) == staged.sha256
    except FileNotFoundError:
        return False
    if not whole:
        log.warning("%s: damaged; its rows are scored again", store.uri(staged.key))
    return whole


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
