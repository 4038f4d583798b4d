"""The predictor: probabilities of reviews, and what it does when memory runs out."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy._core import _exceptions

from bertray.errors import InfrastructureError
from bertray.model.embedder import Embedder
from bertray.model.kernels import done
from bertray.model.predictor import Predictor
from bertray.model.tokenization import ReviewTokenizer, sequences

TEXTS = ["the film was good " * 3, "bad", "not a real film, bad", "good good film", "", "the the the the the"]
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def tokenizer(tokenizer_folders):
    return ReviewTokenizer(tokenizer_folders["bert"], 8, "windows")


@pytest.fixture
def predictor(make_classifier):
    return Predictor(make_classifier("bert", 3), precision="fp32")


def test_probs_are_the_mean_softmax_over_the_windows_of_a_review(make_classifier, tokenizer):
    predictor = Predictor(make_classifier("bert", 3), temperature=1.7, precision="fp32")
    table = tokenizer.encode(pa.array(TEXTS))
    logits_SC = predictor.engine.logits(sequences(table)).astype(np.float64)
    expected, start = [], 0
    for num_windows in table["seq_lens"].combine_chunks().value_lengths().to_pylist():
        windows = np.exp(logits_SC[start : start + num_windows] / 1.7)
        expected.append((windows / windows.sum(axis=1, keepdims=True)).mean(axis=0))
        start += num_windows
    assert start > len(TEXTS)  # some review has several
    probs_NC = predictor.probs(table)
    assert probs_NC.dtype == np.float32
    np.testing.assert_allclose(probs_NC, expected, atol=1e-6)  # float32


def test_probs_of_slices_are_slices_of_the_probs(predictor, tokenizer):
    table = tokenizer.encode(pa.array(TEXTS))
    whole = predictor.probs(table)
    for start, length in ((0, 2), (2, 3), (5, 1)):
        np.testing.assert_allclose(
            predictor.probs(table.slice(start, length)), whole[start : start + length], atol=1e-6
        )


def test_probs_of_no_reviews_are_empty(predictor, tokenizer):
    assert predictor.probs(tokenizer.encode(pa.array([], pa.string()))).shape == (0, 3)


def test_review_with_a_logit_that_is_not_finite_has_nan_and_the_others_their_probs(predictor, tokenizer, monkeypatch):
    table = tokenizer.encode(pa.array(TEXTS))
    expected = predictor.probs(table)
    broken = Predictor(predictor.path, precision="fp32")
    logits = broken.engine.logits

    def logits_with_faults(seqs):
        logits_SC = logits(seqs)
        logits_SC[np.flatnonzero(seqs.rows_S == 0)[-1], 1] = np.inf  # one window of the first review
        logits_SC[np.flatnonzero(seqs.rows_S == 3)[0]] = np.nan
        return logits_SC

    monkeypatch.setattr(broken.engine, "logits", logits_with_faults)
    probs = broken.probs(table)
    assert np.isnan(probs[[0, 3]]).all()
    np.testing.assert_allclose(probs[[1, 2, 4, 5]], expected[[1, 2, 4, 5]], atol=1e-6)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(CPU_MESSAGE),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("kernels: not enough memory for a thread's working space"),
        _exceptions._ArrayMemoryError((1 << 40,), np.dtype("float32")),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_token_budget_for_good(predictor, tokenizer, monkeypatch, caplog, error):
    words = np.array(["the", "film", "was", "good", "not", "a", "real", "bad"])
    texts = [" ".join(row) for row in words[np.random.default_rng(0).integers(len(words), size=(120, 9))]]
    table = tokenizer.encode(pa.array(texts))
    expected = Predictor(predictor.path, precision="fp32").probs(table)
    run = predictor.engine._run

    def run_in_little_memory(pack, seqs, starts_S):
        if pack.num_slots > 100:
            raise error
        return run(pack, seqs, starts_S)

    monkeypatch.setattr(predictor.engine, "_run", run_in_little_memory)
    predictor.engine.max_tokens_per_pack = 400
    with caplog.at_level(logging.WARNING, logger="bertray"):
        np.testing.assert_allclose(predictor.probs(table), expected, atol=1e-6)
        assert predictor.engine.max_tokens_per_pack == 100
        predictor.probs(tokenizer.encode(pa.array([f"bad {text}" for text in texts])))
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory with 400 tokens per pack; going on with 200.",
        "Out of memory with 200 tokens per pack; going on with 100.",
    ]


def test_out_of_memory_with_one_sequence_is_an_infrastructure_error(predictor, tokenizer, monkeypatch):
    sizes = []

    def run_without_memory(pack, seqs, starts_S):
        sizes.append(len(pack.lens_B))
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much.")

    monkeypatch.setattr(predictor.engine, "_run", run_without_memory)
    predictor.engine.max_tokens_per_pack = 1 << 16
    table = tokenizer.encode(pa.array(TEXTS))
    assert 32 <= sequences(table).lens_S.sum() < 64
    with pytest.raises(InfrastructureError, match=r"with a single sequence of 8 tokens \(CUDA out of memory\.\)"):
        predictor.probs(table)
    assert sizes[-1] == 1
    assert len(sizes) == 4  # all, half of what there is (not of the budget), a quarter, an eighth: less than a sequence


def test_vectors_survive_it_too(make_classifier, tokenizer, monkeypatch):
    embedder = Embedder(make_classifier("bert", 3), precision="fp32")
    table = tokenizer.encode(pa.array([*TEXTS, *(f"{text} a" for text in TEXTS)]))
    expected = Embedder(make_classifier("bert", 3), precision="fp32").vectors(table)
    expected_of_tokens = embedder.token_vectors(table)
    packs = embedder.engine._packs

    def packs_in_little_memory(seqs):
        if embedder.engine.max_tokens_per_pack > 20:
            raise MemoryError
        return packs(seqs)

    monkeypatch.setattr(embedder.engine, "_packs", packs_in_little_memory)
    np.testing.assert_allclose(embedder.vectors(table), expected, atol=1e-5)
    np.testing.assert_allclose(embedder.token_vectors(table), expected_of_tokens, atol=1e-5)
    assert embedder.engine.max_tokens_per_pack <= 20


def test_a_kernel_tells_memory_from_a_size_that_it_cannot_compute():
    result = torch.zeros(1)
    assert done(0, result) is result
    with pytest.raises(MemoryError, match="not enough memory"):
        done(1, result)
    with pytest.raises(ValueError, match="expected heads of a size for tiles"):
        done(2, result)


def test_other_errors_are_not_taken_for_memory(predictor, tokenizer, monkeypatch):
    def run_with_a_bug(pack, seqs, starts_S):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(predictor.engine, "_run", run_with_a_bug)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        predictor.probs(tokenizer.encode(pa.array(TEXTS)))
    assert predictor.engine.max_tokens_per_pack == 2048
