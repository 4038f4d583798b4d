"""Contrast: balanced steps, the loss of all pairs, the same gradient however the texts of a step are shared out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bertray.io.store import LocalStore
from bertray.training.contrast import (
    Contrast,
    ContrastSettings,
    balanced_steps,
    pair_loss,
    pair_weights,
    rate_for,
    steps_for,
)
from bertray.training.examples import LoopSettings
from bertray.training.loop import run_loop
from tests.training.test_loop import examples


def loop_settings(steps: int = 12, **changes) -> LoopSettings:
    training = ContrastSettings(1, 1e-2, 8, warmup_ratio=0.1, steps=steps, precision="fp32", **changes)
    return LoopSettings(("bad", "good"), training, 3, "run", 1, kept_epoch="last")


def test_a_step_has_as_many_rows_of_each_class_and_rows_come_in_turn():
    label_ids_N = np.array([0] * 90 + [1] * 7 + [2] * 3)
    steps = balanced_steps(label_ids_N, 20, 12, [0, 0])
    for step in steps:
        assert len(set(step.tolist())) == len(step)
        assert np.bincount(label_ids_N[step]).tolist() == [4, 4, 3]  # of the last there are no more
    used = np.bincount(np.concatenate(steps), minlength=100)
    assert used[:90].max() - used[:90].min() <= 1
    assert used[90:97].max() - used[90:97].min() <= 1
    again = balanced_steps(label_ids_N, 20, 12, [0, 0])
    assert [step.tolist() for step in again] == [step.tolist() for step in steps]


def test_of_many_classes_a_step_has_two_rows_of_some():
    label_ids_N = np.repeat(np.arange(40), 5)
    for step in balanced_steps(label_ids_N, 10, 16, [1, 0]):
        assert np.unique(np.bincount(label_ids_N[step], minlength=40)).tolist() == [0, 2]


def test_steps_and_rate_by_rule():
    assert [steps_for(rows) for rows in (16, 63, 64, 255, 256, 768)] == [30, 30, 40, 40, 60, 60]
    assert [rate_for(*of) for of in ((1000, 3), (100, 6), (174, 6), (95, 4))] == [1e-4, 1e-4, 3e-4, 1e-4]


def test_pairs_of_one_class_and_of_two_weigh_alike():
    label_ids_N = np.array([0, 1, 0, 0, 1])
    rows = np.arange(5)
    weights = pair_weights(rows, rows, label_ids_N)
    same = label_ids_N[:, None] == label_ids_N
    assert weights[same].sum() == pytest.approx(0.5)  # 8 ordered pairs
    assert weights[~same].sum() == pytest.approx(0.5)  # 12
    assert (weights.diagonal() == 0).all()
    alone = pair_weights(rows[:2], rows[:2], np.array([0, 0]))
    assert alone.tolist() == [[0, 0.5], [0.5, 0]]
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    by_hand = 0.5 * (1 - 0.6) ** 2 + 0.5 * (0.0**2 + 0.8**2) / 2
    assert pair_loss(vectors, np.array([0, 0, 1])) == pytest.approx(by_hand)


@pytest.fixture
def objective(tmp_path, tiny_encoder) -> Contrast:
    one = Contrast(examples(tmp_path, 60), tiny_encoder, 0, loop_settings(), "cpu")
    one.net.eval()
    return one


def test_embeddings_are_normalised_means_of_the_plain_model(objective, tiny_encoder):
    model = AutoModel.from_pretrained(tiny_encoder).eval()
    numbers = np.array([3, 0, 5])
    members = np.concatenate([objective.examples.validation, objective.examples.train])[numbers]
    expected = []
    for ids in objective.examples.shards.sequences(members):
        with torch.inference_mode():
            mean_D = model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0].mean(dim=0)
        expected.append((mean_D / mean_D.norm()).numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(objective.validate(numbers), np.stack(expected), atol=1e-5)
    frozen = [name for name, parameter in objective.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["pooler.dense.weight", "pooler.dense.bias"]


def gradient(objective: Contrast) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])
    objective.model.zero_grad()
    return found


def test_the_loss_and_its_gradient_do_not_depend_on_how_a_step_is_shared_out(objective, monkeypatch):
    members_B = objective.members_of_steps(0)[0]
    assert objective.begin_step(members_B, 0) == 1.0
    whole = objective.loss(objective.net, objective.inputs(members_B))
    with torch.inference_mode():
        vectors_BD = objective._vectors(objective.net, members_B).numpy()
    lengths_B1 = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    labels_B = objective.examples.label_ids_N[members_B]
    assert whole.item() == pytest.approx(pair_loss(vectors_BD / lengths_B1, labels_B), rel=1e-4)
    whole.backward()
    expected = gradient(objective)

    all_BD = torch.from_numpy(vectors_BD / lengths_B1)
    losses, shares = [], [members_B[number::2] for number in range(2)]

    def gathered(own_SD, rank, sizes):
        assert sizes == [len(share) for share in shares]
        return [own_SD if number == rank else all_BD[number::2] for number in range(2)]

    monkeypatch.setattr(objective, "_gathered", gathered)
    for rank in range(2):
        monkeypatch.setattr(objective, "_shares", lambda _, rank=rank: (rank, shares))
        loss = objective.loss(objective.net, objective.inputs(shares[rank]))
        loss.backward()
        losses.append(loss.item())
    assert sum(losses) == pytest.approx(whole.item(), rel=1e-4)
    torch.testing.assert_close(gradient(objective), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_classes_come_apart_and_a_resumed_run_takes_the_same_steps(tmp_path, tiny_encoder, monkeypatch):
    data = examples(tmp_path, 80)
    settings = loop_settings(30, checkpoint_every_s=1e-9)
    whole = run_loop(data, tiny_encoder, 0, settings, LocalStore(tmp_path / "whole"), objective=Contrast)
    losses = [row["loss"] for row in whole.history if row["kind"] == "step"]
    assert (whole.num_steps, whole.best_step, len(losses)) == (30, 30, 30)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert whole.history[-1]["accuracy"] > 0.9

    class Killed(Contrast):
        def begin_step(self, members, epoch):
            self.begun = getattr(self, "begun", 0) + 1
            if self.begun > 13:
                raise KeyboardInterrupt
            return super().begin_step(members, epoch)

    store = LocalStore(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        run_loop(data, tiny_encoder, 0, settings, store, objective=Killed)
    resumed = run_loop(data, tiny_encoder, 0, settings, store, objective=Contrast)
    assert resumed.resumed_from == 13
    assert [row["loss"] for row in resumed.history if row["kind"] == "step"] == losses
    assert resumed.validation_VK.tolist() == whole.validation_VK.tolist()
