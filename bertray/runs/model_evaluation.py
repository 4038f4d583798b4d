"""Evaluation of a model: labelled reviews → predictions, figures, report."""

from __future__ import annotations

import logging
import time

import bertray
from bertray.config import EvaluateConfig, identity_of, to_yaml
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.model.training_texts import read_training_texts
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder
from bertray.reports.html import data_title, model_title
from bertray.reviews.corpus import open_inputs, read_spec
from bertray.reviews.labels import label_map
from bertray.reviews.reader import check_slices
from bertray.runs.evaluated import STAGING, EvaluatedModel, evaluate_model
from bertray.runs.evaluation_page import NOT_INT8, evaluate_rows, findings_on, finish_report, reading_notes
from bertray.runs.results import EvaluationResult, evaluation_result, finished_result
from bertray.runs.tracking import check_tracking, track_evaluation
from bertray.scoring.models import check_precision, open_model
from bertray.wording import duration

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, executors: Executors | None = None) -> EvaluationResult:
    """Evaluate; the same run again gives back what it had found."""
    check_tracking(config)
    with executors_of(config.workers, executors) as opened:
        result = _run(config, opened)
    track_evaluation(config, result)
    return result


def _run(config: EvaluateConfig, executors: Executors) -> EvaluationResult:
    started = time.monotonic()
    info = open_model(config)
    spec = read_spec(
        config,
        info.cleaning,
        info.max_chars,
        wants_label=True,
        keep_columns=config.report.slices,
        trained_for=info.aspects,
        text_columns=info.text_columns,
    )
    inputs = open_inputs("input", config.input, config, spec, executors.for_bytes)
    check_slices(inputs.files, inputs.spec, config.report.slices)
    labels = label_map(config.labels, info.label_map)
    labels.check(inputs.label_counts, "input", needs_all_classes=False)
    identity = identity_of(config, new=("labels_ordered", "aspects", "report.explain", "precision"))
    identity["columns"] = spec.columns.model_dump(mode="json")
    run_key = cache_key({"config": identity, "files": inputs.identity, "model": info.model_version})
    store = open_store(config.output)
    if finished_run(store, "evaluate", run_key):
        return finished_result(EvaluationResult, store)
    check_precision(config.precision, config.workers)
    with claimed_output(store, "evaluate", run_key, to_yaml(config)):
        inputs.keep_scan(store)
        with executors.session(inputs.num_rows) as executor:
            rows = evaluate_model(
                inputs,
                EvaluatedModel.of(config, info),
                labels,
                store,
                executor,
                config.report.slices,
            )
            seconds = time.monotonic() - started
            texts, findings = read_training_texts(resolve_model(config.model)), findings_on(rows, info)
            evaluation = evaluate_rows(
                rows, info, split="input", seed=config.seed, kind="evaluation", texts=texts, findings=findings
            )
            report = finish_report(
                store,
                rows,
                evaluation,
                inputs,
                config,
                executor,
                title=f"Evaluation of {model_title(config.model)} on {data_title(config.input)}",
                notes=[
                    *([NOT_INT8] if config.precision == "int8" and rows.int8 is None else []),
                    *reading_notes(spec.columns.texts, spec.aspects.label_columns if spec.aspects else None, info),
                ],
                facts={
                    "model": config.model,
                    "model version": info.model_version,
                    **({"aspects": str(spec.aspects)} if spec.aspects else {}),
                    "rows read": f"{inputs.num_rows:,}",
                    "rate": f"{inputs.num_rows / seconds:,.1f} rows/s, start-up included",
                    "time": duration(seconds),
                    "bertray": bertray.__version__,
                },
            )
        result = evaluation_result(EvaluationResult, store, report)
        mark_finished(store, result.told)
        remove_folder(store, STAGING)
    return result
