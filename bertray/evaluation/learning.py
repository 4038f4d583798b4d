"""Course of training: losses by epoch, and a note in words on overfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIN_RISE = 0.01  # relative; smaller changes of validation loss are noise


def losses_by_epoch(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """(training loss, validation loss) after each epoch, from rows of `history.parquet`.

    A row of kind `eval` carries the mean `train_loss` of its epoch; without it the rows of kind `step` that lead up to
    it are averaged.
    """
    training: list[float] = []
    validation: list[float] = []
    steps: list[float] = []
    for row in history:
        if row["kind"] == "step":
            steps.append(float(row["loss"]))
            continue
        mean = row.get("train_loss")
        if mean is None:
            mean = sum(steps) / len(steps) if steps else float("nan")
        training.append(float(mean))
        validation.append(float(row["loss"]))
        steps = []
    return training, validation


def seconds_by_epoch(history: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Seconds of each epoch, its evaluation included, from rows of `history.parquet`; None where a row lacks them."""
    ends = [row.get("seconds") for row in history if row["kind"] == "eval"]
    known = [float(end) for end in ends if end is not None]
    if len(known) < len(ends):
        return None
    return [end - start for start, end in zip([0.0, *known], known, strict=False)]


def overfitting_note(training_loss: Sequence[float], validation_loss: Sequence[float]) -> str | None:
    """A sentence when validation loss rises since some epoch while training loss still falls, else None.

    Args:
        training_loss: mean training loss of each epoch.
        validation_loss: validation loss after each epoch; as many.
    """
    if len(validation_loss) < 2:
        return None
    best = min(range(len(validation_loss)), key=validation_loss.__getitem__)
    rises = validation_loss[-1] > validation_loss[best] * (1 + MIN_RISE)
    if not rises or not training_loss[-1] < training_loss[best]:
        return None
    return (
        f"Validation loss rises since epoch {best + 1} ({validation_loss[best]:.3f} to {validation_loss[-1]:.3f}) "
        f"while training loss still falls ({training_loss[best]:.3f} to {training_loss[-1]:.3f}): from there on "
        "the model overfits the training rows. Fewer epochs, a lower learning rate or more reviews would help."
    )
