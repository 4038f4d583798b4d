"""Methods of training: how examples become a bundle, one class for each value of `training.method`.

Shape letters: N examples, V those held out for validation, C classes.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bertray.config import TrainConfig
from bertray.console import duration
from bertray.evaluation.validation_profile import validation_profile
from bertray.execution.executor import Executor
from bertray.io.store import LocalStore, Store
from bertray.model.bundle import LINEAR_HEADS, BundleInfo, write_bundle
from bertray.model.calibration import fit_temperature, offsets_to_shares, probs_of_reviews
from bertray.model.profile import Profile
from bertray.model.training_texts import TrainingTexts
from bertray.outputs.claims import put_folder
from bertray.reports.html import model_title
from bertray.reviews.clean import Cleaning
from bertray.runs.evaluated import EvaluatedRows
from bertray.runs.labelled_data import LabelledData, tokenize
from bertray.runs.model_card import model_card
from bertray.runs.training_workers import run_workers
from bertray.settings import settings_of
from bertray.training import features
from bertray.training.checkpoint import load_best, load_model_tensors
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.features import fit_on_features
from bertray.training.loop import Outcome
from bertray.training.objectives import Classification, Objective, load_classifier
from bertray.training.order import num_steps
from bertray.training.rank import TrainJob
from bertray.training.tokenized_data import TokenizedData


@dataclass(frozen=True)
class TrainingRun:
    """One run of `train`, as every method gets it.

    Attributes:
        model_folder: of the model that the config names.
        base: digest of its weights.
    """

    config: TrainConfig
    data: LabelledData
    run_key: str
    model_folder: Path
    base: str
    store: Store
    executor: Executor


@dataclass(frozen=True)
class Trained:
    """A written bundle and how it came about.

    Attributes:
        bundle: where it lies, for `resolve_model`.
        how: a clause for the model card.
        base_folder: of the model whose tokenizer and card it has.
        facts: for the report, in the order to show.
        history: rows of `history.parquet`.
        notes: sentences for the report.
    """

    bundle: str
    info: BundleInfo
    how: str
    base_folder: Path
    facts: Mapping[str, str]
    history: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Beside:
    """A teacher on the test rows, beside its student.

    Attributes:
        probs_NC: its probabilities; None where there is nothing to compare.
        speeds: for metrics.json.
        speedup: rows a second of the student, those of its teacher being 1.
    """

    probs_NC: np.ndarray | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    speeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    speedup: float | None = None
    notes: Sequence[str] = ()


class Method(ABC):
    """One way to make a classifier of examples."""

    reads_labels: ClassVar[bool] = True  # of the training files

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    @property
    @abstractmethod
    def title(self) -> str:
        """Method and model, as the title of the report begins."""

    def tokenized(self) -> TokenizedData:
        """Token shards of train and validation; those that exist and are unchanged are used."""
        run = self.run
        return tokenize(run.config, run.data, run.base, run.store, run.executor)

    @abstractmethod
    def fit(self, tokenized: TokenizedData, examples: Examples, texts: TrainingTexts) -> Trained:
        """Train on the train split, choose by the validation split, write the bundle."""

    def evaluate_teacher(self) -> EvaluatedRows | None:
        """A teacher's probabilities on the test rows, by the scoring path; None without a teacher."""
        return None

    def beside(self, of_teacher: EvaluatedRows | None, rows: EvaluatedRows, trained: Trained) -> Beside:
        """A comparison with the teacher on the same rows."""
        return Beside()

    # what all of them write

    def info(self, temperature: float, examples: Examples, members: np.ndarray, probs_VC: np.ndarray) -> BundleInfo:
        """Info of the bundle.

        Args:
            members: examples that were held out, int [V].
            probs_VC: their probabilities, for the profile.
        """
        config, data = self.run.config, self.run.data
        read_tokens = None if config.long_text == "windows" else config.max_length  # None: all of a review
        profile: Profile = validation_profile(examples, members, probs_VC, data.labels.names, read_tokens)
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

    def save(
        self,
        model: Any,
        base_folder: Path,
        info: BundleInfo,
        texts: TrainingTexts,
        how: str,
        head: bytes | None = None,
    ) -> tuple[str, BundleInfo]:
        """Write the bundle to the output; returns where it lies and its info."""
        store = self.run.store
        card = model_card(self.run.config, self.run.data, info, how, base_folder)
        if isinstance(store, LocalStore):
            target = Path(store.uri("model"))
            return store.uri("model"), write_bundle(target, model, base_folder, info, card, head, texts)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "model"
            info = write_bundle(local, model, base_folder, info, card, head, texts)
            put_folder(store, local, "model")
        return store.uri("model"), info


# --- fine-tuning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Prior correction and temperature, fitted on the logits of validation rows at the best epoch."""

    offsets_C: np.ndarray  # added to the logits
    temperature: float  # by which they are then divided
    num_off: int = 0  # validation rows by which a class is still predicted more often than it occurs

    def in_words(self, labels: Sequence[str]) -> str:
        """The offset of each class."""
        return ", ".join(f"{label} {offset:+.2f}" for label, offset in zip(labels, self.offsets_C, strict=True))


class Finetune(Method):
    """Every weight is learned, by the training loop."""

    objective: ClassVar[type[Objective]] = Classification

    @property
    def title(self) -> str:
        return f"Fine-tuning of {model_title(self.run.config.model)}"

    def start(self) -> tuple[str, Path]:
        """The model that training starts from, for `resolve_model`, and its folder."""
        return self.run.config.model, self.run.model_folder

    def decide(self, examples: Examples, outcome: Outcome) -> Decision:
        """The decision of the best epoch."""
        logits_VC, label_ids_V = outcome.held_out_VK, examples.label_ids_N[examples.validation]
        none_C = np.zeros(logits_VC.shape[1])
        if not self.run.config.training.match_shares:
            return Decision(none_C, fit_temperature(logits_VC, label_ids_V))
        offsets_C = offsets_to_shares(logits_VC, label_ids_V)
        moved_VC = logits_VC + offsets_C
        predicted_C, given_C = (
            np.bincount(ids_V, minlength=len(none_C)) for ids_V in (moved_VC.argmax(axis=1), label_ids_V)
        )
        num_off = int(np.maximum(predicted_C - given_C, 0).sum())
        return Decision(offsets_C, fit_temperature(moved_VC, label_ids_V), num_off)

    def notes(self, examples: Examples) -> list[str]:
        """Further sentences for the report."""
        return []

    def fit(self, tokenized: TokenizedData, examples: Examples, texts: TrainingTexts) -> Trained:
        run = self.run
        start, base_folder = self.start()
        settings = settings_of(TrainingSettings, run.config.training)
        loop = LoopSettings(tokenized.classes, settings, run.config.seed, run.run_key, run.executor.resources.threads)
        job = TrainJob(tokenized, start, loop, self.objective, run.config.training.max_failures)
        outcome = run_workers(job, examples, run.store, run.executor)
        decision = self.decide(examples, outcome)
        probs_VC = _softmax((outcome.held_out_VK + decision.offsets_C) / decision.temperature)
        info = self.info(decision.temperature, examples, examples.validation, probs_VC)
        model, how = self._best_model(outcome, decision, base_folder)
        bundle, info = self.save(model, base_folder, info, texts, how)
        notes = self.notes(examples)
        if outcome.resumed_from is not None:
            notes.append(f"The run was interrupted and resumed at step {outcome.resumed_from}.")
        if run.config.training.match_shares:
            notes.append(_moved_in_words(run.config, decision, info.labels))
        return Trained(bundle, info, how, base_folder, self._facts(examples, outcome), outcome.history, notes)

    def _best_model(self, outcome: Outcome, decision: Decision, base_folder: Path) -> tuple[Any, str]:
        """The model of the best checkpoint, its decision moved, and how it came about."""
        run = self.run
        checkpoint = load_best(run.store, outcome.best_step, run.run_key)
        # config.json keeps the dropout of the base model.
        as_given = replace(settings_of(TrainingSettings, run.config.training), attention_dropout=True)
        model = load_classifier(base_folder, run.data.labels.names, as_given, bf16=False, device="cpu")
        load_model_tensors(model, checkpoint.model)
        how = f"best after step {outcome.best_step} of {outcome.num_steps}"
        if decision.offsets_C.any():
            from bertray.model.families import output_bias

            bias_C = output_bias(model)
            bias_C.data += bias_C.new_tensor(decision.offsets_C)
            how += f"; decision moved to the shares of validation, logits by {decision.in_words(run.data.labels.names)}"
        return model, how

    def _facts(self, examples: Examples, outcome: Outcome) -> dict[str, str]:
        steps_per_epoch = num_steps(len(examples.train), self.run.config.training.batch_size)
        rate = len(examples.train) * outcome.num_steps / steps_per_epoch / max(outcome.seconds, 1e-9)
        return {
            "steps": f"{outcome.num_steps:,}, best after {outcome.best_step:,}",
            "training time": duration(outcome.seconds),
            "training rate": f"{rate:,.1f} examples/s",
        }


def _softmax(logits_VC: np.ndarray) -> np.ndarray:
    return probs_of_reviews(logits_VC, np.arange(len(logits_VC)))


def _moved_in_words(config: TrainConfig, decision: Decision, labels: Sequence[str]) -> str:
    """The effect of training.match_shares."""
    nearly = f" (but for {decision.num_off:,} of them, which cannot be told apart)" if decision.num_off else ""
    first = "; of a long review by its first window alone" if config.long_text == "windows" else ""
    return (
        "The decision was moved until classes were said of validation rows as often as they occur there"
        f"{nearly}{first}, by adding to the logits: {decision.in_words(labels)}. Probabilities moved with it; "
        "accuracy, macro F1 and MCC by epoch are of decisions moved so."
    )


# --- a linear head on a frozen encoder -------------------------------------------------------------------------------


class Features(Method):
    """A linear head is fitted on embeddings of the frozen encoder, which are computed once."""

    @property
    def title(self) -> str:
        return f"A linear head on {model_title(self.run.config.model)}"

    def fit(self, tokenized: TokenizedData, examples: Examples, texts: TrainingTexts) -> Trained:
        from bertray.model.pooling import PooledReadout

        run, training = self.run, self.run.config.training
        fitted = fit_on_features(run.config, run.base, tokenized.keys, examples, run.store, run.executor)
        probs_VC = _softmax(fitted.held_out_VC / fitted.temperature)
        info = self.info(fitted.temperature, examples, fitted.held_out, probs_VC)
        info = replace(info, head=LINEAR_HEADS[training.pooling])
        model = PooledReadout(training.pooling).load(run.model_folder)
        names = run.data.labels.names
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
        model.config.problem_type = "single_label_classification"
        how = "a linear head on the frozen encoder"
        bundle, info = self.save(model, run.model_folder, info, texts, how, features.to_tensors(fitted.head))
        facts = features.in_words(fitted, training.head, training.pooling)
        return Trained(bundle, info, how, run.model_folder, facts)
