"""The input of a training loop: examples with their splits, and the settings of the loop, as plain values.

Shape letters: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertray.settings import BestMetric, ClassWeights, Precision

if TYPE_CHECKING:
    from bertray.training.token_shards import TokenShards


@dataclass(frozen=True)
class Examples:
    """Token shards with the label and the split of each of their rows."""

    shards: TokenShards
    label_ids_N: np.ndarray  # int32; < 0: the row has no usable label
    train: np.ndarray  # example numbers of the train split, ascending
    validation: np.ndarray  # example numbers of the validation split, ascending
    soft_NC: np.ndarray | None = None  # float32 logits of a teacher, in place of labels


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and the loop, for every objective.

    Args:
        epochs: passes over the train split.
        learning_rate: peak of the schedule: linear warm-up, then linear decay to 0.
        batch_size: examples per optimizer step over all workers and micro-batches.
        weight_decay: of AdamW, on matrices alone.
        warmup_ratio: share of all steps with a rising learning rate.
        max_grad_norm: gradients are clipped to this norm.
        max_tokens_per_microbatch: tokens of one forward and backward pass, padding included; larger batches accumulate.
        attention_dropout: keep the model's dropout on attention weights.
        early_stopping_patience: stop after this many epochs without a better validation score; None: never.
        checkpoint_every_s: seconds between checkpoints, besides the one after each epoch.
        precision: of the forward and backward pass; weights and gradients stay fp32.
    """

    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    max_tokens_per_microbatch: int = 8192
    attention_dropout: bool = False
    early_stopping_patience: int | None = None
    checkpoint_every_s: float = 300
    precision: Precision = "auto"


@dataclass(frozen=True)
class TrainingSettings(Optimization):
    """Settings of training a classifier.

    Args:
        class_weights: `balanced` weighs each class by the inverse of its frequency.
        match_shares: shift the logits so that predicted label shares on validation match the true ones.
        best_metric: validation metric that picks the best epoch.
        softness: distillation temperature, by which the logits of teacher and student are divided.
    """

    class_weights: ClassWeights = "none"
    match_shares: bool = False
    best_metric: BestMetric = "loss"
    softness: float = 2.0


@dataclass(frozen=True)
class PretrainingSettings(Optimization):
    """Settings of masked language modelling.

    Args:
        mask_ratio: share of the tokens of a text that is masked.
        whole_words: mask all word pieces of a word or none.
        held_out_tokens: tokens scored one at a time for pseudo-perplexity after each epoch.
    """

    mask_ratio: float = 0.15
    whole_words: bool = True
    held_out_tokens: int = 1000


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one run of the loop, equal on every rank.

    Args:
        labels: class names in id order; none for an objective without classes.
        training: optimizer, schedule and objective.
        seed: of order, dropout and new weights.
        run_key: names the run; a checkpoint with another key is not resumed.
        threads: of torch on CPU; None: torch's own choice.
    """

    labels: tuple[str, ...]
    training: Optimization
    seed: int
    run_key: str
    threads: int | None
