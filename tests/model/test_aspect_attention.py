"""Attention of a review's tokens by a query of its aspect: as a loop over sequences has it, packed and padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from bertray.errors import ConfigError
from bertray.model.aspect_attention import AspectAttention, AspectClassifier
from bertray.model.engine import Engine
from bertray.model.pooling import AttentionReadout
from bertray.model.pretrained.tokenizer import check_token_types
from bertray.model.pretrained.weights import load_encoder
from bertray.model.tokenization import ReviewTokenizer, sequences
from bertray.training.packed import PackedModel, pack

HIDDEN, CLASSES = 32, 3


def head(seed: int = 0) -> AspectAttention:
    torch.manual_seed(seed)
    return AspectAttention(HIDDEN, CLASSES).eval()


def by_hand(module: AspectAttention, hidden_LD: torch.Tensor, second: int) -> torch.Tensor:
    """Logits of one sequence, step by step."""
    first_part = hidden_LD[: len(hidden_LD) - second]
    aspect_D = hidden_LD[len(hidden_LD) - second :].mean(dim=0) if second else torch.zeros(HIDDEN)
    query_D = torch.tanh(module.query.weight @ aspect_D + module.query.bias)
    weights = torch.softmax(first_part @ query_D / HIDDEN**0.5, dim=0)
    pooled_D = (weights[:, None] * first_part).sum(dim=0)
    features_D = torch.tanh(module.dense.weight @ torch.cat([hidden_LD[0], pooled_D]) + module.dense.bias)
    return module.out.weight @ features_D + module.out.bias


def test_logits_are_those_of_each_sequence_alone():
    module = head()
    lens, seconds = [7, 3, 1, 12], [2, 0, 0, 5]
    hidden = [torch.randn(size, HIDDEN) for size in lens]
    found = module(torch.cat(hidden), torch.tensor(lens), torch.tensor(seconds))
    expected = torch.stack([by_hand(module, *one) for one in zip(hidden, seconds, strict=True)])
    torch.testing.assert_close(found, expected)


def test_gradients_reach_the_query_through_the_softmax():
    module = head()
    hidden = torch.randn(9, HIDDEN, dtype=torch.float32, requires_grad=True)
    module(hidden, torch.tensor([5, 4]), torch.tensor([2, 1])).sum().backward()
    assert module.query.weight.grad is not None
    assert module.query.weight.grad.abs().max() > 0
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


@pytest.fixture(scope="module")
def folder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with the head beside it, as a bundle has them."""
    folder = tmp_path_factory.mktemp("attention")
    torch.manual_seed(1)
    model = AspectClassifier(load_encoder(tiny_encoder), CLASSES)
    model.encoder.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (tiny_encoder / name).is_file():
            (folder / name).write_bytes((tiny_encoder / name).read_bytes())
    (folder / "head.safetensors").write_bytes(model.head_bytes())
    return folder


TEXTS = ["the film was good and the plot was bad", "the actor", "it is very very fine", "a story"]
PAIRS = ["plot", "the actor", None, "film"]


def test_the_engine_gives_the_logits_of_transformers_and_a_loop(folder: Path):
    """The encoder by `transformers`, padded by itself, then the loop of `by_hand`."""
    seqs = sequences(ReviewTokenizer(folder, 24).encode(pa.array(TEXTS), pa.array(PAIRS)))
    model = AspectClassifier.load(folder, folder / "head.safetensors")
    expected, start = [], 0
    for length, second in zip(seqs.lens_S.tolist(), seqs.second_lens_S.tolist(), strict=True):
        ids = torch.from_numpy(seqs.ids_T[start : start + length].astype(np.int64))[None]
        types = (torch.arange(length) >= length - second).long()[None]
        with torch.inference_mode():
            hidden = model.encoder(input_ids=ids, token_type_ids=types).last_hidden_state[0]
            expected.append(by_hand(model.aspect_attention, hidden, second))
        start += length
    engine = Engine(folder, precision="fp32", readout=AttentionReadout(folder))
    assert engine.packed
    np.testing.assert_allclose(engine.logits(seqs), torch.stack(expected).numpy(), atol=1e-5)


def test_training_packed_gives_the_logits_and_gradients_of_padded_training(folder: Path):
    rows = ReviewTokenizer(folder, 24).encode(pa.array(TEXTS), pa.array(PAIRS))
    ids = [np.array(one) for one in rows["input_ids"].to_pylist()]
    seconds = rows["second_len"].to_numpy()
    padded, plain = (AspectClassifier.load(folder, folder / "head.safetensors") for _ in range(2))
    packed, why = PackedModel.of(plain)
    assert packed is not None, why
    found = packed(pack(ids, seconds, plain.config))
    shape = len(ids), max(map(len, ids))
    input_ids, mask, types = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    for row, (one, second) in enumerate(zip(ids, seconds.tolist(), strict=True)):
        input_ids[row, : len(one)], mask[row, : len(one)] = torch.from_numpy(one.astype(np.int64)), 1
        types[row, len(one) - second : len(one)] = 1
    expected = padded(input_ids, mask, types).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for logits in (found, expected):
        logits.square().sum().backward()
    of_padded = dict(padded.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, of_padded[name].grad, atol=1e-5, rtol=1e-3, msg=name)


def test_an_encoder_without_token_types_is_refused(tiny_encoder: Path, tmp_path: Path):
    import json
    import shutil

    check_token_types(tiny_encoder, "tiny")
    shutil.copytree(tiny_encoder, tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    (tmp_path / "plain" / "config.json").write_text(json.dumps({**config, "type_vocab_size": 1}))
    with pytest.raises(ConfigError, match="head=attention: plain has no token types"):
        check_token_types(tmp_path / "plain", "plain")
