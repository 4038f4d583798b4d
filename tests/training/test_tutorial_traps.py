"""What tutorials on fine-tuning get wrong: here each would fail a test (docs/tutorials.md tells the story)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForSequenceClassification

from bertray.io.store import LocalStore
from bertray.training import loop as loop_module
from bertray.training.examples import Examples
from bertray.training.loop import run_loop
from bertray.training.packed import PackedModel
from tests.training.test_loop import SETTINGS, examples, settings


def test_the_optimizer_steps_once_a_batch(tmp_path, tiny_encoder):
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    data = examples(tmp_path)
    run_loop(data, tiny_encoder, 0, settings(epochs=2, batch_size=8), LocalStore(tmp_path / "run"))
    hook.remove()
    assert len(steps) == 2 * math.ceil(len(data.train) / 8) == 12


def test_gradients_do_not_pile_up_from_batch_to_batch(tmp_path, tiny_encoder, monkeypatch):
    """Without zero_grad the gradient of a step would be that of all steps before it as well."""
    before = []
    backward = torch.Tensor.backward

    def watched(self, *args, **kwargs):
        before.append(any(p.grad is not None and p.grad.abs().sum() > 0 for p in loop.model.parameters()))
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    one_pass = settings(epochs=1, batch_size=8, max_tokens_per_microbatch=4096)
    loop = loop_module._Loop(examples(tmp_path), tiny_encoder, 0, one_pass, LocalStore(tmp_path / "run"), "cpu", None)
    loop.run()
    assert len(before) == 6
    assert not any(before)


def test_padding_is_what_lies_beyond_the_end_not_what_has_the_id_of_padding(tmp_path, tiny_encoder):
    data = examples(tmp_path)
    loop = loop_module._Loop(data, tiny_encoder, 5, SETTINGS, LocalStore(tmp_path / "run"), "cpu", None)
    loop.model.eval()
    batch = data.train[:6]
    inputs = data.shards.padded(batch, 5)
    assert (inputs["input_ids"] == 5).any(axis=1).sum() > 1  # "good" has the id of padding here
    np.testing.assert_array_equal(inputs["attention_mask"].sum(axis=1), data.shards.lens_N[batch])
    with torch.inference_mode():
        objective: Any = loop.objective
        together = objective.logits(loop.net, batch)
        alone = torch.cat([objective.logits(loop.net, batch[row : row + 1]) for row in range(len(batch))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_validation_mcc_is_that_of_the_whole_set_not_a_mean_over_batches(tmp_path, tiny_encoder):
    many_batches = settings(epochs=8, learning_rate=3e-3, best_metric="mcc", max_tokens_per_microbatch=32)
    data = examples(tmp_path, 160)
    data.label_ids_N[::8] = 1 - data.label_ids_N[::8]  # so that no model is quite right
    outcome = run_loop(data, tiny_encoder, 0, many_batches, LocalStore(tmp_path / "run"))
    given = data.label_ids_N[data.validation]
    said = outcome.validation_VK.argmax(axis=1)
    whole = matthews_corrcoef(given, said)
    told = {row["step"]: row["mcc"] for row in outcome.history if row["kind"] == "eval"}
    assert told[outcome.best_step] == pytest.approx(whole, abs=1e-9)
    batches = np.array_split(np.arange(len(given)), 8)
    of_each = [np.corrcoef(given[rows], said[rows])[0, 1] if np.ptp(said[rows]) else 0.0 for rows in batches]
    assert whole > 0.3
    assert abs(np.nanmean(of_each) - whole) > 0.01  # the mistake would show


@pytest.mark.slow
def test_the_epoch_is_chosen_on_validation_rows_and_on_nothing_else(tmp_path, tiny_encoder):
    """The loop is given no other rows; of those it has, the best epoch is the best one on validation."""
    given = {field.name for field in dataclasses.fields(Examples)}
    # soft_NC: probabilities of a teacher; first_of_validation: the example from which on rows come from data.validation
    assert given == {"shards", "label_ids_N", "train", "validation", "first_of_validation", "soft_NC"}
    outcome = run_loop(
        examples(tmp_path, 160), tiny_encoder, 0, settings(epochs=5, learning_rate=4e-3), LocalStore(tmp_path / "run")
    )
    epochs = [row for row in outcome.history if row["kind"] == "eval"]
    best = max(epochs, key=lambda row: row["accuracy"])
    assert outcome.best_step == best["step"]
    assert len({row["accuracy"] for row in epochs}) > 1


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_is_padded_to_its_batch_not_to_the_longest_of_the_set(tmp_path, tiny_encoder, monkeypatch, packed):
    """What linear layers compute: every token once where the model can be packed, else little more."""
    if not packed:
        monkeypatch.setattr(PackedModel, "of", lambda classifier, kernels_in: (None, "not today"))
    data = examples(tmp_path, 160)
    loop = loop_module._Loop(data, tiny_encoder, 0, settings(epochs=1), LocalStore(tmp_path / "run"), "cpu", None)
    computed = []
    model: Any = loop.raw_model
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, inputs, output: computed.append(inputs[0].shape[:-1].numel()))
    loop.run()
    real = int(data.shards.lens_N.sum())
    everything_padded = len(data.shards) * int(data.shards.lens_N.max())
    if packed:
        assert sum(computed) == real
    else:
        assert real < sum(computed) < 1.2 * real < 0.9 * everything_padded


def test_dropout_is_off_when_validating_and_on_when_training(tmp_path, tiny_encoder):
    data = examples(tmp_path)
    loop = loop_module._Loop(data, tiny_encoder, 0, SETTINGS, LocalStore(tmp_path / "run"), "cpu", None)
    loop.model.train()
    np.testing.assert_array_equal(loop._validate(), loop._validate())
    assert loop.model.training
    objective: Any = loop.objective
    assert not torch.equal(objective.logits(loop.net, data.train[:4]), objective.logits(loop.net, data.train[:4]))


@pytest.mark.slow
def test_the_saved_model_is_that_of_the_best_epoch(tmp_path, tiny_encoder):
    from bertray.training.checkpoint import load_step

    store, data = LocalStore(tmp_path / "run"), examples(tmp_path, 160)
    outcome = run_loop(data, tiny_encoder, 0, settings(epochs=5, learning_rate=4e-3), store)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2)
    checkpoint = load_step(store, outcome.best_step, SETTINGS.run_key)
    assert checkpoint is not None
    model.load_state_dict(checkpoint.model)
    model.eval()
    for row, example in enumerate(data.validation[:5]):
        ids = torch.from_numpy(data.shards.padded(np.array([example]), 0)["input_ids"])
        with torch.inference_mode():
            found = model(input_ids=ids).logits[0].numpy()
        np.testing.assert_allclose(found, outcome.validation_VK[row], atol=1e-4)
