"""The arithmetic that the limit stands on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertConfig, DistilBertConfig

from bertray.benchmark.limit import ModelShape, matmul_rate


@pytest.mark.parametrize("config", [BertConfig, DistilBertConfig])
def test_flops_are_those_that_torch_counts(config):
    from transformers import AutoModel

    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    distil = {"vocab_size": 50, "n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48}
    made = config(**(distil if config is DistilBertConfig else {**sizes, "intermediate_size": 48}))
    model = AutoModel.from_config(made, attn_implementation="eager").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(input_ids=torch.ones(3, 17, dtype=torch.int64))
    counted = counter.get_total_flops()
    pooler = 2 * 3 * 32 * 32 if config is BertConfig else 0
    assert ModelShape.of(made).flops(np.full(3, 17)) == counted - pooler


def test_shape_of_an_encoder_from_its_folder(tiny_encoder):
    config = AutoConfig.from_pretrained(tiny_encoder)
    shape = ModelShape.of(config)
    assert (shape.layers, shape.hidden) == (config.num_hidden_layers, config.hidden_size)


def test_matmul_rate_is_a_rate_of_this_machine():
    rate = matmul_rate(ModelShape(2, 64, 128), torch.float32, torch.device("cpu"), seconds=0.02)
    assert 1e8 < rate < 1e14
