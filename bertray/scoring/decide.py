"""Decisions of a scoring run, made before any compute: `plan` shows them, `score` follows them.

What is done is a sequence of plans, each the files of one version of one slot: first an unfinished plan of an earlier
run that still fits, then slots to rewrite, then the new files.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from bertray import schema as s
from bertray.config import EmbedConfig, NightConfig, ScoreConfig
from bertray.errors import ConfigError, ConflictError, DataRefused, InfrastructureError
from bertray.execution.on_demand import ExecutorFor
from bertray.io.store import Store
from bertray.model.bundle import BundleInfo
from bertray.outputs import ledger
from bertray.outputs.claims import check_claim
from bertray.outputs.control_files import CommittedRun, FileCount, FileRecord, Plan
from bertray.outputs.ledger import Ledger
from bertray.reviews.corpus import read_spec, refuse_bad_files
from bertray.reviews.labels import label_map
from bertray.reviews.reader import (
    BadFile,
    InputFile,
    ReadSpec,
    check_columns,
    check_slices,
    column_fault,
    kept_faults,
    label_is_readable,
    list_inputs,
)
from bertray.reviews.rows import FileEntry
from bertray.reviews.scan import (
    FileScan,
    ScanSettings,
    digests_of,
    is_unchanged,
    scan_files,
    with_digests_where_alike,
)
from bertray.scoring import plan as planning
from bertray.wording import counted

log = logging.getLogger(__name__)

# Settings that may differ between vectors that are compared.
_FREE = ("columns", "reader", "keep_columns", "unique_ids")
TOKENS_PER_PART = 1 << 17  # where each has a vector: 400 MB of them for BERT-base


@dataclass(frozen=True)
class Rewrite:
    """A committed slot that gets a new version: one run in place of all that it has."""

    slot: str
    version: int
    files: list[FileRecord]
    why: str


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


@dataclass(frozen=True)
class Tonight:
    """Everything decided about a run."""

    info: BundleInfo
    entries: Ledger
    decisions: list[planning.FileDecision]
    rewrites: list[Rewrite]
    scanned: ScannedInput
    settings: dict[str, Any]

    @property
    def new_files(self) -> list[FileRecord]:
        """Files of no slot, sorted by path; those that a rewrite takes are not among them."""
        rewritten = {file.path for rewrite in self.rewrites for file in rewrite.files}
        new = [d.file for d in self.decisions if d.verdict == "score" and d.file.path not in rewritten]
        return sorted(new, key=lambda file: file.path)

    @property
    def to_read(self) -> list[FileRecord]:
        return [*self.new_files, *(file for rewrite in self.rewrites for file in rewrite.files)]

    def readable(self, files: Sequence[FileRecord]) -> list[InputFile]:
        return [scan.file for scan in self.scans(files)]

    def scans(self, files: Sequence[FileRecord]) -> list[FileScan]:
        """Scans of some files, of those that can be read."""
        found = [self.scanned.seen[file.path] for file in files]
        return [scan for scan in found if isinstance(scan, FileScan)]


@dataclass(frozen=True)
class KnownFile:
    """A listed file that the ledger holds as it is; it is not opened again."""

    record: FileRecord


Seen = FileScan | BadFile | KnownFile


@dataclass(frozen=True)
class ScannedInput:
    """All files of the input, and what has to be known of scored ones to compare contents.

    Args:
        seen: files by path, in the order of the listing.
        settings: of the scans.
        digests: of scored files whose content was read again, by path.
        gone: scored files, by path, that look like a new one and cannot be read any more: they count as different.
    """

    seen: dict[str, Seen]
    settings: ScanSettings
    digests: dict[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def with_faults(self, faults: Mapping[str, BadFile]) -> ScannedInput:
        """The same with some files that cannot be used after all."""
        return replace(self, seen=self.seen | dict(faults))


def scan_input(
    config: NightConfig,
    store: Store,
    entries: Sequence[CommittedRun],
    plans: Sequence[Plan],
    executor_for: ExecutorFor,
) -> ScannedInput:
    """List the input and scan what is new; files that the ledger holds are not opened, unless a slot may be rewritten.

    Args:
        config: the input.
        store: the output.
        entries: its ledger.
        plans: open ones, whose scans are used again.
        executor_for: scans files.

    Raises:
        ConfigError: a path is missing.
        DataRefused: there is no file at all.
    """
    listed = list_inputs(config.input, config.reader, output=config.output)
    if not listed and not config.allow_empty:
        raise DataRefused(
            f"input: no review file in {', '.join(config.input)}.", "Check the path, or set `allow_empty=true`."
        )
    scored = [file for file, _ in planning.owners(entries).values()]
    known = {(file.path, file.size_bytes, file.modified): file for file in scored}
    may_rewrite = config.replace or config.rescore == "replace" or config.on_changed_file == "replace"
    to_scan = [entry for entry in listed if may_rewrite or entry.stamp not in known]
    settings = ScanSettings(
        config.reader,
        config.columns,
        ids=config.ids.unique != "off",
        id_digests=config.ids.unique == "slot",
    )
    kept = planning.kept_scans(store, plans, settings) if to_scan else {}
    missing = [entry for entry in to_scan if entry.stamp not in kept]
    scans = scan_files(missing, settings, executor_for(sum(entry.size_bytes for entry in missing)))
    found = kept | {entry.stamp: scan for entry, scan in zip(missing, scans, strict=True)}
    seen = {entry.path: found.get(entry.stamp) or KnownFile(_known_record(known[entry.stamp])) for entry in listed}
    return _compared(ScannedInput(seen, settings), known, scored, executor_for)


def _compared(
    scanned: ScannedInput,
    known: Mapping[tuple[str, int, str], FileCount],
    scored: Sequence[FileCount],
    executor_for: ExecutorFor,
) -> ScannedInput:
    """Digests of whole contents, where files that are not known have the size and fingerprint of another."""
    seen = dict(scanned.seen)
    scans = {path: scan for path, scan in seen.items() if isinstance(scan, FileScan)}
    new = [scan.file for scan in scans.values() if scan.file.entry.stamp not in known]
    looks = {(file.size_bytes, file.fingerprint) for file in new}
    sizes = {file.size_bytes for file in new}
    # Entries of earlier versions have a digest and no fingerprint.
    alike = [
        file
        for file in scored
        if (file.size_bytes, file.fingerprint) in looks
        or (file.fingerprint is None and file.digest is not None and file.size_bytes in sizes)
    ]
    again = [file for file in alike if file.digest is None]
    there = [file for file in again if _is_there(file)]
    gone = {file.path for file in again} - {file.path for file in there}
    comparable = [file for file in alike if file.path not in gone]
    old_sizes = {file.size_bytes for file in comparable if file.fingerprint is None}
    others = [(file.size_bytes, file.fingerprint) for file in comparable if file.fingerprint is not None]
    others += [(file.size_bytes, file.fingerprint) for file in new if file.size_bytes in old_sizes]
    for file in with_digests_where_alike(new, executor_for, others):
        seen[file.path] = replace(scans[file.path], file=file)
    for path, scan in scans.items():
        record = known.get(scan.file.entry.stamp)
        if record is not None and scan.file.digest is None:
            seen[path] = replace(scan, file=replace(scan.file, digest=record.digest))
    entries = [_entry(file) for file in there]
    digests = dict(zip([entry.path for entry in entries], digests_of(entries, executor_for), strict=True))
    return replace(scanned, seen=seen, digests=digests, gone=frozenset(gone))


def _entry(file: FileCount) -> FileEntry:
    return FileEntry(file.path, file.relative_path, file.format, file.size_bytes, file.modified)


def _is_there(file: FileCount) -> bool:
    """Whether a scored file can still be read as it was."""
    return is_unchanged(_entry(file), file.fingerprint)


def _known_record(file: FileCount) -> FileRecord:
    fields = file.model_dump(exclude={"rows_in", "rows_scored", "rows_quarantined"})
    return FileRecord(**fields, num_rows=file.rows_in)


def decide(config: NightConfig, info: BundleInfo, entries: Ledger, scanned: ScannedInput) -> Tonight:
    """Hold the input against the ledger: which files are new, which slots are rewritten.

    Raises:
        ConfigError: a column is missing.
        DataRefused: bad files with on_bad_file=fail.
        ConflictError: a scored file changed, or files of a slot to rewrite are not in the input any more.
    """
    _check_slot(config, list(info.labels))
    settings = night_settings(config, info)
    tonight = _decided(config, info, entries, settings, scanned)
    if config.on_bad_file == "quarantine":  # a file with other columns is a bad file too, and costs no other
        # What repeats the content of a bad file is no duplicate any more, and is looked at in its turn.
        while faults := _column_faults(config, tonight):
            tonight = _decided(config, info, entries, settings, tonight.scanned.with_faults(faults))
    else:
        bad = [seen for file in tonight.to_read if isinstance(seen := scanned.seen[file.path], BadFile)]
        refuse_bad_files("input", bad, list(scanned.seen), "Repair or remove them, or set `on_bad_file=quarantine`.")
    for decision in tonight.decisions:
        if decision.is_unsure:
            log.warning("%s: %s", decision.file.path, decision.why)
    readable = tonight.readable(tonight.to_read)
    spec = spec_for(config, info, readable)
    check_columns(readable, spec)
    check_slices(readable, spec, config.report_options.slices)
    return tonight


def _column_faults(config: NightConfig, tonight: Tonight) -> dict[str, BadFile]:
    """By path, the files to read whose columns are missing, or other than those of most files read with them."""
    spec = spec_for(config, tonight.info, tonight.readable(tonight.to_read))
    found: dict[str, BadFile] = {}
    for together in (tonight.new_files, *(rewrite.files for rewrite in tonight.rewrites)):
        readable = tonight.readable(together)
        faults = {file.path: fault for file in readable if (fault := column_fault(file, spec)) is not None}
        found |= faults | kept_faults([file for file in readable if file.path not in faults], spec)
    again = [d.file for d in tonight.decisions if d.verdict == "duplicate" and d.twin in found]
    repeated = {file.path: column_fault(file, spec) for file in tonight.readable(again)}
    return found | {path: fault for path, fault in repeated.items() if fault is not None}


def _decided(
    config: NightConfig,
    info: BundleInfo,
    entries: Ledger,
    settings: dict[str, Any],
    scanned: ScannedInput,
) -> Tonight:
    records = [_record(file) for file in scanned.seen.values()]
    decisions = planning.decide_files(records, entries, digests=scanned.digests, gone=scanned.gone)
    rewrites = list(_rewrites(config, info, entries, settings, decisions))
    rewritten = {rewrite.slot for rewrite in rewrites}
    changed = [d for d in decisions if d.verdict == "changed" and d.slot not in rewritten]
    if changed:
        raise ConflictError(
            f"input: {counted(len(changed), 'scored file')} changed: {changed[0].file.path} ({changed[0].why}).",
            "Deliver changes under a new name, set `on_changed_file=replace`, or score into another output.",
        )
    return Tonight(info, entries, decisions, rewrites, scanned, settings)


def _rewrites(
    config: NightConfig,
    info: BundleInfo,
    entries: Sequence[CommittedRun],
    settings: Mapping[str, Any],
    decisions: Sequence[planning.FileDecision],
) -> Iterator[Rewrite]:
    """Slots to rewrite, each once with the files of all its runs, in the order in which they were first committed."""
    by_path = {decision.file.path: decision for decision in decisions}
    owned: defaultdict[str, list[str]] = defaultdict(list)
    for path, (_, entry) in sorted(planning.owners(entries).items()):
        owned[entry.slot].append(path)
    runs_of: dict[str, list[CommittedRun]] = {}
    for entry in ledger.current(entries):
        runs_of.setdefault(entry.slot, []).append(entry)
    for slot, runs in runs_of.items():
        version = runs[0].version
        mine = [by_path[path].file for path in owned[slot] if path in by_path]
        missing = [path for path in owned[slot] if path not in by_path]
        changed = [d for d in decisions if d.verdict == "changed" and d.slot == slot]
        others = [entry.model_version for entry in runs if entry.model_version != info.model_version]
        if config.replace and slot == config.slot:
            new = [d.file for d in decisions if d.verdict == "score" and d.file.path not in owned[slot]]
            files = sorted([*mine, *new], key=lambda file: file.path)
            key = planning.plan_key(files, info.model_version, settings, version=version)
            if [run.plan_key for run in runs] != [key]:
                yield Rewrite(slot, version + 1, files, "replace=true")
        elif changed and config.on_changed_file == "replace":
            if missing:
                raise ConflictError(
                    f"slot {slot}: {changed[0].file.path} changed, and rewriting the slot also needs {missing[0]}, "
                    "which is not in the input.",
                    "Give all files of the slot as `input`.",
                )
            yield Rewrite(slot, version + 1, mine, f"{len(changed)} of its files changed")
        elif config.rescore == "replace" and others:
            if missing:
                log.warning(
                    "slot %s keeps its model: %d of its %d files are not in the input",
                    slot,
                    len(missing),
                    len(owned[slot]),
                )
            elif mine:
                yield Rewrite(slot, version + 1, mine, f"scored with model {', '.join(dict.fromkeys(others))}")


def _check_slot(config: NightConfig, labels: list[str]) -> None:
    if config.replace and config.slot is None:
        raise ConfigError(
            "replace=true: expected a slot to replace, found none.", "Name it: `slot=dt=2026-11-20 replace=true`."
        )
    keys = [key.casefold() for key in s.partition_columns(config.slot or "")]
    ours = {name.casefold() for name in (*s.scored_schema(labels, pa.schema([]), needs_review=True).names, s.EMBEDDING)}
    ours.add(s.TOKENS)
    if len(set(keys)) < len(keys) or not ours.isdisjoint(keys):
        raise ConfigError(
            f"slot={config.slot}: readers would see two columns {keys[0]!r}, that of the slot and that of the rows.",
            "Name the slot with another key.",
        )


def spec_for(config: NightConfig, info: BundleInfo, files: Sequence[InputFile]) -> ReadSpec:
    """Settings for reading some files; labels are used when every file has the column."""
    looks_at_labels = isinstance(config, ScoreConfig) and bool(files)
    return read_spec(
        config,
        info.cleaning,
        info.max_chars,
        wants_label=looks_at_labels and all(label_is_readable(file, config.columns) for file in files),
        keep_columns=list(dict.fromkeys([*config.keep_columns, *config.report_options.slices])),
        unique_ids=config.ids.unique != "off",
    )


def night_settings(config: NightConfig, info: BundleInfo) -> dict[str, Any]:
    """The part of the config that decides what is written."""
    settings = {
        "columns": config.columns.model_dump(),
        "reader": config.reader.model_dump(),
        "keep_columns": list(config.keep_columns),
        "max_length": config.max_length or info.max_length,
        "long_text": config.long_text or info.long_text,
        "unique_ids": config.ids.unique,
    }
    if isinstance(config, EmbedConfig):
        return settings | {
            "pooling": config.pooling,
            "normalize": config.normalize,
            "dtype": config.dtype,
            "cleaning": asdict(info.cleaning),
            "max_chars": info.max_chars,
        }
    assert isinstance(config, ScoreConfig)
    if config.precision != "auto":
        settings["precision"] = config.precision
    return settings | {
        "needs_review_below": config.needs_review_below,
        "labels": label_map(config.labels, info.label_map).to_json(),
        "slices": list(config.report.slices),
    }


def check_comparable(config: EmbedConfig, info: BundleInfo, store: Store, entries: Sequence[CommittedRun]) -> None:
    """Refuse to put vectors of two kinds into one output, where they are meant to be compared with each other.

    Raises:
        ConflictError: those that are there were made in another way or by another model.
    """
    check_claim(store, config.verb, config.verb)
    wanted = night_settings(config, info)
    for entry in ledger.current(entries):
        for name in wanted:
            held = entry.settings.get(name)
            if name not in _FREE and held != wanted[name]:
                raise ConflictError(
                    f"{config.output}: holds vectors with {name}={held}, not {wanted[name]}.",
                    "Choose another `output`; vectors of two kinds cannot be compared.",
                )
        if entry.model_version != info.model_version:
            raise ConflictError(
                f"{config.output}: holds vectors of model version {entry.model_version}, not {info.model_version}.",
                "Choose another `output`; vectors of two models cannot be compared.",
            )


def _record(seen: Seen) -> FileRecord:
    if isinstance(seen, KnownFile):
        return seen.record
    scan = seen if isinstance(seen, FileScan) else None
    bad = seen if isinstance(seen, BadFile) else None
    file = seen.file if isinstance(seen, FileScan) else seen
    return FileRecord(
        path=file.path,
        relative_path=file.relative_path,
        format=scan.file.format if scan else "unknown",
        size_bytes=file.size_bytes,
        modified=file.modified,
        num_rows=file.num_rows,
        fingerprint=scan.file.fingerprint if scan else None,
        digest=scan.file.digest if scan else None,
        reason=None if bad is None else str(bad.reason),
        detail=None if bad is None else bad.detail,
    )


# --- the next plan ---------------------------------------------------------------------------------------------------


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
        planning.keep_scans(store, pinned.plan, tonight.scans(pinned.plan.files), tonight.scanned.settings)
    return pinned


def _rows_per_part(config: NightConfig, tonight: Tonight, files: Sequence[FileRecord]) -> int:
    rows = planning.rows_per_part(sum(file.num_rows or 0 for file in files))
    if isinstance(config, EmbedConfig) and config.pooling == "tokens":
        return min(rows, max(1, TOKENS_PER_PART // int(tonight.settings["max_length"])))
    return rows


def check_unchanged(config: NightConfig, plan: Plan) -> None:
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
