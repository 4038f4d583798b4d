"""Receipts of a plan: which of them are whole, which to adopt, and what is verified before a commit."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from bertray.errors import ConflictError, InfrastructureError
from bertray.io.pool import in_pool
from bertray.io.store import Store, get_if_there
from bertray.io.store_protocol import StoredFile
from bertray.outputs.control_files import RUNS, LedgerEntry, Plan, Receipt, StagedFile

log = logging.getLogger(__name__)

RECEIPT_SUFFIX = ".receipt.json"


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
    content = get_if_there(store, key)
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
    """Keep a receipt only if no earlier one covers any of its rows: a retried task leaves two of the same rows.

    Sorted by their rows.
    """
    kept: list[Receipt] = []
    taken: dict[int, list[tuple[int, int]]] = {}  # of each file, apart from each other and ascending
    for receipt in receipts:
        if all(_is_free(taken.get(span.file_no, []), span.lo, span.hi) for span in receipt.spans):
            for span in receipt.spans:
                insort(taken.setdefault(span.file_no, []), (span.lo, span.hi))
            kept.append(receipt)
    return sorted(kept, key=lambda receipt: receipt.intervals)


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
