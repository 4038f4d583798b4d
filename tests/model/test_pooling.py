"""Embeddings and linear heads, packed and padded, against `transformers`' own hidden states."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from bertray.model.bundle import HEAD_FILE, HeadForm
from bertray.model.engine import Engine
from bertray.model.pooling import LinearReadout, PooledReadout
from bertray.model.tokenization import Sequences

FAMILIES = ["bert", "roberta", "distilbert", "electra", "albert", "modernbert", "deberta-v2"]


@pytest.fixture
def seqs() -> Sequences:
    lens = np.array([*range(1, 41), *[12] * 9, *[40] * 3])
    np.random.default_rng(2).shuffle(lens)
    ids = np.random.default_rng(1).integers(60, size=int(lens.sum())).astype(np.uint16)
    return Sequences(ids, lens.astype(np.int64), np.zeros(len(lens), np.int32), np.arange(len(lens)), len(lens))


def hidden_states(folder, seqs) -> list[np.ndarray]:
    """Last hidden states [L, D] of each sequence, alone through `transformers`."""

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    states = []
    for ids in np.split(seqs.ids_T, np.cumsum(seqs.lens_S)[:-1]):
        with torch.inference_mode():
            inputs = torch.from_numpy(ids.astype(np.int64))[None]
            states.append(model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state[0].numpy())
    return states


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_equal_those_of_each_text_alone(family, pooling, make_classifier, seqs):
    folder = make_classifier(family, 3)
    engine = Engine(folder, precision="fp32", readout=PooledReadout(pooling))
    assert engine.packed == (family not in ("modernbert", "deberta-v2"))
    expected = np.stack([h[0] if pooling == "cls" else h.mean(axis=0) for h in hidden_states(folder, seqs)])
    assert engine.width == expected.shape[1]
    np.testing.assert_allclose(engine.logits(seqs), expected, atol=1e-3, rtol=0)
    assert expected.std(axis=0).min() > 1e-3


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_linear_head_is_applied_to_the_embeddings(family, pooling, make_classifier, seqs, tmp_path):
    folder = shutil.copytree(make_classifier(family, 3), tmp_path / "bundle")
    embeddings = Engine(folder, precision="fp32", readout=PooledReadout(pooling)).logits(seqs)
    torch.manual_seed(1)
    weight, bias = torch.randn(4, embeddings.shape[1]), torch.randn(4)
    save_file({"weight": weight, "bias": bias}, folder / HEAD_FILE)
    engine = Engine(folder, precision="fp32", readout=LinearReadout(folder, HeadForm(pooling)))
    np.testing.assert_allclose(engine.logits(seqs), embeddings @ weight.numpy().T + bias.numpy(), atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("has_pooler", [True, False])
def test_a_pooler_that_the_checkpoint_lacks_is_not_made_up(family, has_pooler, make_classifier, tmp_path):
    """A masked language model has none; a random one would make every saved bundle another."""
    whole = AutoModel.from_pretrained(make_classifier(family, 3), add_pooling_layer=has_pooler)
    whole.save_pretrained(tmp_path / "encoder")
    saved = []
    for number in range(2):
        PooledReadout().load(tmp_path / "encoder").save_pretrained(tmp_path / f"again-{number}")
        saved.append((tmp_path / f"again-{number}" / "model.safetensors").read_bytes())
    assert saved[0] == saved[1]
    names = set(load_file(tmp_path / "again-0" / "model.safetensors"))
    assert names == set(whole.state_dict())
    assert any(name.startswith("pooler.") for name in names) == has_pooler
