"""Our kernels for training: torch's values and gradients in fp64, but for rounding; and the loop that runs on them."""

from __future__ import annotations

import dataclasses
import datetime
import socket
import zlib
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F

from bertray.io.store import LocalStore
from bertray.model import kernels as kernels_module
from bertray.model.engine import FORMATS
from bertray.model.families import outputs
from bertray.model.kernels import choose_kernels
from bertray.model.kernels import training as training_module
from bertray.model.kernels.training import TrainedLinear, TrainingKernels, training_kernels
from bertray.training import packed as packed_module
from bertray.training.dropout import use_fast_dropout
from bertray.training.loop import _Loop, run_loop
from bertray.training.packed import PackedModel, pack
from tests.kernel_libraries import EVERY_SET, kernels_of
from tests.model.test_kernels import ROUNDING
from tests.processes import FORKSERVER
from tests.training.test_loop import SETTINGS, _Killed, dying_at, examples, losses
from tests.training.test_packed import FAMILIES, classifier_of, sequences

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}
SIZES_OF = {
    "distilbert": {"dim": 64, "n_heads": 2, "hidden_dim": 96},
    **dict.fromkeys(("albert", "electra"), SIZES | {"embedding_size": 32}),
}
TO_COUNT = 100_000


@pytest.fixture(params=EVERY_SET)
def ours(request) -> TrainingKernels:
    return TrainingKernels(kernels_of(request.param))


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=FORMATS.get)
def dtype(request) -> torch.dtype:
    """Number format of kernels that run on this machine."""
    if choose_kernels(request.param)[0] is None:
        pytest.skip("this CPU has no instructions for our kernels in it, or BERTRAY_KERNELS is off")
    return request.param


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def exact(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in fp64, with a gradient of their own."""
    return x.detach().double().requires_grad_()


# --- each operation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 700, 1100])  # a gradient sums 512 tokens at a time
@pytest.mark.parametrize("of_input", [torch.float32, torch.bfloat16])
def test_linear_layers_with_one_input(ours, num_tokens, of_input):
    if of_input not in ours._kernels.accepted:
        pytest.skip("refused, which is another test")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(96, 64) for _ in range(3)]
    x, upstream = torch.randn(1, num_tokens, 96, dtype=of_input).requires_grad_(), torch.randn(1, num_tokens, 192)
    upstream = upstream.to(ours.dtype)
    out = ours.linear(x, TrainedLinear(layers))
    out.backward(upstream)
    weights, biases = ([exact(getattr(layer, name)) for layer in layers] for name in ("weight", "bias"))
    exact_x = exact(x)
    expected = F.linear(exact_x, torch.cat(weights), torch.cat(biases))
    expected.backward(upstream.double())
    assert (out.dtype, x.grad.dtype) == (ours.dtype, of_input)
    assert distance(out, expected) < ROUNDING[ours.dtype]
    assert distance(x.grad, exact_x.grad) < ROUNDING[ours.dtype]
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        assert distance(layer.weight.grad, weight.grad) < ROUNDING[ours.dtype]
        assert distance(layer.bias.grad, bias.grad) < 1e-6


@pytest.mark.parametrize(("num_heads", "head"), [(12, 32), (3, 64), (2, 96), (1, 128)])
def test_attention_within_sequences_of_any_length(ours, num_heads, head):
    torch.manual_seed(0)
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 200, 512]
    bounds = np.cumsum([0, *lengths])
    qkv = torch.randn(bounds[-1], 3, num_heads, head).to(ours.dtype).requires_grad_()
    upstream = torch.randn(bounds[-1], num_heads, head).to(ours.dtype)
    out = ours.attention(*qkv.unbind(1), torch.tensor(bounds, dtype=torch.int32))
    out.backward(upstream)
    exact_qkv = exact(qkv)
    parts = [exact_qkv[first:stop].permute(1, 2, 0, 3) for first, stop in pairwise(bounds)]
    expected = torch.cat([F.scaled_dot_product_attention(*part).transpose(0, 1) for part in parts])
    expected.backward(upstream.double())
    assert distance(out, expected) < ROUNDING[ours.dtype]
    for part in range(3):
        assert distance(qkv.grad[:, part], exact_qkv.grad[:, part]) < ROUNDING[ours.dtype]


def test_gelu(ours):
    x = torch.linspace(-12, 12, 64 * 100).to(ours.dtype).requires_grad_()
    upstream = torch.linspace(1, 2, x.numel()).to(ours.dtype)
    exact_x = exact(x)
    out, expected = ours.gelu(x), F.gelu(exact_x)
    out.backward(upstream)
    expected.backward(upstream.double())
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDING[ours.dtype], atol=1e-6)
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=ROUNDING[ours.dtype], atol=1e-6)


@pytest.mark.parametrize("dropped", [0.0, 0.1])
@pytest.mark.parametrize("num_tokens", [1, 3, 700])
def test_dropout_sum_and_norm(ours, num_tokens, dropped):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(96, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(num_tokens, 96).to(ours.dtype).requires_grad_()
    residual, upstream = torch.randn(num_tokens, 96).requires_grad_(), torch.randn(num_tokens, 96)
    out = ours.add_norm(x, residual, norm, dropped)
    out.backward(upstream)
    kept = x.grad != 0
    assert abs(float(kept.float().mean()) - (1 - dropped)) <= (0 if dropped == 0 else 3 * (0.09 / kept.numel()) ** 0.5)
    exact_x, exact_residual, exact_norm = exact(x), exact(residual), torch.nn.LayerNorm(96, eps=1e-3).double()
    exact_norm.load_state_dict(norm.state_dict())
    expected = exact_norm(exact_x * kept / (1 - dropped) + exact_residual)
    expected.backward(upstream.double())
    assert distance(out, expected) < 1e-6
    assert distance(residual.grad, exact_residual.grad) < 1e-6
    assert distance(x.grad, exact_x.grad) < ROUNDING[ours.dtype]
    for name in ("weight", "bias"):
        assert distance(getattr(norm, name).grad, getattr(exact_norm, name).grad) < 1e-6


def test_what_drops_out_is_drawn_anew_and_from_torchs_seed(ours):
    def kept() -> torch.Tensor:
        x = torch.ones(1, TO_COUNT // 32 * 32).to(ours.dtype).requires_grad_()
        norm = torch.nn.LayerNorm(x.shape[1])
        ours.add_norm(x, torch.randn(x.shape), norm, 0.25).backward(torch.randn(x.shape))
        return x.grad[0] != 0

    torch.manual_seed(5)
    first, second = kept(), kept()
    torch.manual_seed(5)
    assert torch.equal(kept(), first)
    # Five deviations; what is kept tells nothing of the next number, of one 16 or a row further, nor of the next draw.
    chance = 5 * (0.25 * 0.75 / TO_COUNT) ** 0.5
    assert abs(float(first.double().mean()) - 0.75) < chance
    others = [second, *(first.roll(by) for by in (1, 2, 16, 32, 768))]
    for other in others:
        assert abs(float((first & other).double().mean()) - 0.75**2) < chance


def test_a_dropout_of_all_leaves_the_residual(ours):
    torch.manual_seed(0)
    norm, residual = torch.nn.LayerNorm(96), torch.randn(50, 96)
    x = torch.randn(50, 96).to(ours.dtype).requires_grad_()
    out = ours.add_norm(x, residual, norm, 1.0)
    out.sum().backward()
    torch.testing.assert_close(out, norm(residual))
    assert not x.grad.any()


def test_no_tokens_are_no_trouble(ours):
    layer, norm = torch.nn.Linear(64, 32), torch.nn.LayerNorm(32)
    x = torch.empty(1, 0, 64, requires_grad=True)
    out = ours.add_norm(ours.gelu(ours.linear(x, TrainedLinear([layer]))), torch.empty(1, 0, 32), norm, 0.1)
    out.sum().backward()
    assert (out.shape, x.grad.shape) == ((1, 0, 32), (1, 0, 64))
    for weight in (*layer.parameters(), *norm.parameters()):
        assert not weight.grad.any()


def test_weights_are_laid_out_anew_when_they_change(ours):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 32), torch.randn(5, 64)
    trained = TrainedLinear([layer])
    before = ours.linear(x, trained)
    assert trained.tiled(ours, backward=True)[0] is trained.tiled(ours, backward=True)[0]
    layer.load_state_dict({"weight": layer.weight * 2, "bias": layer.bias * 2})
    assert distance(ours.linear(x, trained), 2 * before.detach().double()) < 0.01


# --- a model ---------------------------------------------------------------------------------------------------------


def still(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def computed(net: PackedModel, batch, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return net(batch).float()


@pytest.mark.parametrize("again", [False, True], ids=["once", "layers run again"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_our_kernels_is_as_near_to_fp32_as_on_torch(family, again, make_classifier, monkeypatch, dtype):
    folder = make_classifier(family, 3, **SIZES_OF.get(family, SIZES))
    ids, second_lens = sequences()
    logits, gradients = {}, {}
    model: Any
    for way in ("fp32", "torch", "ours"):
        model = still(classifier_of(folder))
        if again and family != "albert":
            model.activation_checkpointing_enable()
        monkeypatch.setattr(packed_module, "training_kernels", (lambda _: None) if way == "torch" else training_kernels)
        net, why_not = PackedModel.of(model, kernels_in=None if way == "fp32" else dtype)
        assert net is not None, why_not
        assert net.own_kernels == (way == "ours")
        net.train()
        batch = pack(ids, second_lens, model.config)
        out = net(batch) if way == "fp32" else computed(net, batch, dtype)
        F.cross_entropy(out, torch.arange(len(ids)) % 3).backward()
        logits[way] = out.detach()
        gradients[way] = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients["ours"].keys() == gradients["fp32"].keys()
    whole = {way: torch.cat([value.flatten() for value in found.values()]) for way, found in gradients.items()}
    for found in (logits, whole):  # made-up weights: the last families make much of each rounding
        expected = found["fp32"].double()
        assert distance(found["ours"], expected) < max(1.5 * distance(found["torch"], expected), 5e-5)


def test_each_gradient_points_the_way_of_fp32(make_classifier, dtype):
    ids, second_lens = sequences()
    gradients = []
    for kernels_in in (None, dtype):
        model = still(classifier_of(make_classifier("bert", 3, **SIZES)))
        net, _ = PackedModel.of(model, kernels_in=kernels_in)
        net.train()
        batch = pack(ids, second_lens, model.config)
        out = computed(net, batch, kernels_in or torch.float32)
        F.cross_entropy(out, torch.arange(len(ids)) % 3).backward()
        gradients.append({name: weight.grad.flatten() for name, weight in model.named_parameters()})
    for name, expected in gradients[0].items():
        if not name.endswith("key.bias"):  # which a softmax does not see: its gradient is rounding alone
            assert float(F.cosine_similarity(gradients[1][name], expected, dim=0)) > 0.99, name


def test_layers_that_run_again_drop_out_the_same(make_classifier, dtype):
    gradients = []
    for again in (False, True):
        model = classifier_of(make_classifier("bert", 3, **SIZES))
        use_fast_dropout(model)
        if again:
            model.activation_checkpointing_enable()
        net, _ = PackedModel.of(model, kernels_in=dtype)
        net.train()
        net._narrows = False
        torch.manual_seed(1)
        computed(net, pack(*sequences(), model.config), dtype).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=0)


def test_dropout_of_attention_is_left_to_torch(make_classifier, dtype):
    model = still(classifier_of(make_classifier("bert", 3, **SIZES)))
    net, _ = PackedModel.of(model, kernels_in=dtype)
    net.train()
    batch = pack(*sequences(), model.config)
    with torch.no_grad():
        without = computed(net, batch, dtype)
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.5
        torch.manual_seed(0)
        found = [computed(net, batch, dtype) for _ in range(2)]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], without)


def test_dropout_of_a_model_works_on_our_kernels(make_classifier, dtype):
    model = classifier_of(make_classifier("bert", 3, **SIZES))
    use_fast_dropout(model)
    net, _ = PackedModel.of(model, kernels_in=dtype)
    batch = pack(*sequences(), model.config)
    with torch.no_grad():
        net.eval()
        assert torch.equal(computed(net, batch, dtype), computed(net, batch, dtype))
        net.train()
        for module in model.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        assert torch.equal(computed(net, batch, dtype), computed(net, batch, dtype))
        for output in outputs(model):  # each of them by itself
            output.dropout.p = 0.5
            assert not torch.equal(computed(net, batch, dtype), computed(net, batch, dtype))
            output.dropout.p = 0.0


def test_a_model_of_other_sizes_trains_without_them(make_classifier, caplog, dtype):
    net, _ = PackedModel.of(classifier_of(make_classifier("bert", 3)), kernels_in=dtype)
    assert not net.own_kernels
    assert caplog.messages == []


def test_a_model_whose_modules_are_called_in_another_way_trains_without_them(
    make_classifier, monkeypatch, caplog, dtype
):
    monkeypatch.setattr(TrainingKernels, "gelu", lambda: None)
    model = classifier_of(make_classifier("bert", 3, **SIZES))
    net, _ = PackedModel.of(model, kernels_in=dtype)
    assert not net.own_kernels
    assert "more slowly: its layers are called in another way (TypeError" in caplog.text
    assert "forward" not in vars(model.bert.encoder.layer[0].output)


def test_a_model_with_other_logits_on_the_kernels_stays_as_it_was(make_classifier, monkeypatch, caplog, dtype):
    monkeypatch.setattr(TrainingKernels, "gelu", lambda _, x: x + 1)
    folder = make_classifier("bert", 3, **SIZES)
    net, other = (PackedModel.of(classifier_of(folder), kernels_in=named)[0].eval() for named in (dtype, None))
    assert not net.own_kernels
    assert "trains without our kernels, more slowly: with them its logits differ by" in caplog.text
    batch = pack(*sequences(), net.model.config)
    torch.testing.assert_close(net(batch), other(batch))


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForMaskedLM(BertConfig(vocab_size=60, num_hidden_layers=2, **SIZES, **none)).save_pretrained(folder)
    return folder


def of(precision: Any):
    return dataclasses.replace(SETTINGS, training=dataclasses.replace(SETTINGS.training, precision=precision))


def test_the_loop_on_our_kernels_has_the_losses_of_fp32(tmp_path, encoder, monkeypatch, dtype):
    nets: list[PackedModel] = []
    monkeypatch.setattr(PackedModel, "of", partial(_remembered, nets, PackedModel.of))
    data = examples(tmp_path, 52)
    found, again = (run_loop(data, encoder, 0, of(FORMATS[dtype]), LocalStore(tmp_path / name)) for name in "ab")
    monkeypatch.setattr(packed_module, "training_kernels", lambda _: None)
    by_torch = run_loop(data, encoder, 0, of("fp32"), LocalStore(tmp_path / "torch"))
    assert [net.own_kernels for net in nets] == [True, True, False]
    np.testing.assert_allclose(losses(found), losses(by_torch), atol=2e-3 if dtype == torch.bfloat16 else 1e-5)
    assert losses(found)[-1] < losses(found)[0]
    assert losses(again) == losses(found)


@pytest.mark.parametrize("step", [2, 9])
def test_a_killed_run_on_our_kernels_resumes_with_bit_equal_losses(tmp_path, step, dtype):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    BertForMaskedLM(BertConfig(vocab_size=60, num_hidden_layers=2, **SIZES)).save_pretrained(folder)  # with dropout
    data, settings = examples(tmp_path), of(FORMATS[dtype])
    whole = run_loop(data, folder, 0, settings, LocalStore(tmp_path / "whole"))
    often = dataclasses.replace(settings, training=dataclasses.replace(settings.training, checkpoint_every_s=1e-9))
    store = LocalStore(tmp_path / "killed")
    with pytest.raises(_Killed):
        dying_at(step)(data, folder, 0, often, store, "cpu", None).run()
    resumed = run_loop(data, folder, 0, often, store)
    assert resumed.resumed_from == step
    assert losses(resumed) == losses(whole)


def _rank(rank: int, port: int, folder, encoder, precision: str, queue) -> None:
    """One of two ranks: a run on our kernels, and one for which only rank 0 has them; says losses and weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=180),
    )
    mine = folder / f"rank-{rank}"  # each rank writes its own copy of the same token shards
    mine.mkdir()
    data, said = examples(mine, 52), []
    for name in ("all", "one"):
        if name == "one" and rank == 1:
            for module in (kernels_module, training_module):
                vars(module)["kernels"] = lambda *_: None
            training_kernels.cache_clear()
        loop = _Loop(data, encoder, 0, of(precision), LocalStore(folder / name), "cpu", None)
        outcome = loop.run()
        weights = [(key, zlib.crc32(weight.numpy().tobytes())) for key, weight in loop.raw_model.state_dict().items()]
        said.append((loop.objective.packed.own_kernels, losses(outcome), weights))
    queue.put((rank, said))
    torch.distributed.destroy_process_group()


def test_two_ranks_on_our_kernels_learn_what_one_does_and_keep_the_same_weights(tmp_path, encoder, dtype):
    queue = FORKSERVER.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_rank, args=(port, tmp_path, encoder, FORMATS[dtype], queue), nprocs=2, start_method="forkserver")
    (_, first), (_, second) = sorted(queue.get() for _ in range(2))
    alone = run_loop(examples(tmp_path, 52), encoder, 0, of(FORMATS[dtype]), LocalStore(tmp_path / "alone"))
    for (_, found, weights), (_, _, others) in zip(first, second, strict=True):
        # Rounding, which grows with the steps.
        np.testing.assert_allclose(found, losses(alone), atol=4e-3 if dtype == torch.bfloat16 else 1e-4)
        assert weights == others
    assert [[own for own, _, _ in said] for said in (first, second)] == [[True, True], [True, False]]


def _remembered(nets, make, *args, **kwargs):
    net, why_not = make(*args, **kwargs)
    nets.append(net)
    return net, why_not
