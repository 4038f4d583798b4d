"""Steps and learning rate of fine-tuning by rule, for what a config leaves open.

What is missing with few rows is first the number of steps, then the rate; both were measured on English sets of 64 to
4,000 rows with an encoder of hidden size 384 (docs/recipes.md, docs/log/accuracy.md). Rates of other sizes are those of
the literature (Devlin et al. 2019, table 6 and appendix A.3; Turc et al. 2019, "Well-Read Students Learn Better").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bertray.settings import Auto
from bertray.training.order import num_steps
from bertray.wording import counted

BATCH_SIZE = 16
WARMUP_RATIO = 0.1
FEW_CLASSES = 3
LEAST_STEPS, LEAST_STEPS_OF_MANY = 150, 300  # for up to FEW_CLASSES classes, and for more
LEAST_EPOCHS, MOST_EPOCHS = 3, 20
FEW_STEPS = 100  # of the optimizer, below which a model has hardly begun to learn
# Largest hidden size, and the rate for up to FEW_CLASSES classes and for more.
_RATES = ((256, 3e-4, 5e-4), (384, 1e-4, 3e-4), (512, 1e-4, 2e-4), (768, 5e-5, 1e-4))
_RATE_OF_LARGE = (2e-5, 3e-5)
# Adapters start at zero, and their product moves the weights: their best rate is about ten times that of all weights
# (Hu et al. 2021, table 9: 4e-4 to 5e-4 for RoBERTa-base, which others fine-tune at 1e-5 to 3e-5). Not measured here.
ADAPTER_RATE = 10


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps and their size.

    Args:
        epochs: passes over the train split.
        learning_rate: peak, after warm-up and before linear decay.
        batch_size: examples of a step.
        warmup_ratio: share of the steps with a rising rate.
        num_rows: of the train split.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    warmup_ratio: float
    num_rows: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * num_steps(self.num_rows, self.batch_size)

    def __str__(self) -> str:
        rate = np.format_float_scientific(self.learning_rate, precision=3, trim="-", exp_digits=1)
        return (
            f"{counted(self.num_steps, 'optimizer step')}: {counted(self.epochs, 'epoch')} of "
            f"{counted(self.num_rows, 'row')}, {counted(self.batch_size, 'row')} a step; learning rate {rate}, rising "
            f"over the first {self.warmup_ratio:.0%} of the steps"
        )


def schedule_for(
    num_rows: int,
    num_classes: int,
    hidden_size: int,
    *,
    epochs: int | Auto = "auto",
    learning_rate: float | Auto = "auto",
    batch_size: int | Auto = "auto",
    warmup_ratio: float | Auto = "auto",
    adapters: bool = False,
) -> Schedule:
    """The schedule for some rows: numbers as they are given, by rule where it says `auto`.

    Args:
        num_rows: of the train split.
        hidden_size: of the encoder.
        epochs, learning_rate, batch_size, warmup_ratio: as the config has them.
        adapters: low-rank adapters are learned in place of the encoder's weights.
    """
    size = BATCH_SIZE if batch_size == "auto" else batch_size
    rate = rate_for(num_classes, hidden_size) * (ADAPTER_RATE if adapters else 1)
    wanted = math.ceil(least_steps(num_classes) * size / max(num_rows, 1))
    return Schedule(
        epochs=min(max(wanted, LEAST_EPOCHS), MOST_EPOCHS) if epochs == "auto" else epochs,
        learning_rate=rate if learning_rate == "auto" else learning_rate,
        batch_size=size,
        warmup_ratio=WARMUP_RATIO if warmup_ratio == "auto" else warmup_ratio,
        num_rows=num_rows,
    )


def least_steps(num_classes: int) -> int:
    """Optimizer steps that so many classes need at least: with half of 300, the rare ones of many stay unlearned."""
    return LEAST_STEPS if num_classes <= FEW_CLASSES else LEAST_STEPS_OF_MANY


def rate_for(num_classes: int, hidden_size: int) -> float:
    """Peak learning rate of AdamW for all weights of an encoder."""
    few, many = next(((few, many) for size, few, many in _RATES if hidden_size <= size), _RATE_OF_LARGE)
    return few if num_classes <= FEW_CLASSES else many
