"""Tensors that our kernels would read past are refused before their address leaves Python; on every machine."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from bertray.model.kernels import AdamWWeight, Kernels, TiledLinear
from bertray.model.kernels.checks import check_cu_seqlens, check_heads
from bertray.model.kernels.training import TrainingKernels

HEADS, SIZE, TOKENS = 2, 32, 5
HIDDEN = HEADS * SIZE
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def called() -> list[str]:
    return []


@pytest.fixture
def kernels(called) -> Kernels:
    """Kernels whose C functions only note that they were reached."""
    found = object.__new__(Kernels)
    found.dtype = BF16
    for name in ("attention", "self_attention", "linear", "feed_forward"):
        setattr(found, f"_{name}", lambda *_, name=name: called.append(name) or 0)
    return found


@pytest.fixture
def training(kernels, called) -> TrainingKernels:
    found = object.__new__(TrainingKernels)
    found._kernels = kernels
    for name in ("lay_out", "weight_gradient", "attention_gradient", "gelu", "add_norm", "add_norm_gradient"):
        setattr(found, f"_{name}", lambda *_, name=name: called.append(name) or 0)
    return found


def linear_of(inputs: int, outputs: int) -> TiledLinear:
    return TiledLinear.of(torch.zeros(outputs, inputs), torch.zeros(outputs))


def offsets(*ends: int) -> torch.Tensor:
    return torch.tensor(ends, dtype=torch.int32)


def qkv(tokens: int = TOKENS) -> tuple[torch.Tensor, ...]:
    return torch.zeros(tokens, 3, HEADS, SIZE, dtype=BF16).unbind(1)


def test_what_the_encoder_gives_passes(kernels, called):
    q, k, v = qkv()
    kernels.attention(q, k, v, offsets(0, 2, TOKENS), offsets(0, 2, TOKENS))
    first = torch.zeros(2, HIDDEN, dtype=BF16).view(2, HEADS, SIZE)  # queries of first tokens, other row strides
    kernels.attention(first, k, v, offsets(0, 1, 2), offsets(0, 2, TOKENS))
    x_TD = torch.zeros(TOKENS, HIDDEN, dtype=BF16)
    kernels.self_attention(linear_of(HIDDEN, 3 * HIDDEN), HEADS)(x_TD, offsets(0, 2, TOKENS))
    kernels.linear(x_TD, linear_of(HIDDEN, 96))
    kernels.linear(x_TD.float(), linear_of(HIDDEN, 96), torch.float32)
    norm = torch.nn.LayerNorm(HIDDEN)
    up, down = linear_of(HIDDEN, 128), linear_of(128, HIDDEN)
    kernels.feed_forward(linear_of(HIDDEN, HIDDEN), norm, up, down, norm)(x_TD, x_TD)
    assert called == ["attention", "attention", "self_attention", "linear", "linear", "feed_forward"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v, b: (q.float(), k, v, b), "queries: expected bfloat16 [5, 2, 32]"),
        (lambda q, k, v, b: (q, k.float(), v, b), "keys: expected bfloat16 [5, 2, 32]"),
        (
            lambda q, k, v, b: (q, k, v.contiguous(), b),
            "values: expected bfloat16 [5, 2, 32] with strides [192",
        ),
        (lambda q, k, v, b: (q, k[:3], v, b), "values: expected bfloat16 [3, 2, 32]"),
        (lambda q, k, v, b: (q.transpose(1, 2), k, v, b), "queries: expected"),
        (lambda q, k, v, b: (q.to("meta"), k, v, b), "on meta"),
        (
            lambda q, k, v, b: (q, k, v, b.long()),
            "offsets of queries: expected contiguous int32 [3] on cpu",
        ),
        (lambda q, k, v, b: (q, k, v, offsets(0, 2, 6)), "from 0 to at most 5, found 0, 2, 6, ... 6"),
        (lambda q, k, v, b: (q, k, v, offsets(0, 4, 2, 5)), "expected ascending offsets"),
        (lambda q, k, v, b: (q, k, v, offsets(1, 5)), "from 0"),
        (lambda q, k, v, b: (q, k, v, offsets(-1, 5)), "from 0"),
        (lambda q, k, v, b: (q, k, v, offsets()), "expected contiguous int32 [2] on cpu, found int32 [0]"),
    ],
)
def test_attention_refuses(kernels, called, change, said):
    q, k, v, cu_seqlens = change(*qkv(), offsets(0, 2, TOKENS))
    with pytest.raises(ValueError, match=re.escape(said)):
        kernels.attention(q, k, v, cu_seqlens, cu_seqlens)
    assert called == []


def test_attention_refuses_other_numbers_of_sequences(kernels, called):
    with pytest.raises(ValueError, match="2 sequences of queries, 1 of keys"):
        kernels.attention(*qkv(), offsets(0, 2, 5), offsets(0, 5))
    assert called == []


@pytest.mark.parametrize(
    ("x_TD", "cu_seqlens", "said"),
    [
        (torch.zeros(TOKENS, HIDDEN), offsets(0, 5), "input of attention: expected contiguous bfloat16 [5, 64]"),
        (torch.zeros(TOKENS, 32, dtype=BF16), offsets(0, 5), "found bfloat16 [5, 32]"),
        (torch.zeros(HIDDEN, TOKENS, dtype=BF16).T, offsets(0, 5), "with strides [1, 5]"),
        (torch.zeros(TOKENS, HIDDEN, dtype=BF16), offsets(0, 9), "at most 5"),
    ],
)
def test_self_attention_refuses(kernels, called, x_TD, cu_seqlens, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        kernels.self_attention(linear_of(HIDDEN, 3 * HIDDEN), HEADS)(x_TD, cu_seqlens)
    assert called == []


def test_layers_that_do_not_fit_are_refused_when_they_are_built(kernels):
    norm = torch.nn.LayerNorm(HIDDEN)
    square, up, down = linear_of(HIDDEN, HIDDEN), linear_of(HIDDEN, 128), linear_of(128, HIDDEN)
    with pytest.raises(ValueError, match="no projection of 2 heads"):
        kernels.self_attention(square, HEADS)
    with pytest.raises(ValueError, match="do not follow each other"):
        kernels.feed_forward(square, norm, up, up, norm)
    with pytest.raises(ValueError, match=re.escape("layer norm: expected contiguous float32 [64]")):
        kernels.feed_forward(square, torch.nn.LayerNorm(32), up, down, norm)
    with pytest.raises(ValueError, match="inputs of a linear layer: expected sizes in multiples of 32, found 48"):
        TiledLinear(torch.zeros(32 * 48, dtype=BF16), None, 48, 32)
    with pytest.raises(
        ValueError, match=re.escape("tiles of a linear layer: expected contiguous bfloat16 or float32 or int8 [")
    ):
        TiledLinear(torch.zeros(1024, dtype=BF16), None, 64, 32)
    with pytest.raises(ValueError, match=re.escape("bias of a linear layer: expected contiguous float32 [32]")):
        TiledLinear(torch.zeros(1024, dtype=BF16), torch.zeros(31), 32, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": 96}, "inputs of a linear layer: expected sizes in multiples of 64, found 96"),
        ({"outputs": 48}, "outputs of a linear layer: expected sizes in multiples of 32, found 48"),
        ({"scales_O": None}, "expected scales and zeros with tiles in int8, and none with others"),
        ({"zeros_ZO": None}, "expected scales and zeros with tiles in int8, and none with others"),
        ({"tiles": torch.zeros(4096, dtype=BF16)}, "expected scales and zeros with tiles in int8, and none with"),
        ({"scales_O": torch.ones(31)}, "scales of a linear layer: expected contiguous float32 [32]"),
        ({"scales_O": torch.ones(32, dtype=BF16)}, "scales of a linear layer: expected contiguous float32 [32]"),
        ({"zeros_ZO": torch.zeros(2, 32)}, "zeros of a linear layer: expected contiguous int32 [3, 32]"),
        ({"tiles": torch.zeros(4095, dtype=torch.int8)}, "tiles of a linear layer: expected contiguous"),
    ],
)
def test_layers_in_int8_that_do_not_fit_are_refused_when_they_are_built(change, said):
    given: dict[str, Any] = {
        "tiles": torch.zeros(4096, dtype=torch.int8),
        "bias_O": None,
        "inputs": 128,
        "outputs": 32,
        "scales_O": torch.ones(32),
        "zeros_ZO": torch.zeros(3, 32, dtype=torch.int32),
    }
    assert TiledLinear(**given).dtype == torch.int8
    with pytest.raises(ValueError, match=re.escape(said)):
        TiledLinear(**given | change)


@pytest.mark.parametrize(("outputs", "inputs", "dtype"), [(48, 64, BF16), (32, 48, FP32), (32, 96, torch.int8)])
def test_weights_of_other_sizes_are_refused_before_they_are_laid_out(outputs, inputs, dtype):
    with pytest.raises(ValueError, match="puts of a linear layer: expected sizes in multiples of"):
        TiledLinear.of(torch.zeros(outputs, inputs), torch.zeros(outputs), dtype)


def test_a_layer_behind_attention_without_a_bias_is_refused(kernels):
    norm, square = torch.nn.LayerNorm(HIDDEN), linear_of(HIDDEN, HIDDEN)
    without = TiledLinear(torch.zeros(HIDDEN, HIDDEN, dtype=BF16), None, HIDDEN, HIDDEN)
    for layers in ((without, square, square), (square, without, square), (square, square, without)):
        attended, up, down = layers
        with pytest.raises(ValueError, match="expected linear layers with a bias"):
            kernels.feed_forward(attended, norm, up, down, norm)


@pytest.mark.parametrize(
    "x_TI",
    [
        torch.zeros(TOKENS, 32, dtype=BF16),
        torch.zeros(TOKENS, HIDDEN, dtype=torch.float16),
        torch.zeros(5, 128)[:, ::2],
    ],
)
def test_linear_and_feed_forward_refuse(kernels, called, x_TI):
    with pytest.raises(ValueError, match=re.escape("expected contiguous bfloat16 or float32 [5, 64]")):
        kernels.linear(x_TI, linear_of(HIDDEN, 96))
    norm, square = torch.nn.LayerNorm(HIDDEN), linear_of(HIDDEN, HIDDEN)
    run = kernels.feed_forward(square, norm, linear_of(HIDDEN, 128), linear_of(128, HIDDEN), norm)
    with pytest.raises(ValueError, match=re.escape("attention's output: expected contiguous bfloat16 [")):
        run(x_TI, torch.zeros(TOKENS, HIDDEN, dtype=BF16))
    assert called == []


def test_layers_in_another_number_format_are_refused(kernels, called):
    def linear_in(dtype: torch.dtype, outputs: int = HIDDEN) -> TiledLinear:
        return TiledLinear.of(torch.zeros(outputs, HIDDEN), torch.zeros(outputs), dtype)

    norm, x_TD = torch.nn.LayerNorm(HIDDEN), torch.zeros(TOKENS, HIDDEN, dtype=BF16)
    square, in_int8 = linear_in(BF16), linear_in(torch.int8)
    for refused, found in (
        (lambda: kernels.linear(x_TD, linear_in(FP32)), "fp32"),
        (lambda: kernels.feed_forward(square, norm, square, linear_in(FP32), norm), "bf16 and fp32"),
        (lambda: kernels.feed_forward(square, norm, in_int8, square, norm), "bf16 and int8"),
        (lambda: kernels.self_attention(linear_in(FP32, 192), HEADS), "fp32"),
    ):
        with pytest.raises(ValueError, match=f"expected tiles all in bf16 or all in int8, found {found}"):
            refused()
    assert called == []
    kernels.linear(x_TD, in_int8)
    kernels.self_attention(linear_in(torch.int8, 192), HEADS)(x_TD, offsets(0, TOKENS))
    kernels.feed_forward(in_int8, norm, in_int8, in_int8, norm)(x_TD, x_TD)
    assert called == ["linear", "self_attention", "feed_forward"]
    kernels.dtype = FP32
    with pytest.raises(ValueError, match="expected tiles all in fp32, found int8"):
        kernels.linear(x_TD.float(), in_int8)


def test_kernels_in_fp32_take_nothing_else(kernels, called):
    kernels.dtype = FP32
    layer = TiledLinear.of(torch.zeros(96, HIDDEN), torch.zeros(96), FP32)
    with pytest.raises(ValueError, match="input of a linear layer: expected contiguous float32"):
        kernels.linear(torch.zeros(TOKENS, HIDDEN, dtype=BF16), layer)
    with pytest.raises(ValueError, match="output of a linear layer: expected contiguous float32"):
        kernels.linear(torch.zeros(TOKENS, HIDDEN), layer, BF16)
    q_THE = torch.zeros(TOKENS, HEADS, SIZE, dtype=BF16)
    with pytest.raises(ValueError, match=re.escape("queries: expected float32 [5, 2, 32]")):
        kernels.attention(q_THE, q_THE, q_THE, offsets(0, 5), offsets(0, 5))
    assert called == []
    assert kernels.linear(torch.zeros(TOKENS, HIDDEN), layer).dtype == FP32


def test_training_refuses(training, called):
    with pytest.raises(ValueError, match="weights of a linear layer: expected contiguous float32"):
        training.lay_out(torch.zeros(32, 64).T, torch.zeros(64), backward=False)
    with pytest.raises(
        ValueError, match=re.escape("input of a linear layer: expected contiguous bfloat16 or float32 [5")
    ):
        training.weight_gradient(torch.zeros(5, 32), torch.zeros(4, 64))
    for refused in (
        lambda: training.lay_out(torch.zeros(40, 64), torch.zeros(40), backward=False),
        lambda: training.weight_gradient(torch.zeros(4, 64), torch.zeros(4, 40)),
        lambda: training.gelu(torch.zeros(5, 8, dtype=BF16)),
        lambda: training.add_norm(torch.zeros(4, 40), torch.zeros(4, 40), torch.nn.LayerNorm(40), 0.0),
    ):
        with pytest.raises(ValueError, match=r"expected sizes in multiples of 32, found .*40"):
            refused()
    with pytest.raises(ValueError, match="input of GELU: expected contiguous bfloat16"):
        training.gelu(torch.zeros(4, 32))
    norm = torch.nn.LayerNorm(32)
    with pytest.raises(ValueError, match="input of a norm: expected contiguous bfloat16"):
        training.add_norm(torch.zeros(4, 32), torch.zeros(4, 32), norm, 0.0)
    with pytest.raises(ValueError, match=re.escape("input of a norm: expected contiguous bfloat16 [4, 32]")):
        training.add_norm(torch.zeros(3, 32, dtype=BF16), torch.zeros(4, 32), norm, 0.0)
    with pytest.raises(ValueError, match=re.escape("layer norm: expected contiguous float32 [32]")):
        training.add_norm(torch.zeros(4, 32, dtype=BF16), torch.zeros(4, 32), norm.to(BF16), 0.0)
    assert called == []


def test_adamw_refuses_a_state_of_another_shape_or_type():
    weight = torch.zeros(4, 6)
    AdamWWeight.of(weight, weight, weight, weight, 1.0)
    for wrong in (torch.zeros(4, 5), torch.zeros(4, 6, dtype=BF16), torch.zeros(6, 4).T):
        with pytest.raises(ValueError, match="AdamW, square: expected contiguous float32"):
            AdamWWeight.of(weight, weight, wrong, weight, 1.0)
    place, moved = torch.tensor([-1, 0, 1, -1], dtype=torch.int32), torch.zeros(4, dtype=torch.uint8)
    AdamWWeight.of_rows(weight, weight, weight, torch.zeros(2, 6), place, moved, 1.0)
    with pytest.raises(ValueError, match="gradient at 1 of 1"):
        AdamWWeight.of_rows(weight, weight, weight, torch.zeros(1, 6), place, moved, 1.0)
    with pytest.raises(ValueError, match="rows that moved: expected contiguous uint8"):
        AdamWWeight.of_rows(weight, weight, weight, torch.zeros(2, 6), place, moved.bool(), 1.0)


def test_a_single_token_or_head_may_have_any_stride():
    check_heads("queries", torch.zeros(1, 32, 1, dtype=BF16).transpose(1, 2), (1, 1, 32), 999)
    check_cu_seqlens("offsets", offsets(0, 0, 3), 3)  # an empty sequence


def test_offsets_that_passed_are_looked_at_again_for_fewer_tokens():
    cu_seqlens = offsets(0, 2, 5)
    check_cu_seqlens("offsets", cu_seqlens, 5)
    with pytest.raises(ValueError, match="at most 4"):
        check_cu_seqlens("offsets", cu_seqlens, 4)


def test_attention_in_training_refuses_what_it_would_misread(training, called):
    qkv, cu_seqlens = torch.randn(40, 3, HEADS, SIZE).bfloat16(), torch.tensor([0, 40], dtype=torch.int32)
    q, k, v = qkv.unbind(1)
    found = re.escape("expected 40 tokens with equal strides, found 40 at strides of (192, 32, 1), (64, 32, 1)")
    with pytest.raises(ValueError, match=found):
        training.attention(q, k.contiguous(), v, cu_seqlens)
    with pytest.raises(ValueError, match="expected 39 tokens with equal strides, found 40"):
        training.attention(q, k, v, cu_seqlens - torch.tensor([0, 1], dtype=torch.int32))
    assert called == []
