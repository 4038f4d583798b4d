"""Overfitting, and a model that has learned nothing, are told when they are true and only then."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bertray.evaluation.learning import judge_loss, losses_by_epoch, overfitting_note
from bertray.evaluation.verdicts import Finding


def test_rising_validation_loss_with_falling_training_loss_is_told_with_epoch_and_numbers():
    note = overfitting_note([0.60, 0.40, 0.25, 0.12], [0.50, 0.41, 0.44, 0.52])
    assert note is not None
    assert note.startswith(
        "Validation loss rises since epoch 2 (0.410 to 0.520) while training loss still falls (0.400 to 0.120):"
    )


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ([0.6, 0.4, 0.3], [0.50, 0.45, 0.44]),  # still falling
        ([0.6, 0.4, 0.3], [0.50, 0.440, 0.441]),  # a rise of 0.2 % is noise
        ([0.6, 0.4, 0.5], [0.50, 0.40, 0.60]),  # both rise: something else is wrong
        ([0.6], [0.5]),
        ([], []),
    ],
)
def test_other_courses_get_no_note(training, validation):
    assert overfitting_note(training, validation) is None


def test_losses_come_from_eval_rows_or_from_the_steps_of_their_epoch():
    history = [
        {"kind": "step", "step": 1, "epoch": 0.5, "loss": 0.9},
        {"kind": "step", "step": 2, "epoch": 1.0, "loss": 0.7},
        {"kind": "eval", "step": 2, "epoch": 1.0, "loss": 0.6},
        {"kind": "step", "step": 3, "epoch": 1.5, "loss": 0.5},
        {"kind": "eval", "step": 4, "epoch": 2.0, "loss": 0.65},
        {"kind": "eval", "step": 6, "epoch": 3.0, "loss": 0.7, "train_loss": 0.25},
    ]
    assert losses_by_epoch(history) == ([pytest.approx(0.8), 0.5, 0.25], [0.6, 0.65, 0.7])


HALF = np.array([0, 1] * 50)  # their entropy is log 2 = 0.693


def epochs(*losses: tuple[float, float | None]) -> list[dict]:
    return [{"kind": "eval", "train_loss": train, "loss": judged} for train, judged in losses]


@pytest.mark.parametrize(
    ("history", "labels", "balanced", "severity"),
    [
        (epochs((0.70, 0.69), (0.66, 0.67)), HALF, False, "bad"),  # 0.95 of the entropy
        (epochs((0.66, None)), HALF, False, "bad"),
        (epochs((0.60, 0.55)), HALF, False, "warning"),  # 0.79
        (epochs((0.60, 0.35)), HALF, False, None),  # the mean of an only epoch holds its beginning
        (epochs((0.40, 0.90)), HALF, False, None),
        (epochs((0.50, 0.50)), np.array([0] * 80 + [1] * 20), False, "bad"),  # entropy 0.500
        (epochs((0.50, 0.50)), np.array([0] * 80 + [1] * 20), True, "warning"),  # against log 2: 0.72
        ([], HALF, False, None),
    ],
)
def test_a_loss_near_the_entropy_of_the_labels_is_nothing_learned(history, labels, balanced, severity):
    found = judge_loss(history, labels, balanced=balanced)
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_a_model_that_is_unsure_and_right_has_learned():
    history = [{"kind": "eval", "train_loss": 0.66, "loss": 0.62, "mcc": 0.5}]
    assert judge_loss(history, HALF) == []
    assert len(judge_loss([{**history[0], "mcc": 0.4}], HALF)) == 1


def test_the_sentence_has_both_numbers():
    (finding,) = judge_loss(epochs((0.66, 0.67)), HALF)
    assert finding == Finding(
        "bad",
        "The model has learned nothing yet: its loss in the last epoch is 0.660, and the shares of the labels alone "
        "give 0.693. It needs more epochs or a higher training.learning_rate.",
    )


def test_an_epoch_that_was_not_judged_has_no_validation_loss():
    training, validation = losses_by_epoch(epochs((0.5, None), (0.4, 0.6)))
    assert training == [0.5, 0.4]
    assert math.isnan(validation[0])
    assert validation[1] == 0.6
    assert overfitting_note(training, validation) is None
