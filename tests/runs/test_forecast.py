"""`plan` times the training that `train` runs: packed steps of its own loop, optimizer included."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import pyarrow as pa
import pytest

from bertray import schema as s
from bertray.config import ScoreConfig, TrainConfig
from bertray.errors import DataRefused
from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.formats import parquet
from bertray.runs import forecast
from bertray.runs.fit import automatic
from bertray.runs.fit.scheduled import Task
from bertray.runs.fit.training import train
from bertray.runs.forecast import TIMED_STEPS, Sample
from bertray.training.adamw import AdamW
from bertray.training.choice import Choice
from bertray.training.packed import PackedModel

TEXTS = ["the film was good", "a bad film", "not " * 30 + "good", "film"] * 4


def sample(folder, max_length: int = 24, long_text: str = "head") -> Sample:
    return Sample(ReviewTokenizer(folder, max_length, long_text).encode(pa.array(TEXTS)), len(TEXTS), 0)


@pytest.mark.parametrize("training", [{}, {"method": "distill", "teacher": "t", "keep_layers": 1}])
def test_what_is_timed_are_packed_steps_with_the_optimizer(tiny_encoder, monkeypatch, training):
    steps, packed, of = [], [], PackedModel.of
    optimizers: list[type[AdamW]] = [AdamW, *AdamW.__subclasses__()]
    for optimizer in optimizers:  # the one with kernels too, on machines that run them
        clipped = optimizer.clipped_step
        monkeypatch.setattr(
            optimizer,
            "clipped_step",
            lambda self, most, *how, clipped=clipped: steps.append(most) or clipped(self, most, *how),
        )

    def noted(model, **options):
        found = of(model, **options)
        packed.append((found[0] is not None, model.config.num_hidden_layers))
        return found

    monkeypatch.setattr(PackedModel, "of", noted)
    config = TrainConfig.model_validate(
        {
            "data": {"train": "x", "test": "y"},
            "output": "o",
            "training": {"batch_size": 8, "max_grad_norm": 0.5, **training},
        }
    )
    assert (
        forecast._training_rate(Task(16, 2, 32).numbers(config), tiny_encoder, sample(tiny_encoder), ("bad", "good"))
        > 0
    )
    assert steps == [0.5] * (1 + TIMED_STEPS)
    assert [is_packed for is_packed, _ in packed] == [True]
    assert (packed[0][1] == 1) == bool(training)


def test_a_plan_for_gpus_in_fp16_is_timed_in_what_this_cpu_computes_in(tiny_encoder, tmp_path, trained_alone, corpus):
    workers = {"use_gpu": True}
    training = {"method": "finetune", "batch_size": 8, "precision": "fp16"}
    config = TrainConfig.model_validate(
        {"data": {"train": "x"}, "output": "o", "training": training, "workers": workers}
    )
    numbers = Task(16, 2, 32).numbers(config)
    assert forecast._training_rate(numbers, tiny_encoder, sample(tiny_encoder), ("bad", "good")) > 0
    keys = {"model": str(trained_alone / "model"), "input": [str(corpus / "test.parquet")], "workers": workers}
    found = forecast.plan(ScoreConfig.model_validate(keys | {"output": str(tmp_path / "o"), "precision": "fp16"}))
    assert any(isinstance(part, str) and part.startswith("no forecast for GPUs (") for part in found.parts)


def test_of_several_windows_training_reads_the_first(tiny_encoder):
    whole, windows = (sample(tiny_encoder, 16, long_text) for long_text in ("head", "windows"))
    found, expected = windows.first_sequences, whole.first_sequences
    assert found[s.N_TOKENS].to_pylist() == expected[s.N_TOKENS].to_pylist()
    assert found[s.INPUT_IDS].to_pylist() == expected[s.INPUT_IDS].to_pylist()
    assert windows.seen_tokens_N.sum() > np.sum(found[s.N_TOKENS].to_numpy())


def test_plan_of_a_night_reads_no_id(tmp_path, trained_alone, corpus, monkeypatch):
    read: list[str] = []

    def noted(shard, columns, text_columns, read_rows=parquet.read):
        read.extend(columns)
        return read_rows(shard, columns, text_columns)

    config = ScoreConfig.model_validate(
        {"model": str(trained_alone / "model"), "input": [str(corpus / "test.parquet")], "output": str(tmp_path / "o")}
    )
    tokens_of = forecast.draw_sample
    monkeypatch.setattr(forecast, "draw_sample", lambda *given: monkeypatch.undo() or tokens_of(*given))
    monkeypatch.setattr(parquet, "read", noted)
    assert forecast.plan(config).num_rows == 90
    assert read == []


@pytest.mark.parametrize("method", ["stack", "auto"])
def test_plan_of_terms_alone_times_no_encoder(method, tmp_path, tiny_encoder, corpus, monkeypatch):
    weight = {"encoder_weight": 0} if method == "stack" else {}
    config = TrainConfig.model_validate(
        {
            "model": str(tiny_encoder),
            "data": {"train": [str(corpus / "train.parquet")], "test": [str(corpus / "test.parquet")]},
            "output": str(tmp_path / "out"),
            "max_length": 24,
            "training": {"method": method, **weight},
        }
    )
    monkeypatch.setattr(forecast, "choice_for", lambda *_: Choice("terms", "the encoder cannot read them"))
    for timed in ("_forward_rate", "_training_rate", "_scoring_rate"):
        monkeypatch.setattr(forecast, timed, lambda *_: pytest.fail("the encoder computed"))
    found = forecast.plan(config)
    assert found.seconds == forecast.LOADING_S
    assert any("TF-IDF alone: no row goes through the encoder" in part for part in found.parts if isinstance(part, str))


@pytest.mark.parametrize("recipe", ["finetune", "contrast"])
def test_plan_counts_the_tokens_of_a_cross_validation_as_train_does(
    recipe, tmp_path, tiny_encoder, corpus, monkeypatch
):
    """By all rows, as with folds all are learned from: otherwise it promises other folds than are run."""
    counted: list[tuple[int, float, bool]] = []

    def noted(num_rows: int, tokens: float, *, tested: bool) -> int:
        counted.append((num_rows, tokens, tested))
        return 0

    def stop(*_) -> NoReturn:
        raise DataRefused("far enough", "")

    choice = Choice(recipe, "the test says so")
    for module in (forecast, automatic):
        monkeypatch.setattr(module, "choice_for", lambda *_: choice)
        monkeypatch.setattr(module, "folds_for", noted)
    monkeypatch.setattr(automatic.Automatic, "fit", stop)
    config = TrainConfig.model_validate(
        {
            "model": str(tiny_encoder),
            "data": {"train": [str(corpus / "train.parquet")]},
            "output": str(tmp_path / "out"),
            "max_length": 24,
        }
    )
    forecast.plan(config)
    with pytest.raises(DataRefused, match="far enough"):
        train(config)
    assert len(counted) == 2
    assert counted[0] == pytest.approx(counted[1])
