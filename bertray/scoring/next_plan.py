"""The next plan of a scoring run: an unfinished one that still fits, a slot to rewrite, or the new files."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bertray.config import EmbedConfig, NightConfig
from bertray.errors import ConflictError, InfrastructureError
from bertray.io.store import Store
from bertray.outputs import ledger
from bertray.outputs.control_files import FileRecord, Plan
from bertray.reviews.kept_scans import keep_scans
from bertray.reviews.listing import list_inputs
from bertray.scoring import plan as planning
from bertray.scoring.decide import Tonight
from bertray.wording import counted

log = logging.getLogger(__name__)

TOKENS_PER_PART = 1 << 17  # where each has a vector: 400 MB of them for BERT-base


@dataclass(frozen=True)
class Target:
    """Target of new files: slot, run and version.

    Args:
        slot: a new one, or that of the day.
        version: of the slot.
        run: the next of that version, unless another is committed first.
        beside: other runs may stand beside it, before and after.
    """

    slot: str
    version: int
    run: int
    beside: bool


def unfinished_plan(tonight: Tonight, plans: Sequence[Plan]) -> Plan | None:
    """The newest plan of an earlier run that nobody committed and that is still to be done as it stands."""
    new = {file.path: file for file in tonight.new_files}
    rewrites = {(rewrite.slot, rewrite.version): rewrite.files for rewrite in tonight.rewrites}
    versions = planning.versions(tonight.entries)
    committed = {(entry.slot, entry.plan_key) for entry in tonight.entries}
    for plan in reversed(plans):
        if (plan.slot, plan.plan_key) in committed:
            continue
        if plan.model_version != tonight.info.model_version or plan.settings != tonight.settings:
            continue
        version = versions.get(plan.slot)
        if version is not None and plan.version > version:
            fits = _same(plan.files, rewrites.get((plan.slot, plan.version), []))
        else:
            free = version is None or (plan.beside and plan.version == version)
            fits = free and bool(plan.files) and _same(plan.files, [new.get(f.path) for f in plan.files])
        if fits:
            return plan
    return None


def _same(planned: Sequence[FileRecord], now: Sequence[FileRecord | None]) -> bool:
    """Whether two lists name the same files as they are; a digest may have been made since."""
    return [file.identity for file in planned] == [file and file.identity for file in now]


def next_plan(config: NightConfig, tonight: Tonight, store: Store, plans: Sequence[Plan]) -> planning.PinnedPlan | None:
    """The next plan, pinned in the store; None when everything is done.

    Args:
        plans: open ones, newest last, as this run found them when it began.
    """
    plan = unfinished_plan(tonight, plans)
    if plan is not None:
        log.info("resuming slot %s", plan.slot)
        return planning.PinnedPlan(plan, is_new=False)
    if tonight.rewrites:
        rewrite = tonight.rewrites[0]
        log.info("rewriting slot %s as version %d: %s", rewrite.slot, rewrite.version, rewrite.why)
        target = Target(rewrite.slot, rewrite.version, run=1, beside=False)
        return _pinned(config, tonight, store, target, rewrite.files)
    found = target_of_new_files(config, tonight)
    return None if found is None else _pinned(config, tonight, store, found, tonight.new_files)


def target_of_new_files(config: NightConfig, tonight: Tonight) -> Target | None:
    """Slot and run that the new files become; None when there is nothing to commit.

    Raises:
        ConflictError: `slot` is committed, and holds other files.
    """
    new, versions = tonight.new_files, planning.versions(tonight.entries)
    slot = config.slot or f"dt={datetime.now(UTC):%Y-%m-%d}"
    if not new and (tonight.decisions or slot in versions):
        return None  # without any file at all, allow_empty commits one empty slot
    if config.slot in versions:
        raise ConflictError(
            f"slot={slot}: committed from other inputs; "
            f"{counted(len(new), 'listed file is', 'listed files are')} not among them.",
            "Leave `slot` out to commit them as a run of today, choose another slot, or set `replace=true`.",
        )
    version = versions.get(slot, 1)
    run = 1 + ledger.num_runs(tonight.entries, slot, version)
    return Target(slot, version, run, beside=config.slot is None)


def _pinned(
    config: NightConfig, tonight: Tonight, store: Store, target: Target, files: list[FileRecord]
) -> planning.PinnedPlan:
    model_version = tonight.info.model_version
    pinned = planning.pin_plan(
        store,
        Plan(
            plan_key=planning.plan_key(files, model_version, tonight.settings, version=target.version),
            slot=target.slot,
            version=target.version,
            beside=target.beside,
            seq=len(tonight.entries) + 1,
            run_id=uuid.uuid4().hex,
            created_at=datetime.now(UTC).isoformat(),
            model=config.model,
            model_version=model_version,
            labels=list(tonight.info.labels),
            settings=tonight.settings,
            files=files,
            rows_per_shard=config.rows_per_shard or _rows_per_part(config, tonight, files),
        ),
    )
    if pinned.is_new:
        scans = tonight.scans(pinned.plan.files)
        keep_scans(store, planning.scan_key(pinned.plan), scans, tonight.scanned.settings)
    return pinned


def _rows_per_part(config: NightConfig, tonight: Tonight, files: Sequence[FileRecord]) -> int:
    num_gpus = config.workers.num_workers if config.workers.use_gpu else 0
    rows = planning.rows_per_part(sum(file.num_rows or 0 for file in files), num_gpus)
    if isinstance(config, EmbedConfig) and config.pooling in ("tokens", "vocabulary"):
        return min(rows, max(1, TOKENS_PER_PART // int(tonight.settings["max_length"])))
    return rows


def check_inputs_as_planned(config: NightConfig, plan: Plan) -> None:
    """The input files are still those that were planned: what was read is what was pinned.

    Raises:
        InfrastructureError: one was changed or removed meanwhile.
    """
    now = {entry.path: (entry.size_bytes, entry.modified) for entry in list_inputs(config.input, config.reader)}
    for file in plan.files:
        if now.get(file.path) != (file.size_bytes, file.modified):
            what = "changed" if file.path in now else "removed"
            raise InfrastructureError(
                f"{file.path}: {what} while it was being read; nothing was committed.",
                "Run the same command again when the delivery is complete.",
            )
