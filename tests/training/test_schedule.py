"""Steps, rate and method by rule: numbers of hand calculations, and what a config states is kept."""

from __future__ import annotations

import pytest

from bertray.config import TrainConfig
from bertray.runs.fit.automatic import choice_for, folds_for
from bertray.runs.fit.scheduled import stated_keys
from bertray.training.choice import TrainingRows, choose
from bertray.training.schedule import Schedule, schedule_for


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "hidden", "epochs", "rate", "steps"),
    [
        (300, 2, 384, 8, 1e-4, 152),  # 150 x 16 / 300 = 8 epochs of 19 steps
        (300, 3, 384, 8, 1e-4, 152),
        (300, 4, 384, 16, 3e-4, 304),  # 300 steps for more than three classes
        (64, 2, 384, 20, 1e-4, 80),  # 37.5 epochs would be needed: 20 at most
        (4000, 3, 384, 3, 1e-4, 750),  # 3 at least
        (1000, 4, 256, 5, 5e-4, 315),
        (1600, 10, 384, 3, 3e-4, 300),
        (800, 2, 768, 3, 5e-5, 150),
        (801, 2, 1024, 3, 2e-5, 153),
        (1, 2, 512, 20, 1e-4, 20),
    ],
)
def test_open_numbers_come_from_rows_classes_and_hidden_size(num_rows, num_classes, hidden, epochs, rate, steps):
    found = schedule_for(num_rows, num_classes, hidden)
    assert found == Schedule(epochs, rate, 16, 0.1, num_rows)
    assert found.num_steps == steps


def test_adapters_have_ten_times_the_rate_unless_it_is_stated():
    assert schedule_for(2000, 2, 384, adapters=True) == Schedule(3, 1e-3, 16, 0.1, 2000)
    assert schedule_for(2000, 2, 384, learning_rate=2e-4, adapters=True) == Schedule(3, 2e-4, 16, 0.1, 2000)


def test_stated_numbers_stay_and_epochs_follow_the_size_of_a_step():
    assert schedule_for(320, 2, 384, batch_size=32).epochs == 15  # 150 steps of 32 in epochs of 10
    found = schedule_for(320, 2, 384, epochs=2, learning_rate=7e-5, batch_size=8, warmup_ratio=0.0)
    assert found == Schedule(2, 7e-5, 8, 0.0, 320)
    assert str(found) == (
        "80 optimizer steps: 2 epochs of 320 rows, 8 rows a step; learning rate 7e-5, rising over the first 0% of the "
        "steps"
    )
    assert str(Schedule(1, 1e-3, 1, 0.1, 1)).startswith("1 optimizer step: 1 epoch of 1 row, 1 row a step; ")


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "cut", "unread", "recipe"),
    [
        (15, 2, 0.0, 0.0, "stack"),  # 7.5 rows a class
        (16, 2, 0.0, 0.0, "contrast"),
        (149, 6, 0.5, 0.25, "contrast"),
        (150, 6, 0.0, 0.0, "finetune"),
        (300, 2, 0.51, 0.0, "stack"),
        (1000, 2, 0.9, 0.0, "finetune"),  # rows enough to try the stack beside it
        (5000, 2, 0.0, 0.26, "terms"),
        (400, 60, 0.0, 0.0, "finetune"),  # a linear head of many classes is slow
    ],
)
def test_the_method_follows_rows_classes_cut_texts_and_letters(num_rows, num_classes, cut, unread, recipe):
    choice = choose(TrainingRows(num_rows, num_classes, cut, unread))
    assert choice.recipe == recipe
    assert choice.reads == (unread <= 0.25)


@pytest.mark.parametrize(
    ("num_rows", "tokens", "folds"),
    [
        (300, 0.0, 5),
        (300, 60_000, 5),
        (300, 100_000, 3),
        (500, 250_000, 1),
        (500, 400_000, 1),
        (500, 400_001, 0),
        (1000, 0.0, 0),
    ],
)
def test_as_many_folds_are_judged_as_there_is_time_for(num_rows, tokens, folds):
    assert folds_for(num_rows, tokens, tested=False) == folds


@pytest.mark.parametrize(
    ("num_rows", "tokens", "folds"),
    [
        (64, 30_000.0, 5),
        (150, 60_000.0, 4),  # of 30 rows each
        (300, 60_000.0, 2),
        (300, 0.0, 5),
        (500, 100_000.0, 1),
        (150, 120_000.0, 2),  # there is no time for more
        (500, 400_001.0, 0),
        (1000, 100_000.0, 0),
    ],
)
def test_with_a_test_as_many_folds_are_judged_as_a_choice_needs(num_rows, tokens, folds):
    assert folds_for(num_rows, tokens, tested=True) == folds


@pytest.mark.parametrize(
    ("keys", "stated"),
    [
        ({}, []),
        ({"training": {"epochs": 2, "match_shares": True}}, ["training.epochs", "training.match_shares"]),
        ({"training": {"class_weights": "balanced", "weight_decay": 0.1}}, []),
        ({"head": "attention", "aspects": ["food"]}, ["head"]),
    ],
)
def test_a_config_that_states_a_setting_of_fine_tuning_is_fine_tuned(keys, stated):
    config = TrainConfig.model_validate({"data": {"train": "t"}, "output": "o", **keys})
    assert stated_keys(config) == stated
    few = choice_for(config, TrainingRows(40, 2, cut=0.0, unread=0.0))
    assert (few.recipe, few.is_stated) == (("finetune", True) if stated else ("contrast", False))
