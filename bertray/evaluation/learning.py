"""Course of training: losses by epoch, a note in words on overfitting, and a finding where little was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertray.evaluation.verdicts import GOOD_MCC, Finding

NOTHING_LEARNED, HARDLY_LEARNED = 0.9, 0.7  # share of the entropy of the labels from which a loss is so
_HIGHER = "a higher training.learning_rate"
MIN_RISE = 0.01  # relative; smaller changes of validation loss are noise


def losses_by_epoch(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """(training loss, validation loss) after each epoch, from rows of `history.parquet`; NaN where none was judged.

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
        validation.append(float(row["loss"]) if row.get("loss") is not None else float("nan"))
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
    if len(validation_loss) < 2 or any(map(math.isnan, validation_loss)):
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


def judge_loss(
    history: Sequence[Mapping[str, Any]], label_ids_N: np.ndarray, *, balanced: bool = False
) -> list[Finding]:
    """One finding where the loss is hardly below that of a model which knows the shares of the labels alone.

    Args:
        history: rows of `history.parquet`; the last epoch counts, by its training or validation loss, whichever is
            less. A model that tells the classes of validation rows apart has learned, however unsure it is.
        label_ids_N: labels of the train rows.
        balanced: classes weigh alike in the loss.
    """
    training, validation = losses_by_epoch(history)
    counts_C = np.unique(label_ids_N, return_counts=True)[1]
    if not training or len(counts_C) < 2:
        return []
    shares_C = np.full(len(counts_C), 1 / len(counts_C)) if balanced else counts_C / counts_C.sum()
    entropy = -float((shares_C * np.log(shares_C)).sum())
    loss = float(np.nanmin([training[-1], validation[-1]]))
    tells_apart = max((row.get("mcc") or 0.0 for row in history if row["kind"] == "eval"), default=0.0) >= GOOD_MCC
    if loss < HARDLY_LEARNED * entropy or tells_apart:
        return []
    said = f"its loss in the last epoch is {loss:.3f}, and the shares of the labels alone give {entropy:.3f}"
    if loss < NOTHING_LEARNED * entropy:
        return [Finding("warning", f"The model has hardly begun to learn: {said}. More epochs or {_HIGHER} may help.")]
    return [Finding("bad", f"The model has learned nothing yet: {said}. It needs more epochs or {_HIGHER}.")]
