"""AdamW on our kernels: what torch's does to weights and averages, rows without a gradient included."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from bertray.training.adamw import AdamW, KernelAdamW, give_rows_gradients
from tests.kernel_libraries import EVERY_SET, kernels_of

WORDS, MET = 100, 40  # of an embedding, and those that any step meets


class Model(torch.nn.Module):
    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(WORDS, 33, sparse=rows)
        self.table, self.shift = torch.nn.Parameter(torch.randn(77, 13)), torch.nn.Parameter(torch.randn(5))
        self.unused = torch.nn.Parameter(torch.ones(3))

    def loss(self, step: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(step)
        ids = torch.randint(0, MET, (30,), generator=random)  # some words twice
        weights = [torch.randn(shape, generator=random) for shape in ((30, 33), (77, 13), (5,))]
        parts = [(self.words(ids) * weights[0]).sum(), (self.table * weights[1]).sum(), (self.shift * weights[2]).sum()]
        return sum(parts) + (self.words(ids) ** 2).sum()


def optimizer_of(model: Model, ours: bool, instructions: str = "avx2") -> AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": [model.shift, model.unused], "weight_decay": 0.0}]
    if not ours:
        return AdamW(groups, lr=2e-3)
    return KernelAdamW(groups, lr=2e-3, kernels=kernels_of(instructions))


def steps(model: Model, optimizer: AdamW, numbers: range) -> None:
    for number in numbers:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 / (1 + number)
        model.loss(number).backward()
        model.loss(number + 1000).backward()  # gradients of several passes add up
        optimizer.clipped_step(5.0 if number % 2 else 1e6, optimizer.gradient_norm())
        optimizer.zero_grad()


def assert_alike(found: tuple[Model, AdamW], expected: tuple[Model, AdamW]) -> None:
    for (name, weight), other in zip(found[0].named_parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6, msg=partial("{}: {}".format, name))
        states = found[1].state.get(weight), expected[1].state.get(other)
        assert (states[0] is None) == (states[1] is None)
        if states[0] is not None:
            torch.testing.assert_close(dict(states[0]), dict(states[1]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch"])
def test_a_step_counts_as_a_change_of_each_weight_that_has_a_gradient(ours):
    model = Model(rows=False)
    optimizer = optimizer_of(model, ours)
    before = {name: weight._version for name, weight in model.named_parameters()}
    steps(model, optimizer, range(1))
    changed = {name for name, weight in model.named_parameters() if weight._version > before[name]}
    assert changed == {"words.weight", "table", "shift"}


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "whole"])
def test_weights_and_averages_are_those_of_torch(rows, instructions):
    found, expected = Model(rows=rows), Model(rows=False)
    pairs = (found, optimizer_of(found, True, instructions)), (expected, optimizer_of(expected, False))
    for model, optimizer in pairs:
        steps(model, optimizer, range(12))
    assert_alike(*pairs)
    # Decay alone is the same to the last bit.
    assert torch.equal(found.words.weight[MET:], expected.words.weight[MET:])
    assert not torch.equal(found.words.weight[MET:], Model(rows=False).words.weight[MET:])


@pytest.mark.slow
@pytest.mark.parametrize("first_ours", [True, False])
def test_the_one_goes_on_where_the_other_stopped(first_ours):
    whole, first = Model(rows=False), Model(rows=first_ours)
    pair = whole, optimizer_of(whole, False)
    steps(*pair, range(10))
    stopped = optimizer_of(first, first_ours)
    steps(first, stopped, range(5))
    second = Model(rows=not first_ours)
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second, not first_ours)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    steps(second, resumed, range(5, 10))
    assert_alike((second, resumed), pair)


def test_the_norm_counts_a_word_met_twice_once_with_the_sum_of_its_gradients():
    norms = []
    for rows in (True, False):
        model = Model(rows=rows)
        model.loss(0).backward()
        norms.append(optimizer_of(model, True).gradient_norm())
    torch.testing.assert_close(norms[0], norms[1])


@pytest.mark.parametrize("ours", [False, True])
def test_a_step_calls_hooks_and_closures_as_torchs_does(ours):
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # torch wraps the `step` of a class when one is made
    model = Model(rows=ours)
    optimizer, called = optimizer_of(model, ours), []
    optimizer.register_step_post_hook(lambda *_: called.append("hook"))

    def closure() -> torch.Tensor:
        loss = model.loss(0)
        loss.backward()
        return loss

    assert torch.equal(optimizer.step(closure), Model(rows=ours).loss(0))
    assert called == ["hook"]


def test_averages_that_fade_end_at_zero():
    model = Model(rows=True)
    optimizer = optimizer_of(model, True)
    model.loss(0).backward()
    for step in range(2000):  # a thousand after the mean of the first step has left the usual form of fp32
        optimizer.clipped_step(1.0, optimizer.gradient_norm() if step == 0 else torch.zeros(()))
        model.words.weight.grad = torch.sparse_coo_tensor(
            torch.tensor([[0]]), torch.zeros(1, 33), (WORDS, 33), check_invariants=False
        )
    means = optimizer.state[model.words.weight]["exp_avg"]
    assert not means.any()


def test_weights_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="contiguous weights in fp32"):
        KernelAdamW([{"params": [torch.nn.Parameter(torch.ones(3, 5).T)]}], lr=1e-3, kernels=kernels_of("avx2"))


def test_only_embeddings_of_their_own_have_rows_as_gradients():
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32)
    for make, expected in ((BertForSequenceClassification, True), (BertForMaskedLM, False)):
        model = make(config)
        give_rows_gradients(model)
        assert model.get_input_embeddings().sparse == expected
