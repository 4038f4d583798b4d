"""Advice for the config that `init` writes: what `training.method=auto` comes to, and whether the encoder can read."""

from __future__ import annotations

import numpy as np

from bertray.autoconfig import DataSummary, Proposal
from bertray.config import TrainConfig
from bertray.errors import ConfigError
from bertray.evaluation.plausibility import WAYS_OUT
from bertray.model.bundle import bundled_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.runs.fit.automatic import folds_for
from bertray.runs.fit.scheduled import Task
from bertray.schema import LATIN_TOKENS, LATIN_WORDS, LETTERS, LETTERS_UNREAD, N_TOKENS, TRUNCATED
from bertray.training.choice import Choice, TrainingRows, choose
from bertray.training.token_shards import reading_of


def propose(data: DataSummary) -> Proposal:
    """Advice on some data with the bundled encoder; none where that is not installed or there are no labels."""
    held_out = TrainConfig.model_fields["data"].default.validation_fraction
    try:
        folder = bundled_model()
    except ConfigError:
        return Proposal()
    if len(data.label_counts) < 2 or not len(data.texts):
        return Proposal()
    tokenizer = ReviewTokenizer(folder, data.max_length)
    tokens = tokenizer.encode(data.texts)
    coverage = tokenizer.coverage(data.texts)
    for name in (LETTERS, LETTERS_UNREAD, LATIN_WORDS, LATIN_TOKENS):
        tokens = tokens.append_column(name, coverage[name])
    judged = set(data.splits) - {"train"}
    rows = TrainingRows(
        data.num_train_rows,
        len(data.label_counts),
        cut=sum(tokens[TRUNCATED].to_pylist()) / tokens.num_rows,
        unread=reading_of(tokens).unread,
    )
    choice, task = choose(rows), Task.of(rows.num_rows, rows.num_classes, folder)
    mean_tokens = float(np.minimum(tokens[N_TOKENS].to_numpy(), data.max_length).mean())
    passes = task.schedule_by_rule().epochs * rows.num_rows if choice.recipe == "finetune" else 0
    folds = 0 if "validation" in judged else folds_for(rows.num_rows, passes * mean_tokens, tested="test" in judged)
    learned = rows.num_rows if folds or "validation" in judged else round(rows.num_rows * (1 - held_out))
    told = [f"auto is here: {choice.name} ({choice.why})"]
    if choice.recipe == "finetune":
        told.append(f"about {Task.of(learned, rows.num_classes, folder).schedule_by_rule()}")
    return Proposal(_on_encoder(choice, rows, data.script), tuple(told), bool(folds) and "test" not in judged)


def _on_encoder(choice: Choice, rows: TrainingRows, script: str) -> tuple[str, ...]:
    """Sentences on an encoder that cannot read the texts; none where it can."""
    if choice.reads:
        return ()
    return (
        f"the bundled encoder cannot read these texts ({rows.unread:.0%} of their letters, {script}): with it, "
        "training.method=auto learns from TF-IDF of characters alone",
        WAYS_OUT,
    )
