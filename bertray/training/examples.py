"""The input of a training loop: examples with their splits, and the settings of the loop, as plain values.

Shape letters: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertray.settings import BestMetric, ClassWeights, GradientCompression, KeptEpoch, Precision

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
    first_of_validation: int | None = None  # example from which on rows come from data.validation, if it was given


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and the loop, for every objective; a config or a rule states the first four.

    Args:
        epochs: passes over the train split.
        learning_rate: peak of the schedule: linear warm-up, then linear decay to 0.
        batch_size: examples per optimizer step over all workers and micro-batches.
        warmup_ratio: share of all steps with a rising learning rate.
        weight_decay: of AdamW, on matrices alone.
        max_grad_norm: gradients are clipped to this norm.
        max_tokens_per_microbatch: tokens of one forward and backward pass, padding included; larger batches accumulate.
            None: what suits the device.
        gradient_compression: format in which several workers exchange gradients.
        attention_dropout: keep the model's dropout on attention weights.
        early_stopping_patience: stop after this many epochs without a better validation score; None: never.
        checkpoint_every_s: seconds between checkpoints, besides the one after each epoch.
        precision: of the forward and backward pass; weights and gradients stay fp32.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    warmup_ratio: float
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_tokens_per_microbatch: int | None = None
    gradient_compression: GradientCompression = "none"
    attention_dropout: bool = False
    early_stopping_patience: int | None = None
    checkpoint_every_s: float = 300
    precision: Precision = "auto"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters in place of whole matrices.

    Args:
        rank: of the adapters; None: none, all weights are learned.
        alpha: scale, divided by the rank; None: twice the rank.
        targets: names of linear layers; none: query and value projections.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingSettings(Optimization):
    """Settings of training a classifier.

    Args:
        class_weights: `balanced` weighs each class by the inverse of its frequency.
        match_shares: shift the logits so that predicted label shares on validation match the true ones.
        best_metric: validation metric that picks the best epoch.
        softness: distillation temperature, by which the logits of teacher and student are divided.
        lora: adapters.
        freeze_layers: embeddings and so many layers, from the first on, stay as they are.
        layer_decay: factor of the learning rate from a layer to the one below it.
    """

    class_weights: ClassWeights = "none"
    match_shares: bool = False
    best_metric: BestMetric = "loss"
    softness: float = 2.0
    lora: LoraSettings = LoraSettings()
    freeze_layers: int = 0
    layer_decay: float = 1.0


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
        kept_epoch: whose model is kept: the best on validation, or the last. Only the last needs no validation rows.
        in_one_go: a short run that starts over when it is killed: no checkpoint, and validation only at its end.

    Raises:
        ValueError: the best epoch of a run in one go, which judges none but the last.
    """

    labels: tuple[str, ...]
    training: Optimization
    seed: int
    run_key: str
    threads: int | None
    kept_epoch: KeptEpoch = "best"
    in_one_go: bool = False

    def __post_init__(self) -> None:
        if self.in_one_go and self.kept_epoch == "best":
            raise ValueError("kept_epoch: expected the last of a run in one go, which judges no other, found the best")
