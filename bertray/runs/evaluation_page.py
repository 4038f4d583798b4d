"""Figures and page of evaluated rows: the same for `train`, `evaluate` and labelled nights of `score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.config import EvaluateConfig, ReportOptions, TrainConfig, to_yaml
from bertray.console import timed
from bertray.evaluation.baselines import MAJORITY, TEACHER, majority
from bertray.evaluation.calibrated import Calibration
from bertray.evaluation.leakage import find_leakage
from bertray.evaluation.metrics import FIGURES
from bertray.evaluation.ordered import ordered_metrics
from bertray.evaluation.plausibility import judge_rows
from bertray.evaluation.slices import length_bands
from bertray.evaluation.summary import Evaluation, evaluate_predictions
from bertray.evaluation.validation_profile import log_findings
from bertray.evaluation.verdicts import Finding, PageKind, kept_sentence
from bertray.execution.executor import Executor
from bertray.io.store import Store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import BundleInfo
from bertray.model.training_texts import TrainingTexts
from bertray.outputs.control_files import Agreement
from bertray.reports.evaluation import EvaluationReport
from bertray.reports.html import created_now
from bertray.reports.plain import Mark, json_bytes
from bertray.reviews.corpus import Inputs
from bertray.reviews.fetch import fetch_text_pairs, shard_rows
from bertray.reviews.rows import ROWS_PER_SHARD
from bertray.runs.evaluated import EvaluatedRows, predictions_table
from bertray.runs.explained import TextPair, joined, marks_of
from bertray.wording import counted, percent


def text_pairs_at(executor: Executor, inputs: Inputs, file_no_N: np.ndarray, row_no_N: np.ndarray) -> list[TextPair]:
    """Texts of some rows with their second texts, read again from the input; the pipeline does not carry them along."""
    return fetch_text_pairs(executor, shard_rows(inputs.shards(ROWS_PER_SHARD), inputs.spec), file_no_N, row_no_N)


def confident_mistakes(
    rows: EvaluatedRows, inputs: Inputs, labels: Sequence[str], options: ReportOptions, executor: Executor
) -> list[dict[str, Any]]:
    """The wrong predictions with the highest score, each with its text and the marks of words that decided it."""
    predicted_N = rows.probs_NC.argmax(axis=1)
    score_N = rows.probs_NC.max(axis=1)
    wrong = np.flatnonzero(predicted_N != rows.label_ids_N)
    wrong = wrong[np.argsort(-score_N[wrong], kind="stable")][: options.num_mistakes]
    texts = text_pairs_at(executor, inputs, rows.file_no_N[wrong], rows.row_no_N[wrong])
    marks: list[list[Mark] | None] = [None] * len(texts)  # None: not explained
    if rows.scored_by is not None:
        some = texts[: options.explain]
        with timed("explanations"):
            found = rows.scored_by.explain(some, [labels[c] for c in predicted_N[wrong][: len(some)]], executor)
        marks[: len(some)] = [marks_of(words, text) for words, text in zip(found, some, strict=True)]
    return [
        {
            "id": rows.ids[int(row)].as_py(),
            "text": joined(text),
            "label": labels[rows.label_ids_N[row]],
            "prediction": labels[predicted_N[row]],
            "score": float(score_N[row]),
            "marks": marks_of_text,
        }
        for row, text, marks_of_text in zip(wrong, texts, marks, strict=True)
    ]


def mistakes_table(mistakes: Sequence[Mapping[str, Any]]) -> pa.Table:
    """`mistakes.parquet`, of `confident_mistakes`."""
    rows = [
        {
            **{name: mistake[name] for name in (s.ID, s.LABEL, s.PREDICTION, s.SCORE)},
            s.WORDS_OF_PREDICTION: _words_of(mistake["text"], mistake["marks"]),
        }
        for mistake in mistakes
    ]
    return pa.Table.from_pylist(rows, schema=s.mistakes_schema())


def _words_of(text: str, marks: Sequence[Mark] | None) -> list[dict[str, Any]] | None:
    return None if marks is None else [{s.WORD: text[m.start : m.end], s.CHANGE: m.change} for m in marks]


def evaluate_rows(
    rows: EvaluatedRows,
    info: BundleInfo,
    *,
    split: str,
    seed: int,
    kind: PageKind,
    beside: Mapping[str, np.ndarray] | None = None,
    best_metric: str = "loss",
    speedup: float | None = None,
    texts: TrainingTexts | None = None,
    findings: Sequence[Finding] = (),
    where: str = "",
) -> Evaluation:
    """All figures of some rows: overall, per class, by length, script and configured columns, beside the baselines.

    Args:
        split, seed, kind, best_metric, speedup: as for `evaluate_predictions`.
        beside: probabilities of baselines that were fitted on the training rows, and of a student's teacher; by default
            those of the majority class of the rows themselves.
        texts: that the model was trained on, to tell which rows it has seen; what is found of that is logged.
        findings: further ones on the rows.
        where: what the line in the log begins with.
    """
    if beside is None:
        beside = {MAJORITY: majority(rows.label_ids_N, len(info.labels), rows.num_rows)}
    with timed("figures"):
        evaluation = evaluate_predictions(
            rows.label_ids_N,
            rows.probs_NC,
            info.labels,
            split=split,
            seed=seed,
            slices={"length": length_bands(rows.n_tokens_N), "script": rows.script, **rows.slices},
            baselines=beside,
            model_name="the student" if TEACHER in beside else "the model",
            kind=kind,
            best_metric=best_metric,
            speedup=speedup,
        )
        leakage = find_leakage(texts, rows.input_hash_N, rows.label_ids_N, rows.probs_NC, info.labels, seed)
    if leakage is not None:
        log_findings(leakage.findings, where)
    return replace(evaluation, leakage=leakage, on_rows=tuple(findings))


def seen_in_training(evaluation: Evaluation) -> dict[str, str]:
    """A fact for the report."""
    return {"rows seen in training": "not known" if evaluation.leakage is None else str(evaluation.leakage)}


def findings_on(rows: EvaluatedRows, info: BundleInfo) -> list[Finding]:
    """Findings, logged, where a model cannot make sense of rows."""
    findings = [] if rows.profile is None else judge_rows(rows.profile, info.profile, left_out=not info.reads_encoder)
    log_findings(findings)
    return findings


def finish_report(
    store: Store,
    rows: EvaluatedRows,
    evaluation: Evaluation,
    inputs: Inputs,
    config: TrainConfig | EvaluateConfig,
    executor: Executor,
    *,
    title: str,
    notes: Sequence[str],
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, Any]] = (),
    also: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> EvaluationReport:
    """Write the files of an evaluation, metrics.json last; returns the content of the page.

    Args:
        evaluation: of the rows, by `evaluate_rows`.
        also: goes into metrics.json.
        calibration: of a training run.
    """
    labels = evaluation.labels
    if config.labels_ordered:
        ordered = ordered_metrics(np.array(evaluation.confusion_matrix), config.seed)
        evaluation = replace(evaluation, ordered=ordered)
    report = EvaluationReport(
        title=title,
        evaluation=evaluation,
        history=history,
        mistakes=confident_mistakes(rows, inputs, labels, config.report, executor),
        notes=[*notes, *row_notes(rows)],
        facts={**facts, **seen_in_training(evaluation)},
        config=to_yaml(config),
        calibration=calibration,
        created=created_now(),
    )
    store.put("mistakes.parquet", parquet_bytes(mistakes_table(report.mistakes)))
    store.put("predictions.parquet", parquet_bytes(predictions_table(rows, labels)))
    with timed("report"):
        store.put("report.html", report.to_html().encode())
    store.put("metrics.json", json_bytes({**evaluation.to_json(), **(also or {})}))
    return report


def row_notes(rows: EvaluatedRows) -> list[str]:
    """Notes on the rows that the figures do not show."""
    notes = []
    if rows.left_out:
        notes.append(f"{counted(rows.left_out, 'row has', 'rows have')} a label that `labels` leaves out; not counted.")
    if rows.unknown:
        notes.append(f"{counted(rows.unknown, 'row has', 'rows have')} a label that the model has not; not counted.")
    if rows.unlabelled:
        notes.append(f"{counted(rows.unlabelled, 'row has', 'rows have')} no label; not counted.")
    if rows.refused:
        notes.append(f"{counted(rows.refused, 'row')} could not be scored (empty or broken); not counted.")
    if rows.int8 is not None:
        notes.append(int8_in_words(rows.int8, rows.recomputed, rows.profile.rows if rows.profile else rows.num_rows))
    return [*notes, *unlike_machines(rows.precisions)]


def unlike_machines(precisions: Mapping[str, int]) -> list[str]:
    """A note on rows that machines of unlike kinds computed, each in its own number format; none of one format.

    Args:
        precisions: number format -> rows.
    """
    if len(precisions) < 2:
        return []
    parts = [f"{counted(rows, 'review')} in {name}" for name, rows in sorted(precisions.items(), key=lambda x: -x[1])]
    return [
        f"Machines of unlike kinds computed {' and '.join(parts)}: numbers of equal reviews may differ in their third "
        "digit."
    ]


def reading_notes(texts: Sequence[str], aspects: Mapping[str, str] | str | None, info: BundleInfo) -> list[str]:
    """Notes on text columns and aspects that a model was not trained on.

    Args:
        texts: columns that the reviews were read from.
        aspects: that the rows were read for; a column of lists, or None, tells of none.
    """
    notes = []
    if info.text_columns and len(texts) != len(info.text_columns):
        notes.append(
            f"The model was trained on the columns {', '.join(info.text_columns)} read as one text, and columns.text "
            f"states {', '.join(texts)}: it saw less, or something else, than in training."
        )
    unknown = [name for name in aspects if name not in info.aspects] if isinstance(aspects, Mapping) else []
    if unknown and info.aspects:
        notes.append(
            f"The model was trained for {', '.join(info.aspects)}, not for {', '.join(unknown)}: of these it knows the "
            "words alone."
        )
    return notes


NOT_INT8 = "int8 was asked for, but this model cannot be computed so and was computed in fp32; the log says why."


def int8_in_words(found: Agreement, recomputed: int, rows: int) -> str:
    """Sentences on what int8 computed, and on the labels that differ among reviews computed in fp32 as well.

    Args:
        recomputed: rows, of `rows` that were scored, whose close decision full precision took.
    """
    return (
        f"Computed in int8, and {recomputed:,} of {counted(rows, 'review')} ({percent(recomputed / max(rows, 1))}), "
        f"whose two best labels were close, again in full precision. "
        f"Of {found.rows:,} reviews computed in fp32 as well, {found.same_label:,} "
        f"({percent(found.same_label / found.rows)}) got the same label; a probability differed by "
        f"{found.largest_difference:.3f} at most."
    )


def in_words(evaluation: Evaluation) -> str:
    """Accuracy, macro F1, MCC and the verdicts, the worst first."""
    lines = [
        f"{evaluation.rows:,} rows of {evaluation.split}: "
        + ", ".join(f"{words} {evaluation.metrics[name]}" for name, words in FIGURES.items())
    ]
    if TEACHER in evaluation.comparisons:
        lines.append(kept_sentence(evaluation.comparisons[TEACHER], evaluation.speedup))
    lines += [f"{finding.severity}: {finding.sentence}" for finding in evaluation.findings]
    return "\n".join(lines)
