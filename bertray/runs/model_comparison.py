"""Comparison of two models: scored rows of both → paired tests, flips, page; or the reviews worth a label.

Shape letters: N rows, F flips.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

import bertray
from bertray import schema as s
from bertray.config import CompareConfig, PromoteConfig, to_yaml
from bertray.console import duration
from bertray.errors import ConfigError
from bertray.evaluation.intervals import mean_estimate
from bertray.evaluation.leakage import find_leakage
from bertray.evaluation.metrics import confusion_matrix
from bertray.evaluation.ordered import TITLES, ordered_metrics
from bertray.evaluation.paired import PairedComparison, compare_paired
from bertray.evaluation.summary import evaluate_predictions
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import Executor
from bertray.execution.on_demand import OnDemand
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import csv_bytes, parquet_bytes
from bertray.outputs.claims import claimed_output, finished_run, mark_finished
from bertray.reports.comparison import ComparedModel, ComparisonReport, Flips
from bertray.reports.html import data_title, model_title
from bertray.reviews.corpus import Inputs
from bertray.runs.evaluated import STAGING, texts_at
from bertray.runs.pair import (
    OpenedPair,
    Pair,
    Side,
    is_output,
    join_outputs,
    labels_by_id,
    open_pair,
    score_pair,
)
from bertray.runs.results import PAGE, Report, Result
from bertray.scoring.models import check_precision
from bertray.wording import counted

MAX_CHANGES = 20  # rows of the table of changes on the page
QUEUE_CSV, QUEUE_PARQUET = "queue.csv", "queue.parquet"
NOT_F1 = (
    "Labels of disagreements alone decide which model is right more often; macro F1 cannot be had from them, nor the "
    "accuracy of either model."
)


@dataclass(frozen=True, repr=False)
class ComparisonResult(Result):
    """Outcome of a comparison.

    Attributes:
        figures: the content of comparison.json.
        already_done: the same run had finished before.
        queue: path of queue.csv, with rows=disagreements.
    """

    figures: Mapping[str, Any] = field(default_factory=dict)
    already_done: bool = False
    queue: str | None = None

    @property
    def report(self) -> Report:
        """The page of the comparison."""
        return Report(self.path(PAGE))

    @property
    def headline(self) -> str:
        return self.sentences[0]

    @property
    def verdict(self) -> str:
        return str(self.figures["verdict"])

    @property
    def sentences(self) -> list[str]:
        """Evidence, then power."""
        return [self.figures["sentence"], *filter(None, [self.figures.get("power_sentence")])]


def compare(config: CompareConfig) -> ComparisonResult:
    """Compare two models or two outputs; the same run again gives back what it had found.

    Raises:
        ConfigError: one is a model and the other an output, or they have other classes.
        DataRefused: no common id, no usable label, or labels of one class.
    """
    started = time.monotonic()
    kinds = [is_output(path) for path in (config.a, config.b)]
    if kinds[0] != kinds[1]:
        of = dict(zip(kinds, ("a", "b"), strict=True))
        raise ConfigError(
            f"expected two models or two outputs, found an output as {of[True]} and a model as {of[False]}.",
            "Give the `model` folder of the run, or score the reviews with both models.",
        )
    store = open_store(config.output)
    if kinds[0]:
        if config.rows == "disagreements":
            raise ConfigError("rows=disagreements: expected two models, found two outputs.", "Leave `rows` out.")
        pair = _joined(config)
        key = _run_key(config, _digest(pair))
        if finished_run(store, "compare", key):
            return _stored(store)
        with claimed_output(store, "compare", key, to_yaml(config)):
            return _finish(config, store, pair, None, None, started)
    labelled = config.rows == "all"
    if not config.input:
        raise ConfigError("compare: expected input beside two models, found none.", "Add `input=`: labelled reviews.")
    with OnDemand(config.workers) as executors:
        return _compare_models(config, store, labelled, executors, started)


def _compare_models(
    config: CompareConfig, store: Store, labelled: bool, executors: OnDemand, started: float
) -> ComparisonResult:
    configs = [config.evaluation_of(model) for model in (config.a, config.b)]
    opened = open_pair(configs, config.report.slices, executors.for_bytes, labelled=labelled)
    key = _run_key(config, opened.identity)
    if finished_run(store, "compare", key):
        return _stored(store)
    check_precision(config.precision, config.workers)
    with (
        claimed_output(store, "compare", key, to_yaml(config)),
        executors.session(opened.inputs.num_rows) as executor,
    ):
        pair = score_pair(opened, config.report.slices, store, executor)
        return _finish(config, store, pair, opened, executor, started)


def _joined(config: CompareConfig) -> Pair:
    truth = None
    if config.input:
        labels = join_outputs(config.a, config.b, {}).labels
        truth = labels_by_id(config.evaluation_of(config.a), labels)
    return join_outputs(config.a, config.b, truth)


def _run_key(config: CompareConfig, identity: str) -> str:
    settings = config.model_dump(mode="json", exclude={"output", "registry", "workers"})
    return cache_key({"config": settings, "identity": identity})


def _digest(pair: Pair) -> str:
    digest = hashlib.sha256("\n".join(pair.ids.to_pylist()).encode())
    for array in (pair.label_ids_N, pair.probs_a_NC, pair.probs_b_NC):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _stored(store: Store) -> ComparisonResult:
    figures = json.loads(store.get("comparison.json"))
    queue = store.uri(QUEUE_CSV) if store.exists(QUEUE_CSV) else None
    return ComparisonResult(store.root, tuple(figures["notes"]), figures, already_done=True, queue=queue)


def _finish(
    config: CompareConfig,
    store: Store,
    pair: Pair,
    opened: OpenedPair | None,
    executor: Executor | None,
    started: float,
) -> ComparisonResult:
    inputs = opened.inputs if opened else None
    queue = None
    if config.rows == "disagreements":
        assert inputs is not None
        assert executor is not None
        pair = replace(pair, notes=(*pair.notes, NOT_F1))
        queue = _write_queue(config, store, pair, inputs, executor)
    what = f" on {data_title(config.input)}" if config.input else ""
    report = comparison_report(
        config,
        pair,
        inputs,
        executor,
        title=f"{model_title(config.b)} beside {model_title(config.a)}{what}",
        slices=pair.slices,
        ordered=config.labels_ordered,
        started=started,
    )
    store.put("flips.parquet", parquet_bytes(flips_table(pair)))
    store.put("report.html", report.to_html().encode())
    figures = report.to_json()
    store.put("comparison.json", json.dumps(figures, indent=1, ensure_ascii=False).encode())
    mark_finished(store)
    for key in store.keys(STAGING):
        store.delete(key)
    return ComparisonResult(store.root, tuple(figures["notes"]), figures, queue=queue)


def comparison_report(
    config: CompareConfig | PromoteConfig,
    pair: Pair,
    inputs: Inputs | None,
    executor: Executor | None,
    *,
    title: str,
    slices: Mapping[str, pa.Array],
    ordered: bool,
    started: float,
) -> ComparisonReport:
    """Everything that is said of a pair, for the page and comparison.json."""
    comparison = compare_pair(pair, slices, config.seed, ordered=ordered) if pair.labelled else None
    report_options = config.report
    models = []
    for name, side, probs_NC in (("A", pair.a, pair.probs_a_NC), ("B", pair.b, pair.probs_b_NC)):
        evaluation = None
        metrics = {}
        if comparison is not None:
            evaluation = evaluate_predictions(
                pair.label_ids_N, probs_NC, pair.labels, split="input", seed=config.seed, model_name=name
            )
            metrics = dict(evaluation.metrics)
            if ordered:
                matrix_CC = confusion_matrix(pair.label_ids_N, probs_NC.argmax(axis=1), len(pair.labels))
                metrics |= ordered_metrics(matrix_CC, config.seed)
        models.append(ComparedModel(name, side.model, side.model_version, metrics, side.rows_per_s, evaluation))
    paths = config.input or ()
    return ComparisonReport(
        title=title,
        rows=pair.num_rows,
        a=models[0],
        b=models[1],
        comparison=comparison,
        flips=_flips(pair, inputs, executor, report_options.num_mistakes),
        findings=[finding for _, finding in leaks(pair, config.seed)],
        notes=pair.notes,
        facts={
            **{f"model {m.name}": m.model for m in models},
            **{f"version of {m.name}": m.model_version for m in models if m.model_version},
            **({"reviews": ", ".join(paths)} if paths else {}),
            "time": duration(time.monotonic() - started),
            "bertray": bertray.__version__,
        },
        config=to_yaml(config),
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        ordered=TITLES if ordered and comparison is not None else {},
    )


def compare_pair(pair: Pair, slices: Mapping[str, pa.Array], seed: int, *, ordered: bool = False) -> PairedComparison:
    """Paired tests of B beside A; with `ordered`, the difference in mean absolute error, too."""
    comparison = compare_paired(
        pair.label_ids_N,
        pair.probs_a_NC,
        pair.probs_b_NC,
        pair.labels,
        name_a="A",
        name_b="B",
        seed=seed,
        slices=slices,
    )
    if not ordered:
        return comparison
    a_N, b_N = (np.abs(p.argmax(axis=1) - pair.label_ids_N) for p in (pair.probs_a_NC, pair.probs_b_NC))
    widest = float(len(pair.labels) - 1)
    gain = mean_estimate((b_N - a_N).astype(np.float64), seed, bounds=(-widest, widest))
    return replace(comparison, difference={**comparison.difference, "mean_absolute_error": gain})


def leaks(pair: Pair, seed: int) -> list[tuple[float, Finding]]:
    """For each model whose training texts hold some of the rows, their share and a finding."""
    found = []
    if pair.input_hash_N is None or not pair.labelled:
        return []
    sides: Sequence[tuple[str, Side, np.ndarray]] = (("A", pair.a, pair.probs_a_NC), ("B", pair.b, pair.probs_b_NC))
    for name, side, probs_NC in sides:
        leakage = find_leakage(side.texts, pair.input_hash_N, pair.label_ids_N, probs_NC, pair.labels, seed)
        if leakage is not None:
            found += [(leakage.share, replace(f, sentence=f"{name}: {f.sentence}")) for f in leakage.findings]
    return found


# --- flips and queue -------------------------------------------------------------------------------------------------


def _flipped(pair: Pair) -> np.ndarray:
    """Positions of the rows whose label changes, int64 [F]; those that both models are sure of first."""
    a_N, b_N = pair.probs_a_NC.argmax(axis=1), pair.probs_b_NC.argmax(axis=1)
    flipped_F = np.flatnonzero(a_N != b_N)
    sure_F = pair.probs_a_NC[flipped_F].max(axis=1) + pair.probs_b_NC[flipped_F].max(axis=1)
    return flipped_F[np.argsort(-sure_F, kind="stable")]


def flips_table(pair: Pair) -> pa.Table:
    """`flips.parquet`, the most confident first."""
    rows = _flipped(pair)
    names = pa.array(pair.labels, pa.string())
    given_F = pair.label_ids_N[rows]
    probs_a_FC, probs_b_FC = pair.probs_a_NC[rows], pair.probs_b_NC[rows]
    return pa.table(
        [
            pair.ids.take(pa.array(rows)),
            names.take(pa.array(np.maximum(given_F, 0), mask=given_F < 0)),
            names.take(pa.array(probs_a_FC.argmax(axis=1))),
            names.take(pa.array(probs_b_FC.argmax(axis=1))),
            pa.array(probs_a_FC.max(axis=1).astype(np.float32)),
            pa.array(probs_b_FC.max(axis=1).astype(np.float32)),
        ],
        schema=s.flips_schema(),
    )


def _flips(pair: Pair, inputs: Inputs | None, executor: Executor | None, num_shown: int) -> Flips:
    table = flips_table(pair)
    labels, labels_a, labels_b = (table[name].to_pylist() for name in (s.LABEL, s.LABEL_A, s.LABEL_B))
    shown = table.slice(0, num_shown).to_pylist()
    if inputs is not None and executor is not None and pair.place_N2 is not None and shown:
        place_M2 = pair.place_N2[_flipped(pair)[: len(shown)]]
        texts = texts_at(executor, inputs, place_M2[:, 0], place_M2[:, 1])
        shown = [{**flip, s.TEXT: text} for flip, text in zip(shown, texts, strict=True)]
    known = [triple for triple in zip(labels, labels_a, labels_b, strict=True) if triple[0] is not None]
    return Flips(
        rows=table.num_rows,
        a_right=sum(given == a for given, a, _ in known),
        b_right=sum(given == b for given, _, b in known),
        both_wrong=sum(given not in (a, b) for given, a, b in known),
        changes=dict(Counter(zip(labels_a, labels_b, strict=True)).most_common(MAX_CHANGES)),
        shown=shown,
    )


def _write_queue(config: CompareConfig, store: Store, pair: Pair, inputs: Inputs, executor: Executor) -> str:
    """Write queue.csv and queue.parquet: disagreements to label, a random sample where there are many."""
    flipped_F = np.flatnonzero(pair.probs_a_NC.argmax(axis=1) != pair.probs_b_NC.argmax(axis=1))
    drawn = flipped_F
    if len(flipped_F) > config.budget:
        drawn = np.sort(np.random.default_rng(config.seed).choice(flipped_F, config.budget, replace=False))
    table = queue_table(pair.taken(drawn), inputs, executor, len(drawn) / max(len(flipped_F), 1))
    store.put(QUEUE_CSV, csv_bytes(table))
    store.put(QUEUE_PARQUET, parquet_bytes(table))
    return store.uri(QUEUE_CSV)


def queue_table(pair: Pair, inputs: Inputs, executor: Executor, probability: float) -> pa.Table:
    """Reviews to label, `label` left empty for the answer; `probability` is that of having been drawn."""
    assert pair.place_N2 is not None
    path_of = dict(zip(inputs.file_nos or range(len(inputs.files)), (f.path for f in inputs.files), strict=True))
    names = pa.array(pair.labels, pa.string())
    columns: dict[str, pa.Array] = {s.ID: pair.ids}
    columns[s.INPUT_PATH] = pa.array([path_of[int(number)] for number in pair.place_N2[:, 0]], pa.string())
    columns[s.ROW_NO] = pa.array(pair.place_N2[:, 1], pa.int64())
    texts = texts_at(executor, inputs, pair.place_N2[:, 0], pair.place_N2[:, 1]) if pair.num_rows else []
    columns[s.TEXT] = pa.array(texts, pa.string())
    columns[s.LABEL] = pa.nulls(pair.num_rows, pa.string())
    for label, score, probs_NC in ((s.LABEL_A, s.SCORE_A, pair.probs_a_NC), (s.LABEL_B, s.SCORE_B, pair.probs_b_NC)):
        columns[label] = names.take(pa.array(probs_NC.argmax(axis=1)))
        columns[score] = pa.array(probs_NC.max(axis=1).astype(np.float32))
    columns[s.PROBABILITY] = pa.repeat(pa.scalar(probability), pair.num_rows)
    return pa.table(columns)


def in_words(result: ComparisonResult) -> list[str]:
    """Lines for a person."""
    lines = result.sentences
    if result.queue is not None:
        lines.append(f"{counted(result.figures['flips']['rows'], 'review')} on which A and B differ. {NOT_F1}")
    return lines
