"""Vectors of reviews and of tokens, against transformers' own hidden states."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from bertray.model.embedder import Embedder
from bertray.model.tokenization import ReviewTokenizer, sequences

TEXTS = [
    "the film was great",
    "a very boring story and the plot was not good",
    "lovely",
    "the film was great",
    "it is " + "not very good and " * 9 + "fine",
]


def hidden_states(encoder, table) -> list[np.ndarray]:
    """[L, D] of every sequence, one forward pass each."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder).eval()
    seqs, found, at = sequences(table), [], 0
    for length in seqs.lens_S.tolist():
        ids = torch.from_numpy(seqs.ids_T[at : at + length].astype(np.int64))[None]
        with torch.inference_mode():
            found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].numpy())
        at += length
    return found


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_equal_transformers(tiny_encoder, pooling, normalize):
    table = ReviewTokenizer(tiny_encoder, 48).encode(pa.array(TEXTS))
    expected = np.array([h.mean(axis=0) if pooling == "mean" else h[0] for h in hidden_states(tiny_encoder, table)])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embedder = Embedder(tiny_encoder, pooling=pooling, normalize=normalize, precision="fp32")
    found = embedder.vectors(table)
    assert (found.dtype, found.shape) == (np.float32, (5, 32))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert embedder.repeated_rows == 1
    np.testing.assert_array_equal(embedder.vectors(table), found)
    assert embedder.repeated_rows == 6


def test_token_vectors_stand_in_the_order_of_the_tokens(tiny_encoder):
    table = ReviewTokenizer(tiny_encoder, 48).encode(pa.array(TEXTS))
    embedder = Embedder(tiny_encoder, precision="fp32")
    np.testing.assert_allclose(
        embedder.token_vectors(table), np.concatenate(hidden_states(tiny_encoder, table)), atol=1e-5
    )


def test_windows_weigh_by_their_tokens_and_first_tokens_alike(tiny_encoder):
    table = ReviewTokenizer(tiny_encoder, 16, "windows").encode(pa.array(TEXTS))
    seqs = sequences(table)
    assert len(seqs.lens_S) > len(TEXTS)
    states = hidden_states(tiny_encoder, table)
    for pooling in ("mean", "cls"):
        found = Embedder(tiny_encoder, pooling=pooling, precision="fp32").vectors(table)
        for row in range(len(TEXTS)):
            mine = [state for state, owner in zip(states, seqs.rows_S, strict=True) if owner == row]
            whole = np.concatenate(mine) if pooling == "mean" else np.array([state[0] for state in mine])
            np.testing.assert_allclose(found[row], whole.mean(axis=0), atol=1e-5)


def test_a_padded_model_gives_the_same(tiny_encoder, monkeypatch):
    table = ReviewTokenizer(tiny_encoder, 48).encode(pa.array(TEXTS))
    packed = Embedder(tiny_encoder, precision="fp32")
    monkeypatch.setattr("bertray.model.pooling.why_not_packable", lambda model: "not today")
    padded = Embedder(tiny_encoder, precision="fp32")
    assert (packed.engine.packed, padded.engine.packed) == (True, False)
    np.testing.assert_allclose(padded.vectors(table), packed.vectors(table), atol=1e-5)
    np.testing.assert_allclose(padded.token_vectors(table), packed.token_vectors(table), atol=1e-5)


def test_no_rows_give_no_vectors(tiny_encoder):
    table = ReviewTokenizer(tiny_encoder, 48).encode(pa.array([], pa.string()))
    embedder = Embedder(tiny_encoder)
    assert embedder.vectors(table).shape == (0, 32)
    assert embedder.token_vectors(table).shape == (0, 32)


def test_a_vector_that_is_not_finite_is_nan_in_its_own_row(tiny_encoder, monkeypatch):
    table = ReviewTokenizer(tiny_encoder, 48).encode(pa.array(TEXTS[:3]))
    embedder = Embedder(tiny_encoder, normalize=True)
    compute = embedder.engine.logits

    def with_infinity(seqs):
        vectors = compute(seqs)
        vectors[1, 5] = np.inf
        return vectors

    monkeypatch.setattr(embedder.engine, "logits", with_infinity)
    assert np.isnan(embedder.vectors(table)).all(axis=1).tolist() == [False, True, False]
