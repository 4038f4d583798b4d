"""`training.method=finetune`: every weight is learned, by the training loop.

Shape letters: V examples held out for validation, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bertray.config import TrainConfig
from bertray.evaluation.calibrated import Calibration
from bertray.evaluation.validation_profile import log_findings
from bertray.evaluation.verdicts import Finding
from bertray.model.bundle import ASPECT_ATTENTION, HEAD_FILE
from bertray.model.calibration import fit_temperature, offsets_to_shares, probs_of_rows
from bertray.model.training_texts import TrainingTexts
from bertray.reports.html import model_title
from bertray.runs.fit.methods import Learned, Method, Trained, held_out
from bertray.runs.fit.scheduled import Task, in_words, judge_steps
from bertray.settings import KeptEpoch, settings_of
from bertray.training.adapters import adapt, merge_adapters
from bertray.training.checkpoint import load_best, load_model_tensors
from bertray.training.choice import ROWS_TO_CHOOSE_BY
from bertray.training.examples import Examples, TrainingSettings
from bertray.training.loading import AS_GIVEN, load_aspect_classifier, load_classifier
from bertray.training.loop import Outcome
from bertray.training.objectives import AspectClassification, Classification, Objective
from bertray.training.order import num_steps
from bertray.training.schedule import Schedule
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import duration

log = logging.getLogger(__name__)


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

    @property
    def by_aspect(self) -> bool:
        """Whether the head pools tokens by a query of the aspect."""
        return self.run.config.head == "attention"

    def start(self) -> tuple[str, Path]:
        """The model that training starts from, for `resolve_model`, and its folder."""
        return self.run.config.model, self.run.model_folder

    def decide(self, calibration: Calibration, learned: Learned, examples: Examples) -> Decision:
        """The decision of the model that is kept."""
        offsets_C = np.array([calibration.offsets.get(name, 0.0) for name in self.run.data.labels.names])
        if not self.run.config.training.match_shares:
            return Decision(offsets_C, calibration.temperature)
        moved_VC, label_ids_V = learned.logits_VC + offsets_C, examples.label_ids_N[learned.members]
        predicted_C, given_C = (
            np.bincount(ids_V, minlength=len(offsets_C)) for ids_V in (moved_VC.argmax(axis=1), label_ids_V)
        )
        num_off = int(np.maximum(predicted_C - given_C, 0).sum())
        return Decision(offsets_C, calibration.temperature, num_off)

    def fit_calibration(self, logits_VC: np.ndarray, label_ids_V: np.ndarray) -> tuple[np.ndarray, float]:
        if not self.run.config.training.match_shares:
            return super().fit_calibration(logits_VC, label_ids_V)
        offsets_C = offsets_to_shares(logits_VC, label_ids_V)
        return offsets_C, fit_temperature(logits_VC + offsets_C, label_ids_V)

    def judge_plan(self, examples: Examples) -> list[Finding]:
        findings = judge_steps(self.run.config, self.schedule(examples))
        log_findings(findings)
        return findings

    def trained_rows(self, num_rows: int) -> int:
        return self._task(num_rows).schedule(self.run.config).epochs * num_rows

    def schedule(self, examples: Examples) -> Schedule:
        """Steps and rate, for the rows that are learned."""
        return self._task(len(examples.train)).schedule(self.run.config)

    def _task(self, num_rows: int) -> Task:
        return Task.of(num_rows, len(self.run.data.labels.names), self.run.model_folder)

    def notes(self, examples: Examples) -> list[str]:
        """Further sentences for the report."""
        return []

    def learn(self, tokenized: TokenizedData, examples: Examples) -> Learned:
        run = self.run
        start, _ = self.start()
        log.info("%s", in_words(run.config, self.schedule(examples)))
        settings = settings_of(TrainingSettings, self._task(len(examples.train)).numbers(run.config).training)
        few = run.config.training.epochs == "auto" and len(examples.validation) < ROWS_TO_CHOOSE_BY
        objective = AspectClassification if self.by_aspect else self.objective
        # Of a fold the last, too: the model that is kept learns from all rows, and has none to choose an epoch by.
        kept: KeptEpoch = "last" if few or run.fold is not None else "best"
        outcome = self.run_loop(tokenized, examples, start, settings, objective, kept_epoch=kept)
        return Learned(outcome, examples.validation, outcome.validation_VK)

    def keep(self, learned: Learned, examples: Examples, texts: TrainingTexts) -> Trained:
        run, outcome = self.run, learned.model
        _, base_folder = self.start()
        calibration = self.judge_calibration(learned, examples)
        decision = self.decide(calibration, learned, examples)
        probs_VC = probs_of_rows((learned.logits_VC + decision.offsets_C) / decision.temperature)
        info = self.info(calibration, examples, learned.members, probs_VC)
        model, how = self._best_model(examples, outcome, decision, base_folder)
        head = None
        if self.by_aspect:
            info, head, model = replace(info, head=ASPECT_ATTENTION), {HEAD_FILE: model.head_bytes()}, model.encoder
        bundle, info = self.save(model, base_folder, info, texts, how, held_out(examples, learned.members), head)
        notes = [*self.notes(examples), *outcome.notes]
        if run.config.training.match_shares:
            notes.append(_moved_in_words(run.config, decision, info.labels))
        elif run.config.training.class_bias:
            notes.append(f"Calibration moved the decision, by adding to the logits: {decision.in_words(info.labels)}.")
        facts = self._facts(examples, outcome)
        return Trained(bundle, info, how, base_folder, facts, outcome.history, notes, calibration=calibration)

    def _best_model(
        self, examples: Examples, outcome: Outcome, decision: Decision, base_folder: Path
    ) -> tuple[Any, str]:
        """The model of the best checkpoint, its decision moved, and how it came about."""
        run = self.run
        checkpoint = load_best(run.store, outcome.best_step, run.run_key)
        load = load_aspect_classifier if self.by_aspect else load_classifier
        model: Any = load(base_folder, run.data.labels.names, AS_GIVEN)
        settings = settings_of(TrainingSettings, self._task(len(examples.train)).numbers(run.config).training)
        adapt(model, settings)
        load_model_tensors(model, checkpoint.model)
        merge_adapters(model)
        kept = (
            "the last epoch"
            if outcome.best_step == outcome.num_steps
            else f"the epoch that ends at step {outcome.best_step}"
        )
        how = f"{self.schedule(examples)}; {kept} is kept"
        if decision.offsets_C.any():
            from bertray.model.families import output_bias

            bias_C = output_bias(model)
            bias_C.data += bias_C.new_tensor(decision.offsets_C)
            why = "to the shares of validation" if run.config.training.match_shares else "by calibration"
            how += f"; decision moved {why}, logits by {decision.in_words(run.data.labels.names)}"
        return model, how

    def _facts(self, examples: Examples, outcome: Outcome) -> dict[str, str]:
        schedule = self.schedule(examples)
        steps_per_epoch = num_steps(len(examples.train), schedule.batch_size)
        rate = len(examples.train) * outcome.num_steps / steps_per_epoch / max(outcome.seconds, 1e-9)
        return {
            "schedule": in_words(self.run.config, schedule),
            "steps": f"{outcome.num_steps:,}, best after {outcome.best_step:,}",
            "training time": duration(outcome.seconds),
            "training rate": f"{rate:,.1f} examples/s",
        }


def _moved_in_words(config: TrainConfig, decision: Decision, labels: Sequence[str]) -> str:
    """The effect of training.match_shares."""
    nearly = f" (but for {decision.num_off:,} of them, which cannot be told apart)" if decision.num_off else ""
    first = "; of a long review by its first window alone" if config.long_text == "windows" else ""
    return (
        "The decision was moved until classes were said of validation rows as often as they occur there"
        f"{nearly}{first}, by adding to the logits: {decision.in_words(labels)}. Probabilities moved with it; "
        "accuracy, macro F1 and MCC by epoch are of decisions moved so."
    )
