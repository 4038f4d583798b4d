"""The prepacked linear layers compute what the plain ones do."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from bertray.model.encoders import PackedEncoder
from bertray.model.engine import Engine, _made_up_sequences
from bertray.model.linear import PlainLinear, PrepackedLinear, can_prepack

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
    seqs = _made_up_sequences(engine.vocab_size, engine.max_length)
    expected = engine.logits(seqs)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    engine._encoder = PackedEncoder(model, torch.float32, torch.device("cpu"), PrepackedLinear)
    torch.testing.assert_close(torch.from_numpy(engine.logits(seqs)), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_only_bf16_on_a_cpu_that_multiplies_in_it_is_prepacked():
    assert not can_prepack(torch.float32, torch.device("cpu"))
    assert not can_prepack(torch.bfloat16, torch.device("cuda"))
    assert can_prepack(torch.bfloat16, torch.device("cpu")) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
