"""`training.method=features` and `stack`: linear heads on the frozen encoder, fitted in seconds.

Shape letters: N train examples, V validation examples, D hidden, C classes.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertray.model.bundle import HEAD_FILE, HeadForm, head_name
from bertray.model.calibration import probs_of_rows
from bertray.model.heads import normalized
from bertray.model.stack import encoder_weight_for, fit_stack, terms_of
from bertray.model.training_texts import TrainingTexts
from bertray.reports.html import model_title
from bertray.runs.fit.cleaned_rows import kept_rows, texts_of
from bertray.runs.fit.methods import Learned, Method, Trained, held_out
from bertray.settings import Pooling, settings_of
from bertray.training import features
from bertray.training.examples import Examples
from bertray.training.features import (
    Embedded,
    FrozenEncoder,
    HeadRows,
    HeadSettings,
    draw_rows,
    embed_examples,
    fit_on_features,
    without_encoder,
)
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import duration


@dataclass(frozen=True)
class Fitted:
    """A linear head as a bundle stores it.

    Args:
        form: input of the head.
        files: of the bundle, by name.
        validation_VC: logits of the validation examples.
        how: a clause for the model card.
        facts: for the report.
        term_logits: of a stack with its encoder, the part of the logits of some examples that comes from terms.
    """

    form: HeadForm
    files: Mapping[str, bytes]
    validation_VC: np.ndarray
    how: str
    facts: Mapping[str, str]
    term_logits: Callable[[np.ndarray], np.ndarray] | None = None


class LinearMethod(Method):
    """A linear head on embeddings of the frozen encoder."""

    @property
    @abstractmethod
    def pooling(self) -> Pooling:
        """Pooling of the encoder's last hidden states."""

    @abstractmethod
    def fit_head(self, rows: HeadRows, tokenized: TokenizedData, examples: Examples) -> Fitted:
        """Fit the head on the train rows; the validation rows choose where there is a choice."""

    def embedded(self, rows: HeadRows, tokenized: TokenizedData) -> Embedded:
        """Rows with their embeddings, which are computed once."""
        encoder = FrozenEncoder(self.run.config.model, self.run.base, self.pooling)
        return embed_examples(encoder, tokenized.keys, rows, self.run.store, self.run.executor)

    def learn(self, tokenized: TokenizedData, examples: Examples) -> Learned:
        run, started = self.run, time.monotonic()
        rows = draw_rows(examples, run.config.training.max_feature_rows, run.config.seed)
        fitted = self.fit_head(rows, tokenized, examples)
        facts = {
            **fitted.facts,
            "rows of the fit": f"{len(rows.train):,}",
            "training time": duration(time.monotonic() - started),
        }
        return Learned(replace(fitted, facts=facts), rows.validation, fitted.validation_VC)

    def keep(self, learned: Learned, examples: Examples, texts: TrainingTexts) -> Trained:
        encoder = labelled_encoder(self.run.model_folder, self.pooling, self.run.data.labels.names)
        return keep_with_head(self, learned, examples, texts, encoder, learned.model)


def keep_with_head(
    method: Method, learned: Learned, examples: Examples, texts: TrainingTexts, encoder: Any, fitted: Fitted
) -> Trained:
    """Calibrate a linear head, and write it with its encoder as a bundle."""
    base = method.run.model_folder
    calibration = method.judge_calibration(learned, examples)
    probs_VC = probs_of_rows(learned.logits_VC / calibration.temperature)
    info = method.info(calibration, examples, learned.members, probs_VC)
    info = replace(info, head=head_name(fitted.form))
    measured = held_out(examples, learned.members, fitted.term_logits)
    bundle, info = method.save(encoder, base, info, texts, fitted.how, measured, fitted.files)
    return Trained(bundle, info, fitted.how, base, fitted.facts, calibration=calibration)


def labelled_encoder(folder: Path, pooling: Pooling, names: tuple[str, ...]) -> Any:
    """The encoder of a model folder, its config naming the classes."""
    from bertray.model.pooling import PooledReadout  # brings torch, which a wrong input need not wait for

    model = PooledReadout(pooling).load(folder)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.config.problem_type = "single_label_classification"
    return model


class Features(LinearMethod):
    """Logistic regression or a linear SVM on pooled embeddings."""

    @property
    def title(self) -> str:
        return f"A linear head on {model_title(self.run.config.model)}"

    @property
    def pooling(self) -> Pooling:
        return self.run.config.training.pooling

    def fit_head(self, rows: HeadRows, tokenized: TokenizedData, examples: Examples) -> Fitted:
        config, embedded = self.run.config, self.embedded(rows, tokenized)
        settings = settings_of(HeadSettings, config.training)
        fitted = fit_on_features(embedded, examples.label_ids_N, self.pooling, settings, config.seed)
        files = {HEAD_FILE: fitted.head.to_tensors()}
        facts = features.in_words(fitted, config.training.head)
        return Fitted(fitted.form, files, fitted.validation_VC, "a linear head on the frozen encoder", facts)


class Stack(LinearMethod):
    """One logistic regression on TF-IDF of the whole text and the normalised mean of the frozen encoder."""

    pooling: Pooling = "mean"

    @property
    def title(self) -> str:
        encoder = f" and {model_title(self.run.config.model)}" if self.reads_encoder else ""
        return f"TF-IDF{encoder} in one logistic regression"

    @property
    def reads_encoder(self) -> bool:
        return self.run.config.training.encoder_weight != 0

    def fit_head(self, rows: HeadRows, tokenized: TokenizedData, examples: Examples) -> Fitted:
        config, cut = self.run.config, cut_share(examples, self.run.config.max_length)
        texts = self._texts(tokenized, examples, np.concatenate([rows.train, rows.validation]))
        train_texts, validation_texts = texts[: len(rows.train)], texts[len(rows.train) :]
        terms = terms_of(train_texts)
        with_encoder = self.reads_encoder or not len(terms)  # without either nothing would be left to learn from
        embedded = self.embedded(rows, tokenized) if with_encoder else without_encoder(rows)
        weight = config.training.encoder_weight or encoder_weight_for(cut)
        stack = fit_stack(
            terms,
            train_texts,
            normalized(embedded.train_ND),
            examples.label_ids_N[rows.train],
            len(self.run.data.labels.names),
            encoder_weight=weight,
            balanced=config.training.class_weights == "balanced",
            seed=config.seed,
        )
        logits_VC = stack.logits(validation_texts, normalized(embedded.validation_VD))
        form = HeadForm(self.pooling, normalized=True, with_terms=True, with_encoder=with_encoder)
        how = "one logistic regression on TF-IDF of the whole text"
        inputs = f"{len(terms):,} terms ({terms.in_words}) of the whole text"
        facts = {}
        if with_encoder:
            how += " and the mean of the frozen encoder"
            inputs += " and the mean of the tokens, scaled to length 1, encoder frozen"
            facts["weight of the encoder"] = f"{weight:g} ({cut:.0%} of the train rows are cut by max_length)"
        facts = {"head": f"logistic regression (C = {stack.head.strength:g}) on {inputs}", **facts}

        def term_logits(members: np.ndarray) -> np.ndarray:
            return stack.term_scorer.logits(self._texts(tokenized, examples, members))

        return Fitted(form, stack.files(), logits_VC, how, facts, term_logits if with_encoder else None)

    def _texts(self, tokenized: TokenizedData, examples: Examples, members: np.ndarray) -> list[str]:
        """Whole texts of some examples, cleaned, in their order."""
        texts = np.empty(len(members), object)
        first = len(examples.shards) if examples.first_of_validation is None else examples.first_of_validation
        for keys, of in ((tokenized.train_keys, members < first), (tokenized.validation_keys, members >= first)):
            if keys is not None and of.any():
                texts[of] = texts_of(kept_rows(self.run.store, keys), examples, members[of], self.run.executor)
        return texts.tolist()


def cut_share(examples: Examples, max_length: int) -> float:
    """Share of the train examples that are longer than `max_length` tokens."""
    return float((examples.shards.n_tokens_N[examples.train] > max_length).mean())
