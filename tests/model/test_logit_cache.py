"""A review that comes again is computed once and gets the same logits, bit for bit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray.model.logit_cache import Repeats
from bertray.model.predictor import Predictor
from bertray.model.tokenization import ReviewTokenizer, Sequences, sequences


def made_of(*rows: list[int], second: list[int] | None = None) -> Sequences:
    lens = np.array([len(row) for row in rows], np.int64)
    return Sequences(
        ids_T=np.array([i for row in rows for i in row], np.uint16),
        lens_S=lens,
        second_lens_S=np.array(second or [0] * len(rows), np.int32),
        rows_S=np.arange(len(rows)),
        num_rows=len(rows),
    )


class Counting:
    """Logits that tell the tokens, and a list of what was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[list[int]]] = []

    def __call__(self, seqs: Sequences) -> np.ndarray:
        rows = [piece.tolist() for piece in np.split(seqs.ids_T, np.cumsum(seqs.lens_S)[:-1])]
        self.asked.append(rows)
        return np.array([[sum(row), second] for row, second in zip(rows, seqs.second_lens_S, strict=True)], np.float32)


def test_each_sequence_is_computed_once_within_a_call_and_over_calls():
    repeats, compute = Repeats(), Counting()
    logits, repeated = repeats.logits(made_of([1, 2], [3], [1, 2], [4, 5, 6], [3]), compute)
    assert compute.asked == [[[1, 2], [3], [4, 5, 6]]]
    assert logits.tolist() == [[3, 0], [3, 0], [3, 0], [15, 0], [3, 0]]
    assert repeated.tolist() == [False, False, True, False, True]
    logits, repeated = repeats.logits(made_of([4, 5, 6], [7], [1, 2]), compute)
    assert compute.asked[1:] == [[[7]]]
    assert logits.tolist() == [[15, 0], [7, 0], [3, 0]]
    assert repeated.tolist() == [True, False, True]
    logits, repeated = repeats.logits(made_of([7], [7]), compute)
    assert len(compute.asked) == 2
    assert logits.tolist() == [[7, 0], [7, 0]]
    assert repeated.all()


def test_equal_tokens_of_other_types_or_borders_are_not_repeats():
    repeats, compute = Repeats(), Counting()
    seqs = made_of([1, 2, 3], [1, 2, 3], [1], [2, 3], second=[0, 2, 0, 0])
    logits, repeated = repeats.logits(seqs, compute)
    assert logits.tolist() == [[6, 0], [6, 2], [1, 0], [5, 0]]
    assert not repeated.any()


def test_what_is_remembered_is_bounded():
    repeats, compute = Repeats(max_known=2), Counting()
    for token in (1, 2, 3, 4, 5):
        repeats.logits(made_of([token]), compute)
    _, repeated = repeats.logits(made_of([5], [4], [3], [1]), compute)
    assert repeated.tolist() == [True, True, True, False]


def test_no_sequences_are_no_repeats():
    logits, repeated = Repeats().logits(made_of(), lambda _: np.empty((0, 2), np.float32))
    assert logits.shape == (0, 2)
    assert repeated.shape == (0,)


@pytest.mark.parametrize("long_text", ["head", "windows"])
def test_the_predictor_counts_reviews_that_it_did_not_compute(long_text, make_classifier, tokenizer_folders):
    texts = ["the film was good " * 3, "bad", "the film was good " * 3, "bad", "not bad", "the film was good " * 3]
    table = ReviewTokenizer(tokenizer_folders["bert"], 8, long_text).encode(pa.array(texts))
    predictor = Predictor(make_classifier("bert", 3), precision="fp32")
    probs = predictor.probs(table)
    assert predictor.repeated_rows == 3
    assert probs[[2, 3, 5]].tobytes() == probs[[0, 1, 0]].tobytes()
    assert predictor.probs(table).tobytes() == probs.tobytes()
    assert predictor.repeated_rows == 9
    expected = predictor.engine.logits(sequences(table))
    seqs = sequences(table)
    softmax = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    means = [softmax[seqs.rows_S == row].mean(axis=0) for row in range(len(texts))]
    np.testing.assert_allclose(probs, means, atol=1e-6)
