"""From receipts to one ledger entry: the moment at which a plan's rows become output."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from bertray.errors import ConflictError
from bertray.io.store import Store
from bertray.outputs import ledger
from bertray.outputs.control_files import (
    CommittedPart,
    Counts,
    FileCount,
    LedgerEntry,
    LedgerRun,
    Plan,
    Receipt,
    StagedFile,
    part_name,
)
from bertray.outputs.ledger import Ledger

log = logging.getLogger(__name__)


def make_entry(
    plan: Plan,
    known: Sequence[LedgerRun],
    receipts: Sequence[Receipt],
    file_level: Sequence[StagedFile],
    *,
    adopted: int,
    seconds: float,
    compute_seconds: float,
) -> LedgerEntry:
    """The ledger entry of a plan whose rows are all staged.

    Args:
        plan: what was to be done.
        known: the ledger so far; the new entry goes behind it.
        receipts: of every row once, see `verify_cover`; parts are numbered in this order.
        file_level: staged quarantine rows of files that could not be read at all.
        adopted: how many of the receipts an earlier attempt left.
        seconds: of this run so far.
        compute_seconds: of all runs with the model at work.
    """
    unread = Counts(reasons=dict(Counter(file.reason for file in plan.files if file.reason)))
    files = _file_counts(plan, receipts)
    return LedgerEntry(
        seq=len(known) + 1,
        slot=plan.slot,
        run=1 + ledger.num_runs(known, plan.slot, plan.version),
        version=plan.version,
        run_id=plan.run_id,
        plan_key=plan.plan_key,
        committed_at=datetime.now(UTC).isoformat(),
        model=plan.model,
        model_version=plan.model_version,
        labels=plan.labels,
        settings=plan.settings,
        files=files,
        parts=_named([r.part for r in receipts if r.part], plan.run_id),
        quarantine_parts=_named([*(r.quarantine for r in receipts if r.quarantine), *file_level], plan.run_id),
        evaluation_parts=_named([r.evaluation for r in receipts if r.evaluation], plan.run_id),
        rows_in=sum(file.rows_in or 0 for file in files),
        rows_scored=sum(file.rows_scored for file in files),
        rows_quarantined=sum(file.rows_quarantined for file in files),
        adopted_receipts=adopted,
        seconds=seconds,
        compute_seconds=compute_seconds,
        **dict(sum(receipts, unread)),
    )


def _file_counts(plan: Plan, receipts: Sequence[Receipt]) -> list[FileCount]:
    scored, refused = [0] * len(plan.files), [0] * len(plan.files)
    seconds = [0.0] * len(plan.files)
    for receipt in receipts:
        for span in receipt.spans:
            scored[span.file_no] += span.rows_scored
            refused[span.file_no] += span.rows_quarantined
            seconds[span.file_no] += receipt.seconds * (span.hi - span.lo) / receipt.rows_in
    return [
        FileCount(
            **file.model_dump(exclude={"schema_version", "num_rows", "detail"}),
            rows_in=file.num_rows,
            rows_scored=scored[file_no],
            rows_quarantined=refused[file_no] + ((file.num_rows or 0) if file.reason is not None else 0),
            seconds=seconds[file_no],
        )
        for file_no, file in enumerate(plan.files)
    ]


def _named(staged: Sequence[StagedFile], run_id: str) -> list[CommittedPart]:
    return [
        CommittedPart(name=part_name(number, run_id), **file.model_dump(exclude={"schema_version", "etag"}))
        for number, file in enumerate(staged)
    ]


def _common(ours: Sequence[FileCount], theirs: Sequence[FileCount]) -> str | None:
    """The first of our files that they hold too, be it under another name."""
    paths = {file.path for file in theirs}
    contents = {_content(file): file.path for file in theirs if _content(file) and file.reason is None}
    for file in sorted(ours, key=lambda file: file.path):
        if file.path in paths:
            return file.path
        if file.reason is None and (other := contents.get(_content(file))):
            return f"the content of {file.path}, as {other},"
    return None


def _content(file: FileCount) -> tuple[int, str] | None:
    """Size and fingerprint; where those of two files are equal, the next run compares their contents."""
    content = file.fingerprint or file.digest
    return (file.size_bytes, content) if content else None


def commit(store: Store, known: Ledger, entry: LedgerEntry, *, beside: bool = False) -> tuple[LedgerEntry, Ledger]:
    """Append an entry made for the place behind the ledger's end; on a lost race go on behind the winner.

    Args:
        known: the ledger that the entry was made for.
        entry: of a plan whose rows are all staged.
        beside: a winner may be another run of the same slot and version; ours becomes the next.

    Returns:
        What was committed, ours or the entry of a run beside us with the same plan; and the ledger with it.

    Raises:
        ConflictError: a winner holds one of our files, or our slot; nothing of ours was committed.
    """
    while (committed := ledger.append(store, entry)) is None:
        before, known = len(known), ledger.read_on(store, known)
        since = [run for run in known[before:] if isinstance(run, LedgerEntry)]
        for other in since:
            if other.plan_key == entry.plan_key and other.slot == entry.slot:
                log.info("another run committed the same plan")
                return other, known
            common = _common(entry.files, other.files)
            same_slot = other.slot == entry.slot and not (beside and other.version == entry.version)
            if common or same_slot:
                raise ConflictError(
                    f"slot {entry.slot}: another run committed "
                    + (f"{common} in slot {other.slot}" if common else "this slot")
                    + "; nothing of this run was committed.",
                    "Run the same command again; it scores what is still new.",
                )
        run = entry.run + ledger.num_runs(since, entry.slot, entry.version)
        entry = entry.model_copy(update={"seq": entry.seq + len(since), "run": run})
    return committed, known.followed_by([committed])
