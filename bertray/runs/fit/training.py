"""Training: labelled reviews → token shards → bundle → report, resumable at every point."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bertray
from bertray.config import TrainConfig, identity_of, keys_of_other_methods, to_yaml
from bertray.evaluation.leakage import judge_validation
from bertray.evaluation.learning import judge_loss
from bertray.evaluation.validation_profile import check_reading, log_findings, training_texts_of
from bertray.evaluation.verdicts import Finding
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import CARD_FILE, BundleInfo, resolve_model, weights_digest
from bertray.model.new_encoder import check_shallow
from bertray.model.pretrained.tokenizer import check_token_types, check_tokenizer
from bertray.model.pretrained.weights import without_weights
from bertray.model.training_texts import TrainingTexts
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder
from bertray.reports.evaluation import EvaluationReport
from bertray.reports.html import data_title
from bertray.reviews.kept_rows import KeptRows
from bertray.reviews.ngrams import MAX_TEXTS, SeenNgrams
from bertray.runs.evaluated import EvaluatedModel, EvaluatedRows, evaluate_model
from bertray.runs.evaluation_page import evaluate_rows, findings_on, finish_report
from bertray.runs.fit.automatic import Automatic
from bertray.runs.fit.baselines import Baselines, train_baselines
from bertray.runs.fit.cleaned_rows import judged_rows, kept_rows, sampled, texts_of
from bertray.runs.fit.contrast import Contrast
from bertray.runs.fit.cross_validation import CROSS_VALIDATION, cross_validated_baselines, in_words, with_logits
from bertray.runs.fit.cross_validation import FOLDER as FOLDS
from bertray.runs.fit.distillation import STUDENT, Distill
from bertray.runs.fit.finetuning import Finetune
from bertray.runs.fit.labelled_data import (
    TOKENS,
    LabelledData,
    check_splits,
    open_data,
    straddling_rows,
)
from bertray.runs.fit.linear_methods import Features, Stack
from bertray.runs.fit.methods import Method, OutOfFold, Trained, TrainingRun
from bertray.runs.fit.model_card import model_card
from bertray.runs.fit.scheduled import OF_LAYERS
from bertray.runs.fit.seeds import train_seeds
from bertray.runs.fit.training_workers import history_table
from bertray.runs.results import TrainResult, evaluation_result, finished_result
from bertray.runs.tracking import check_tracking, track_evaluation
from bertray.scoring.models import check_length
from bertray.settings import settings_of
from bertray.training.adapters import check_adaptable
from bertray.training.checkpoint import FOLDER as CHECKPOINTS
from bertray.training.choice import ROWS_TO_CHOOSE_BY
from bertray.training.examples import Examples, LoraSettings
from bertray.training.features import FOLDER as FEATURES
from bertray.training.rank import PROGRESS
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import counted, duration, percent

log = logging.getLogger(__name__)

HISTORY = ("loss", "learning_rate", "tokens_per_s", "seconds", "train_loss", "accuracy", "macro_f1", "mcc")

METHODS: dict[str, type[Method]] = {
    "auto": Automatic,
    "finetune": Finetune,
    "features": Features,
    "stack": Stack,
    "contrast": Contrast,
    "distill": Distill,
}

IMPORTS = ("ray.data", "ray.train.torch", "transformers")  # what the driver needs after Ray has started


def train(config: TrainConfig, executors: Executors | None = None) -> TrainResult:
    """Train, evaluate, report; the same run again resumes, or gives back what it had found."""
    check_tracking(config)
    with executors_of(config.workers, executors, ranks=True, imports=IMPORTS) as opened:
        if len(config.training.seeds) > 1:
            result = train_seeds(config, seeds_key(config), lambda one: _run(one, opened))
        else:
            result = _run(config, opened)
    track_evaluation(config, result)
    return result


def _run(config: TrainConfig, executors: Executors) -> TrainResult:
    started = time.monotonic()
    model_folder = check_train(config)
    data = open_data(config, executors.for_bytes)
    run_key = run_key_of(config, data, model_folder)
    store = open_store(config.output)
    if finished_run(store, "train", run_key):
        _clean_up(store)  # where a run ended between its last write and this
        return finished_result(TrainResult, store)
    with claimed_output(store, "train", run_key, to_yaml(config), CHECKPOINTS):
        data.keep_scans(store)
        with executors.session(data.num_rows) as executor:
            base = weights_digest(model_folder)
            run = TrainingRun(config, data, run_key, model_folder, base, store, executor)
            method = METHODS[config.training.method](run)
            tokenized, examples = method.tokenized()
            check_splits(examples, data, held_out=bool(tokenized.validation_fraction))
            findings = check_reading(examples, config.model, left_out=not method.reads_encoder)
            findings += [*_straddling(examples), *method.judge_plan(examples)]
            texts = training_texts_of(examples, model_folder)
            texts = replace(texts, ngrams=_seen_ngrams(run, tokenized, examples))
            trained = method.fit(tokenized, examples, texts)
            findings += _learned(config, trained, examples) if method.reads_labels else []
            report, rows = _judged(run, method, tokenized, examples, trained, texts, findings, started)
        card = model_card(config, data, trained.info, trained.how, trained.base_folder, report.evaluation, rows)
        store.put(f"model/{CARD_FILE}", card.encode())
        result = evaluation_result(TrainResult, store, report)
        mark_finished(store, result.told)
        _clean_up(store)
        log.info("trained and evaluated in %s", duration(time.monotonic() - started))
    return result


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that decides what is trained."""
    training = config.training
    unread = ["checkpoint_every_s", "max_failures", *keys_of_other_methods(training.method)]
    if training.method == "distill":  # which reads no labels to weigh
        unread.append("class_weights")
    new = ["labels_ordered", "aspects", "head", "review", "report.explain"]
    new += ["training.class_bias", "training.seeds", "training.match_shares"]
    new += [f"training.{name}" for name in OF_LAYERS]
    return identity_of(config, [f"training.{name}" for name in unread], new)


def check_train(config: TrainConfig) -> Path:
    """Checks that need no data; returns the folder of the base model.

    Raises:
        ConfigError: a model that is not there or sees fewer tokens than `max_length`, whose tokenizer files do not
            agree with each other or with its embeddings, or whose layers cannot be adapted or frozen as asked.
    """
    folder = resolve_model(config.model)
    check_length(config.max_length, config.model, folder)
    check_tokenizer(folder, config.model)
    if config.training.keep_layers is not None:
        check_shallow(folder, config.training.keep_layers)
    if (config.training.match_shares or config.training.class_bias) and config.head == "classifier":
        _check_output_bias(folder)
    if config.head == "attention":
        check_token_types(folder, config.model)
    lora, freeze_layers = config.training.lora, config.training.freeze_layers
    if lora.rank is not None or freeze_layers:
        check_adaptable(
            without_weights("SequenceClassification", folder), settings_of(LoraSettings, lora), freeze_layers
        )
    return folder


def _check_output_bias(folder: Path) -> None:
    """Raises ConfigError where the decision of a classifier on this encoder could not be moved."""
    from bertray.model.families import output_bias

    output_bias(without_weights("SequenceClassification", folder))


def seeds_key(config: TrainConfig) -> str:
    """Key of a run of several seeds; whether the data are the same, the runs of the seeds say."""
    return cache_key(identity(config))


def run_key_of(config: TrainConfig, data: LabelledData, model_folder: Path) -> str:
    """Key of a training run: a digest of data, base model and every setting that decides the result."""
    return cache_key({"config": identity(config), "data": data.fingerprint, "base model": weights_digest(model_folder)})


def _seen_ngrams(run: TrainingRun, tokenized: TokenizedData, examples: Examples) -> SeenNgrams:
    """N-grams of a sample of the train split, for the profile of scored rows."""
    sample = sampled(run.data, examples, MAX_TEXTS, run.config.seed)
    return SeenNgrams.of(texts_of(kept_rows(run.store, tokenized.train_keys), examples, sample, run.executor))


def _straddling(examples: Examples) -> list[Finding]:
    """Logged before the first step."""
    findings = judge_validation(straddling_rows(examples), len(examples.validation))
    log_findings(findings)
    return findings


def _learned(config: TrainConfig, trained: Trained, examples: Examples) -> list[Finding]:
    balanced = config.training.class_weights == "balanced"
    findings = judge_loss(trained.history, examples.label_ids_N[examples.train], balanced=balanced)
    log_findings(findings)
    return findings


# --- after training --------------------------------------------------------------------------------------------------


def _judged(
    run: TrainingRun,
    method: Method,
    tokenized: TokenizedData,
    examples: Examples,
    trained: Trained,
    texts: TrainingTexts,
    findings: Sequence[Finding],
    started: float,
) -> tuple[EvaluationReport, EvaluatedRows]:
    """Evaluate the bundle, beside baselines and teacher, and write the report; returns it with the rows.

    Args:
        texts: that it was trained on.
        findings: on these.
        started: moment at which the run began.
    """
    config, data, store, executor = run.config, run.data, run.store, run.executor
    calibration = trained.calibration
    crossed = trained.out_of_fold if data.test is None else None
    members = examples.validation if crossed is None else crossed.members
    judged = judged_rows(data, tokenized, examples, members, store, executor)
    rows = _evaluate(run, trained, judged)
    if crossed is not None:
        rows = with_logits(rows, examples, crossed, trained.info.temperature)
    of_teacher = method.evaluate_teacher(judged)
    baselines = _baselines(run, tokenized, examples, rows, judged, crossed) if config.report.baselines else None
    beside = method.beside(of_teacher, rows, trained)
    evaluation = evaluate_rows(
        rows,
        trained.info,
        split=_split(data, crossed),
        seed=config.seed,
        kind="training",
        beside={**(baselines.probs if baselines else {}), **beside.probs},
        best_metric=config.training.best_metric,
        speedup=beside.speedup,
        texts=None if data.test is None else texts,  # of validation rows a note says that they chose the model
        findings=[*findings, *(findings_on(rows, trained.info) if data.test else [])],
    )
    store.put("history.parquet", parquet_bytes(history_table(trained.history, HISTORY)))
    report = finish_report(
        store,
        rows,
        evaluation,
        data.test or data.validation or data.train,
        config,
        executor,
        title=f"{method.title} on {data_title(config.data.train or ())}",
        history=trained.history,
        also={**beside.speeds, **({"calibration": calibration.to_json()} if calibration else {})},
        calibration=calibration,
        notes=[
            *_notes(config, data, examples, method, crossed),
            *trained.notes,
            *beside.notes,
            *(calibration.sentences if calibration else []),
            *(baselines.notes if baselines else []),
        ],
        facts={
            **_facts(config, data, examples, trained.info, time.monotonic() - started),
            **trained.facts,
            **beside.facts,
        },
    )
    return report, rows


def _evaluate(run: TrainingRun, trained: Trained, judged: KeptRows) -> EvaluatedRows:
    """The final evaluation, by the scoring path."""
    config, data = run.config, run.data
    inputs = data.test or data.validation or data.train
    return evaluate_model(
        inputs,
        EvaluatedModel(trained.bundle, trained.info),
        data.labels,
        run.store,
        run.executor,
        config.report.slices,
        kept=judged,
    )


def _split(data: LabelledData, crossed: OutOfFold | None) -> str:
    """Name of the rows that the figures are of."""
    return "test" if data.test is not None else "validation" if crossed is None else CROSS_VALIDATION


def _baselines(
    run: TrainingRun,
    tokenized: TokenizedData,
    examples: Examples,
    rows: EvaluatedRows,
    judged: KeptRows,
    crossed: OutOfFold | None,
) -> Baselines:
    """Fitted on rows and labels that the model learned from; of a cross-validation on the same folds."""
    seed = run.config.seed
    if crossed is not None:
        return cross_validated_baselines(run, tokenized, examples, rows, crossed.folds)
    sample = sampled(run.data, examples, run.config.report.baseline_rows, seed)
    return train_baselines(
        texts_of(kept_rows(run.store, tokenized.train_keys), examples, sample, run.executor),
        examples.label_ids_N[sample],
        examples.label_ids_N[examples.train],
        rows,
        judged,
        seed=seed,
        executor=run.executor,
    )


def _notes(
    config: TrainConfig, data: LabelledData, examples: Examples, method: Method, crossed: OutOfFold | None
) -> list[str]:
    """Sentences on the rows, whatever the method made of them."""
    notes = [*data.rare]
    rows = data.num_learning_rows
    unusable, unlabelled = rows - len(examples.shards), int((examples.label_ids_N < 0).sum())
    if unusable:
        notes.append(f"{unusable:,} of {counted(rows, 'row')} could not be used; the log says why.")
    if unlabelled and method.reads_labels:
        notes.append(f"{counted(unlabelled, 'row has', 'rows have')} no label; not used.")
    if crossed is not None:
        notes.append(in_words(crossed, len(examples.train)))
    elif data.test is None:
        last = config.training.epochs == "auto" and len(examples.validation) < ROWS_TO_CHOOSE_BY
        chosen = [
            *([] if last else ["the best epoch"]),
            *(["the decision"] if config.training.match_shares else []),
            "the temperature of the scores",
        ]
        notes.append(
            "No data.test was given: the figures are on validation rows, which also chose "
            f"{' and '.join(chosen)}: they flatter."
        )
    period = data.train.spec.period
    without_time = data.train.without_time if period else 0
    if without_time:
        notes.append(
            f"{without_time:,} rows without `{config.data.time}` count as before {config.data.test_from}: none "
            "of them is in the test."
        )
    if config.long_text == "windows":
        folds = ", and the folds were judged by it" if crossed is not None else ""
        notes.append(f"Training saw the first window of a long review{folds}; scoring averages over all windows.")
    return notes


def _facts(
    config: TrainConfig, data: LabelledData, examples: Examples, info: BundleInfo, seconds: float
) -> dict[str, str]:
    lens_N, aspects = examples.shards.lens_N[examples.train], data.train.spec.aspects
    return {
        "base model": config.model,
        "model version": info.model_version,
        **({"aspects": str(aspects)} if aspects else {}),
        "rows read": f"{data.num_learning_rows:,}",
        "train examples": f"{len(examples.train):,}",
        "validation examples": f"{len(examples.validation):,}",
        "mean tokens of an example": f"{lens_N.mean():.1f}",
        "reviews longer than max_length": percent((examples.shards.n_tokens_N > config.max_length).mean()),
        "temperature": f"{info.temperature:.3f}",
        "time from start to report": duration(seconds),
        "data fingerprint": data.fingerprint,
        "bertray": bertray.__version__,
    }


def _clean_up(store: Store) -> None:
    """Removes files that only a resume would need, once the run is complete."""
    for folder in (CHECKPOINTS, TOKENS, FEATURES, FOLDS, STUDENT, "control/staging", "control/ray_train"):
        remove_folder(store, folder)
    store.delete(PROGRESS)
