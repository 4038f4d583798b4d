"""The report of one committed slot: made from its ledger entry, so that it cannot disagree with the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bertray.config import Columns, NightConfig
from bertray.errors import DataRefused
from bertray.evaluation.plausibility import judge_rows
from bertray.evaluation.validation_profile import log_findings
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import THIS_PROCESS, Executor
from bertray.io.store import Store
from bertray.model.bundle import BundleInfo
from bertray.model.training_texts import TrainingTexts
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerEntry, LedgerRun
from bertray.outputs.decisions import ACCEPTED, Acceptance, read_records, read_truths
from bertray.outputs.ledger import Ledger
from bertray.reports.drift import DriftReport
from bertray.reports.evaluation import EvaluationReport
from bertray.reports.night import FileRows, NightReport
from bertray.reports.plain import json_bytes
from bertray.reports.quality import QualityReport
from bertray.reviews.corpus import Inputs
from bertray.reviews.labels import LabelMap
from bertray.runs.drift_examples import examples_of
from bertray.runs.evaluated import collect, slices_of
from bertray.runs.evaluation_page import (
    NOT_INT8,
    confident_mistakes,
    evaluate_rows,
    int8_in_words,
    reading_notes,
    row_notes,
    seen_in_training,
    unlike_machines,
)
from bertray.runs.explained import ScoredBy
from bertray.runs.night_quality import estimate_of, labelled_nights, past_errors, record_labels_of_night
from bertray.runs.nights_overview import link_to_next, linked_to_next, night_before
from bertray.trust.quality import estimate_quality
from bertray.trust.reference import judge_nights
from bertray.wording import command

UNKNOWN_LABELS = "The input has a label column, but none of its values is a class of the model: no accuracy."


def write_night_report(
    store: Store,
    known: Ledger,
    entry: LedgerEntry,
    info: BundleInfo,
    config: NightConfig,
    *,
    inputs: Inputs | None = None,
    executor: Executor = THIS_PROCESS,
    skipped: Sequence[Mapping[str, str]] = (),
    notes: Sequence[str] = (),
    texts: TrainingTexts | None = None,
) -> NightReport:
    """Write `reports/<slot>/run=<n>/`: report.html, metrics.json where labels exist, and last report.json.

    Args:
        entry: what was committed.
        info: of the model, for the cleaning of shown texts and the order of classes.
        inputs: the files behind the entry, in its order, to show texts of mistakes; None after a crash.
        executor: reads these texts.
        skipped: listed files that were not scored: `path`, `why`.
        notes: sentences about the files, for the page.
        texts: that the model was trained on, to tell which labelled rows it has seen.

    Returns:
        What the page shows.
    """
    folder = report_folder(entry)
    evaluated = _evaluation(store, entry, info, config, inputs, executor, texts)
    drift = _drift(store, known, entry, inputs, executor) if past_tense(entry) == "scored" else None
    quality = _quality(store, known, entry, info, drift, evaluated) if drift else None
    before = night_before(known, entry)
    findings = [*row_findings(entry, info), *(drift.findings if drift else [])]
    log_findings(findings, f"slot {entry.title}")
    report = NightReport(
        slot=entry.slot,
        run=entry.run,
        run_id=entry.run_id,
        model=entry.model,
        model_version=entry.model_version,
        files=[
            FileRows(file.path, file.rows_in, file.rows_scored, file.rows_quarantined, file.reason, file.seconds)
            for file in entry.files
        ],
        counts=entry.counts.model_copy(
            update={"label_counts": {label: entry.label_counts.get(label, 0) for label in entry.labels}}
        ),
        quarantined=entry.row_reasons,
        seconds=entry.seconds,
        rows_per_s=scoring_rate(entry),
        needs_review_below=entry.settings.get("needs_review_below"),
        skipped=skipped,
        facts={
            "committed at": entry.committed_at,
            "ledger entry": f"{entry.seq}",
            "parts": f"{len(entry.parts):,}",
            "parts taken over from an interrupted run": f"{entry.adopted_receipts:,}",
            **(evaluated.facts if evaluated is not None else {}),
        },
        config=json_bytes(entry.settings).decode(),
        verdicts=findings,
        notes=[*_notes(entry, info, evaluated), *notes],
        created=entry.committed_at,
        evaluation=evaluated,
        verb=past_tense(entry),
        vectors=_vectors_in_words(entry),
        drift=drift,
        quality=quality,
        before=before,
        price=None if config.price_per_hour is None else config.price_per_hour * entry.seconds / 3600,
    )
    store.put(f"{folder}/report.html", linked_to_next(report.to_html(), known, entry).encode())
    if evaluated is not None:
        store.put(f"{folder}/metrics.json", json_bytes(evaluated.metrics_json()))
    if before is not None:
        link_to_next(store, before, entry)
    store.put(f"{folder}/report.json", json_bytes(report.to_json()))
    if entry.version > 1:
        _remove_replaced_reports(store, known, entry.slot)
    return report


def _drift(
    store: Store, known: Ledger, entry: LedgerEntry, inputs: Inputs | None, executor: Executor
) -> DriftReport | None:
    """The night beside those before it, with texts that drive an alarm; None of a run that was replaced."""
    judged = judge_nights(known, read_records(store, ACCEPTED, Acceptance))
    tonight = next((one for one in judged if one.night.seq == entry.seq), None)
    if tonight is None:
        return None
    examples = {}
    if tonight.drift.alarms and inputs is not None:
        examples = examples_of(tonight, entry, store, inputs, executor)
    accept = command("score", f"drift.accept={entry.slot}", "drift.reason=...", output=store.root)
    return DriftReport(tonight.drift, examples, accept)


def _quality(
    store: Store,
    known: Ledger,
    entry: LedgerEntry,
    info: BundleInfo,
    drift: DriftReport,
    evaluated: EvaluationReport | None,
) -> QualityReport:
    """Accuracy as it is estimated and measured; labels of the night are kept, so that later estimates rest on them."""
    truths, void = read_truths(store), drift.drift.state == "alarm"
    tonight = estimate_of(store, entry, info)
    past = past_errors(truths, entry.model_version, entry.run_id)
    estimate = None if tonight is None else estimate_quality(tonight, past)
    measured = None
    if evaluated is not None:
        measured = (evaluated.evaluation.metrics["accuracy"], evaluated.evaluation.rows)
        if tonight is not None and estimate is not None:
            shown = None if void else (estimate.accuracy.low, estimate.accuracy.high)
            record_labels_of_night(store, entry, evaluated.evaluation, tonight, shown, truths)
    titles = {run.run_id: run.title for run in known}
    labelled = labelled_nights([truth for truth in truths if truth.run_id != entry.run_id], titles)
    return QualityReport(estimate, void, measured, labelled)


def report_folder(entry: LedgerRun) -> str:
    """Folder of a run's report in its output."""
    return f"reports/{entry.folder}"


def _remove_replaced_reports(store: Store, known: Ledger, slot: str) -> None:
    """Remove reports of runs that the slot has no more, and figures on labels that its runs have no more."""
    keys = store.keys(f"reports/{slot}")
    known = ledger.read_on(store, known)  # after the listing: whose report is in it is in the ledger
    runs = {report_folder(run): run for run in ledger.current(known) if run.slot == slot}
    for key in keys:
        run = runs.get(key.rpartition("/")[0])
        if run is None or (key.endswith("/metrics.json") and not run.num_evaluation_parts):
            store.delete(key)


def _notes(entry: LedgerEntry, info: BundleInfo, evaluated: EvaluationReport | None) -> list[str]:
    unknown = [UNKNOWN_LABELS] if entry.evaluation_parts and evaluated is None else []
    texts = Columns(**entry.settings.get("columns", {})).texts
    unknown += reading_notes(texts, entry.settings.get("aspects"), info)
    unknown += unlike_machines(entry.precisions)
    if entry.int8 is not None:
        return [*unknown, int8_in_words(entry.int8, entry.recomputed, entry.rows_scored)]
    asked = entry.settings.get("precision") == "int8" and entry.rows_scored
    return [*unknown, NOT_INT8] if asked else unknown


def row_findings(entry: LedgerEntry, info: BundleInfo) -> list[Finding]:
    """Findings on rows that the model cannot make sense of; of embedded rows, on letters that it cannot read."""
    rows = entry.profile(entry.rows_scored)
    if past_tense(entry) == "embedded":
        return judge_rows(rows, None)
    return judge_rows(rows, info.profile, left_out=not info.reads_encoder)


def past_tense(entry: LedgerEntry) -> str:
    """Past tense of the verb for the reviews of an entry."""
    return "embedded" if "pooling" in entry.settings else "scored"


def _vectors_in_words(entry: LedgerEntry) -> str:
    if "pooling" not in entry.settings:
        return ""
    of = {
        "mean": "mean of the tokens",
        "cls": "first token",
        "tokens": "every token",
        "vocabulary": f"every distinct {entry.settings.get('unit')}",
    }[entry.settings["pooling"]]
    return f"{of}, {entry.settings['dtype']}{', of length 1' if entry.settings['normalize'] else ''}"


def has_report(store: Store, entry: LedgerRun) -> bool:
    """Whether the report of this very entry was written: a run may die between its commit and its report."""
    try:
        report = read_report(store, entry)
    except (FileNotFoundError, ValueError):  # or damaged: it is written again
        return False
    return bool(report.get("run_id") == entry.run_id)


def read_report(store: Store, entry: LedgerRun) -> dict[str, Any]:
    """Content of report.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    content: dict[str, Any] = json.loads(store.get(f"{report_folder(entry)}/report.json"))
    return content


def scoring_rate(entry: LedgerEntry) -> float:
    """Rows a second while the model was at work; start-up is left out."""
    return entry.rows_scored / entry.compute_seconds if entry.compute_seconds else 0.0


def _evaluation(
    store: Store,
    entry: LedgerEntry,
    info: BundleInfo,
    config: NightConfig,
    inputs: Inputs | None,
    executor: Executor,
    texts: TrainingTexts | None,
) -> EvaluationReport | None:
    if not entry.evaluation_parts:
        return None
    labels = LabelMap.from_json(entry.settings["labels"])
    keys = [part.key for part in entry.evaluation_parts]
    try:
        slices = slices_of(entry.settings["slices"], by_aspect="aspects" in entry.settings)
        rows = collect(store, keys, info, labels, slices, entry.rows_quarantined)
    except DataRefused:  # the column is there, but none of its values is a class of the model
        return None
    slot = f"slot {entry.title}"
    evaluation = evaluate_rows(rows, info, split=slot, seed=config.seed, kind="night", texts=texts, where=slot)
    rows = replace(rows, scored_by=ScoredBy.of(entry.model, info, entry.settings))
    options = config.report_options
    mistakes = [] if inputs is None else confident_mistakes(rows, inputs, info.labels, options, executor)
    return EvaluationReport(
        title=f"Labelled reviews of {entry.title}",
        evaluation=evaluation,
        mistakes=mistakes,
        notes=row_notes(rows),
        facts=seen_in_training(evaluation),
    )
