"""`training.method=auto`: a method by rule, judged on rows that it has not learned from, beside the stack.

Shape letters: V rows to choose by, C classes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from bertray.config import TrainConfig
from bertray.evaluation.metrics import confusion_matrix, matrix_metrics, row_metrics
from bertray.evaluation.verdicts import Finding
from bertray.model.calibration import fit_temperature, probs_of_rows
from bertray.model.training_texts import TrainingTexts
from bertray.runs.fit.contrast import Contrast
from bertray.runs.fit.cross_validation import out_of_fold
from bertray.runs.fit.finetuning import Finetune
from bertray.runs.fit.linear_methods import Stack
from bertray.runs.fit.methods import Learned, Method, Trained, TrainingRun
from bertray.runs.fit.scheduled import encoder_size, stated_keys
from bertray.training.choice import (
    CHEAP,
    MANY_ROWS,
    NAMES,
    ROWS_OF_NO_RIVAL,
    ROWS_TO_CHOOSE_BY,
    Choice,
    Recipe,
    TrainingRows,
    choose,
)
from bertray.training.examples import Examples
from bertray.training.tokenized_data import NUM_FOLDS, TokenizedData

log = logging.getLogger(__name__)

METHODS: dict[Recipe, type[Method]] = {"finetune": Finetune, "stack": Stack, "terms": Stack, "contrast": Contrast}
MOST_TOKENS = 400_000  # of training with the bundled encoder, some three minutes on two cores


@dataclass(frozen=True)
class Plan:
    """The choice for some rows.

    Args:
        choice: by rule.
        rivals: other methods that are tried beside it.
        folds: how many of NUM_FOLDS the figures come from; 0: none, a share is held out.
    """

    choice: Choice
    rivals: tuple[Recipe, ...]
    folds: int


def choice_for(config: TrainConfig, rows: TrainingRows) -> Choice:
    """The method for some rows; fine-tuning where the config states a setting of it."""
    stated = stated_keys(config)
    if stated:
        return Choice("finetune", f"{stated[0]} is a setting of it", is_stated=True)
    return choose(rows)


def folds_for(num_rows: int, tokens: float, *, tested: bool) -> int:
    """Folds of a cross-validation that there is time for, beside the model that is kept.

    Args:
        num_rows: that there are to learn from.
        tokens: that its training takes, in tokens of the bundled encoder.
        tested: the figures come from other rows: what the folds are for is choice and calibration, and
            ROWS_TO_CHOOSE_BY rows are enough.
    """
    if num_rows >= MANY_ROWS:
        return 0
    if not tokens:
        return NUM_FOLDS
    wanted = min(NUM_FOLDS, math.ceil(ROWS_TO_CHOOSE_BY * NUM_FOLDS / num_rows)) if tested else NUM_FOLDS
    # One fold is worth more than a tenth held out, and may take a little longer.
    least = 1 if tokens <= MOST_TOKENS else 0
    return min(wanted, max(least, int(MOST_TOKENS / tokens - 1)))


class Automatic(Method):
    """A method by rule for the rows there are; the stack instead where it does better on rows to choose by."""

    def __init__(self, run: TrainingRun) -> None:
        super().__init__(run)
        self._plan: Plan | None = None
        self._kept: Method | None = None

    @property
    def plan(self) -> Plan:
        assert self._plan is not None, "comes with the tokens"
        return self._plan

    @property
    def title(self) -> str:
        return (self._kept or self._method(self.plan.choice.recipe)).title

    def tokenized(self) -> tuple[TokenizedData, Examples]:
        tokenized, examples = super().tokenized()
        self._plan = self._planned(tokenized, examples)
        log.info("training.method=auto: %s, since %s", self.plan.choice.name, self.plan.choice.why)
        if self._plan.folds:
            tokenized = replace(tokenized, validation_fraction=0.0)
            examples = tokenized.split(examples)
        return tokenized, examples

    @property
    def reads_encoder(self) -> bool:
        return self.plan.choice.reads

    def judge_plan(self, examples: Examples) -> list[Finding]:
        return self._method(self.plan.choice.recipe).judge_plan(examples)

    def fit(self, tokenized: TokenizedData, examples: Examples, texts: TrainingTexts) -> Trained:
        plan = self.plan
        names, judged_by = [plan.choice.recipe, *plan.rivals], None
        if plan.folds:
            judged = {
                name: out_of_fold(METHODS[name], self._run_of(name), tokenized, examples, plan.folds) for name in names
            }
            tried = {name: Learned(None, out.members, out.logits_MC) for name, out in judged.items()}
            name, said = self._chosen(tried, examples)
            self._kept, judged_by = self._method(name), judged[name]
            learned = replace(tried[name], model=self._kept.learn(tokenized, examples).model)
        else:
            tried = {name: self._method(name).learn(tokenized, examples) for name in names}
            name, said = self._chosen(tried, examples)
            self._kept, learned = self._method(name), tried[name]
        trained = self._kept.keep(learned, examples, texts)
        if plan.choice.is_stated:
            return trained
        log.info("%s", said)
        return replace(trained, notes=[said, *trained.notes], out_of_fold=judged_by)

    def learn(self, tokenized: TokenizedData, examples: Examples) -> Learned:
        return self._method(self.plan.choice.recipe).learn(tokenized, examples)

    def keep(self, learned: Learned, examples: Examples, texts: TrainingTexts) -> Trained:
        return self._method(self.plan.choice.recipe).keep(learned, examples, texts)

    # --- the rule ----------------------------------------------------------------------------------------------------

    def _planned(self, tokenized: TokenizedData, examples: Examples) -> Plan:
        config, data, shards = self.run.config, self.run.data, examples.shards
        held_out = data.validation is None
        members = np.concatenate([examples.train, examples.validation]) if held_out else examples.train
        rows = TrainingRows(
            len(members),
            len(data.labels.names),
            cut=float((shards.n_tokens_N[members] > config.max_length).mean()),
            unread=shards.reading(members).unread,
        )
        choice = choice_for(config, rows)
        folds = 0
        passes = self._method(choice.recipe).trained_rows(len(members))
        if held_out and not choice.is_stated:
            tokens = passes * float(shards.lens_N[members].mean()) * encoder_size(self.run.model_folder)
            folds = folds_for(len(members), tokens, tested=data.test is not None)
            if not any(len(replace(tokenized, fold=fold).split(examples).validation) for fold in range(folds)):
                folds = 0  # a single text, or one of each class: nothing can be judged
        to_choose_by = len(members) * folds / NUM_FOLDS if folds else len(examples.validation)
        few = to_choose_by >= ROWS_TO_CHOOSE_BY and len(members) < ROWS_OF_NO_RIVAL
        is_open = few and choice.reads and not choice.is_stated
        return Plan(choice, tuple(name for name in CHEAP if is_open and name != choice.recipe), folds)

    def _method(self, name: Recipe) -> Method:
        return METHODS[name](self._run_of(name))

    def _run_of(self, name: Recipe) -> TrainingRun:
        training = self.run.config.training.model_copy(update=self._settings_of(name))
        return replace(self.run, config=self.run.config.model_copy(update={"training": training}))

    def _settings_of(self, name: Recipe) -> dict[str, object]:
        return {"method": "stack", "encoder_weight": 0.0} if name == "terms" else {"method": name}

    def _chosen(self, tried: dict[Recipe, Learned], examples: Examples) -> tuple[Recipe, str]:
        """The method to keep, and a sentence on what each reached."""
        plan, labels_N = self.plan, examples.label_ids_N
        said = f"training.method=auto chose {plan.choice.name}: {plan.choice.why}."
        if not plan.rivals:
            return plan.choice.recipe, said
        figures = {name: _figures(learned, labels_N) for name, learned in tried.items()}
        best = max(tried, key=lambda name: _value(figures[name], self.run.config))  # the first of equal ones
        on = "by cross-validation" if plan.folds else f"on {len(examples.validation):,} validation rows"
        reached = "; ".join(
            f"{NAMES[name]} accuracy {of['accuracy']:.3f}, macro F1 {of['macro_f1']:.3f}, log loss {of['loss']:.3f}"
            for name, of in figures.items()
        )
        if best == plan.choice.recipe:
            return best, f"{said} Reached {on}: {reached}."
        return best, (
            f"training.method=auto chose {NAMES[best]}, which is better here than {plan.choice.name}. "
            f"Reached {on}: {reached}."
        )


def _figures(learned: Learned, label_ids_N: np.ndarray) -> dict[str, float]:
    """Figures on rows that were not learned from; the loss is that of calibrated probabilities."""
    logits_VC, labels_V = learned.logits_VC, label_ids_N[learned.members]
    matrix_CC = confusion_matrix(labels_V, logits_VC.argmax(axis=1), logits_VC.shape[1])
    probs_VC = probs_of_rows(logits_VC / fit_temperature(logits_VC, labels_V))
    of_rows = row_metrics(labels_V, np.nan_to_num(probs_VC), seed=0)
    found = {name: estimate.value for name, estimate in matrix_metrics(matrix_CC, seed=0).items()}
    return {**found, "loss": of_rows["log_loss"].value}


def _value(figures: dict[str, float], config: TrainConfig) -> float:
    """The larger the better, of the figure that the config names.

    By default the log loss: of few rows it tells more than the share that is right, and a model that knows nothing
    loses to one that says how frequent the labels are.
    """
    metric = config.training.best_metric
    return -figures["loss"] if metric == "loss" else figures[metric]
