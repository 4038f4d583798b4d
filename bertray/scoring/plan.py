"""Plan of a run: listed files against the ledger, the key that pins a plan, and the plans that are not committed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bertray.errors import InfrastructureError
from bertray.io import faults
from bertray.io.pool import in_pool
from bertray.io.store import Store, get_if_there
from bertray.outputs.control_files import (
    PLANS,
    FileCount,
    FileRecord,
    LedgerRun,
    Plan,
)
from bertray.outputs.ledger import current
from bertray.outputs.receipts import staging_folder
from bertray.reviews.rows import ROWS_PER_SHARD, FileEntry

log = logging.getLogger(__name__)

Verdict = Literal["score", "scored", "duplicate", "changed"]

ROWS_PER_PART = ROWS_PER_SHARD
MOST_ROWS_PER_PART = 16 * ROWS_PER_PART  # a part has to fit into the memory of a worker, tokens and all
MANY_PARTS = 20_000  # from here on parts grow instead
GPU_ROWS_PER_PART, PARTS_PER_GPU = 8 * ROWS_PER_PART, 8


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
    entries: Sequence[LedgerRun],
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


def replaced_in_tables(listed: Iterable[FileEntry], scored: Iterable[FileCount]) -> list[str]:
    """Scored files of listed Delta tables that the table's log names no more, sorted.

    An update, a delete or a compaction writes their rows again into new files, which would be scored twice.
    """
    listed = list(listed)
    roots = tuple({f"{entry.table}/" for entry in listed if entry.table})
    there = {entry.path for entry in listed}
    return sorted(file.path for file in scored if roots and file.path.startswith(roots) and file.path not in there)


def owners(entries: Sequence[LedgerRun]) -> dict[str, tuple[FileCount, LedgerRun]]:
    """For every path the file as it was scored last, and the entry that did: a repaired file moves to another slot."""
    in_order = sorted(current(entries), key=lambda entry: entry.seq)
    return {file.path: (file, entry) for entry in in_order for file in entry.files}


def plan_key(files: Iterable[FileRecord], model_version: str, settings: Mapping[str, Any], *, version: int = 1) -> str:
    """16 hex digits over input files, model, settings and slot version; the order of listing does not matter."""
    pinned = sorted(file.identity for file in files)
    content = json.dumps([pinned, model_version, settings, version], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def versions(entries: Sequence[LedgerRun]) -> dict[str, int]:
    """The newest version of each committed slot."""
    return {entry.slot: entry.version for entry in current(entries)}


def rows_per_part(num_rows: int, num_gpus: int = 0) -> int:
    """Rows of one unit of work and one part: more where a plan would otherwise have very many.

    A GPU scores the rows of a small part in a tenth of a second, less than it takes to store them. It gets larger ones,
    as long as each has PARTS_PER_GPU of them.
    """
    steps = -(-num_rows // (MANY_PARTS * ROWS_PER_PART))
    if num_gpus:
        steps = max(steps, min(num_rows // (PARTS_PER_GPU * num_gpus), GPU_ROWS_PER_PART) // ROWS_PER_PART)
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


def open_plans(store: Store, entries: Sequence[LedgerRun]) -> list[Plan]:
    """Plans that no ledger entry has committed, newest last; those that are committed are not read."""
    committed = {f"{PLANS}/{entry.slot}/{entry.plan_key}.json" for entry in entries}
    keys = [key for key in store.keys(PLANS) if key not in committed]
    contents = in_pool(partial(get_if_there, store), keys, store.num_threads)
    plans = [Plan.from_bytes(c, store.uri(key)) for key, c in zip(keys, contents, strict=True) if c is not None]
    return sorted(plans, key=lambda plan: plan.created_at)


def scan_key(plan: Plan) -> str:
    """Place of the scans of a plan's files, in the output."""
    return f"{staging_folder(plan)}/scans.parquet"
