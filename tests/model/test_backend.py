"""The choice of a backend: weights are held once, and only those that are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertray.model.backend import PackedBackend, choose_backend, logits_of, made_up_sequences
from bertray.model.encoders import PackedEncoder
from bertray.model.linear import PlainLinear
from bertray.model.pooling import ClassifierReadout, PooledReadout

CPU = torch.device("cpu")


def storages(encoder: PackedEncoder) -> set[int]:
    """Addresses of the storage of all weights that an encoder holds."""
    linears = [value for layer in encoder._layers for value in vars(layer).values() if isinstance(value, PlainLinear)]
    return {linear._weight_OI.untyped_storage().data_ptr() for linear in linears}


def bytes_of(encoder: PackedEncoder) -> int:
    seen = {}
    for layer in encoder._layers:
        for value in vars(layer).values():
            if isinstance(value, PlainLinear):
                storage = value._weight_OI.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "albert"])
@pytest.mark.parametrize("reads", ["first", "all", "both"])
def test_weights_in_fp32_are_those_of_the_model_but_for_joint_projections(family, reads, make_classifier):
    model = ClassifierReadout().load(make_classifier(family, 3))
    encoder = PackedEncoder(model, torch.float32, CPU, reads=reads)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    num_layers = len({id(layer) for layer in encoder._layers})
    # Of each layer one joint projection: of all three, or in a last layer that reads first tokens of keys and values.
    assert len(storages(encoder) - own) == num_layers
    assert all(layer.query_key_value is not None for layer in encoder._layers[:-1])
    last = encoder._layers[-1]
    is_shared = any(layer is last for layer in encoder._layers[:-1])
    assert (last.query is not None) == (last.key_value is not None) == (reads != "all")
    assert (last.query_key_value is not None) == (reads != "first" or is_shared)


def test_reading_both_holds_no_more_than_reading_all(make_classifier):
    model = ClassifierReadout().load(make_classifier("bert", 3))
    both, whole = (bytes_of(PackedEncoder(model, torch.float32, CPU, reads=reads)) for reads in ("both", "all"))
    assert both == whole


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "electra"])
def test_the_encoder_of_the_model_is_released_and_the_head_still_reads(family, make_classifier):
    folder = make_classifier(family, 3)
    readout = ClassifierReadout()
    model = readout.load(folder)
    before = sum(parameter.numel() for parameter in model.parameters())
    seqs = made_up_sequences(50, 40)
    expected = logits_of(PackedBackend(model, readout, PackedEncoder(model, torch.float32, CPU)), seqs, 3)
    backend, why_not = choose_backend(folder, model, readout, dtype=torch.float32, device=CPU, quantized=False)
    assert why_not == ""
    assert sum(parameter.numel() for parameter in model.parameters()) < before / 2
    np.testing.assert_array_equal(logits_of(backend, seqs, 3), expected)


def test_a_padded_model_keeps_its_encoder(make_classifier):
    folder = make_classifier("deberta-v2", 3)
    model = ClassifierReadout().load(folder)
    before = sum(parameter.numel() for parameter in model.parameters())
    backend, why_not = choose_backend(
        folder, model, ClassifierReadout(), dtype=torch.float32, device=CPU, quantized=False
    )
    assert "has no packed forward pass" in why_not
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    assert logits_of(backend, made_up_sequences(50, 40), 3).shape == (8, 3)


def test_embedders_of_first_tokens_give_vectors_of_all_tokens_too(tiny_encoder):
    readout = PooledReadout("cls")
    model = readout.load(tiny_encoder)
    backend, _ = choose_backend(tiny_encoder, model, readout, dtype=torch.float32, device=CPU, quantized=False)
    seqs = made_up_sequences(50, 40)
    starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
    (pack,) = backend.packs(seqs.lens_S, 1 << 20)
    with torch.inference_mode():
        states_TD = backend.token_vectors(pack, seqs, starts_S)
        first_BD = backend.logits(pack, seqs, starts_S)
    at_B = np.cumsum(pack.lens_B) - pack.lens_B
    torch.testing.assert_close(states_TD[torch.from_numpy(at_B)], first_BD)
