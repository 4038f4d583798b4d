"""An optimizer step as on a GPU: the host waits for the device once, however many passes there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bertray.io.store import LocalStore
from bertray.training.contrast import Contrast, ContrastSettings
from bertray.training.examples import PretrainingSettings
from bertray.training.loop import _Loop
from bertray.training.masked_language import MaskedLanguage
from bertray.training.objectives import AspectClassification, Classification, Distillation, Objective
from tests.gpu_stand_ins import Waits, flash_on_cpu
from tests.training.test_loop import SETTINGS, examples, settings


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(Objective, "on_gpu", property(lambda self: True))
    monkeypatch.setattr(Objective, "pinned", lambda self, inputs: inputs)
    monkeypatch.setattr("bertray.model.kernels.kernels", lambda *_: None)  # their optimizer is one for CPUs
    with flash_on_cpu():
        yield


@pytest.mark.parametrize(
    ("objective", "precision", "budget"),
    [
        (Classification, "bf16", None),
        (Classification, "fp16", 64),
        (AspectClassification, "bf16", 64),
        (Distillation, "bf16", 64),
        (MaskedLanguage, "bf16", 64),
        (Contrast, "bf16", None),
    ],
)
def test_a_step_on_varlen_has_one_synchronization(on_gpu, tiny_encoder, tmp_path, objective, precision, budget):
    wanted = settings(precision=precision, max_tokens_per_microbatch=budget)
    if objective is MaskedLanguage:
        training = PretrainingSettings(
            3, 5e-5, 32, 0.1, precision=precision, max_tokens_per_microbatch=budget, held_out_tokens=20
        )
        wanted = replace(SETTINGS, training=training)
    if objective is Contrast:
        wanted = replace(SETTINGS, training=ContrastSettings(1, 5e-5, 8, 0.1, precision=precision), kept_epoch="last")
    data = examples(tmp_path)
    data = replace(data, soft_NC=np.eye(2, dtype=np.float32)[data.label_ids_N])
    loop = _Loop(data, tiny_encoder, 0, wanted, LocalStore(tmp_path / "run"), "cpu", None, objective=objective)
    loop.model.train()
    prepared = loop._prepared(data.train[:12], 0)
    assert (len(prepared.passes) > 1) == (budget is not None)
    with Waits() as waits:
        loop._step(prepared, 1e-3)
    # Sum of losses, votes, tokens and norm together; then the clipping scale, of a norm that is on the host by now.
    assert waits.found == ["tolist (4,)", "_local_scalar_dense"]


def test_a_wait_is_found_as_a_synchronization():
    """The stand-in itself."""
    x = torch.arange(3)
    with Waits() as waits:
        float(x.sum())
        x[x > 1]
        torch.repeat_interleave(x, x)
        torch.repeat_interleave(x, x, output_size=3)
        x.tolist()
        torch.from_numpy(np.zeros(3))
    assert waits.found == ["_local_scalar_dense", "index", "repeat_interleave", "tolist (3,)", "from_numpy"]
