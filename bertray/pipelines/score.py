"""`bertray score`: new review files → scored parts → one ledger entry → published rows, quarantine and report."""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from bertray import schema as s
from bertray.config import ScoreConfig, to_yaml
from bertray.console import Ticker, duration, say, table
from bertray.errors import ConfigError, ConflictError, DataRefused
from bertray.evaluation.evaluation import Evaluation
from bertray.model.bundle import BundleInfo
from bertray.pipelines.cluster import Resources, ray_session
from bertray.pipelines.evaluation import in_words, label_map
from bertray.pipelines.inputs import Inputs, inspect_inputs, open_model, read_spec, refuse_bad_files
from bertray.pipelines.night import has_report, scoring_rate, write_night_report
from bertray.pipelines.runs import check_put_if_absent, claim_output
from bertray.pipelines.shards import SCORE_BINS, ReadSettings, ScoreSettings, parquet_bytes, score_shards
from bertray.reviews.sources import (
    BadFile,
    InputFile,
    ReadSpec,
    Shard,
    check_columns,
    column_fault,
    find_duplicate_ids,
    kept_schema,
    label_is_readable,
    plan_shards,
)
from bertray.storage import ledger
from bertray.storage import plan as planning
from bertray.storage.records import (
    TOKEN_BANDS,
    CommittedPart,
    FileCount,
    FileRecord,
    LedgerEntry,
    Plan,
    Receipt,
    StagedFile,
    add_counts,
    add_histograms,
)
from bertray.storage.store import Store, open_store

log = logging.getLogger(__name__)

ROWS_BEFORE_RATIO = 100  # quarantined rows up to which max_quarantine_ratio does not apply


@dataclass(frozen=True)
class Tonight:
    """Everything decided about a run before any compute: shared by `score` and `plan`."""

    info: BundleInfo
    spec: ReadSpec
    entries: list[LedgerEntry]
    decisions: list[planning.FileDecision]
    looked_at: dict[str, InputFile | BadFile]
    settings: dict[str, Any]

    @property
    def new_files(self) -> list[FileRecord]:
        return [decision.file for decision in self.decisions if decision.verdict == "score"]


def run_score(config: ScoreConfig) -> int:
    """Score what is new; the same command again is always safe."""
    store = open_store(config.output)
    info = open_model(config)
    looked_at = look(config)
    tonight = decide(config, info, store, looked_at)  # a wrong input is told before the output is touched
    claim_output(store, "score", "score", to_yaml(config))
    check_put_if_absent(store, single_writer=config.single_writer)
    entries = ledger.read_ledger(store)
    ledger.publish_all(store, entries)  # whatever a killed run committed but did not publish
    for entry in entries:
        if not has_report(store, entry) and entry.model_version == info.model_version:
            write_night_report(store, entry, info, config.report, seed=config.seed)
    committed = 0
    while plan := _next_plan(config, tonight, store):
        with ray_session(config.workers) as resources:
            entry = _run_plan(config, tonight, plan, store, resources)
        committed += 1
        evaluation = write_night_report(
            store,
            entry,
            info,
            config.report,
            seed=config.seed,
            inputs=_inputs_of(entry, tonight),
            skipped=_skipped(tonight),
        )
        _print_entry(store, entry, evaluation)
        tonight = decide(config, info, store, looked_at)  # a plan of an earlier run may have left files of tonight
    if not committed:
        say(f"nothing new: {len(tonight.decisions)} files listed, all scored before ({store.root})")
    return 0


# --- deciding --------------------------------------------------------------------------------------------------------


def look(config: ScoreConfig) -> dict[str, InputFile | BadFile]:
    """Every file of the input by path, looked at once.

    Raises:
        ConfigError: a path is missing.
        DataRefused: there is no file at all.
    """
    looked_at = {file.path: file for file in inspect_inputs(config.input, config)}
    if not looked_at and not config.allow_empty:
        raise DataRefused(
            f"input: no review file in {', '.join(config.input)}.", "Check the path, or set allow_empty=true."
        )
    return looked_at


def decide(config: ScoreConfig, info: BundleInfo, store: Store, found: Mapping[str, InputFile | BadFile]) -> Tonight:
    """Hold the input against the ledger: which files are new, and how they will be read.

    Raises:
        ConfigError: a column is missing.
        DataRefused: bad files with on_bad_file=fail.
        ConflictError: a scored file changed.
    """
    looked_at = dict(found)
    entries = ledger.read_ledger(store)
    new = [d.file.path for d in _decisions(looked_at, entries) if d.verdict == "score"]
    spec = _spec(config, info, [file for path in new if isinstance(file := looked_at[path], InputFile)])
    if config.on_bad_file == "quarantine":  # a file with other columns is a bad file too, and costs no other
        for path in new:
            file = looked_at[path]
            looked_at[path] = (column_fault(file, spec) or file) if isinstance(file, InputFile) else file
    decisions = _decisions(looked_at, entries)
    if config.on_bad_file == "fail":
        bad = [file for path in new if isinstance(file := looked_at[path], BadFile)]
        refuse_bad_files("input", bad, len(looked_at), "Repair or remove them, or set on_bad_file=quarantine.")
    check_columns([file for path in new if isinstance(file := looked_at[path], InputFile)], spec)
    _check_slot_key(config)
    return Tonight(info, spec, entries, decisions, looked_at, _settings(config, info))


def _decisions(
    looked_at: Mapping[str, InputFile | BadFile], entries: Sequence[LedgerEntry]
) -> list[planning.FileDecision]:
    decisions = planning.decide_files([_record(file) for file in looked_at.values()], entries)
    changed = [d for d in decisions if d.verdict == "changed"]
    if changed:
        raise ConflictError(
            f"input: {len(changed)} scored file{'s' if len(changed) > 1 else ''} changed: {changed[0].file.path} "
            f"({changed[0].why}).",
            "Deliver changes under a new name, or score into another output.",
        )
    return decisions


def _spec(config: ScoreConfig, info: BundleInfo, new: Sequence[InputFile]) -> ReadSpec:
    """How tonight's files are read; labels are used when every one of them has the column."""
    return read_spec(
        config,
        info.cleaning,
        info.max_chars,
        wants_label=bool(new) and all(label_is_readable(file, config.columns) for file in new),
        keep_columns=list(dict.fromkeys([*config.keep_columns, *config.report.slices])),
        unique_ids=config.ids.unique != "off",
    )


def _check_slot_key(config: ScoreConfig) -> None:
    key = (config.slot or "dt=").partition("=")[0]
    if "=" in (config.slot or "dt=") and key in config.keep_columns:
        raise ConfigError(
            f"keep_columns: {key!r} is the slot's own key; readers would see two columns of that name.",
            f"Leave {key} out of keep_columns, or name the slot otherwise.",
        )


def _settings(config: ScoreConfig, info: BundleInfo) -> dict[str, Any]:
    """The part of the config that decides what is written."""
    labels = label_map(config.labels, info)
    return {
        "columns": config.columns.model_dump(),
        "reader": config.reader.model_dump(),
        "keep_columns": list(config.keep_columns),
        "needs_review_below": config.needs_review_below,
        "max_length": config.max_length or info.max_length,
        "long_text": config.long_text or info.long_text,
        "unique_ids": config.ids.unique,
        "labels": labels.to_json(),
        "slices": list(config.report.slices),
    }


def _record(file: InputFile | BadFile) -> FileRecord:
    bad = file if isinstance(file, BadFile) else None
    return FileRecord(
        path=file.path,
        relative_path=file.relative_path,
        format=file.format if isinstance(file, InputFile) else "unknown",
        size_bytes=file.size_bytes,
        modified=file.modified,
        num_rows=file.num_rows,
        digest=file.digest if isinstance(file, InputFile) else None,
        reason=None if bad is None else str(bad.reason),
        detail=None if bad is None else bad.detail,
    )


def _next_plan(config: ScoreConfig, tonight: Tonight, store: Store) -> Plan | None:
    """An unfinished plan of this output that still fits, else a new one over the new files, else None."""
    new = {file.path: file for file in tonight.new_files}
    for plan in reversed(planning.open_plans(store, tonight.entries)):
        fits = plan.model_version == tonight.info.model_version and plan.settings == tonight.settings
        if fits and plan.files and all(new.get(file.path) == file for file in plan.files):
            log.info("resuming slot %s", plan.slot)
            return plan
    slot_taken = config.slot is not None and any(entry.slot == config.slot for entry in tonight.entries)
    if slot_taken and new:
        raise ConflictError(
            f"slot={config.slot}: committed from other inputs; {len(new)} listed files are not among them.",
            "Leave `slot` out to commit them beside it, or choose another slot.",
        )
    default = f"dt={datetime.now(UTC):%Y-%m-%d}"
    slot = config.slot or default
    if not new and (tonight.decisions or any(entry.slot == slot for entry in tonight.entries)):
        return None  # without any file at all, allow_empty commits one empty slot
    files = sorted(new.values(), key=lambda file: file.path)
    return planning.pin_plan(
        store,
        Plan(
            plan_key=planning.plan_key(files, tonight.info.model_version, tonight.settings),
            slot=config.slot or planning.next_slot(default, tonight.entries),
            seq=len(tonight.entries) + 1,
            run_id=uuid.uuid4().hex,
            created_at=datetime.now(UTC).isoformat(),
            model=config.model,
            model_version=tonight.info.model_version,
            labels=list(tonight.info.labels),
            settings=tonight.settings,
            files=files,
            rows_per_shard=config.rows_per_shard,
        ),
    )


# --- doing -----------------------------------------------------------------------------------------------------------


def _run_plan(config: ScoreConfig, tonight: Tonight, plan: Plan, store: Store, resources: Resources) -> LedgerEntry:
    started = time.monotonic()
    attempt = uuid.uuid4().hex[:8]
    files = [tonight.looked_at[file.path] for file in plan.files]
    good = [file for file in files if isinstance(file, InputFile)]
    shards = _shards(config, tonight, plan, files)
    adopted = planning.adopt(
        [(shard.file_no, shard.lo, shard.hi) for shard in shards], planning.stored_receipts(store, plan)
    )
    done_before = {(receipt.file_no, receipt.lo) for receipt in adopted}
    shards = [shard for shard in shards if (shard.file_no, shard.lo) not in done_before]
    rows = sum(shard.hi - shard.lo for shard in shards)
    if adopted:
        log.info("%d finished parts of an earlier attempt are used", len(adopted))
    read = ReadSettings(tonight.spec, config.model, plan.settings["max_length"], plan.settings["long_text"])
    score = _score_settings(config, tonight, plan, attempt, good, resources)
    receipts = list(adopted)
    with Ticker("scoring", rows, "reviews") as ticker:
        done = 0
        for receipt in score_shards(shards, read, score, resources):
            receipts.append(receipt)
            done += receipt.rows_in
            ticker.update(done, f"{done / (time.monotonic() - started):,.0f} rows/s")
    receipts = sorted(planning.without_overlap(receipts), key=lambda r: (r.file_no, r.lo))
    planning.verify_cover(plan, receipts)
    file_level = _quarantine_files(plan, store, attempt)
    # Parts of an earlier attempt count with the time that attempt spent on them.
    compute_seconds = sum(receipt.seconds for receipt in receipts) / resources.num_workers
    entry = _entry(plan, receipts, file_level, len(adopted), time.monotonic() - started, compute_seconds)
    _check_ratio(config, entry)
    entry = _commit(store, plan, entry)
    ledger.publish(store, entry)
    return entry


def _shards(config: ScoreConfig, tonight: Tonight, plan: Plan, files: Sequence[InputFile | BadFile]) -> list[Shard]:
    """Every shard of a plan; `file_no` is the file's place in the plan."""
    shards = []
    for file_no, file in enumerate(files):
        if isinstance(file, InputFile):
            duplicates = find_duplicate_ids(file, tonight.spec)
            cut = plan_shards([file], plan.rows_per_shard, {0: duplicates})
            shards += [replace(shard, file_no=file_no) for shard in cut]
    return shards


def _score_settings(
    config: ScoreConfig, tonight: Tonight, plan: Plan, attempt: str, good: Sequence[InputFile], resources: Resources
) -> ScoreSettings:
    kept = kept_schema(good, replace(tonight.spec, keep_columns=config.keep_columns))
    s.scored_schema(plan.labels, kept)  # two kept columns of one name are told here, not by an actor
    return ScoreSettings(
        model=config.model,
        labels=tonight.info.labels,
        temperature=tonight.info.temperature,
        model_version=plan.model_version,
        run_id=plan.run_id,
        output=store_root(config.output),
        staging=f"{planning.staging_folder(plan)}/{attempt}",
        kept_columns=config.keep_columns,
        kept_schema=kept,
        with_labels=tonight.spec.wants_label,
        slice_columns=config.report.slices,
        needs_review_below=config.needs_review_below,
        write_parts=True,
        device=resources.device,
        threads=resources.threads,
    )


def store_root(output: str) -> str:
    """Absolute, so that a worker in another folder writes to the same place."""
    return open_store(output).root


def _quarantine_files(plan: Plan, store: Store, attempt: str) -> list[StagedFile]:
    """One quarantine row for each file that cannot be read at all."""
    bad = [file for file in plan.files if file.reason is not None]
    if not bad:
        return []
    now = datetime.now(UTC)
    rows = [
        {
            s.INPUT_PATH: file.path,
            s.REASON: file.reason,
            s.DETAIL: file.detail,
            s.RUN_ID: plan.run_id,
            s.QUARANTINED_AT: now,
        }
        for file in bad
    ]
    content = parquet_bytes(pa.Table.from_pylist(rows, schema=s.QUARANTINE_SCHEMA))
    key = f"{planning.staging_folder(plan)}/{attempt}/q-files.parquet"
    store.put(key, content)
    return [StagedFile(key=key, rows=len(rows), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())]


def _entry(
    plan: Plan,
    receipts: Sequence[Receipt],
    file_level: Sequence[StagedFile],
    adopted: int,
    seconds: float,
    compute_seconds: float,
) -> LedgerEntry:
    files = []
    for file_no, file in enumerate(plan.files):
        mine = [receipt for receipt in receipts if receipt.file_no == file_no]
        whole = (file.num_rows or 0) if file.reason is not None else 0
        files.append(
            FileCount(
                path=file.path,
                relative_path=file.relative_path,
                format=file.format,
                size_bytes=file.size_bytes,
                modified=file.modified,
                digest=file.digest,
                rows_in=file.num_rows,
                rows_scored=sum(receipt.rows_scored for receipt in mine),
                rows_quarantined=whole + sum(receipt.rows_quarantined for receipt in mine),
                reason=file.reason,
            )
        )
    reasons = add_counts([*(receipt.reasons for receipt in receipts), *({f.reason: 1} for f in plan.files if f.reason)])
    run8 = plan.run_id[:8]
    quarantine = [*(r.quarantine for r in receipts if r.quarantine), *file_level]
    return LedgerEntry(
        seq=plan.seq,
        slot=plan.slot,
        version=1,
        run_id=plan.run_id,
        plan_key=plan.plan_key,
        committed_at=datetime.now(UTC).isoformat(),
        model=plan.model,
        model_version=plan.model_version,
        labels=plan.labels,
        settings=plan.settings,
        files=files,
        parts=_named([r.part for r in receipts if r.part], run8),
        quarantine_parts=_named(quarantine, run8),
        evaluation_parts=_named([r.evaluation for r in receipts if r.evaluation], run8),
        rows_in=sum(file.rows_in or 0 for file in files),
        rows_scored=sum(file.rows_scored for file in files),
        rows_quarantined=sum(file.rows_quarantined for file in files),
        reasons=reasons,
        label_counts=add_counts(receipt.label_counts for receipt in receipts),
        score_histogram=add_histograms((r.score_histogram for r in receipts), SCORE_BINS),
        token_histogram=add_histograms((r.token_histogram for r in receipts), len(TOKEN_BANDS) + 1),
        tokens=sum(receipt.tokens for receipt in receipts),
        truncated=sum(receipt.truncated for receipt in receipts),
        needs_review=sum(receipt.needs_review for receipt in receipts),
        adopted_receipts=adopted,
        seconds=seconds,
        compute_seconds=compute_seconds,
    )


def _named(staged: Sequence[StagedFile], run8: str) -> list[CommittedPart]:
    return [
        CommittedPart(name=f"part-{number:05d}-{run8}.parquet", **file.model_dump(exclude={"schema_version"}))
        for number, file in enumerate(staged)
    ]


def _check_ratio(config: ScoreConfig, entry: LedgerEntry) -> None:
    refused = entry.rows_quarantined
    if refused > ROWS_BEFORE_RATIO and refused > config.max_quarantine_ratio * entry.rows_in:
        worst = max(entry.reasons.items(), key=lambda item: item[1])
        raise DataRefused(
            f"quarantine: {refused} of {entry.rows_in} rows ({refused / entry.rows_in:.1%}) would be kept out, above "
            f"max_quarantine_ratio={config.max_quarantine_ratio}; most often {worst[0]} ({worst[1]}). "
            "Nothing was committed.",
            "Look at the input; if it is as it should be, raise max_quarantine_ratio.",
        )


def _commit(store: Store, plan: Plan, entry: LedgerEntry) -> LedgerEntry:
    """Append to the ledger; on a lost race go on behind the winner unless it holds one of our files."""
    while (committed := ledger.append(store, entry)) is None:
        entries = ledger.read_ledger(store)
        for other in entries:
            if other.plan_key == plan.plan_key and other.slot == plan.slot:
                log.info("another run committed the same plan")
                return other
            common = {file.path for file in other.files} & {file.path for file in entry.files}
            if common or other.slot == plan.slot:
                raise ConflictError(
                    f"slot {plan.slot}: another run committed "
                    + (f"{sorted(common)[0]} in slot {other.slot}" if common else "this slot")
                    + "; nothing of this run was committed.",
                    "Run the same command again; it scores what is still new.",
                )
        entry = entry.model_copy(update={"seq": len(entries) + 1})
    return committed


# --- telling ---------------------------------------------------------------------------------------------------------


def _skipped(tonight: Tonight) -> list[dict[str, str]]:
    return [
        {"path": decision.file.path, "why": decision.why}
        for decision in tonight.decisions
        if decision.verdict != "score"
    ]


def _inputs_of(entry: LedgerEntry, tonight: Tonight) -> Inputs:
    """The readable files behind an entry, to read shown texts again."""
    found = enumerate(tonight.looked_at[file.path] for file in entry.files)
    good = {file_no: file for file_no, file in found if isinstance(file, InputFile)}
    return Inputs(list(good.values()), tonight.spec, file_nos=list(good))


def _print_entry(store: Store, entry: LedgerEntry, evaluation: Evaluation | None) -> None:
    table(
        f"slot {entry.slot}",
        ["", "rows in", "scored", "quarantined", "rows/s"],
        [
            [
                f"{len(entry.files)} files",
                f"{entry.rows_in:,}",
                f"{entry.rows_scored:,}",
                f"{entry.rows_quarantined:,}",
                f"{scoring_rate(entry):,.0f}",
            ]
        ],
    )
    for reason, count in sorted(entry.reasons.items()):
        say(f"  quarantined {count}: {reason}")
    if evaluation is not None:
        say(in_words(evaluation))
    say(f"data     {store.uri(f'data/{entry.slot}')}")
    say(f"report   {store.uri(f'reports/{entry.slot}/report.html')}")
    log.info("slot %s committed in %s", entry.slot, duration(entry.seconds))
