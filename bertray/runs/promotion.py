"""Promotion through the release gate: candidate beside the model in use → refusal, or a version and the pointer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bertray.config import EvaluateConfig, PromoteConfig
from bertray.errors import ConfigError, DataRefused, GateRefused
from bertray.evaluation.baselines import fit_tfidf_logreg
from bertray.evaluation.intervals import wilson_estimate
from bertray.evaluation.leakage import WARNING_SHARE
from bertray.execution.executor import Executor
from bertray.execution.on_demand import OnDemand
from bertray.io.store import open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import INFO_FILE, read_info, resolve_model
from bertray.reports.html import data_title, model_title
from bertray.runs.evaluated import STAGING, texts_at
from bertray.runs.model_comparison import comparison_report, flips_table, leaks
from bertray.runs.pair import OpenedPair, Pair, open_pair, score_pair
from bertray.runs.results import PAGE, Report, Result
from bertray.scoring.models import check_precision
from bertray.trust.gate import GateDecision, decide
from bertray.trust.registry import COMPARISON, Registry, check_name, current, new_entry, rows_digest, uses_of

REFUSED = "refused"
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


def promote(config: PromoteConfig) -> PromotionResult:
    """Judge a candidate and, where it passes or is forced, move the pointer to it.

    Raises:
        ConfigError: a name, registry, model or input that cannot be used.
        ConflictError: another promotion came first.
        DataRefused: no usable test set, or more than 1 % of it was seen by one of the two models in training.
        GateRefused: the gate said no; the history holds the refusal, and the pointer stays.
    """
    with OnDemand(config.workers) as executors:
        return _run(config, executors)


def _run(config: PromoteConfig, executors: OnDemand) -> PromotionResult:
    started = time.monotonic()
    name = check_name(config.name)
    registry = Registry(config.registry, create=True)
    folder = resolve_model(config.model)
    if not (folder / INFO_FILE).is_file():
        raise ConfigError(
            f"model={config.model}: expected a bundle of `train`, found a model without {INFO_FILE}.",
            "Train from it, and promote the `model` folder of the run.",
        )
    version = read_info(folder, model=config.model).model_version
    history = registry.history(name)
    pointer = current(history)
    if pointer is not None and pointer.version == version:
        path = registry.version_path(name, version)
        return PromotionResult(path, name=name, version=version, previous=pointer.previous, already_done=True)
    registry.check_writable(name)
    sides = [config.model] if pointer is None else [registry.version_path(name, pointer.version), config.model]
    columns = tuple(dict.fromkeys((*config.protect, *config.report.slices)))
    opened = open_pair([_evaluation_of(config, model) for model in sides], columns, executors.for_bytes, labelled=True)
    check_precision(config.precision, config.workers)
    staging = open_store(f"{registry.root}/{name}")
    try:
        with executors.session(opened.inputs.num_rows) as executor:
            pair = score_pair(opened, columns, staging, executor)
            _refuse_leaks(pair, config)
            if pointer is None:
                pair = replace(pair, notes=(*pair.notes, *_tfidf_note(pair, opened, executor, config.seed)))
            report = comparison_report(
                config,
                pair,
                opened.inputs,
                executor,
                title=f"{model_title(config.model)} as {name}, on {data_title(config.input)}",
                slices=pair.slices,
                ordered=config.labels_ordered,
                started=started,
            )
    finally:
        for key in staging.keys(STAGING):
            staging.delete(key)
    assert report.comparison is not None
    assert pair.input_hash_N is not None
    digest = rows_digest(pair.input_hash_N, pair.label_ids_N, pair.labels)
    decision = decide(
        report.comparison.counts,
        {column: report.comparison.slices[column] for column in config.protect},
        tolerance=0.0 if pointer is None else config.tolerance,
        use=uses_of(history, digest) + 1,
        first=pointer is None,
        seed=config.seed,
    )
    report = replace(report, gate=decision.sentences, passed=decision.passed)
    files = {
        "comparison.json": json.dumps(
            {**report.to_json(), "gate": decision.to_json()}, indent=1, ensure_ascii=False
        ).encode(),
        "report.html": report.to_html().encode(),
        "flips.parquet": parquet_bytes(flips_table(pair)),
    }
    if config.output is not None:
        copy = open_store(config.output)
        for file_name, content in files.items():
            copy.put(file_name, content)
    entry: dict[str, Any] = {
        "source": config.model,
        "test_digest": digest,
        "rows": pair.num_rows,
        "gate": decision.to_json(),
        "reason": config.reason or "",
    }
    if not decision.passed and not config.force:
        for file_name, content in files.items():
            registry.store.put(f"{name}/{REFUSED}/{version}/{file_name}", content)
        registry.append_refusal(name, new_entry("refuse", history, version, **entry))
        raise _refusal(
            name,
            pointer.version if pointer else None,
            decision,
            registry.store.uri(f"{name}/{REFUSED}/{version}/report.html"),
        )
    registry.put_version(name, version, folder, files)
    registry.append(name, new_entry("promote", history, version, forced=not decision.passed, **entry))
    return PromotionResult(
        registry.version_path(name, version),
        pair.notes,
        name=name,
        version=version,
        previous=pointer.version if pointer else None,
        sentences=tuple(decision.sentences),
        forced=not decision.passed,
    )


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


def _refusal(name: str, pointer: str | None, decision: GateDecision, report: str) -> GateRefused:
    why = [decision.sentences[0], *(said for said in decision.sentences if said.startswith("Worse on"))]
    stays = f"{name} stays on {pointer}" if pointer else f"{name} stands for no model yet"
    return GateRefused(
        f"{name}: {' '.join(why)} {decision.sentences[-1]}",
        f"{stays}. See {report}. More labelled reviews find smaller gains; `force=true reason=...` lets it in all the "
        "same.",
    )


def _tfidf_note(pair: Pair, opened: OpenedPair, executor: Executor, seed: int) -> list[str]:
    """Accuracy of TF-IDF on the same rows, each fold judged by what learned on the others."""
    if pair.num_rows > MAX_TFIDF_ROWS or pair.num_rows < 2 * NUM_FOLDS:
        return []
    assert pair.place_N2 is not None
    texts = np.array(texts_at(executor, opened.inputs, pair.place_N2[:, 0], pair.place_N2[:, 1]), object)
    fold_N = np.random.default_rng(seed).permutation(pair.num_rows) % NUM_FOLDS
    hits = 0
    for fold in range(NUM_FOLDS):
        rest_N = fold_N != fold
        fitted = fit_tfidf_logreg(texts[rest_N].tolist(), pair.label_ids_N[rest_N], len(pair.labels), seed)
        hits += int((fitted.probs(texts[~rest_N].tolist()).argmax(axis=1) == pair.label_ids_N[~rest_N]).sum())
    accuracy = wilson_estimate(hits, pair.num_rows)
    return [f"TF-IDF + logistic regression, cross-fitted on these rows alone: accuracy {accuracy}."]
