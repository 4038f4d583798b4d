"""The note on overfitting is there when it is true, and only then."""

from __future__ import annotations

import pytest

from bertray.evaluation.learning import losses_by_epoch, overfitting_note


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
