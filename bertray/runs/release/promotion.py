"""Promotion through the release gate: candidate beside the model in use → refusal, or a version and the pointer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.config import EvaluateConfig, PromoteConfig
from bertray.errors import ConfigError, DataRefused, GateRefused
from bertray.evaluation.baselines import fit_tfidf_logreg
from bertray.evaluation.intervals import wilson_estimate
from bertray.evaluation.leakage import WARNING_SHARE
from bertray.evaluation.paired import SliceGain, slice_gains
from bertray.execution.executor import Executor
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import INFO_FILE, read_info, resolve_model
from bertray.reports.comparison import ComparisonReport
from bertray.reports.html import data_title, model_title
from bertray.reviews.fetch import fetch_texts
from bertray.reviews.kept_rows import Keep, KeptRows
from bertray.reviews.split import group_hash
from bertray.runs.answered_rows import is_answers
from bertray.runs.evaluated import STAGING, new_staging
from bertray.runs.release.model_comparison import comparison_report, leaks
from bertray.runs.release.pair import Pair, open_pair, score_pair
from bertray.runs.results import PAGE, Report, Result
from bertray.scoring.models import check_precision
from bertray.trust.gate import GateDecision, decide
from bertray.trust.registry import (
    COMPARISON,
    HistoryEntry,
    Registry,
    check_name,
    current,
    new_entry,
    rows_digest,
    rows_sketch,
    uses_of,
)
from bertray.wording import counted

REFUSED = "refused"
ABANDONED_AFTER = timedelta(days=7)
MAX_TFIDF_ROWS = 20_000
NUM_FOLDS = 5


@dataclass(frozen=True, repr=False)
class PromotionResult(Result):
    """Outcome of a promotion that was not refused; `output` is the version as `model` takes it.

    Attributes:
        name, version: the pointer.
        previous: version before it; None of a first one.
        sentences: of the gate.
        forced: let in against the gate.
        already_done: the pointer stood on this version before.
    """

    name: str = ""
    version: str = ""
    previous: str | None = None
    sentences: tuple[str, ...] = ()
    forced: bool = False
    already_done: bool = False

    @property
    def report(self) -> Report:
        """The page of the comparison that let it in."""
        return Report(self.path(f"{COMPARISON}/{PAGE}"))

    @property
    def headline(self) -> str:
        return f"{self.name} stands for {self.version}"


def promote(config: PromoteConfig, executors: Executors | None = None) -> PromotionResult:
    """Judge a candidate and, where it passes or is forced, move the pointer to it.

    Args:
        executors: run the work; by default those of this call, which end with it.

    Raises:
        ConfigError: a name, registry, model or input that cannot be used.
        ConflictError: another promotion came first.
        DataRefused: no usable test set, or more than 1 % of it was seen by one of the two models in training.
        GateRefused: the gate said no; the history holds the refusal, and the pointer stays.
    """
    started = time.monotonic()
    candidate = _candidate(config)
    pointer, version = candidate.pointer, candidate.version
    if pointer is not None and pointer.version == version:
        return candidate.result(previous=pointer.previous, already_done=True)
    candidate.registry.check_writable(candidate.name)
    with executors_of(config.workers, executors) as opened:
        pair, report = _compared(candidate, opened, started)
    decision, entry = _judged(candidate, pair, report)
    report = replace(report, gate=decision.sentences, passed=decision.passed)
    files = _files(pair, report, decision)
    if config.output is not None:
        copy = open_store(config.output)
        for file_name, content in files.items():
            copy.put(file_name, content)
    if not decision.passed and not config.force:
        raise candidate.refused(decision, files, entry)
    candidate.admit(files, entry, forced=not decision.passed)
    return candidate.result(
        pair.notes,
        previous=pointer.version if pointer else None,
        sentences=tuple(decision.sentences),
        forced=not decision.passed,
    )


@dataclass(frozen=True)
class _Candidate:
    """A bundle that is to stand for a name.

    Attributes:
        history: of the name, when the promotion began.
    """

    config: PromoteConfig
    name: str
    registry: Registry
    folder: Path
    version: str
    history: Sequence[HistoryEntry]

    @property
    def pointer(self) -> HistoryEntry | None:
        """The promotion or rollback by which the name stands for the model in use; None of a first one."""
        return current(self.history)

    def refused(self, decision: GateDecision, files: Mapping[str, bytes], entry: Mapping[str, Any]) -> GateRefused:
        """Error of a refusal, which the registry keeps with its page."""
        store, folder = self.registry.store, f"{self.name}/{REFUSED}/{self.version}"
        for file_name, content in files.items():
            store.put(f"{folder}/{file_name}", content)
        self.registry.append_refusal(self.name, new_entry("refuse", self.history, self.version, **entry))
        stays = f"stays on {self.pointer.version}" if self.pointer else "stands for no model yet"
        return GateRefused(
            f"{self.name}: {' '.join(decision.sentences)}",
            f"{self.name} {stays}. See {store.uri(f'{folder}/report.html')}. More labelled reviews find smaller gains; "
            "`force=true reason=...` lets it in all the same.",
        )

    def admit(self, files: Mapping[str, bytes], entry: Mapping[str, Any], *, forced: bool) -> None:
        """Put the version into the registry, then move the pointer to it."""
        self.registry.put_version(self.name, self.version, self.folder, files)
        self.registry.append(self.name, new_entry("promote", self.history, self.version, forced=forced, **entry))

    def result(self, notes: tuple[str, ...] = (), **fields: Any) -> PromotionResult:
        path = self.registry.version_path(self.name, self.version)
        return PromotionResult(path, notes, name=self.name, version=self.version, **fields)


def _candidate(config: PromoteConfig) -> _Candidate:
    """The bundle of a config, and the history of its name."""
    name = check_name(config.name)
    registry = Registry(config.registry, create=True)
    folder = resolve_model(config.model)
    if not (folder / INFO_FILE).is_file():
        raise ConfigError(
            f"model={config.model}: expected a bundle of `train`, found a model without {INFO_FILE}.",
            "Train from it, and promote the `model` folder of the run.",
        )
    version = read_info(folder, model=config.model).model_version
    return _Candidate(config, name, registry, folder, version, registry.history(name))


def _compared(candidate: _Candidate, executors: Executors, started: float) -> tuple[Pair, ComparisonReport]:
    """Both models on the test set, where no model has seen it; a first candidate beside its baselines."""
    config, name, registry, pointer = candidate.config, candidate.name, candidate.registry, candidate.pointer
    sides = [config.model] if pointer is None else [registry.version_path(name, pointer.version), config.model]
    of_answers = [path for path in config.input if is_answers(path)]
    if of_answers and len(of_answers) < len(config.input):
        raise ConfigError(
            f"input: expected answers alone or other labelled reviews alone, found both (answers: {of_answers[0]}).",
            "Answers are rows drawn with known probabilities; judge by one of the two.",
        )
    columns = tuple(dict.fromkeys((*config.protect, *config.report.slices, *([s.PROBABILITY] if of_answers else []))))
    opened = open_pair([_evaluation_of(config, model) for model in sides], columns, executors.for_bytes, labelled=True)
    check_precision(config.precision, config.workers)
    store = open_store(f"{registry.root}/{name}")
    with _staging(store) as staging, executors.session(opened.inputs.num_rows) as executor:
        keep = None
        if pointer is None and opened.inputs.num_rows <= MAX_TFIDF_ROWS:
            keep = Keep(store.root, f"{staging}-texts")
        pair = score_pair(opened, columns, store, executor, staging=staging, keep=keep)
        if of_answers:
            pair = drawn_alike(pair)
        _refuse_leaks(pair, config)
        if keep is not None:
            kept = KeptRows.in_folder(store, keep.folder)
            pair = replace(pair, notes=(*pair.notes, *_tfidf_note(pair, kept, executor, config.seed)))
        report = comparison_report(
            config,
            pair,
            executor,
            title=f"{model_title(config.model)} as {name}, on {data_title(config.input)}",
            slices=pair.slices,
            ordered=config.labels_ordered,
            started=started,
        )
    return pair, report


def drawn_alike(pair: Pair) -> Pair:
    """Answers that were drawn at random, thinned until each row of the slot had the same chance to be among them.

    The other answers are to rows that the model in use is unsure of, on which any other model looks better.

    Raises:
        DataRefused: no answer has a probability.
    """
    chance_N = pc.cast(pair.slices[s.PROBABILITY], pa.float64()).to_numpy(zero_copy_only=False)
    known_N = chance_N > 0  # of NaN, too
    if not known_N.any():
        raise DataRefused(
            "input: none of the answers has a probability of being drawn: the model in use was unsure of them.",
            "Answer the rows of a queue whose `why` is random, too.",
        )
    least = chance_N[known_N].min()
    draw_N = group_hash(pair.ids).astype(np.float64) / 2**64
    kept = np.flatnonzero(known_N & (draw_N * np.where(known_N, chance_N, 1.0) < least))
    note = (
        f"{counted(len(kept), 'answer')} of {pair.num_rows:,} judge the models: drawn at random, and thinned so that "
        "each review had the same chance."
    )
    slices = {name: values for name, values in pair.slices.items() if name != s.PROBABILITY}
    return replace(pair, slices=slices, notes=(*pair.notes, note)).taken(kept)


@contextmanager
def _staging(store: Store) -> Iterator[str]:
    """Start of the names of one promotion's staged files, which go with it, as do those that died long ago."""
    own = new_staging()
    try:
        yield own
    finally:
        for file in store.listing(STAGING):
            if file.key.startswith(own) or datetime.now(UTC) - file.modified > ABANDONED_AFTER:
                store.delete(file.key)


def _judged(candidate: _Candidate, pair: Pair, report: ComparisonReport) -> tuple[GateDecision, dict[str, Any]]:
    """Decision of the gate, and the entry of the history that keeps it."""
    config, is_first = candidate.config, candidate.pointer is None
    assert report.comparison is not None
    assert pair.input_hash_N is not None
    rows = pair.input_hash_N, pair.label_ids_N, pair.labels
    digest, sketch = rows_digest(*rows), rows_sketch(*rows)
    decision = decide(
        report.comparison.counts,
        _protected(pair, config.protect),
        tolerance=0.0 if is_first else config.tolerance,
        use=uses_of(candidate.history, digest, sketch) + 1,
        first=is_first,
        seed=config.seed,
    )
    return decision, {
        "source": config.model,
        "test_digest": digest,
        "test_sketch": sketch,
        "rows": pair.num_rows,
        "gate": decision.to_json(),
        "reason": config.reason or "",
    }


def _protected(pair: Pair, columns: Sequence[str]) -> dict[str, dict[str, SliceGain]]:
    """Gains by column and value; unlike those of the page, of every value, however many there are."""
    right_a_N, right_b_N = (p.argmax(axis=1) == pair.label_ids_N for p in (pair.probs_a_NC, pair.probs_b_NC))
    return {
        column: slice_gains(right_a_N, right_b_N, pair.slices[column], max_values=pair.num_rows) for column in columns
    }


def _files(pair: Pair, report: ComparisonReport, decision: GateDecision) -> dict[str, bytes]:
    """Files of a comparison by name."""
    content = {**report.to_json(), "gate": decision.to_json()}
    return {
        "comparison.json": json.dumps(content, indent=1, ensure_ascii=False).encode(),
        "report.html": report.to_html().encode(),
        "flips.parquet": parquet_bytes(report.flips.table),
    }


def _evaluation_of(config: PromoteConfig, model: str) -> EvaluateConfig:
    shared: Mapping[str, Any] = {name: getattr(config, name) for name in EvaluateConfig.model_fields}
    return EvaluateConfig(**{**shared, "model": model, "output": f"{Registry(config.registry).root}/{config.name}"})


def _refuse_leaks(pair: Pair, config: PromoteConfig) -> None:
    for share, finding in leaks(pair, config.seed):
        if share > WARNING_SHARE:
            raise DataRefused(
                f"input: expected reviews that no model was trained on, found {100 * share:.1f} % that were. "
                f"{finding.sentence}",
                "Judge it on other labelled reviews; at most 1 % may be known to a model.",
            )


def _tfidf_note(pair: Pair, kept: KeptRows, executor: Executor, seed: int) -> list[str]:
    """Accuracy of TF-IDF on the same rows, each fold judged by what learned on the others."""
    if pair.num_rows < 2 * NUM_FOLDS:
        return []
    assert pair.place_N2 is not None
    texts = np.array(fetch_texts(executor, kept.units, pair.place_N2[:, 0], pair.place_N2[:, 1]), object)
    fold_N = np.random.default_rng(seed).permutation(pair.num_rows) % NUM_FOLDS
    hits = 0
    for fold in range(NUM_FOLDS):
        rest_N = fold_N != fold
        fitted = fit_tfidf_logreg(texts[rest_N].tolist(), pair.label_ids_N[rest_N], len(pair.labels), seed)
        hits += int((fitted.probs(texts[~rest_N].tolist()).argmax(axis=1) == pair.label_ids_N[~rest_N]).sum())
    accuracy = wilson_estimate(hits, pair.num_rows)
    return [f"TF-IDF + logistic regression, cross-fitted on these rows alone: accuracy {accuracy}."]
