"""`training.method=contrast`: an encoder tuned by contrast, and a linear head on its embeddings.

Shape letters: N train examples, V validation examples, D hidden, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from bertray.model.bundle import HEAD_FILE, HeadForm
from bertray.model.heads import LinearHead, fit_linear, normalized
from bertray.model.training_texts import TrainingTexts
from bertray.reports.html import model_title
from bertray.runs.fit.linear_methods import Fitted, keep_with_head, labelled_encoder
from bertray.runs.fit.methods import Learned, Method, Trained
from bertray.training import contrast
from bertray.training.checkpoint import load_best, load_model_tensors
from bertray.training.contrast import ContrastSettings
from bertray.training.examples import Examples, Optimization
from bertray.training.loop import Outcome
from bertray.training.schedule import WARMUP_RATIO
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import duration

FORM = HeadForm("mean", normalized=True)
STRENGTH = 1.0  # inverse regularisation of the head


@dataclass(frozen=True)
class Contrasted:
    """A tuned encoder, as its checkpoint, and its head."""

    outcome: Outcome
    head: LinearHead


class Contrast(Method):
    """The training loop pulls texts of one class together; logistic regression then reads the new embeddings."""

    @property
    def title(self) -> str:
        return f"Contrast learning of {model_title(self.run.config.model)}"

    def trained_rows(self, num_rows: int) -> int:
        settings = self.settings(num_rows)
        return settings.steps * min(settings.batch_size, num_rows)

    def settings(self, num_rows: int) -> ContrastSettings:
        """Numbers of the config, and by rule, for so many train rows, where it leaves them open."""
        training, num_classes = self.run.config.training, len(self.run.data.labels.names)
        by_rule = {
            "learning_rate": contrast.rate_for(num_rows, num_classes),
            "batch_size": contrast.BATCH_SIZE,
            "warmup_ratio": WARMUP_RATIO,
        }
        stated = {field.name: getattr(training, field.name) for field in fields(Optimization)}
        open_ones = {name: value for name, value in by_rule.items() if stated[name] == "auto"}
        steps = training.steps or contrast.steps_for(num_rows)
        return ContrastSettings(**{**stated, **open_ones, "epochs": 1, "steps": steps})

    def learn(self, tokenized: TokenizedData, examples: Examples) -> Learned:
        run, settings = self.run, self.settings(len(examples.train))
        outcome = self.run_loop(tokenized, examples, run.config.model, settings, contrast.Contrast, kept_epoch="last")
        num_validation = len(examples.validation)
        train = contrast.embedded(examples.validation, examples.train, run.seed)[num_validation:]
        vectors_ED = outcome.validation_VK
        head = fit_linear(
            normalized(vectors_ED[num_validation:]),
            examples.label_ids_N[train],
            len(run.data.labels.names),
            STRENGTH,
            balanced=run.config.training.class_weights == "balanced",
            seed=run.seed,
        )
        logits_VC = head.logits(normalized(vectors_ED[:num_validation]))
        return Learned(Contrasted(outcome, head), examples.validation, logits_VC)

    def keep(self, learned: Learned, examples: Examples, texts: TrainingTexts) -> Trained:
        run, outcome = self.run, learned.model.outcome
        encoder = labelled_encoder(run.model_folder, FORM.pooling, run.data.labels.names)
        load_model_tensors(encoder, load_best(run.store, outcome.best_step, run.run_key).model)
        how = f"{outcome.num_steps} steps of contrast, then a linear head on the mean of its tokens"
        files = {HEAD_FILE: learned.model.head.to_tensors()}
        fitted = Fitted(FORM, files, learned.logits_VC, how, self._facts(examples, outcome))
        trained = keep_with_head(self, learned, examples, texts, encoder, fitted)
        return replace(trained, history=outcome.history, notes=outcome.notes)

    def _facts(self, examples: Examples, outcome: Outcome) -> dict[str, str]:
        settings = self.settings(len(examples.train))
        texts = outcome.num_steps * min(settings.batch_size, len(examples.train))
        return {
            "steps": f"{outcome.num_steps:,} of {settings.batch_size} texts of balanced classes, learning rate "
            f"{settings.learning_rate:g}",
            "head": f"logistic regression (C = {STRENGTH:g}) on the mean of the tokens, scaled to length 1",
            "training time": duration(outcome.seconds),
            "training rate": f"{texts / max(outcome.seconds, 1e-9):,.1f} examples/s",
        }
