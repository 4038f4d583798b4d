"""`bertray train`: labelled reviews → token shards → fine-tuned bundle → report, resumable at every point."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import bertray
from bertray.config import KEYS_OF_METHOD, TrainConfig, to_yaml
from bertray.console import duration, say
from bertray.evaluation.leakage import judge_validation
from bertray.evaluation.validation_profile import check_reading, log_findings, training_texts_of, validation_profile
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import Executor
from bertray.execution.session import session_for
from bertray.io.digests import cache_key
from bertray.io.store import LocalStore, Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import CARD_FILE, LINEAR_HEADS, BundleInfo, resolve_model, weights_digest, write_bundle
from bertray.model.calibration import fit_temperature, offsets_to_shares, probs_of_reviews
from bertray.model.new_encoder import check_shallow
from bertray.model.pretrained import check_tokenizer, without_weights
from bertray.model.profile import Profile
from bertray.model.training_texts import TrainingTexts
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, put_folder, remove_folder
from bertray.reports.html import data_title, model_title
from bertray.reviews.clean import Cleaning
from bertray.reviews.label_counts import count_without_time
from bertray.runs import distillation as distill
from bertray.runs.evaluated import (
    Baselines,
    EvaluatedRows,
    evaluate_shards,
    findings_on,
    finish_report,
    in_words,
    train_baselines,
)
from bertray.runs.model_card import model_card
from bertray.runs.training_workers import history_table, run_workers
from bertray.scoring.models import check_length
from bertray.settings import settings_of
from bertray.training import features
from bertray.training.checkpoint import FOLDER as CHECKPOINTS
from bertray.training.checkpoint import load_best, load_model_tensors
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.features import FittedHead, fit_on_features
from bertray.training.labelled_data import (
    TOKENS,
    LabelledData,
    TokenizedData,
    check_splits,
    open_data,
    rows_by_file,
    straddling_rows,
    tokenize,
)
from bertray.training.loop import Outcome
from bertray.training.objectives import Classification, Distillation, load_classifier
from bertray.training.order import num_steps
from bertray.training.rank import PROGRESS, TrainJob
from bertray.wording import counted

log = logging.getLogger(__name__)

HISTORY = ("loss", "learning_rate", "tokens_per_s", "seconds", "train_loss", "accuracy", "macro_f1", "mcc")

IMPORTS = ("ray.data", "ray.train.torch", "transformers")  # what the driver needs after Ray has started


def run_train(config: TrainConfig) -> int:
    """Train, evaluate, report; the same command again resumes, or says that the run is done."""
    started = time.monotonic()
    model_folder = check_train(config)
    data = open_data(config)
    base = weights_digest(model_folder)
    run_key = run_key_of(config, data, model_folder)
    store = open_store(config.output)
    if finished_run(store, "train", run_key):
        _clean_up(store)  # where a run ended between its last write and this
        say(f"already trained: {store.uri('report.html')}")
        return 0
    with claimed_output(store, "train", run_key, to_yaml(config), CHECKPOINTS):
        with session_for(config.workers, data.num_rows, ranks=True, imports=IMPORTS) as executor:
            tokenized = tokenize(config, data, base, store, executor)
            start, base_folder = distill.student_of(config, model_folder, store)
            if data.teacher:
                tokenized = distill.taught(data, tokenized, store, executor)
            examples = tokenized.examples()
            check_splits(examples, data)
            findings = [*check_reading(examples, config.model), *_straddling(examples)]
            texts = training_texts_of(examples, model_folder)
            outcome: Outcome | None = None
            decision: Decision | None = None
            fitted: FittedHead | None = None
            if config.training.method == "features":
                fitted = fit_on_features(config, base, tokenized.keys, examples, store, executor)
                info = _info(config, data, fitted.temperature, _profile_of_features(config, data, examples, fitted))
                bundle, info, how = _write_features_bundle(config, data, fitted, base_folder, info, texts, store)
            else:
                outcome = _fit(config, start, tokenized, run_key, examples, store, executor)
                decision = _decision(config, examples, outcome)
                info = _info(config, data, decision.temperature, _profile(config, data, examples, outcome, decision))
                bundle, info, how = _write_bundle(
                    config, data, run_key, outcome, decision, base_folder, info, texts, store
                )
            rows = _evaluate(config, data, examples, bundle, info, store, executor)
            of_teacher = distill.evaluate_teacher(config, data, data.teacher, store, executor) if data.teacher else None
        baselines = _baselines(config, data, examples) if config.report.baselines else None
        teacher_NC, teacher_facts, speeds = None, {}, {}
        notes = _notes(config, data, examples, outcome)
        if decision is not None and config.training.match_shares:
            notes.append(_moved_in_words(config, decision, info.labels))
        if data.teacher and of_teacher:
            teacher_NC = distill.teacher_probs(of_teacher, data.teacher, rows, info.labels)
            if teacher_NC is None:
                notes.append("Teacher and student do not give numbers for the same test rows; they are not compared.")
            sizes = distill.num_weights(resolve_model(data.teacher.model)), distill.num_weights(resolve_model(bundle))
            speeds = distill.speeds(of_teacher, rows, sizes)
            teacher_facts = distill.in_words(data.teacher, speeds)
        history = outcome.history if outcome else []
        store.put("history.parquet", parquet_bytes(history_table(history, HISTORY)))
        evaluation = finish_report(
            store,
            rows,
            data.test or data.validation or data.train,
            info,
            split="validation" if data.test is None else "test",
            title=_title(config),
            config=config,
            history=history,
            baselines=baselines,
            teacher_NC=teacher_NC,
            also=speeds,
            speedup=distill.speedup(speeds) if speeds else None,
            notes=notes,
            texts=None if data.test is None else texts,  # of validation rows a note says that they chose the model
            findings=[*findings, *(findings_on(rows, info) if data.test else [])],
            facts={
                **_facts(config, data, examples, info, time.monotonic() - started),
                **(_training_facts(config, examples, outcome) if outcome else {}),
                **teacher_facts,
                **(features.in_words(fitted, config.training.head, config.training.pooling) if fitted else {}),
            },
        )
        store.put(f"model/{CARD_FILE}", model_card(config, data, info, how, base_folder, evaluation, rows).encode())
        mark_finished(store)
        _clean_up(store)
        say(in_words(evaluation))
        say(f"model    {store.uri('model')}")
        say(f"report   {store.uri('report.html')}")
        log.info("trained and evaluated in %s", duration(time.monotonic() - started))
    return 0


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that decides what is trained; where and how fast is left out."""
    identity = config.model_dump(mode="json", exclude={"output", "price_per_hour", "workers"})
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
    """What can be told without the data; returns the folder of the base model.

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
    """What makes two runs the same: data, base model and every setting that decides what is trained."""
    identity = {"config": _identity(config), "data": data.fingerprint, "base model": weights_digest(model_folder)}
    return cache_key(identity)


def _straddling(examples: Examples) -> list[Finding]:
    """Logged before the first step."""
    findings = judge_validation(straddling_rows(examples), len(examples.validation))
    log_findings(findings)
    return findings


# --- training --------------------------------------------------------------------------------------------------------


def _fit(
    config: TrainConfig,
    start: str,
    tokenized: TokenizedData,
    run_key: str,
    examples: Examples,
    store: Store,
    executor: Executor,
) -> Outcome:
    """Fine-tune from a model; returns what training left behind."""
    objective = Classification if examples.soft_NC is None else Distillation
    loop = LoopSettings(
        tokenized.classes,
        settings_of(TrainingSettings, config.training),
        config.seed,
        run_key,
        executor.resources.threads,
    )
    job = TrainJob(tokenized, start, loop, objective, config.training.max_failures)
    return run_workers(job, examples, store, executor)


# --- after training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What validation rows say of the logits of the best epoch."""

    offsets_C: np.ndarray  # added to them
    temperature: float  # by which they are then divided
    num_off: int = 0  # validation rows by which a class is still said more often than it occurs

    def told(self, labels: Sequence[str]) -> str:
        """The offset of each class."""
        return ", ".join(f"{label} {offset:+.2f}" for label, offset in zip(labels, self.offsets_C, strict=True))


def _decision(config: TrainConfig, examples: Examples, outcome: Outcome) -> Decision:
    logits_VC, label_ids_V = outcome.held_out_VK, examples.label_ids_N[examples.validation]
    none_C = np.zeros(logits_VC.shape[1])
    if examples.soft_NC is not None:
        return Decision(none_C, 1.0)  # its teacher's probabilities are what it has learned to give
    if not config.training.match_shares:
        return Decision(none_C, fit_temperature(logits_VC, label_ids_V))
    offsets_C = offsets_to_shares(logits_VC, label_ids_V)
    moved_VC = logits_VC + offsets_C
    said_C, given_C = (np.bincount(ids_V, minlength=len(none_C)) for ids_V in (moved_VC.argmax(axis=1), label_ids_V))
    num_off = int(np.maximum(said_C - given_C, 0).sum())
    return Decision(offsets_C, fit_temperature(moved_VC, label_ids_V), num_off)


def _write_bundle(
    config: TrainConfig,
    data: LabelledData,
    run_key: str,
    outcome: Outcome,
    decision: Decision,
    model_folder: Path,
    info: BundleInfo,
    texts: TrainingTexts,
    store: Store,
) -> tuple[str, BundleInfo, str]:
    """The best checkpoint as a bundle, its decision moved; returns where it lies, its info and how it came about."""
    checkpoint = load_best(store, outcome.best_step, run_key)
    # config.json keeps the dropout of the base model.
    as_given = replace(settings_of(TrainingSettings, config.training), attention_dropout=True)
    model = load_classifier(model_folder, data.labels.names, as_given, bf16=False, device="cpu")
    load_model_tensors(model, checkpoint.model)
    how = f"best after step {outcome.best_step} of {outcome.num_steps}"
    if decision.offsets_C.any():
        from bertray.model.families import output_bias

        bias_C = output_bias(model)
        bias_C.data += bias_C.new_tensor(decision.offsets_C)
        how += f"; decision moved to the shares of validation, logits by {decision.told(data.labels.names)}"
    return *_saved(config, data, model, model_folder, info, texts, how, store), how


def _write_features_bundle(
    config: TrainConfig,
    data: LabelledData,
    fitted: FittedHead,
    model_folder: Path,
    info: BundleInfo,
    texts: TrainingTexts,
    store: Store,
) -> tuple[str, BundleInfo, str]:
    """The encoder as it is, with the head beside it; returns where it lies, its info and how it came about."""
    from bertray.model.pooling import PooledReadout

    model = PooledReadout(config.training.pooling).load(model_folder)
    model.config.id2label = dict(enumerate(data.labels.names))
    model.config.label2id = {name: number for number, name in enumerate(data.labels.names)}
    model.config.problem_type = "single_label_classification"
    info = replace(info, head=LINEAR_HEADS[config.training.pooling])
    how = "a linear head on the frozen encoder"
    return *_saved(config, data, model, model_folder, info, texts, how, store, features.to_tensors(fitted.head)), how


def _profile(
    config: TrainConfig, data: LabelledData, examples: Examples, outcome: Outcome, decision: Decision
) -> Profile:
    """Validation rows as the best epoch scores them, its decision moved."""
    probs_VC = _softmax((outcome.held_out_VK + decision.offsets_C) / decision.temperature)
    return validation_profile(examples, examples.validation, probs_VC, data.labels.names, _read_tokens(config))


def _profile_of_features(config: TrainConfig, data: LabelledData, examples: Examples, fitted: FittedHead) -> Profile:
    probs_VC = _softmax(fitted.held_out_VC / fitted.temperature)
    return validation_profile(examples, fitted.held_out, probs_VC, data.labels.names, _read_tokens(config))


def _softmax(logits_VC: np.ndarray) -> np.ndarray:
    return probs_of_reviews(logits_VC, np.arange(len(logits_VC)))


def _read_tokens(config: TrainConfig) -> int | None:
    """Tokens of a review that scoring reads; None: all of them."""
    return None if config.long_text == "windows" else config.max_length


def _info(config: TrainConfig, data: LabelledData, temperature: float, profile: Profile) -> BundleInfo:
    return BundleInfo(
        labels=data.labels.names,
        label_values=dict(data.labels.values),
        max_length=config.max_length,
        long_text=config.long_text,
        cleaning=settings_of(Cleaning, config.cleaning),
        temperature=temperature,
        base_model=config.model,
        data_fingerprint=data.fingerprint,
        max_chars=config.max_chars,
        text_pair=config.columns.text_pair is not None,
        profile=profile,
    )


def _saved(
    config: TrainConfig,
    data: LabelledData,
    model: Any,
    model_folder: Path,
    info: BundleInfo,
    texts: TrainingTexts,
    how: str,
    store: Store,
    head: bytes | None = None,
) -> tuple[str, BundleInfo]:
    """Write a bundle to the output; returns where it lies and its info."""
    card = model_card(config, data, info, how, model_folder)
    if isinstance(store, LocalStore):
        return store.uri("model"), write_bundle(Path(store.uri("model")), model, model_folder, info, card, head, texts)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "model"
        info = write_bundle(local, model, model_folder, info, card, head, texts)
        put_folder(store, local, "model")
    return store.uri("model"), info


def _title(config: TrainConfig) -> str:
    """Method, model and data."""
    base = model_title(config.model)
    done = {
        "finetune": f"Fine-tuning of {base}",
        "features": f"A linear head on {base}",
        "distill": f"Distillation of {model_title(config.training.teacher or '')} into {base}",
    }[config.training.method]
    return f"{done} on {data_title(config.data.train or ())}"


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


def _baselines(config: TrainConfig, data: LabelledData, examples: Examples) -> Baselines:
    """Fitted on the rows and labels that the model learned from."""
    return train_baselines(
        data.train,
        examples.shards.file_no_N[examples.train],
        examples.shards.row_no_N[examples.train],
        examples.label_ids_N[examples.train],
        len(data.labels.names),
        max_rows=config.report.baseline_rows,
        seed=config.seed,
    )


def _notes(config: TrainConfig, data: LabelledData, examples: Examples, outcome: Outcome | None) -> list[str]:
    """What the reader of the report should know."""
    notes = [*data.rare_classes]
    rows = data.num_learning_rows
    unusable, unlabelled = rows - len(examples.shards), int((examples.label_ids_N < 0).sum())
    if unusable:
        notes.append(f"{unusable:,} of {counted(rows, 'row')} could not be used; the log says why.")
    if unlabelled and data.teacher is None:
        notes.append(f"{counted(unlabelled, 'row has', 'rows have')} no label; not used.")
    if data.test is None:
        notes.append(
            "No data.test was given: the figures are on validation rows, which also chose the best epoch"
            f"{', the decision' if config.training.match_shares else ''} and the temperature of the scores: "
            "they flatter."
        )
    if data.teacher is not None:
        notes.append(
            f"The student learned what its teacher says of {len(examples.train):,} reviews; no label of them was read. "
            "Its figures by epoch tell how near it came to the teacher, not how right it is."
        )
        unread = int((examples.label_ids_N < 0).sum())
        if unread:
            notes.append(f"The teacher gave no finite numbers for {unread:,} reviews; nothing was learned from these.")
        if config.report.baselines:
            notes.append("The baselines, too, learned the teacher's labels of these reviews.")
        read = data.teacher.info
        if read.long_text == "windows":
            notes.append(
                "The teacher averages over the windows of a long review; it taught by the first, and is judged by all."
            )
        if (read.max_length, read.long_text) != (config.max_length, config.long_text):
            notes.append(
                f"The teacher reads {read.max_length} tokens of a review (`{read.long_text}`), the student "
                f"{config.max_length} (`{config.long_text}`); that is part of the difference in figures and speed."
            )
    if outcome is not None and outcome.resumed_from is not None:
        notes.append(f"The run was interrupted and resumed at step {outcome.resumed_from}.")
    period = data.train.spec.period
    without_time = count_without_time(data.train.files, data.train.spec, period) if period else 0
    if without_time:
        notes.append(
            f"{without_time:,} rows without `{config.data.time}` count as before {config.data.test_from}: none "
            "of them is in the test."
        )
    if config.long_text == "windows":
        notes.append("Training saw the first window of a long review; scoring averages over all windows.")
    return notes


def _moved_in_words(config: TrainConfig, decision: Decision, labels: Sequence[str]) -> str:
    """What training.match_shares did."""
    nearly = f" (but for {decision.num_off:,} of them, which cannot be told apart)" if decision.num_off else ""
    first = "; of a long review by its first window alone" if config.long_text == "windows" else ""
    return (
        "The decision was moved until classes were said of validation rows as often as they occur there"
        f"{nearly}{first}, by adding to the logits: {decision.told(labels)}. Probabilities moved with it; accuracy, "
        "macro F1 and MCC by epoch are of decisions moved so."
    )


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


def _training_facts(config: TrainConfig, examples: Examples, outcome: Outcome) -> dict[str, str]:
    return {
        "steps": f"{outcome.num_steps:,}, best after {outcome.best_step:,}",
        "training time": duration(outcome.seconds),
        "training rate": f"{_examples_per_s(config, examples, outcome):,.1f} examples/s",
    }


def _examples_per_s(config: TrainConfig, examples: Examples, outcome: Outcome) -> float:
    steps_per_epoch = num_steps(len(examples.train), config.training.batch_size)
    return len(examples.train) * outcome.num_steps / steps_per_epoch / max(outcome.seconds, 1e-9)


def _clean_up(store: Store) -> None:
    """What only a resume would need is removed once the run is whole."""
    for folder in (CHECKPOINTS, TOKENS, features.FOLDER, distill.STUDENT, "control/staging", "control/ray_train"):
        remove_folder(store, folder)
    store.delete(PROGRESS)
