"""Evaluation of a model: labelled reviews → predictions, figures, report."""

from __future__ import annotations

import logging
import time

import bertray
from bertray.config import EvaluateConfig, to_yaml
from bertray.console import duration
from bertray.execution.on_demand import OnDemand
from bertray.io.digests import cache_key
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.model.training_texts import read_training_texts
from bertray.outputs.claims import claimed_output, finished_run, mark_finished
from bertray.reports.html import data_title, model_title
from bertray.reviews.corpus import open_inputs, read_spec
from bertray.reviews.labels import label_map
from bertray.reviews.reader import check_slices
from bertray.runs.evaluated import NOT_INT8, STAGING, evaluate_shards, findings_on, finish_report
from bertray.runs.results import EvaluationResult, evaluation_result, finished_result
from bertray.scoring.models import check_precision, open_model

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Evaluate; the same run again gives back what it had found."""
    with OnDemand(config.workers) as executors:
        return _run(config, executors)


def _run(config: EvaluateConfig, executors: OnDemand) -> EvaluationResult:
    started = time.monotonic()
    info = open_model(config)
    spec = read_spec(config, info.cleaning, info.max_chars, wants_label=True, keep_columns=config.report.slices)
    inputs = open_inputs("input", config.input, config, spec, executors.for_bytes)
    check_slices(inputs.files, inputs.spec, config.report.slices)
    labels = label_map(config.labels, info.label_map)
    labels.check(inputs.label_counts, "input", needs_all_classes=False)
    identity = config.model_dump(mode="json", exclude={"output", "price_per_hour", "registry", "workers"})
    if not config.labels_ordered:  # so that runs of before the key are what they were
        identity.pop("labels_ordered")
    if config.precision == "auto":  # so that evaluations of before the key are what they were
        identity.pop("precision")
    run_key = cache_key({"config": identity, "files": inputs.identity, "model": info.model_version})
    store = open_store(config.output)
    if finished_run(store, "evaluate", run_key):
        return finished_result(EvaluationResult, store)
    check_precision(config.precision, config.workers)
    with claimed_output(store, "evaluate", run_key, to_yaml(config)):
        with executors.session(inputs.num_rows) as executor:
            rows = evaluate_shards(
                inputs,
                config.model,
                info,
                labels,
                store,
                executor,
                config.report.slices,
                max_length=config.max_length,
                precision=config.precision,
                long_text=config.long_text,
            )
            seconds = time.monotonic() - started
            report = finish_report(
                store,
                rows,
                inputs,
                info,
                split="input",
                title=f"Evaluation of {model_title(config.model)} on {data_title(config.input)}",
                config=config,
                texts=read_training_texts(resolve_model(config.model)),
                findings=findings_on(rows, info),
                notes=[NOT_INT8] if config.precision == "int8" and rows.int8 is None else [],
                facts={
                    "model": config.model,
                    "model version": info.model_version,
                    "rows read": f"{inputs.num_rows:,}",
                    "rate": f"{inputs.num_rows / seconds:,.1f} rows/s, start-up included",
                    "time": duration(seconds),
                    "bertray": bertray.__version__,
                },
                executor=executor,
            )
        result = evaluation_result(EvaluationResult, store, report)
        mark_finished(store, result.told)
        for key in store.keys(STAGING):
            store.delete(key)
    return result
