"""The linear layers of certain hardware compute what the plain ones do, int8 what its codes say."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from bertray.model.backend import PackedBackend, made_up_sequences
from bertray.model.encoders import PackedEncoder
from bertray.model.engine import Engine
from bertray.model.linear import (
    EmulatedQuantizedLinear,
    PlainLinear,
    PrepackedLinear,
    QuantizedLinear,
    can_prepack,
    can_quantize,
)
from bertray.model.pooling import ClassifierReadout

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("num_tokens", [1, 17, 64])
def test_alone_activated_and_with_a_residual(activation, num_tokens):
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 32), torch.randn(48)
    x, residual = torch.randn(num_tokens, 32), torch.randn(num_tokens, 48)
    x_before, residual_before = x.clone(), residual.clone()
    plain, prepacked = (kind(weight, bias, ACT2FN[activation]) for kind in (PlainLinear, PrepackedLinear))
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x, weight, bias)
        for layer in (plain, prepacked):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.activated(x), ACT2FN[activation](expected), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.plus(x, residual), expected + residual, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, x_before)
    assert torch.equal(residual, residual_before)


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "electra"])
def test_an_encoder_of_prepacked_layers_gives_the_same_logits(family, make_classifier):
    from transformers import AutoModelForSequenceClassification

    folder = make_classifier(family, 3)
    engine = Engine(folder, precision="fp32")
    seqs = made_up_sequences(engine.vocab_size, engine.max_length)
    expected = engine.logits(seqs)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoder = PackedEncoder(model, torch.float32, torch.device("cpu"), PrepackedLinear)
    engine._backend = PackedBackend(model, ClassifierReadout(), encoder)
    torch.testing.assert_close(torch.from_numpy(engine.logits(seqs)), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


needs_int8 = pytest.mark.skipif(not can_quantize(torch.device("cpu")), reason="this CPU has neither VNNI nor AMX")
in_int8 = pytest.mark.parametrize("kind", [pytest.param(QuantizedLinear, marks=needs_int8), EmulatedQuantizedLinear])


def rounded_weights(weight_OI):
    scales_O1 = weight_OI.abs().amax(dim=1, keepdim=True) / 127
    return (weight_OI / scales_O1).round() * scales_O1


def rounded_by_token(x_TI):
    """As 255 values, evenly spread around zero as far as the largest number of a token."""
    scales_T1 = x_TI.abs().amax(dim=1, keepdim=True) / 127
    return (x_TI / scales_T1 + 0.5).floor() * scales_T1


@in_int8
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("num_tokens", [1, 17, 64])
def test_int8_is_the_product_of_rounded_weights_and_rounded_activations(kind, num_tokens, activation):
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 32), torch.randn(48)
    # Tokens of very different size: one scale for all of them would lose the small ones.
    x, residual = torch.randn(num_tokens, 32) * torch.logspace(-2, 1, num_tokens)[:, None], torch.randn(num_tokens, 48)
    x_before, residual_before = x.clone(), residual.clone()
    layer = kind(weight, bias, ACT2FN[activation])
    with torch.inference_mode():
        expected = torch.nn.functional.linear(rounded_by_token(x), rounded_weights(weight), bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.activated(x), ACT2FN[activation](expected), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.plus(x, residual), expected + residual, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, x_before)
    assert torch.equal(residual, residual_before)


@in_int8
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_int8_keeps_what_is_not_finite_in_its_own_row(kind, bad):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(9, 32)
    layer = kind(weight, bias, ACT2FN["gelu"])
    poisoned = x.clone()
    poisoned[4, 7] = bad
    with torch.inference_mode():
        for compute in (layer, layer.activated, lambda x: layer.plus(x, torch.zeros(9, 48))):
            found, without = compute(poisoned), compute(x)
            assert not found[4].isfinite().all()
            others = [0, 1, 2, 3, 5, 6, 7, 8]
            assert torch.equal(found[others], without[others])


@in_int8
def test_int8_of_nothing_but_zeros_is_the_bias(kind):
    layer = kind(torch.zeros(48, 32), torch.arange(48.0), ACT2FN["gelu"])
    with torch.inference_mode():
        assert torch.equal(layer(torch.zeros(3, 32)), torch.arange(48.0).expand(3, 48))


def test_only_bf16_on_a_cpu_that_multiplies_in_it_is_prepacked():
    assert not can_prepack(torch.float32, torch.device("cpu"))
    assert not can_prepack(torch.bfloat16, torch.device("cuda"))
    assert can_prepack(torch.bfloat16, torch.device("cpu")) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
