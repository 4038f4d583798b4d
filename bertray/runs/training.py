"""Training: labelled reviews → token shards → bundle → report, resumable at every point."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import bertray
from bertray.config import KEYS_OF_METHOD, TrainConfig, to_yaml
from bertray.console import duration
from bertray.evaluation.leakage import judge_validation
from bertray.evaluation.validation_profile import check_reading, log_findings, training_texts_of
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import Executor
from bertray.execution.on_demand import OnDemand
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import CARD_FILE, BundleInfo, resolve_model, weights_digest
from bertray.model.new_encoder import check_shallow
from bertray.model.pretrained import check_tokenizer, without_weights
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder
from bertray.reports.html import data_title
from bertray.runs.distillation import STUDENT, Distill
from bertray.runs.evaluated import (
    Baselines,
    EvaluatedRows,
    evaluate_shards,
    findings_on,
    finish_report,
    train_baselines,
)
from bertray.runs.labelled_data import (
    TOKENS,
    LabelledData,
    check_splits,
    open_data,
    rows_by_file,
    straddling_rows,
)
from bertray.runs.methods import Features, Finetune, Method, TrainingRun
from bertray.runs.model_card import model_card
from bertray.runs.results import TrainResult, evaluation_result, finished_result
from bertray.runs.training_workers import history_table
from bertray.scoring.models import check_length
from bertray.training.checkpoint import FOLDER as CHECKPOINTS
from bertray.training.examples import Examples
from bertray.training.features import FOLDER as FEATURES
from bertray.training.rank import PROGRESS
from bertray.wording import counted

log = logging.getLogger(__name__)

HISTORY = ("loss", "learning_rate", "tokens_per_s", "seconds", "train_loss", "accuracy", "macro_f1", "mcc")

METHODS: dict[str, type[Method]] = {"finetune": Finetune, "features": Features, "distill": Distill}

IMPORTS = ("ray.data", "ray.train.torch", "transformers")  # what the driver needs after Ray has started


def train(config: TrainConfig) -> TrainResult:
    """Train, evaluate, report; the same run again resumes, or gives back what it had found."""
    with OnDemand(config.workers, ranks=True, imports=IMPORTS) as executors:
        return _run(config, executors)


def _run(config: TrainConfig, executors: OnDemand) -> TrainResult:
    started = time.monotonic()
    model_folder = check_train(config)
    data = open_data(config, executors.for_bytes)
    run_key = run_key_of(config, data, model_folder)
    store = open_store(config.output)
    if finished_run(store, "train", run_key):
        _clean_up(store)  # where a run ended between its last write and this
        return finished_result(TrainResult, store)
    with claimed_output(store, "train", run_key, to_yaml(config), CHECKPOINTS):
        with executors.session(data.num_rows) as executor:
            base = weights_digest(model_folder)
            run = TrainingRun(config, data, run_key, model_folder, base, store, executor)
            method = METHODS[config.training.method](run)
            tokenized = method.tokenized()
            examples = tokenized.examples()
            check_splits(examples, data)
            findings = [*check_reading(examples, config.model), *_straddling(examples)]
            texts = training_texts_of(examples, model_folder)
            trained = method.fit(tokenized, examples, texts)
            rows = _evaluate(config, data, examples, trained.bundle, trained.info, store, executor)
            of_teacher = method.evaluate_teacher()
            baselines = _baselines(config, data, examples, executor) if config.report.baselines else None
            beside = method.beside(of_teacher, rows, trained)
            store.put("history.parquet", parquet_bytes(history_table(trained.history, HISTORY)))
            report = finish_report(
                store,
                rows,
                data.test or data.validation or data.train,
                trained.info,
                split="validation" if data.test is None else "test",
                title=f"{method.title} on {data_title(config.data.train or ())}",
                config=config,
                history=trained.history,
                baselines=baselines,
                teacher_NC=beside.probs_NC,
                also=beside.speeds,
                speedup=beside.speedup,
                notes=[*_notes(config, data, examples, method), *trained.notes, *beside.notes],
                texts=None if data.test is None else texts,  # of validation rows a note says that they chose the model
                findings=[*findings, *(findings_on(rows, trained.info) if data.test else [])],
                facts={
                    **_facts(config, data, examples, trained.info, time.monotonic() - started),
                    **trained.facts,
                    **beside.facts,
                },
                executor=executor,
            )
        card = model_card(config, data, trained.info, trained.how, trained.base_folder, report.evaluation, rows)
        store.put(f"model/{CARD_FILE}", card.encode())
        result = evaluation_result(TrainResult, store, report)
        mark_finished(store, result.told)
        _clean_up(store)
        log.info("trained and evaluated in %s", duration(time.monotonic() - started))
    return result


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that decides what is trained; where and how fast is left out."""
    identity = config.model_dump(mode="json", exclude={"output", "price_per_hour", "registry", "workers"})
    if not config.labels_ordered:  # so that runs of before the key are what they were
        identity.pop("labels_ordered")
    identity["training"].pop("checkpoint_every_s")
    identity["training"].pop("max_failures")
    if not config.training.match_shares:  # so that runs of before the key are what they were
        identity["training"].pop("match_shares")
    for method, names in KEYS_OF_METHOD.items():
        for name in names if method != config.training.method else ():
            identity["training"].pop(name, None)
    if config.training.method == "distill":  # which reads no labels to weigh
        identity["training"].pop("class_weights")
    return identity


def check_train(config: TrainConfig) -> Path:
    """Checks that need no data; returns the folder of the base model.

    Raises:
        ConfigError: a model that is not there or sees fewer tokens than `max_length`, or whose tokenizer files do not
            agree with each other or with its embeddings.
    """
    folder = resolve_model(config.model)
    check_length(config.max_length, config.model, folder)
    check_tokenizer(folder, config.model)
    if config.training.keep_layers is not None:
        check_shallow(folder, config.training.keep_layers)
    if config.training.match_shares:
        _check_output_bias(folder)
    return folder


def _check_output_bias(folder: Path) -> None:
    """Raises ConfigError where the decision of a classifier on this encoder could not be moved."""
    from bertray.model.families import output_bias

    output_bias(without_weights("SequenceClassification", folder))


def run_key_of(config: TrainConfig, data: LabelledData, model_folder: Path) -> str:
    """Key of a training run: a digest of data, base model and every setting that decides the result."""
    identity = {"config": _identity(config), "data": data.fingerprint, "base model": weights_digest(model_folder)}
    return cache_key(identity)


def _straddling(examples: Examples) -> list[Finding]:
    """Logged before the first step."""
    findings = judge_validation(straddling_rows(examples), len(examples.validation))
    log_findings(findings)
    return findings


# --- after training --------------------------------------------------------------------------------------------------


def _evaluate(
    config: TrainConfig,
    data: LabelledData,
    examples: Examples,
    bundle: str,
    info: BundleInfo,
    store: Store,
    executor: Executor,
) -> EvaluatedRows:
    """The final evaluation: every row of the test split (else of validation), by the scoring path."""
    inputs = data.test or data.validation or data.train
    only_rows = None
    if data.test is None and data.validation is None:
        only_rows = rows_by_file(examples, examples.validation)
    return evaluate_shards(
        inputs, bundle, info, data.labels, store, executor, config.report.slices, only_rows=only_rows
    )


def _baselines(config: TrainConfig, data: LabelledData, examples: Examples, executor: Executor) -> Baselines:
    """Fitted on the rows and labels that the model learned from."""
    return train_baselines(
        data.train,
        examples.shards.file_no_N[examples.train],
        examples.shards.row_no_N[examples.train],
        examples.label_ids_N[examples.train],
        len(data.labels.names),
        max_rows=config.report.baseline_rows,
        seed=config.seed,
        executor=executor,
    )


def _notes(config: TrainConfig, data: LabelledData, examples: Examples, method: Method) -> list[str]:
    """Sentences on the rows, whatever the method made of them."""
    notes = [*data.rare_classes]
    rows = data.num_learning_rows
    unusable, unlabelled = rows - len(examples.shards), int((examples.label_ids_N < 0).sum())
    if unusable:
        notes.append(f"{unusable:,} of {counted(rows, 'row')} could not be used; the log says why.")
    if unlabelled and method.reads_labels:
        notes.append(f"{counted(unlabelled, 'row has', 'rows have')} no label; not used.")
    if data.test is None:
        notes.append(
            "No data.test was given: the figures are on validation rows, which also chose the best epoch"
            f"{', the decision' if config.training.match_shares else ''} and the temperature of the scores: "
            "they flatter."
        )
    period = data.train.spec.period
    without_time = data.train.without_time if period else 0
    if without_time:
        notes.append(
            f"{without_time:,} rows without `{config.data.time}` count as before {config.data.test_from}: none "
            "of them is in the test."
        )
    if config.long_text == "windows":
        notes.append("Training saw the first window of a long review; scoring averages over all windows.")
    return notes


def _facts(
    config: TrainConfig, data: LabelledData, examples: Examples, info: BundleInfo, seconds: float
) -> dict[str, str]:
    lens_N = examples.shards.lens_N[examples.train]
    return {
        "base model": config.model,
        "model version": info.model_version,
        "rows read": f"{data.num_learning_rows:,}",
        "train examples": f"{len(examples.train):,}",
        "validation examples": f"{len(examples.validation):,}",
        "mean tokens of an example": f"{lens_N.mean():.1f}",
        "reviews longer than max_length": f"{(examples.shards.n_tokens_N > config.max_length).mean():.1%}",
        "temperature": f"{info.temperature:.3f}",
        "time from start to report": duration(seconds),
        "data fingerprint": data.fingerprint,
        "bertray": bertray.__version__,
    }


def _clean_up(store: Store) -> None:
    """Removes files that only a resume would need, once the run is complete."""
    for folder in (CHECKPOINTS, TOKENS, FEATURES, STUDENT, "control/staging", "control/ray_train"):
        remove_folder(store, folder)
    store.delete(PROGRESS)
