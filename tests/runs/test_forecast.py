"""`plan` times the training that `train` runs: packed steps of its own loop, optimizer included."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray import schema as s
from bertray.config import TrainConfig
from bertray.model.tokenization import ReviewTokenizer
from bertray.runs import forecast
from bertray.runs.forecast import TIMED_STEPS, Sample
from bertray.training.adamw import AdamW
from bertray.training.packed import PackedModel

TEXTS = ["the film was good", "a bad film", "not " * 30 + "good", "film"] * 4


def sample(folder, max_length: int = 24, long_text: str = "head") -> Sample:
    return Sample(ReviewTokenizer(folder, max_length, long_text).encode(pa.array(TEXTS)), len(TEXTS), 0)


@pytest.mark.parametrize("training", [{}, {"method": "distill", "teacher": "t", "keep_layers": 1}])
def test_what_is_timed_are_packed_steps_with_the_optimizer(tiny_encoder, monkeypatch, training):
    steps, packed, clipped, of = [], [], AdamW.clipped_step, PackedModel.of
    monkeypatch.setattr(AdamW, "clipped_step", lambda self, most, norm: steps.append(most) or clipped(self, most, norm))

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
    assert forecast._training_rate(config, tiny_encoder, sample(tiny_encoder), ("bad", "good")) > 0
    assert steps == [0.5] * (1 + TIMED_STEPS)
    assert [is_packed for is_packed, _ in packed] == [True]
    assert (packed[0][1] == 1) == bool(training)


def test_of_several_windows_training_reads_the_first(tiny_encoder):
    whole, windows = (sample(tiny_encoder, 16, long_text) for long_text in ("head", "windows"))
    found, expected = windows.first_sequences, whole.first_sequences
    assert found[s.N_TOKENS].to_pylist() == expected[s.N_TOKENS].to_pylist()
    assert found[s.INPUT_IDS].to_pylist() == expected[s.INPUT_IDS].to_pylist()
    assert windows.seen_tokens_N.sum() > np.sum(found[s.N_TOKENS].to_numpy())
