"""The report of one committed slot: made from its ledger entry, so that it cannot disagree with the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bertray.config import ReportOptions
from bertray.errors import DataRefused
from bertray.evaluation.plausibility import judge_rows
from bertray.evaluation.summary import Evaluation
from bertray.evaluation.validation_profile import log_findings
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import THIS_PROCESS, Executor
from bertray.io.store import Store
from bertray.model.bundle import BundleInfo
from bertray.model.training_texts import TrainingTexts
from bertray.outputs import ledger
from bertray.outputs.control_files import CommittedRun, LedgerEntry
from bertray.outputs.ledger import Ledger
from bertray.reports.evaluation import EvaluationReport
from bertray.reports.scoring import FileRows, ScoringReport
from bertray.reviews.corpus import Inputs
from bertray.reviews.labels import LabelMap
from bertray.runs.evaluated import (
    NOT_INT8,
    collect,
    confident_mistakes,
    evaluate_rows,
    int8_in_words,
    row_notes,
    seen_in_training,
)

UNKNOWN_LABELS = "The input has a label column, but none of its values is a class of the model: no accuracy."


def write_night_report(
    store: Store,
    known: Ledger,
    entry: LedgerEntry,
    info: BundleInfo,
    options: ReportOptions,
    *,
    seed: int,
    inputs: Inputs | None = None,
    executor: Executor = THIS_PROCESS,
    skipped: Sequence[Mapping[str, str]] = (),
    notes: Sequence[str] = (),
    texts: TrainingTexts | None = None,
) -> Evaluation | None:
    """Write `reports/<slot>/run=<n>/`: report.html, metrics.json where labels exist, and last report.json.

    Args:
        store: the output.
        known: its ledger.
        entry: what was committed.
        info: of the model, for the cleaning of shown texts and the order of classes.
        options: what of the report is configurable.
        seed: of the intervals.
        inputs: the files behind the entry, in its order, to show texts of mistakes; None after a crash.
        executor: reads these texts.
        skipped: listed files that were not scored: `path`, `why`.
        notes: sentences about the files, for the page.
        texts: that the model was trained on, to tell which labelled rows it has seen.

    Returns:
        The figures on labelled rows, or None where there are no labels.
    """
    folder = report_folder(entry)
    evaluated = _evaluation(store, entry, info, options, seed, inputs, executor, texts)
    findings = row_findings(entry, info)
    log_findings(findings, f"slot {entry.title}")
    report = ScoringReport(
        slot=entry.slot,
        run=entry.run,
        run_id=entry.run_id,
        model=entry.model,
        model_version=entry.model_version,
        files=[
            FileRows(file.path, file.rows_in, file.rows_scored, file.rows_quarantined, file.reason)
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
        config=json.dumps(entry.settings, indent=1, ensure_ascii=False),
        verdicts=findings,
        notes=[*_notes(entry, evaluated), *notes],
        created=entry.committed_at,
        evaluation=evaluated,
        verb=past_tense(entry),
        vectors=_vectors_in_words(entry),
    )
    store.put(f"{folder}/report.html", report.to_html().encode())
    if evaluated is not None:
        metrics = json.dumps(evaluated.metrics_json(), indent=1, ensure_ascii=False)
        store.put(f"{folder}/metrics.json", metrics.encode())
    store.put(f"{folder}/report.json", json.dumps(report.to_json(), indent=1, ensure_ascii=False).encode())
    if entry.version > 1:
        _remove_replaced_reports(store, known, entry.slot)
    return None if evaluated is None else evaluated.evaluation


def report_folder(entry: CommittedRun) -> str:
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


def _notes(entry: LedgerEntry, evaluated: EvaluationReport | None) -> list[str]:
    unknown = [UNKNOWN_LABELS] if entry.evaluation_parts and evaluated is None else []
    if entry.int8 is not None:
        return [*unknown, int8_in_words(entry.int8)]
    asked = entry.settings.get("precision") == "int8" and entry.rows_scored
    return [*unknown, NOT_INT8] if asked else unknown


def row_findings(entry: LedgerEntry, info: BundleInfo) -> list[Finding]:
    """Findings on rows that the model cannot make sense of; of embedded rows, on letters that it cannot read."""
    return judge_rows(entry.profile(entry.rows_scored), info.profile if past_tense(entry) == "scored" else None)


def past_tense(entry: LedgerEntry) -> str:
    """Past tense of the verb for the reviews of an entry."""
    return "embedded" if "pooling" in entry.settings else "scored"


def _vectors_in_words(entry: LedgerEntry) -> str:
    if "pooling" not in entry.settings:
        return ""
    of = {"mean": "mean of the tokens", "cls": "first token", "tokens": "every token"}[entry.settings["pooling"]]
    return f"{of}, {entry.settings['dtype']}{', of length 1' if entry.settings['normalize'] else ''}"


def has_report(store: Store, entry: CommittedRun) -> bool:
    """Whether the report of this very entry was written: a run may die between its commit and its report."""
    try:
        report = json.loads(store.get(f"{report_folder(entry)}/report.json"))
    except (FileNotFoundError, ValueError):  # or damaged: it is written again
        return False
    return bool(report.get("run_id") == entry.run_id)


def scoring_rate(entry: LedgerEntry) -> float:
    """Rows a second while the model was at work; start-up is left out."""
    return entry.rows_scored / entry.compute_seconds if entry.compute_seconds else 0.0


def _evaluation(
    store: Store,
    entry: LedgerEntry,
    info: BundleInfo,
    options: ReportOptions,
    seed: int,
    inputs: Inputs | None,
    executor: Executor,
    texts: TrainingTexts | None,
) -> EvaluationReport | None:
    if not entry.evaluation_parts:
        return None
    labels = LabelMap.from_json(entry.settings["labels"])
    keys = [part.key for part in entry.evaluation_parts]
    try:
        rows = collect(store, keys, info, labels, entry.settings["slices"], entry.rows_quarantined)
    except DataRefused:  # the column is there, but none of its values is a class of the model
        return None
    slot = f"slot {entry.title}"
    evaluation = evaluate_rows(
        rows, inputs, info, split=slot, seed=seed, kind="night", texts=texts, where=slot, executor=executor
    )
    mistakes = [] if inputs is None else confident_mistakes(rows, inputs, info.labels, options.num_mistakes, executor)
    return EvaluationReport(
        title=f"Labelled reviews of {entry.title}",
        evaluation=evaluation,
        mistakes=mistakes,
        notes=row_notes(rows),
        facts=seen_in_training(evaluation),
    )
