"""A night: new review files → staged parts → one ledger entry → published rows, quarantine and report.

`score` and `embed` are nights; they differ in what is made of a review.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from bertray import schema as s
from bertray.config import EmbedConfig, NightConfig, ScoreConfig, to_yaml
from bertray.errors import ConflictError, DataRefused, DriftFound
from bertray.execution import metrics
from bertray.execution.executor import Executor
from bertray.execution.on_demand import Executors, executors_of
from bertray.execution.resources import Resources
from bertray.io import faults
from bertray.io.pool import in_pool
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import BundleInfo, resolve_model
from bertray.model.training_texts import read_training_texts
from bertray.outputs import ledger, publish
from bertray.outputs.claims import check_free_space, check_publishing, check_put_if_absent, claim_output
from bertray.outputs.commit import commit, make_entry
from bertray.outputs.control_files import LedgerEntry, LedgerRun, Plan, StagedFile
from bertray.outputs.heartbeat import Heartbeat, live_attempt
from bertray.outputs.ledger import Ledger
from bertray.outputs.receipts import staging_folder, verify_cover, verify_staged, without_overlap
from bertray.reports.night import NightReport
from bertray.reviews.corpus import Inputs
from bertray.reviews.reader import kept_schema, plan_shards, work_units
from bertray.reviews.rows import Aspects, ReadSpec, Shard
from bertray.reviews.scan import FileScan, repeated_across
from bertray.runs.acceptance import accept_nights
from bertray.runs.evaluation_page import in_words
from bertray.runs.night_quality import record_truth
from bertray.runs.night_report import (
    has_report,
    past_tense,
    read_report,
    report_folder,
    scoring_rate,
    write_night_report,
)
from bertray.runs.night_results import CommittedRun, ScoreResult
from bertray.runs.nights_overview import write_index
from bertray.runs.notices import send
from bertray.runs.results import Figures, Report
from bertray.runs.tracking import check_tracking, track_nights
from bertray.scoring import plan as planning
from bertray.scoring.decide import Tonight, check_comparable, decide, spec_for
from bertray.scoring.models import check_precision, open_model
from bertray.scoring.next_plan import check_inputs_as_planned, next_plan
from bertray.scoring.profiled import ngram_share
from bertray.scoring.read_unit import ReadSettings, num_rows_of
from bertray.scoring.row_makers import EmbedSettings, PartSettings, ScoreSettings
from bertray.scoring.scanned_input import scan_input
from bertray.scoring.stage_part import stage_parts, unfinished
from bertray.wording import counted, duration, percent

log = logging.getLogger(__name__)

OnCommit = Callable[[CommittedRun], None]

ROWS_BEFORE_RATIO = 100  # quarantined rows up to which max_quarantine_ratio does not apply


def score(
    config: ScoreConfig, on_commit: OnCommit = lambda run: None, executors: Executors | None = None
) -> ScoreResult:
    """Score what is new; the same run again is always safe.

    Args:
        on_commit: called with each run as soon as its rows are published and its report is written.
    """
    check_tracking(config)
    notes, store = [], open_store(config.output)
    if config.drift.accept is not None:
        notes.append(accept_nights(config, store))
        write_index(store, ledger.read_ledger(store), config.expect_every)
    if config.truth:
        notes += record_truth(config, store)
    if not config.input:
        return ScoreResult(store.root, tuple(notes), runs=(), num_listed=0)
    with executors_of(config.workers, executors, imports=("ray.data",)) as opened:
        output, runs, num_listed, told = run_night(
            config, open_model(config), opened, on_commit, partial(track_nights, config, store)
        )
    _fail_on_drift(config, store, told)
    return ScoreResult(output, tuple(notes), runs=runs, num_listed=num_listed)


class ToldNight(NamedTuple):
    """A night that this call told of.

    Args:
        run: its entry of the ledger.
        drift: state; None of vectors.
        verdict: on it, in a sentence.
        report: where its page is.
    """

    run: LedgerRun
    drift: str | None
    verdict: str
    report: str


def _tell(
    config: NightConfig, store: Store, known: Ledger, runs: Sequence[LedgerRun], markers: publish.Markers
) -> tuple[ToldNight, ...]:
    """Bring reported nights to the index, to Ray's metrics, and to whom `notify` names; then mark them as reported.

    Of a run that is killed before the mark, the next one tells: twice rather than not at all. The exit code of drift
    is owed until a command ends with it.
    """
    pages = {}
    for run in runs:
        with suppress(FileNotFoundError):  # a run beside us has replaced it
            pages[run.seq] = read_report(store, run)
    write_index(store, known, config.expect_every, pages)
    told = []
    for run in runs:
        if run.seq not in pages:
            continue
        told.append(_told(store, run, pages[run.seq]))
        if told[-1].drift == "alarm":
            metrics.add(metrics.ALARMS, 1)
        if config.notify is not None:
            send(config.notify, _notice(run, pages[run.seq], told[-1].report))
    if isinstance(config, ScoreConfig) and config.on_drift == "fail":
        publish.mark_drifted(store, [night.run for night in told if night.drift == "alarm"])
    faults.point("reported.before_put")
    publish.mark_reported(store, runs, markers)
    return tuple(told)


def _told(store: Store, run: LedgerRun, content: Mapping[str, Any]) -> ToldNight:
    drift = content.get("drift") or {"state": None, "headline": ""}
    return ToldNight(run, drift["state"], drift["headline"], store.uri(f"{report_folder(run)}/report.html"))


def _owed(store: Store, known: Ledger, markers: publish.Markers) -> tuple[ToldNight, ...]:
    """Nights that people were told of, but by a command that was killed, or failed, before its exit code."""
    owed = markers.drifted & markers.reported - markers.failed
    return tuple(_told(store, run, read_report(store, run)) for run in ledger.current(known) if run.seq in owed)


def _notice(run: LedgerRun, content: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Headline of a night for `notify`: counts, severity and where its page is.

    Args:
        content: of its report.json.
    """
    drift = content.get("drift")
    return {
        "text": f"{run.title}: {content['headline']} {drift['headline'] if drift else ''}".strip(),
        "slot": run.slot,
        "run": run.run,
        "severity": content["findings"][0]["severity"] if content["findings"] else "good",  # the worst stands first
        "drift": drift and drift["state"],
        "rows_in": run.rows_in,
        "rows_scored": run.rows_scored,
        "rows_quarantined": run.rows_quarantined,
        "report": address,
    }


def _fail_on_drift(config: ScoreConfig, store: Store, nights: Sequence[ToldNight]) -> None:
    """Raise DriftFound where a night drifted and the config asks for it; rows and reports are in place."""
    drifted = [night for night in nights if night.drift == "alarm"]
    if drifted and config.on_drift == "fail":
        publish.mark_failed(store, [night.run for night in drifted])
        raise DriftFound(
            f"slot {drifted[0].run.title}: {drifted[0].verdict} Its rows are committed.",
            f"Look at {drifted[0].report}; if the night is as it should be, accept it by `drift.accept`.",
        )


class Night(NamedTuple):
    """Outcome of one call of `run_night`."""

    output: str
    runs: tuple[CommittedRun, ...]
    num_listed: int  # files of the input, whether new or in a slot already
    told: tuple[ToldNight, ...]  # of these runs, and of killed ones before them


def run_night(
    config: NightConfig,
    info: BundleInfo,
    executors: Executors,
    on_commit: OnCommit = lambda run: None,
    at_end: Callable[[Ledger], None] = lambda known: None,
) -> Night:
    """Decide, score, commit, publish, report, until nothing is left to do.

    Args:
        config: what to score and where to.
        executors: for scans and for work on rows.
        on_commit: as for `score`.
        at_end: called with all committed runs when nothing is left to do.
    """
    store = open_store(config.output)
    known = ledger.read_ledger(store)
    if isinstance(config, EmbedConfig):
        check_comparable(config, info, store, known)
    markers, num_earlier = publish.read_markers(store, known), len(known)
    known = publish.publish_all(store, known, markers)  # readers see what was committed, whatever came in tonight
    plans = planning.open_plans(store, known)
    aspects = Aspects.of(config, info.aspects)
    scanned = scan_input(config, store, known, plans, executors.for_bytes, aspects)
    tonight = decide(config, info, known, scanned)  # a wrong input is told before the output is touched
    if isinstance(config, ScoreConfig) and (tonight.new_files or tonight.rewrites):
        check_precision(config.precision, config.workers)
    claim_output(store, config.verb, config.verb, to_yaml(config))
    check_put_if_absent(store, single_writer=config.single_writer)
    told = _owed(store, known, markers)
    told += _write_missing_reports(config, info, store, known, num_earlier, markers)
    known = ledger.write_due_snapshot(store, known, num_earlier)
    committed: list[CommittedRun] = []
    while pinned := next_plan(config, tonight, store, plans):
        plan = pinned.plan
        check_publishing(store, plan.slot)
        spec = spec_for(config, info, tonight.readable(plan.files))
        executor = executors.for_rows(sum(file.num_rows or 0 for file in plan.files))
        entry, known = _run_plan(config, tonight, pinned, spec, store, markers, executor)
        report = write_night_report(
            store,
            known,
            entry,
            info,
            config,
            inputs=_inputs_of(plan, tonight, spec),
            executor=executor,
            skipped=_skipped(tonight),
            notes=_unsure(tonight, plan),
            texts=read_training_texts(resolve_model(config.model)) if spec.wants_label else None,
        )
        told += _tell(config, store, known, [entry], markers)
        known = ledger.write_due_snapshot(store, known, num_earlier)
        committed.append(_committed(store, entry, report))
        on_commit(committed[-1])
        tonight = decide(config, info, known, scanned)  # what is left: a plan may hold only some of the files
    at_end(known)
    return Night(store.root, tuple(committed), len(tonight.decisions), told)


def _write_missing_reports(
    config: NightConfig, info: BundleInfo, store: Store, known: Ledger, num_earlier: int, markers: publish.Markers
) -> tuple[ToldNight, ...]:
    """Write the reports that killed runs did not come to, and tell of them; those of runs beside us are theirs."""
    earlier = [run for run in ledger.current(known) if run.seq <= num_earlier]
    unmarked = [run for run in earlier if not markers.is_reported(run)]
    there = in_pool(partial(has_report, store), unmarked, store.num_threads)
    missing = [run for run, is_there in zip(unmarked, there, strict=True) if not is_there]
    for entry in ledger.with_parts(store, missing):
        same = entry.model_version == info.model_version
        of_then = replace(
            info,
            labels=tuple(entry.labels),
            model_version=entry.model_version,
            profile=info.profile if same else None,
        )
        texts = read_training_texts(resolve_model(config.model)) if same and entry.evaluation_parts else None
        write_night_report(store, known, entry, of_then, config, texts=texts)
    return _tell(config, store, known, unmarked, markers) if unmarked else ()


# --- one plan --------------------------------------------------------------------------------------------------------


def _run_plan(
    config: NightConfig,
    tonight: Tonight,
    pinned: planning.PinnedPlan,
    spec: ReadSpec,
    store: Store,
    markers: publish.Markers,
    executor: Executor,
) -> tuple[LedgerEntry, Ledger]:
    started, plan = time.monotonic(), pinned.plan
    attempt = uuid.uuid4().hex[:8]
    beside = not (pinned.is_new or config.takeover)
    if beside and (holder := live_attempt(store, staging_folder(plan))):
        raise ConflictError(
            f"slot {plan.slot}: another run is at work on it ({holder}).",
            "Wait for it; if it is dead or lost, set `takeover=true`.",
        )
    check_free_space(store, sum(file.size_bytes for file in plan.files))
    work = work_units(_shards(config, tonight, plan), plan.rows_per_shard)
    adopted, work = ([], work) if pinned.is_new else unfinished(store, staging_folder(plan), work)
    executor = executor.for_rows(num_rows_of(work))
    is_score = isinstance(config, ScoreConfig)
    read = ReadSettings(
        spec,
        config.model,
        plan.settings["max_length"],
        plan.settings["long_text"],
        with_terms=is_score,
        unit=config.vocabulary_unit if isinstance(config, EmbedConfig) else None,
        profile_share=ngram_share(sum(file.num_rows or 0 for file in plan.files)) if is_score else None,
    )
    settings = _part_settings(config, tonight, plan, spec, attempt, executor.resources)
    doing = {"score": "scoring", "embed": "embedding"}[config.verb]
    with Heartbeat(store, settings.staging, plan.run_id):
        made = stage_parts(work, [(read, settings)], executor, doing, num_rows_of(work))
        receipts = without_overlap([*adopted, *(receipt for (receipt,) in made)])
        faults.point("verify.before")
        verify_cover(plan, receipts)
        check_inputs_as_planned(config, plan)
        entry = make_entry(
            plan,
            tonight.entries,
            receipts,
            _quarantine_files(plan, store, attempt),
            adopted=len(adopted),
            seconds=time.monotonic() - started,
            # Parts of an earlier attempt count with the time that attempt spent on them.
            compute_seconds=sum(receipt.seconds for receipt in receipts) / executor.resources.num_workers,
        )
        _check_refused(config, entry)
        verify_staged(store, plan, entry)
        entry, known = commit(store, tonight.entries, entry, beside=plan.beside)
        known = publish.publish(store, known, entry.slot, markers)
    return entry, known


def _shards(config: NightConfig, tonight: Tonight, plan: Plan) -> list[Shard]:
    """Every shard of a plan; `file_no` is the file's place in the plan."""
    found = [(number, tonight.scanned.seen[planned.path]) for number, planned in enumerate(plan.files)]
    scans = {number: scan for number, scan in found if isinstance(scan, FileScan)}
    if config.ids.unique == "slot":
        repeated = repeated_across(list(scans.values()))
    else:
        repeated = [scan.repeated_ids for scan in scans.values()]
    shards = []
    for (file_no, scan), rows in zip(scans.items(), repeated, strict=True):
        cut = plan_shards([scan.file], plan.rows_per_shard, {0: rows})
        shards += [replace(shard, file_no=file_no) for shard in cut]
    return shards


def _part_settings(
    config: NightConfig, tonight: Tonight, plan: Plan, spec: ReadSpec, attempt: str, resources: Resources
) -> PartSettings:
    kept = kept_schema(tonight.readable(plan.files), replace(spec, keep_columns=config.keep_columns))
    taken = s.partition_columns(plan.slot)
    common: dict[str, Any] = {
        "model": config.model,
        "model_version": plan.model_version,
        "run_id": plan.run_id,
        "output": store_root(config.output),
        "staging": f"{staging_folder(plan)}/{attempt}",
        "kept_columns": config.keep_columns,
        "kept_schema": kept,
        "partition_columns": taken,
        "by_aspect": spec.aspects is not None,
        "write_parts": True,
        "device": resources.device,
        "threads": resources.threads,
    }
    if isinstance(config, EmbedConfig):
        # Two kept columns of one name are told here, not by an actor.
        s.embedded_schema([pa.list_(pa.float32())], kept, aspect=spec.aspects is not None, taken=taken)
        return EmbedSettings(**common, pooling=config.pooling, normalize=config.normalize, dtype=config.dtype)
    assert isinstance(config, ScoreConfig)
    s.scored_schema(plan.labels, kept, aspect=spec.aspects is not None, taken=taken)
    return ScoreSettings(
        **common,
        labels=tonight.info.labels,
        temperature=tonight.info.temperature,
        with_labels=spec.wants_label,
        slice_columns=config.report.slices,
        needs_review_below=plan.settings["needs_review_below"],
        precision=config.precision,
        int8_bound=tonight.info.int8_bound,
        profile_by=config.drift.by,
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
    key = f"{staging_folder(plan)}/{attempt}/q-files.parquet"
    store.put(key, content)
    return [StagedFile(key=key, rows=len(rows), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())]


def _check_refused(config: NightConfig, entry: LedgerEntry) -> None:
    """Refuse to commit where too many rows were refused, or all of them; warn of a file that gave nothing."""
    refused = entry.rows_quarantined
    of_nothing = [file for file in entry.files if file.rows_in != 0 and not file.rows_scored]
    if of_nothing and not entry.rows_scored and config.max_quarantine_ratio < 1:
        reason, times = max(entry.reasons.items(), key=lambda item: item[1])
        raise DataRefused(
            f"quarantine: nothing of {counted(len(of_nothing), 'file')} ({counted(entry.rows_in, 'row')}) "
            f"could be scored, first {of_nothing[0].path}; most often {reason} ({times}). Nothing was committed.",
            "Look at the input and at how `reader` and `columns` read it; if it is as it should be, set "
            "max_quarantine_ratio=1.",
        )
    if of_nothing:
        log.warning("%s gave no row to score, such as %s", counted(len(of_nothing), "file"), of_nothing[0].path)
    if refused > ROWS_BEFORE_RATIO and refused > config.max_quarantine_ratio * entry.rows_in:
        reason, times = max(entry.reasons.items(), key=lambda item: item[1])
        raise DataRefused(
            f"quarantine: {refused:,} of {counted(entry.rows_in, 'row')} ({percent(refused / entry.rows_in)}) would be "
            f"kept out, above "
            f"max_quarantine_ratio={config.max_quarantine_ratio}; most often {reason} ({times}). "
            "Nothing was committed.",
            "Look at the input; if it is as it should be, raise max_quarantine_ratio.",
        )


# --- results ---------------------------------------------------------------------------------------------------------


def _inputs_of(plan: Plan, tonight: Tonight, spec: ReadSpec) -> Inputs:
    """The readable files of a plan, to read shown texts again."""
    found = enumerate(tonight.scanned.seen[file.path] for file in plan.files)
    good = {file_no: scan.file for file_no, scan in found if isinstance(scan, FileScan)}
    return Inputs(list(good.values()), spec, file_nos=list(good))


def _skipped(tonight: Tonight) -> list[dict[str, str]]:
    return [
        {"path": decision.file.path, "why": decision.why}
        for decision in tonight.decisions
        if decision.verdict != "score"
    ]


def _unsure(tonight: Tonight, plan: Plan) -> list[str]:
    """Scored files that may have been scored before, which nobody can tell any more."""
    planned = {file.path for file in plan.files}
    unsure = [decision for decision in tonight.decisions if decision.is_unsure and decision.file.path in planned]
    return [f"{decision.file.path}: {decision.why}." for decision in unsure[:20]]


def _committed(store: Store, entry: LedgerEntry, report: NightReport) -> CommittedRun:
    """An entry of the ledger as a result shows it."""
    evaluation = report.evaluation.evaluation if report.evaluation else None
    log.info("slot %s committed in %s", entry.title, duration(entry.seconds))
    return CommittedRun(
        slot=entry.slot,
        run=entry.run,
        title=entry.title,
        done=past_tense(entry),
        num_files=len(entry.files),
        rows_in=entry.rows_in,
        rows_done=entry.rows_scored,
        rows_quarantined=entry.rows_quarantined,
        row_reasons=entry.row_reasons,
        file_reasons=entry.file_reasons,
        label_counts=entry.label_counts,
        rows_per_s=scoring_rate(entry),
        data=store.uri(f"data/{entry.folder}"),
        report=Report(store.uri(f"{report_folder(entry)}/report.html")),
        figures=None if evaluation is None else Figures.from_json(evaluation.to_json()),
        summary=() if evaluation is None else tuple(in_words(evaluation).splitlines()),
        drift=None if report.drift is None else report.drift.drift.state,
        drift_told="" if report.drift is None else report.drift.headline,
    )
