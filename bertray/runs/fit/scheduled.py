"""Numbers for what a config of training leaves to a rule."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from bertray.config import TrainConfig
from bertray.evaluation.verdicts import Finding
from bertray.model.pretrained.weights import hidden_size, load_config
from bertray.training.schedule import FEW_STEPS, Schedule, schedule_for

NUMBERS = ("epochs", "learning_rate", "batch_size", "warmup_ratio")
OF_FINETUNING = (*NUMBERS, "early_stopping_patience", "match_shares", "class_bias", "seeds")
OF_LAYERS = ("lora", "freeze_layers", "layer_decay")  # what of the encoder is learned
_ConfigT = TypeVar("_ConfigT", bound=TrainConfig)


def stated_keys(config: TrainConfig) -> list[str]:
    """Keys by which a config asks for fine-tuning, whatever `auto` would choose."""
    training = config.training
    head = [] if config.head == "classifier" else ["head"]
    unstated = ("auto", None, False, ())
    stated = [name for name in OF_FINETUNING if getattr(training, name) not in unstated]
    stated += [name for name in OF_LAYERS if getattr(training, name) != type(training).model_fields[name].default]
    return head + [f"training.{name}" for name in stated]


@dataclass(frozen=True)
class Task:
    """Size of what is to be learned, by which a schedule is chosen."""

    num_rows: int
    num_classes: int
    hidden_size: int

    @classmethod
    def of(cls, num_rows: int, num_classes: int, folder: Path) -> Task:
        """The task of fine-tuning the encoder in a folder."""
        return cls(num_rows, num_classes, hidden_size(folder))

    def schedule_by_rule(self) -> Schedule:
        """Steps and rate where a config leaves all to the rule."""
        return schedule_for(self.num_rows, self.num_classes, self.hidden_size)

    def schedule(self, config: TrainConfig) -> Schedule:
        """Steps and rate of a config."""
        stated = {name: getattr(config.training, name) for name in NUMBERS}
        adapters = config.training.lora.rank is not None
        return schedule_for(self.num_rows, self.num_classes, self.hidden_size, **stated, adapters=adapters)

    def numbers(self, config: _ConfigT) -> _ConfigT:
        """The config with numbers in place of `auto`."""
        schedule = self.schedule(config)
        numbers = {field.name: getattr(schedule, field.name) for field in fields(schedule) if field.name in NUMBERS}
        return config.model_copy(update={"training": config.training.model_copy(update=numbers)})


def in_words(config: TrainConfig, schedule: Schedule) -> str:
    """The schedule, and the keys that a rule decided."""
    by_rule = [f"training.{name}" for name in NUMBERS if getattr(config.training, name) == "auto"]
    return f"{schedule}" + (f" (by rule: {', '.join(by_rule)})" if by_rule else "")


def judge_steps(config: TrainConfig, schedule: Schedule) -> list[Finding]:
    """One finding where there are too few optimizer steps to learn much."""
    if schedule.num_steps >= FEW_STEPS:
        return []
    remedy = (
        f"{schedule.num_rows:,} rows are few for fine-tuning: training.method=auto chooses another method."
        if config.training.epochs == "auto"
        else "Raise training.epochs, or leave it to training.epochs=auto."
    )
    return [
        Finding(
            "warning",
            f"Fewer than {FEW_STEPS} optimizer steps ({schedule.num_steps}): the model will hardly begin to learn. "
            f"{remedy}",
        )
    ]


def encoder_size(folder: Path) -> float:
    """Cost of a token in an encoder, that of the bundled one being 1: layers times the square of the hidden size."""
    config = load_config(folder)
    return float(config.num_hidden_layers * config.hidden_size**2 / (6 * 384**2))
