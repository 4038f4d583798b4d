"""Common parts of the methods of training: a run in, a bundle out. Each value of `training.method` has its own class.

Shape letters: N examples, V those held out for validation, C classes.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bertray.config import TrainConfig
from bertray.evaluation.calibrated import Calibration, judge_calibration
from bertray.evaluation.review_threshold import ReviewThreshold, threshold_for_precision, threshold_for_share
from bertray.evaluation.validation_profile import validation_profile
from bertray.evaluation.verdicts import Finding
from bertray.execution.executor import Executor
from bertray.io.store import LocalStore, Store
from bertray.model.bundle import BundleInfo, write_bundle
from bertray.model.calibration import fit_offsets, fit_temperature
from bertray.model.profile import Profile
from bertray.model.tokenization import Sequences
from bertray.model.training_texts import TrainingTexts
from bertray.outputs.claims import put_folder
from bertray.reviews.clean import Cleaning
from bertray.reviews.kept_rows import KeptRows
from bertray.runs.evaluated import EvaluatedRows
from bertray.runs.fit.cleaned_rows import rows_to_keep
from bertray.runs.fit.labelled_data import LabelledData, tokenize
from bertray.runs.fit.model_card import model_card
from bertray.runs.fit.training_workers import run_workers
from bertray.settings import KeptEpoch, settings_of
from bertray.training.examples import Examples, LoopSettings, Optimization
from bertray.training.loop import Outcome
from bertray.training.objectives import Objective
from bertray.training.rank import TrainJob
from bertray.training.tokenized_data import TokenizedData

MEASURED_ROWS = 1000  # of those that were held out, at most, to measure what int8 changes


@dataclass(frozen=True)
class TrainingRun:
    """One run of `train`, as every method gets it.

    Attributes:
        model_folder: of the model that the config names.
        base: digest of its weights.
        fold: that is held out, where the run is a part of a cross-validation.
    """

    config: TrainConfig
    data: LabelledData
    run_key: str
    model_folder: Path
    base: str
    store: Store
    executor: Executor
    fold: int | None = None

    @property
    def seed(self) -> int:
        """Seed of learning; splits are drawn by the config's own, so that several seeds share them."""
        return self.config.training.seeds[0] if self.config.training.seeds else self.config.seed


@dataclass(frozen=True)
class OutOfFold:
    """Logits of examples, each by a model that learned from the other folds.

    Attributes:
        members: examples, ascending, int [M].
        logits_MC: their logits.
        folds: how many of the folds they stand in.
    """

    members: np.ndarray
    logits_MC: np.ndarray
    folds: int


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
        out_of_fold: what the figures are of, where they come from a cross-validation.
        calibration: of the bundle, on rows that the model has not learned from.
    """

    bundle: str
    info: BundleInfo
    how: str
    base_folder: Path
    facts: Mapping[str, str]
    history: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    out_of_fold: OutOfFold | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Learned:
    """A model before it is written, and logits of rows that it has not learned from.

    Attributes:
        model: as the method keeps it until it is written.
        members: examples whose logits are known, int [V]: of the validation split, or, to calibrate a model that
            learned from all rows, of models that learned from the others.
        logits_VC: their logits.
    """

    model: Any
    members: np.ndarray
    logits_VC: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Rows that a model has not learned from.

    Attributes:
        seqs: as an engine reads them, a sequence each.
        term_logits_SC: of a stack, the part of their logits that comes from terms.
    """

    seqs: Sequences
    term_logits_SC: np.ndarray | None = None


@dataclass(frozen=True)
class Beside:
    """A teacher on the test rows, beside its student.

    Attributes:
        probs: its probabilities, under the name TEACHER; empty where there is nothing to compare.
        speeds: for metrics.json.
        speedup: rows a second of the student, those of its teacher being 1.
    """

    probs: Mapping[str, np.ndarray] = field(default_factory=dict)
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

    def tokenized(self) -> tuple[TokenizedData, Examples]:
        """Token shards of train and validation, and their rows; shards that exist and are unchanged are used."""
        run = self.run
        keep = rows_to_keep(run.config, run.data)
        tokenized = tokenize(run.config, run.data, run.base, run.store, run.executor, keep)
        return tokenized, tokenized.examples()

    @property
    def reads_encoder(self) -> bool:
        """Whether anything is learned from the encoder."""
        return True

    def judge_plan(self, examples: Examples) -> list[Finding]:
        """Findings, logged, on what the method is about to do."""
        return []

    def trained_rows(self, num_rows: int) -> int:
        """Rows that go through the encoder forwards and backwards, over all steps, for so many to learn from."""
        return 0

    @abstractmethod
    def learn(self, tokenized: TokenizedData, examples: Examples) -> Learned:
        """Train on the train split, choose by the validation split; nothing is written to stay.

        The validation split may be empty, and then chooses nothing. It may also be rows of one of several folds: the
        same examples are split in other ways, one after the other.
        """

    @abstractmethod
    def keep(self, learned: Learned, examples: Examples, texts: TrainingTexts) -> Trained:
        """Calibrate by `learned.logits_VC` and write the bundle."""

    def fit(self, tokenized: TokenizedData, examples: Examples, texts: TrainingTexts) -> Trained:
        """Train on the train split, choose by the validation split, write the bundle."""
        return self.keep(self.learn(tokenized, examples), examples, texts)

    def evaluate_teacher(self, judged: KeptRows) -> EvaluatedRows | None:
        """A teacher's probabilities on the rows to judge by, by the scoring path; None without a teacher."""
        return None

    def beside(self, of_teacher: EvaluatedRows | None, rows: EvaluatedRows, trained: Trained) -> Beside:
        """A comparison with the teacher on the same rows."""
        return Beside()

    # what several of them do

    def run_loop(
        self,
        tokenized: TokenizedData,
        examples: Examples,
        start: str,
        training: Optimization,
        objective: Callable[..., Objective],
        *,
        kept_epoch: KeptEpoch,
    ) -> Outcome:
        """Run the training loop on the workers; one of several folds in one go, without checkpoints.

        Args:
            start: model that it starts from, for `resolve_model`.
        """
        run, fold = self.run, self.run.fold
        loop = LoopSettings(
            tokenized.classes,
            training,
            run.seed,
            run.run_key if fold is None else f"{run.run_key}-{fold}",
            run.executor.resources.threads,
            kept_epoch=kept_epoch,
            in_one_go=fold is not None,
        )
        job = TrainJob(tokenized, start, loop, objective, run.config.training.max_failures)
        return run_workers(job, examples, run.store, run.executor)

    def fit_calibration(self, logits_VC: np.ndarray, label_ids_V: np.ndarray) -> tuple[np.ndarray, float]:
        """Offset of each class, [C], and temperature."""
        if self.run.config.training.class_bias:
            return fit_offsets(logits_VC, label_ids_V)
        return np.zeros(logits_VC.shape[1]), fit_temperature(logits_VC, label_ids_V)

    def judge_calibration(self, learned: Learned, examples: Examples) -> Calibration:
        """Temperature, reliability before and after, and the threshold for reviews."""
        return judge_calibration(
            learned.logits_VC,
            examples.label_ids_N[learned.members],
            self.fit_calibration,
            self.run.data.labels.names,
            seed=self.run.config.seed,
            review=_review_of(self.run.config),
        )

    def info(
        self, calibration: Calibration, examples: Examples, members: np.ndarray, probs_VC: np.ndarray
    ) -> BundleInfo:
        """Info of the bundle.

        Args:
            members: examples that were held out, int [V].
            probs_VC: their probabilities, for the profile.
        """
        config, data = self.run.config, self.run.data
        aspects = data.train.spec.aspects
        read_tokens = None if config.long_text == "windows" else config.max_length  # None: all of a review
        profile: Profile = validation_profile(examples, members, probs_VC, data.labels.names, read_tokens)
        return BundleInfo(
            labels=data.labels.names,
            label_values=dict(data.labels.values),
            max_length=config.max_length,
            long_text=config.long_text,
            cleaning=settings_of(Cleaning, config.cleaning),
            temperature=calibration.temperature,
            base_model=config.model,
            data_fingerprint=data.fingerprint,
            max_chars=config.max_chars,
            text_pair=data.train.spec.has_pair,
            aspects=aspects.label_columns if aspects else {},
            text_columns=config.columns.texts if len(config.columns.texts) > 1 else (),
            profile=profile,
            needs_review_below=calibration.review.threshold if calibration.review else None,
        )

    def save(
        self,
        model: Any,
        base_folder: Path,
        info: BundleInfo,
        texts: TrainingTexts,
        how: str,
        rows: HeldOut,
        head: Mapping[str, bytes] | None = None,
    ) -> tuple[str, BundleInfo]:
        """Write the bundle to the output; returns where it lies and its info.

        Args:
            rows: that it has not learned from, to measure on.
            head: files of the head, where `model` is an encoder.
        """
        store = self.run.store
        card = model_card(self.run.config, self.run.data, info, how, base_folder)
        write = partial(
            write_bundle,
            model=model,
            tokenizer=base_folder,
            info=info,
            card=card,
            head=head,
            texts=texts,
            measured=partial(_int8_bound, rows, info.temperature),
        )
        if isinstance(store, LocalStore):
            return store.uri("model"), write(Path(store.uri("model")))
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "model"
            info = write(local)
            put_folder(store, local, "model")
        return store.uri("model"), info


def held_out(
    examples: Examples, members: np.ndarray, term_logits: Callable[[np.ndarray], np.ndarray] | None = None
) -> HeldOut:
    """A random sample of some examples, as a bundle is measured on.

    Args:
        term_logits: of a stack, the part of their logits that comes from terms.
    """
    sample = np.random.default_rng(0).permutation(members)[:MEASURED_ROWS]
    return HeldOut(examples.shards.end_to_end(sample), term_logits(sample) if term_logits else None)


def _int8_bound(rows: HeldOut, temperature: float, folder: Path) -> float | None:
    from bertray.model.int8 import measure_bound  # brings torch, which a wrong input need not wait for

    return measure_bound(folder, rows.seqs, temperature, rows.term_logits_SC)


def _review_of(config: TrainConfig) -> Callable[[np.ndarray, np.ndarray], ReviewThreshold] | None:
    """Choice of the threshold that the config asks for."""
    if config.review.precision is not None:
        return partial(threshold_for_precision, precision=config.review.precision)
    if config.review.share is not None:
        return partial(threshold_for_share, share=config.review.share)
    return None
