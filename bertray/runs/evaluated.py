"""From labelled rows to figures and pages: the same for `train`, `evaluate` and labelled nights of `score`."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import EvaluateConfig, TrainConfig, to_yaml
from bertray.console import Ticker, timed
from bertray.errors import DataRefused
from bertray.evaluation.baselines import MAJORITY, TEACHER, TFIDF_LOGREG, TfidfLogreg, fit_tfidf_logreg, majority
from bertray.evaluation.leakage import find_leakage
from bertray.evaluation.ordered import ordered_metrics
from bertray.evaluation.plausibility import judge_rows
from bertray.evaluation.slices import length_bands
from bertray.evaluation.summary import Evaluation, evaluate_predictions
from bertray.evaluation.validation_profile import log_findings
from bertray.evaluation.verdicts import Finding, PageKind, kept_sentence
from bertray.execution.executor import Executor
from bertray.io.store import Store
from bertray.io.tables import one_chunk, parquet_bytes
from bertray.model.bundle import BundleInfo
from bertray.model.profile import Profile
from bertray.model.training_texts import TrainingTexts
from bertray.outputs.control_files import Agreement, Counts, Receipt
from bertray.reports.evaluation import EvaluationReport
from bertray.reviews.corpus import Inputs
from bertray.reviews.fetch import fetch_rows, fetch_texts, whole_texts
from bertray.reviews.labels import LabelMap
from bertray.scoring.read_unit import ReadSettings
from bertray.scoring.stage_part import ScoreSettings, stage_parts
from bertray.settings import ScoringPrecision
from bertray.wording import counted

ROWS_PER_SHARD = 4096
STAGING = "control/staging"


@dataclass(frozen=True)
class EvaluatedRows:
    """Labelled rows with what the model said of them, in the order of the input."""

    ids: pa.Array
    label_ids_N: np.ndarray  # int32, in the model's order of classes
    probs_NC: np.ndarray  # float32
    n_tokens_N: np.ndarray
    script: pa.Array
    slices: dict[str, pa.Array]
    file_no_N: np.ndarray
    row_no_N: np.ndarray
    left_out: int  # rows whose label `labels` leaves out
    unknown: int  # rows whose label the model does not know
    unlabelled: int  # rows without a label
    refused: int  # rows that could not be scored
    input_hash_N: np.ndarray  # uint64, of all that the model reads of a row
    seconds: float = 0.0  # that the model took, all actors together, without their start
    int8: Agreement | None = None
    profile: Profile | None = None  # of all scored rows, with a usable label or not

    @property
    def num_rows(self) -> int:
        return len(self.label_ids_N)


def evaluate_shards(
    inputs: Inputs,
    model: str,
    info: BundleInfo,
    labels: LabelMap,
    store: Store,
    executor: Executor,
    slice_columns: Sequence[str],
    *,
    max_length: int | None = None,
    long_text: str | None = None,
    precision: ScoringPrecision = "auto",
    only_rows: Mapping[int, np.ndarray] | None = None,
    needs_labels: bool = True,
) -> EvaluatedRows:
    """Score labelled reviews by the scoring path, without publishing rows.

    Args:
        inputs: what to read.
        model: the bundle, as `resolve_model` takes it.
        info: its `bertray.json`.
        labels: label values of the input to class names.
        store: the output; staged files lie under `control/` until the report is written.
        executor: runs the work.
        slice_columns: input columns to break the metrics down by.
        max_length, long_text: instead of the bundle's.
        precision: in which the model computes.
        only_rows: file_no -> row numbers to score; by default all.
        needs_labels: rows without a label that the model knows are left out; else they stay, with a negative label id.

    Raises:
        DataRefused: no row has a label that the model knows.
    """
    executor = executor.for_rows(inputs.num_rows)
    read = ReadSettings(inputs.spec, model, max_length or info.max_length, long_text or info.long_text)
    score = ScoreSettings(
        model=model,
        labels=info.labels,
        temperature=info.temperature,
        model_version=info.model_version,
        run_id="",
        output=store.root,
        staging=f"{STAGING}/{uuid.uuid4().hex[:8]}",
        kept_columns=(),
        kept_schema=pa.schema([]),
        with_labels=True,
        slice_columns=tuple(slice_columns),
        needs_review_below=None,
        precision=precision,
        write_parts=False,
        device=executor.resources.device,
        threads=executor.resources.threads,
    )
    receipts: list[Receipt] = []
    num_rows = inputs.num_rows if only_rows is None else sum(len(rows) for rows in only_rows.values())
    work = inputs.work_items(ROWS_PER_SHARD)
    with Ticker("evaluating", num_rows, "reviews") as ticker:
        done = 0
        for receipt in stage_parts(work, read, score, executor, only_rows=only_rows):
            receipts.append(receipt)
            done += receipt.rows_scored + receipt.rows_quarantined
            ticker.update(done)
    keys = [receipt.evaluation.key for receipt in receipts if receipt.evaluation]
    refused = sum(receipt.rows_quarantined for receipt in receipts)
    seconds = sum(receipt.seconds for receipt in receipts)
    counts = sum(receipts, Counts())
    rows = collect(store, keys, info, labels, slice_columns, refused, needs_labels=needs_labels)
    return replace(
        rows,
        seconds=seconds,
        int8=counts.int8,
        profile=counts.profile(sum(receipt.rows_scored for receipt in receipts)),
    )


def collect(
    store: Store,
    keys: Sequence[str],
    info: BundleInfo,
    labels: LabelMap,
    slice_columns: Sequence[str],
    refused: int,
    *,
    needs_labels: bool = True,
) -> EvaluatedRows:
    """Join staged evaluation files into arrays.

    Raises:
        DataRefused: no row has a label that the model knows.
    """
    tables = [pq.read_table(io.BytesIO(store.get(key)), page_checksum_verification=True) for key in keys]
    if not tables:
        raise DataRefused("evaluation: no row could be scored.", "Look at the input.")
    table = pa.concat_tables(tables).sort_by([(s.FILE_NO, "ascending"), (s.ROW_NO, "ascending")]).combine_chunks()
    given_N = labels.ids(one_chunk(table[s.LABEL]))
    # The input's classes in the model's order; a class the model does not have is unknown to it.
    to_model = np.array([info.labels.index(name) if name in info.labels else -1 for name in labels.names], np.int32)
    label_ids_N = np.where(given_N >= 0, to_model[np.maximum(given_N, 0)], given_N)
    usable_N = label_ids_N >= 0 if needs_labels else np.ones(len(label_ids_N), bool)
    if not usable_N.any():
        raise DataRefused(
            f"evaluation: none of {counted(table.num_rows, 'row')} has a label that the model knows "
            f"({', '.join(info.labels)}).",
            "Map the labels of this data, for example `'labels={0: negative, 1: positive}'`.",
        )
    kept = table.filter(pa.array(usable_N))
    return EvaluatedRows(
        ids=one_chunk(kept[s.ID]),
        label_ids_N=label_ids_N[usable_N].astype(np.int32),
        probs_NC=np.column_stack([kept[s.prob_column(label)].to_numpy() for label in info.labels]),
        n_tokens_N=kept[s.N_TOKENS].to_numpy(),
        script=one_chunk(kept[s.SCRIPT]),
        slices={name: one_chunk(kept[s.SLICE_PREFIX + name]) for name in slice_columns},
        file_no_N=kept[s.FILE_NO].to_numpy(),
        row_no_N=kept[s.ROW_NO].to_numpy(),
        left_out=int((label_ids_N == -2).sum()),
        unknown=int((label_ids_N == -1).sum()),
        unlabelled=int((label_ids_N == -3).sum()),
        refused=refused,
        input_hash_N=kept[s.INPUT_HASH].to_numpy(),
    )


def predictions_table(rows: EvaluatedRows, labels: Sequence[str]) -> pa.Table:
    """`predictions.parquet`."""
    names = pa.array(labels, pa.string())
    return pa.table(
        [
            rows.ids,
            names.take(pa.array(rows.label_ids_N)),
            names.take(pa.array(rows.probs_NC.argmax(axis=1))),
            *(pa.array(np.ascontiguousarray(rows.probs_NC[:, c], np.float32)) for c in range(len(labels))),
        ],
        schema=s.predictions_schema(list(labels)),
    )


# --- baselines: trained on the same rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Baselines:
    """Baselines fitted on rows of the same train split."""

    train_label_ids: np.ndarray
    tfidf: TfidfLogreg
    rows_used: int


def train_baselines(
    inputs: Inputs,
    file_no_N: np.ndarray,
    row_no_N: np.ndarray,
    label_ids_N: np.ndarray,
    num_classes: int,
    *,
    max_rows: int,
    seed: int,
    executor: Executor,
) -> Baselines:
    """Fit the baselines on rows of the train split.

    Args:
        inputs: the training files.
        file_no_N, row_no_N: where the rows stand.
        label_ids_N: what the model learned of them: given labels, or those of a teacher.
        num_classes: C.
        max_rows: TF-IDF sees a random sample of this many rows at most.
        seed: of the sample and the solver.
        executor: reads the texts.
    """
    sample = np.sort(np.random.default_rng(seed).permutation(len(label_ids_N))[:max_rows])
    texts = texts_at(executor, inputs, file_no_N[sample], row_no_N[sample])
    tfidf = fit_tfidf_logreg(texts, label_ids_N[sample], num_classes, seed)
    return Baselines(label_ids_N, tfidf, len(texts))


def _baseline_probs(
    executor: Executor, baselines: Baselines, rows: EvaluatedRows, inputs: Inputs
) -> dict[str, np.ndarray]:
    """Probabilities of each baseline on the evaluated rows; texts are read again where they are scored."""
    num_classes = rows.probs_NC.shape[1]
    tfidf_NC = np.empty((rows.num_rows, num_classes))
    sources = [(inputs.shards(ROWS_PER_SHARD), inputs.spec)]
    score = partial(_tfidf_probs, baselines.tfidf)
    for positions_W, probs_WC in fetch_rows(executor, sources, rows.file_no_N, rows.row_no_N, score):
        tfidf_NC[positions_W] = probs_WC
    return {
        MAJORITY: majority(baselines.train_label_ids, num_classes, rows.num_rows),
        TFIDF_LOGREG: tfidf_NC,
    }


def _tfidf_probs(tfidf: TfidfLogreg, kept: pa.Table) -> np.ndarray:
    return tfidf.probs(whole_texts(kept))


def texts_at(executor: Executor, inputs: Inputs, file_no_N: np.ndarray, row_no_N: np.ndarray) -> list[str]:
    """Texts of some rows, read again from the input; the pipeline does not carry them along."""
    return fetch_texts(executor, inputs.shards(ROWS_PER_SHARD), inputs.spec, file_no_N, row_no_N)


def confident_mistakes(
    rows: EvaluatedRows, inputs: Inputs, labels: Sequence[str], count: int, executor: Executor
) -> list[dict[str, Any]]:
    """The wrong predictions with the highest score, each with its text."""
    predicted_N = rows.probs_NC.argmax(axis=1)
    score_N = rows.probs_NC.max(axis=1)
    wrong = np.flatnonzero(predicted_N != rows.label_ids_N)
    wrong = wrong[np.argsort(-score_N[wrong], kind="stable")][:count]
    texts = texts_at(executor, inputs, rows.file_no_N[wrong], rows.row_no_N[wrong])
    return [
        {
            "id": rows.ids[int(row)].as_py(),
            "text": text,
            "label": labels[rows.label_ids_N[row]],
            "prediction": labels[predicted_N[row]],
            "score": float(score_N[row]),
        }
        for row, text in zip(wrong, texts, strict=True)
    ]


def evaluate_rows(
    rows: EvaluatedRows,
    inputs: Inputs | None,
    info: BundleInfo,
    *,
    split: str,
    seed: int,
    kind: PageKind,
    baselines: Baselines | None = None,
    teacher_NC: np.ndarray | None = None,
    best_metric: str = "loss",
    speedup: float | None = None,
    texts: TrainingTexts | None = None,
    findings: Sequence[Finding] = (),
    where: str = "",
    executor: Executor,
) -> Evaluation:
    """All figures of some rows: overall, per class, by length, script and configured columns, beside the baselines.

    Without rows of a train split, the majority class is that of the rows themselves.

    Args:
        rows: with labels.
        inputs: that they stand in, for the baselines.
        info: of the model.
        split: what the rows are.
        seed: of the intervals.
        kind: page that the figures are for.
        baselines: fitted on the training rows.
        teacher_NC: probabilities of a student's teacher.
        best_metric: value of `training.best_metric`, which decides comparisons.
        speedup: rows per second of a student, those of its teacher being 1.
        texts: that the model was trained on, to tell which rows it has seen; what is found of that is logged.
        findings: further ones on the rows.
        where: what the line in the log begins with.
    """
    others: dict[str, np.ndarray] = {}
    if kind != "training":
        others[MAJORITY] = majority(rows.label_ids_N, len(info.labels), rows.num_rows)
    if baselines is not None and inputs is not None:
        others |= _baseline_probs(executor, baselines, rows, inputs)
    if teacher_NC is not None:
        others[TEACHER] = teacher_NC
    slices: dict[str, Any] = {"length": length_bands(rows.n_tokens_N), "script": rows.script, **rows.slices}
    evaluation = evaluate_predictions(
        rows.label_ids_N,
        rows.probs_NC,
        info.labels,
        split=split,
        seed=seed,
        slices=slices,
        baselines=others,
        model_name="the model" if teacher_NC is None else "the student",
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
    findings = [] if rows.profile is None else judge_rows(rows.profile, info.profile)
    log_findings(findings)
    return findings


def finish_report(
    store: Store,
    rows: EvaluatedRows,
    inputs: Inputs,
    info: BundleInfo,
    *,
    split: str,
    title: str,
    config: TrainConfig | EvaluateConfig,
    notes: Sequence[str],
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, Any]] = (),
    baselines: Baselines | None = None,
    teacher_NC: np.ndarray | None = None,
    also: Mapping[str, Any] | None = None,
    speedup: float | None = None,
    texts: TrainingTexts | None = None,
    findings: Sequence[Finding] = (),
    executor: Executor,
) -> EvaluationReport:
    """Write predictions.parquet, report.html and, last, metrics.json; returns the content of the page.

    Args:
        also: goes into metrics.json.
        speedup: rows per second of a student, those of its teacher being 1.
        texts: that the model was trained on, to tell which rows it has seen.
        findings: on the rows, and on the texts of training; logged already.
    """
    best_metric = config.training.best_metric if isinstance(config, TrainConfig) else "loss"
    with timed("figures"):
        evaluation = evaluate_rows(
            rows,
            inputs,
            info,
            split=split,
            seed=config.seed,
            kind="training" if isinstance(config, TrainConfig) else "evaluation",
            baselines=baselines,
            teacher_NC=teacher_NC,
            best_metric=best_metric,
            speedup=speedup,
            texts=texts,
            findings=findings,
            executor=executor,
        )
    if config.labels_ordered:
        ordered = ordered_metrics(np.array(evaluation.confusion_matrix), config.seed)
        evaluation = replace(evaluation, ordered=ordered)
    report = EvaluationReport(
        title=title,
        evaluation=evaluation,
        history=list(history),
        mistakes=confident_mistakes(rows, inputs, info.labels, config.report.num_mistakes, executor),
        notes=[*notes, *row_notes(rows), *_baseline_notes(baselines)],
        facts={**facts, **seen_in_training(evaluation)},
        config=to_yaml(config),
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    store.put("predictions.parquet", parquet_bytes(predictions_table(rows, info.labels)))
    with timed("report"):
        store.put("report.html", report.to_html().encode())
    figures = evaluation.to_json() | dict(also or {})
    store.put("metrics.json", json.dumps(figures, indent=1, ensure_ascii=False).encode())
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
        notes.append(int8_in_words(rows.int8))
    return notes


NOT_INT8 = "int8 was asked for, but this model cannot be computed so and was computed in fp32; the log says why."


def int8_in_words(found: Agreement) -> str:
    """Sentence on the labels that int8 changed, among reviews that were computed in fp32 as well."""
    return (
        f"Computed in int8. Of {found.rows:,} reviews computed in fp32 as well, {found.same_label:,} "
        f"({found.same_label / found.rows:.1%}) got the same label; a probability differed by "
        f"{found.largest_difference:.3f} at most."
    )


def _baseline_notes(baselines: Baselines | None) -> list[str]:
    if baselines is None or baselines.rows_used == len(baselines.train_label_ids):
        return []
    return [f"TF-IDF learned from {baselines.rows_used:,} of {len(baselines.train_label_ids):,} train rows."]


def in_words(evaluation: Evaluation) -> str:
    """Accuracy, macro F1, MCC and the verdicts, the worst first."""
    lines = [
        f"{evaluation.rows:,} rows of {evaluation.split}: "
        + ", ".join(f"{name.replace('_', ' ')} {evaluation.metrics[name]}" for name in ("accuracy", "macro_f1", "mcc"))
    ]
    if TEACHER in evaluation.comparisons:
        lines.append(kept_sentence(evaluation.comparisons[TEACHER], evaluation.speedup))
    lines += [f"{finding.severity}: {finding.sentence}" for finding in evaluation.findings]
    return "\n".join(lines)
