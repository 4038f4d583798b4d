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
from typing import Any

import numpy as np
import pyarrow as pa

import bertray
from bertray import schema as s
from bertray.config import CompareConfig, PromoteConfig, ReportOptions, to_yaml
from bertray.errors import ConfigError
from bertray.evaluation.answered import AnsweredDisagreements
from bertray.evaluation.intervals import mean_estimate
from bertray.evaluation.leakage import find_leakage
from bertray.evaluation.metrics import confusion_matrix
from bertray.evaluation.ordered import TITLES, ordered_metrics
from bertray.evaluation.paired import PairedComparison, compare_paired
from bertray.evaluation.seeds import SeededGain
from bertray.evaluation.summary import evaluate_predictions
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import Executor
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import csv_bytes, parquet_bytes
from bertray.model.explanations import Explanation
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder
from bertray.reports.comparison import OF_A, OF_B, ComparedModel, ComparisonReport, Flips, ShownText
from bertray.reports.html import created_now, data_title, model_title
from bertray.reviews.corpus import Inputs
from bertray.reviews.labels import label_map
from bertray.runs.evaluated import STAGING
from bertray.runs.evaluation_page import text_pairs_at
from bertray.runs.explained import TextPair, joined, marks_of, words_column
from bertray.runs.filled_queues import QUEUE_CSV, QUEUE_PARQUET
from bertray.runs.release.answers import paths_by_number, read_answers, with_answers
from bertray.runs.release.pair import (
    OpenedPair,
    Pair,
    Side,
    is_output,
    join_outputs,
    labels_by_id,
    open_pair,
    score_pair,
)
from bertray.runs.release.seeded import seeded_gain_of
from bertray.runs.results import PAGE, Report, Result
from bertray.runs.tracking import check_tracking, track_comparison
from bertray.scoring.models import check_precision
from bertray.wording import counted, duration

MAX_CHANGES = 20  # rows of the table of changes on the page
REPEATED_SHARE = 0.10  # of rows, from which on copies are told
NOT_F1 = (
    "Labels of disagreements alone decide which model is right more often; macro F1 cannot be had from them, nor the "
    "accuracy of either model."
)

LEFT_OUT = (
    "Not every review of the queue was answered. Those left out are taken to be like the others; if they are the hard "
    "ones, they are not."
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
        seeds = self.figures.get("seeds") or {}
        return [self.figures["sentence"], *filter(None, [self.figures.get("power_sentence"), seeds.get("sentence")])]


def compare(config: CompareConfig, executors: Executors | None = None) -> ComparisonResult:
    """Compare two models or two outputs; the same run again gives back what it had found.

    Args:
        executors: run the work; by default those of this call, which end with it.

    Raises:
        ConfigError: one is a model and the other an output, or they have other classes.
        DataRefused: no common id, no usable label, or labels of one class.
    """
    check_tracking(config)
    result = _compare(config, executors)
    if result.figures:
        track_comparison(config, result.output, result.figures)
    return result


def _compare(config: CompareConfig, executors: Executors | None) -> ComparisonResult:
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
            return _finish(config, store, pair, None, None, started, seeded_gain_of(pair))
    labelled = config.rows == "all"
    if not config.input:
        raise ConfigError("compare: expected input beside two models, found none.", "Add `input=`: labelled reviews.")
    with executors_of(config.workers, executors) as opened:
        return _compare_models(config, store, labelled, opened, started)


def _compare_models(
    config: CompareConfig, store: Store, labelled: bool, executors: Executors, started: float
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
        opened.inputs.keep_scan(store)
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
    if config.aspects is None:  # so that comparisons of before the key are what they were
        settings.pop("aspects")
    if config.answers is not None:
        settings["answers"] = sorted([*place, label] for place, label in read_answers(config.answers).items())
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
    seeded: SeededGain | None = None,
) -> ComparisonResult:
    inputs = opened.inputs if opened else None
    queue, answered = None, None
    if config.rows == "disagreements":
        assert opened is not None
        assert inputs is not None
        assert executor is not None
        pair = replace(pair, notes=(*pair.notes, NOT_F1))
        if config.answers is None:
            queue = _write_queue(config, store, pair, inputs, executor)
        else:
            labels = label_map(config.labels, opened.infos[0].label_map)
            pair, answered = with_answers(pair, read_answers(config.answers), labels, inputs)
            if answered.answers < min(answered.disagreements, config.budget):
                pair = replace(pair, notes=(*pair.notes, LEFT_OUT))
    what = f" on {data_title(config.input)}" if config.input else ""
    report = comparison_report(
        config,
        pair,
        executor,
        title=f"{model_title(config.b)} beside {model_title(config.a)}{what}",
        slices=pair.slices,
        ordered=config.labels_ordered,
        started=started,
        answered=answered,
    )
    report = replace(report, seeded=seeded)
    store.put("flips.parquet", parquet_bytes(report.flips.table))
    store.put("report.html", report.to_html().encode())
    figures = report.to_json()
    store.put("comparison.json", json.dumps(figures, indent=1, ensure_ascii=False).encode())
    mark_finished(store)
    remove_folder(store, STAGING)
    return ComparisonResult(store.root, tuple(figures["notes"]), figures, queue=queue)


def comparison_report(
    config: CompareConfig | PromoteConfig,
    pair: Pair,
    executor: Executor | None,
    *,
    title: str,
    slices: Mapping[str, pa.Array],
    ordered: bool,
    started: float,
    answered: AnsweredDisagreements | None = None,
) -> ComparisonReport:
    """Everything that is said of a pair, for the page and comparison.json.

    Args:
        answered: labels are those of answers to disagreements alone.
    """
    comparison = None
    if pair.labelled and answered is None:
        comparison = compare_pair(pair, slices, config.seed, ordered=ordered)
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
        answered=answered,
        flips=_flips(pair, executor, config.report),
        findings=[*(finding for _, finding in leaks(pair, config.seed)), *_repeated(pair)],
        notes=pair.notes,
        facts={
            **{f"model {m.name}": m.model for m in models},
            **{f"version of {m.name}": m.model_version for m in models if m.model_version},
            **({"reviews": ", ".join(paths)} if paths else {}),
            "time": duration(time.monotonic() - started),
            "bertray": bertray.__version__,
        },
        config=to_yaml(config),
        created=created_now(),
        ordered=TITLES if ordered and comparison is not None else {},
    )


def compare_pair(pair: Pair, slices: Mapping[str, pa.Array], seed: int, *, ordered: bool = False) -> PairedComparison:
    """Paired tests of B beside A; with `ordered`, the difference in mean absolute error, too."""
    comparison = compare_paired(
        pair.label_ids_N,
        pair.probs_a_NC,
        pair.probs_b_NC,
        pair.labels,
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
    if pair.input_hash_N is None or pair.input_hash_b_N is None or not pair.labelled:
        return []
    sides: Sequence[tuple[str, Side, np.ndarray, np.ndarray]] = (
        ("A", pair.a, pair.probs_a_NC, pair.input_hash_N),
        ("B", pair.b, pair.probs_b_NC, pair.input_hash_b_N),
    )
    for name, side, probs_NC, input_hash_N in sides:
        leakage = find_leakage(side.texts, input_hash_N, pair.label_ids_N, probs_NC, pair.labels, seed)
        if leakage is not None:
            found += [(leakage.share, replace(f, sentence=f"{name}: {f.sentence}")) for f in leakage.findings]
    return found


def _repeated(pair: Pair) -> list[Finding]:
    """A finding where many rows are copies of others."""
    if pair.input_hash_N is None:
        return []
    copies = pair.num_rows - len(np.unique(pair.input_hash_N))
    if copies <= REPEATED_SHARE * pair.num_rows:
        return []
    sentence = (
        f"{copies:,} of {pair.num_rows:,} rows repeat the text of another one ({100 * copies / pair.num_rows:.0f} %): "
        "each is counted as a row of its own, so the evidence is weaker than the intervals say."
    )
    return [Finding("warning", sentence)]


# --- flips and queue -------------------------------------------------------------------------------------------------


def _flipped(pair: Pair) -> np.ndarray:
    """Positions of the rows whose label changes, int64 [F]; those that both models are sure of first."""
    a_N, b_N = pair.probs_a_NC.argmax(axis=1), pair.probs_b_NC.argmax(axis=1)
    flipped_F = np.flatnonzero(a_N != b_N)
    sure_F = pair.probs_a_NC[flipped_F].max(axis=1) + pair.probs_b_NC[flipped_F].max(axis=1)
    return flipped_F[np.argsort(-sure_F, kind="stable")]


@dataclass(frozen=True)
class _Read:
    """Reviews as a model reads them and, of the first of them, the words that decided for it; M rows, or none."""

    texts: Sequence[TextPair] = ()
    words: Sequence[Explanation] = ()

    def shown(self, number: int, kind: str) -> ShownText:
        """A row for the page; it is explained where the model was asked."""
        text, explained = self.texts[number], number < len(self.words)
        marks = marks_of(self.words[number], text, kind) if explained else []
        return ShownText(joined(text), marks, (kind,) if explained else ())

    def column(self, num_rows: int) -> pa.Array:
        """Words of so many rows, of which these are the first."""
        return words_column([*self.words, *[None] * (num_rows - len(self.words))])


@dataclass(frozen=True)
class _Shown:
    """Reviews as both models read them; nothing of a model that did not score here."""

    a: _Read = _Read()
    b: _Read = _Read()

    @property
    def texts(self) -> list[str]:
        return [joined(text) for text in self.a.texts or self.b.texts]

    def row(self, number: int) -> list[ShownText]:
        """A row for the page: its text with the words of both models, or two where they read it differently."""
        found = [read.shown(number, kind) for read, kind in ((self.a, OF_A), (self.b, OF_B)) if read.texts]
        if len(found) == 2 and found[0].text == found[1].text:
            a, b = found
            return [ShownText(a.text, [*a.marks, *b.marks], (*a.explained, *b.explained))]
        return found


def _looked_at(pair: Pair, rows_M: np.ndarray, num_explained: int, executor: Executor | None) -> _Shown:
    """Texts of some rows, and for the label that each model gives the words that move its probability most."""
    if executor is None or pair.place_N2 is None or not len(rows_M):
        return _Shown()
    places_M2 = pair.place_N2[rows_M]
    texts: list[tuple[Inputs, list[TextPair]]] = []  # by how they were read
    found = []
    for side, probs_NC in ((pair.a, pair.probs_a_NC), (pair.b, pair.probs_b_NC)):
        if side.inputs is None or side.scored_by is None:
            found.append(_Read())
            continue
        own = next((known for inputs, known in texts if inputs.spec == side.inputs.spec), None)
        if own is None:
            own = text_pairs_at(executor, side.inputs, places_M2[:, 0], places_M2[:, 1])
            texts.append((side.inputs, own))
        labels = [pair.labels[number] for number in probs_NC[rows_M[:num_explained]].argmax(axis=1)]
        found.append(_Read(own, side.scored_by.explain(own[:num_explained], labels, executor)))
    return _Shown(*found)


def _flips_table(pair: Pair, rows_F: np.ndarray, shown: _Shown) -> pa.Table:
    """`flips.parquet`."""
    names = pa.array(pair.labels, pa.string())
    given_F = pair.label_ids_N[rows_F]
    probs_a_FC, probs_b_FC = pair.probs_a_NC[rows_F], pair.probs_b_NC[rows_F]
    return pa.table(
        [
            pair.ids.take(pa.array(rows_F)),
            names.take(pa.array(np.maximum(given_F, 0), mask=given_F < 0)),
            names.take(pa.array(probs_a_FC.argmax(axis=1))),
            names.take(pa.array(probs_b_FC.argmax(axis=1))),
            pa.array(probs_a_FC.max(axis=1).astype(np.float32)),
            pa.array(probs_b_FC.max(axis=1).astype(np.float32)),
            shown.a.column(len(rows_F)),
            shown.b.column(len(rows_F)),
        ],
        schema=s.flips_schema(),
    )


def _flips(pair: Pair, executor: Executor | None, options: ReportOptions) -> Flips:
    rows_F = _flipped(pair)
    looked_at = _looked_at(pair, rows_F[: max(options.num_mistakes, options.explain)], options.explain, executor)
    table = _flips_table(pair, rows_F, looked_at)
    labels, labels_a, labels_b = (table[name].to_pylist() for name in (s.LABEL, s.LABEL_A, s.LABEL_B))
    shown = table.slice(0, options.num_mistakes).to_pylist()
    shown = [{**flip, "texts": looked_at.row(number)} for number, flip in enumerate(shown)]
    known = [triple for triple in zip(labels, labels_a, labels_b, strict=True) if triple[0] is not None]
    return Flips(
        rows=table.num_rows,
        a_right=sum(given == a for given, a, _ in known),
        b_right=sum(given == b for given, _, b in known),
        both_wrong=sum(given not in (a, b) for given, a, b in known),
        changes=dict(Counter(zip(labels_a, labels_b, strict=True)).most_common(MAX_CHANGES)),
        shown=shown,
        table=table,
    )


def _write_queue(config: CompareConfig, store: Store, pair: Pair, inputs: Inputs, executor: Executor) -> str:
    """Write queue.csv and queue.parquet: disagreements to label, a random sample where there are many."""
    flipped_F = np.flatnonzero(pair.probs_a_NC.argmax(axis=1) != pair.probs_b_NC.argmax(axis=1))
    drawn = flipped_F
    if len(flipped_F) > config.budget:
        drawn = np.sort(np.random.default_rng(config.seed).choice(flipped_F, config.budget, replace=False))
    looked_at = _looked_at(pair, drawn, config.report.explain, executor)
    table = _queue_table(pair.taken(drawn), inputs, looked_at, len(drawn) / max(len(flipped_F), 1))
    in_words = table
    for name in (s.WORDS_A, s.WORDS_B):
        told = pa.array([_words_told(words) for words in table[name].to_pylist()], pa.string())
        in_words = in_words.set_column(in_words.column_names.index(name), name, told)
    store.put(QUEUE_CSV, csv_bytes(in_words, exact=True))
    store.put(QUEUE_PARQUET, parquet_bytes(table))
    return store.uri(QUEUE_CSV)


def _queue_table(pair: Pair, inputs: Inputs, looked_at: _Shown, probability: float) -> pa.Table:
    """Reviews to label, `label` left empty for the answer; `probability` is that of having been drawn."""
    assert pair.place_N2 is not None
    path_of = paths_by_number(inputs)
    names = pa.array(pair.labels, pa.string())
    columns: dict[str, pa.Array] = {s.ID: pair.ids}
    columns[s.INPUT_PATH] = pa.array([path_of[int(number)] for number in pair.place_N2[:, 0]], pa.string())
    columns[s.ROW_NO] = pa.array(pair.place_N2[:, 1], pa.int64())
    columns[s.TEXT] = pa.array(looked_at.texts, pa.string())
    columns[s.LABEL] = pa.nulls(pair.num_rows, pa.string())
    for label, score, probs_NC in ((s.LABEL_A, s.SCORE_A, pair.probs_a_NC), (s.LABEL_B, s.SCORE_B, pair.probs_b_NC)):
        columns[label] = names.take(pa.array(probs_NC.argmax(axis=1)))
        columns[score] = pa.array(probs_NC.max(axis=1).astype(np.float32))
    columns[s.WORDS_A], columns[s.WORDS_B] = (read.column(pair.num_rows) for read in (looked_at.a, looked_at.b))
    columns[s.PROBABILITY] = pa.repeat(pa.scalar(probability), pair.num_rows)
    return pa.table(columns)


def _words_told(words: Sequence[Mapping[str, Any]] | None) -> str | None:
    """Words for a cell of a spreadsheet: `great -0.310; not +0.204`, the score without the word beside that with it."""
    if words is None:
        return None
    return "; ".join(f"{word[s.WORD]} {-word[s.CHANGE]:+.3f}" for word in words)


def in_words(result: ComparisonResult) -> list[str]:
    """Lines for a person."""
    lines = result.sentences
    if result.queue is not None:
        lines.append(f"{counted(result.figures['flips']['rows'], 'review')} on which A and B differ. {NOT_F1}")
    return lines
