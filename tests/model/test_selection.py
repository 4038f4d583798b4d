"""Sentences of a long review that concern its aspect: chosen by word vectors, in their order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load, load_file

from bertray.errors import ConfigError
from bertray.model.selection import FILE, SentenceSelector, vectors_file, word_vectors
from bertray.model.tokenization import ReviewTokenizer

WORDS = ["[PAD]", "food", "pasta", "price", "was", "good", ".", ",", "!"]
FOOD, PASTA, PRICE, WAS, GOOD, STOP, PAUSE, CALL = range(1, 9)
# The pasta lies between the food and everything else; marks and small words are far from both aspects.
VECTORS = np.array(
    [[0, 0, 1], [100, 0, 0], [60, 80, 0], [0, 0, 100], [0, 127, 1], [0, 100, 0], [0, 50, 2], [0, 9, 0], [0, 9, 0]],
    np.int8,
)


def selector() -> SentenceSelector:
    is_end, is_pause = (np.array([word in marks for word in WORDS]) for marks in (".!", ","))
    return SentenceSelector(VECTORS, is_end, is_pause)


def test_sentences_with_the_word_come_first_then_those_with_the_nearest_one_in_their_order():
    ids = np.array([PASTA, WAS, GOOD, STOP, WAS, GOOD, CALL, CALL, PRICE, WAS, GOOD, STOP, FOOD, STOP])
    kept = [selector().kept(ids, np.array([FOOD]), room).tolist() for room in (2, 3, 6, 10)]
    assert kept[0] == [12, 13]  # the sentence with the word itself
    assert kept[1] == [12, 13]  # no other fits
    assert kept[2] == [0, 1, 2, 3, 12, 13]  # then the pasta, and the order is that of the review
    assert kept[3] == [0, 1, 2, 3, 4, 5, 6, 7, 12, 13]  # of equal ones the earlier goes first
    assert selector().kept(ids, np.array([PRICE]), 4).tolist() == [8, 9, 10, 11]


def test_a_sentence_that_does_not_fit_is_cut_at_its_pauses_or_by_length():
    ids = np.array([WAS] * 10 + [PAUSE] + [GOOD] * 12 + [FOOD] + [GOOD] * 20)
    # Pieces of 16 tokens: behind the pause, and again 16 and 32 tokens later.
    assert selector()._stops(ids, 40, 16).tolist() == [11, 27, 43, 44]
    assert selector()._stops(ids, 44, 16).tolist() == [44]  # it fits
    assert selector().kept(ids, np.array([FOOD]), 17).tolist() == [*range(11, 27), 43]


def test_reviews_that_fit_or_have_no_aspect_are_read_as_with_head(tiny_encoder: Path):
    texts = ["the film was good. the plot was bad.", "the film was good. the plot was bad. the actor was fine."]
    pairs = pa.array(["plot", None], pa.string())
    for length in (12, 40):
        select, head = (ReviewTokenizer(tiny_encoder, length, kind) for kind in ("select", "head"))
        found, expected = select.encode(pa.array(texts), pairs), head.encode(pa.array(texts), pairs)
        assert found.slice(1).equals(expected.slice(1))
        assert found.equals(expected) == (length == 40)
        assert found["n_tokens"].equals(expected["n_tokens"])
        assert found["truncated"].equals(expected["truncated"])


def test_the_tokenizer_keeps_the_tokens_of_the_sentences_of_the_aspect(tiny_encoder: Path):
    text = "the film was good. it is a story. the plot was bad. and it is very fine."
    tokenizer = ReviewTokenizer(tiny_encoder, 14, "select")
    words = tokenizer.words
    rows = tokenizer.encode(pa.array([text, text]), pa.array(["plot", "film"]))
    read = [" ".join(words.take(ids.values).to_pylist()) for ids in rows["input_ids"]]
    assert "the plot was bad . " in read[0]
    assert "the film was good . " in read[1]
    for line, aspect in zip(read, ("plot", "film"), strict=True):
        assert line.startswith("[CLS] ")
        assert line.endswith(f"[SEP] {aspect} [SEP]")
        assert len(line.split()) <= 14


def test_each_token_that_is_kept_knows_its_characters(tiny_encoder: Path):
    """Words that decide are named by these; of the first review the last sentence is kept, of the third the head."""
    text = "it is a story. the plot was bad. and it is very fine. the film was good."
    texts, pairs = [text, "a film", text], ["film", "actor", None]
    tokenizer = ReviewTokenizer(tiny_encoder, 11, "select")
    table, places = tokenizer.encode_with_places(texts, pairs)
    assert table.equals(tokenizer.encode(pa.array(texts), pa.array(pairs)))
    ends = np.cumsum([0, *map(len, table["input_ids"].to_pylist())]).tolist()
    found = []
    for row, (lo, hi) in enumerate(pairwise(ends)):
        tokens = zip(places.side_T[lo:hi].tolist(), places.spans_T2[lo:hi].tolist(), strict=True)
        found.append([(texts[row], pairs[row] or "")[side][start:end] for side, (start, end) in tokens if side >= 0])
    assert [" ".join(words) for words in found] == [
        "the film was good . film",
        "a film actor",
        "it is a story . the plot was bad",
    ]


def test_a_bundle_selects_by_the_vectors_of_the_model_that_training_started_from(tiny_encoder: Path, tmp_path: Path):
    (tmp_path / FILE).write_bytes(vectors_file(tiny_encoder))
    np.testing.assert_array_equal(word_vectors(tmp_path), word_vectors(tiny_encoder))
    assert vectors_file(tmp_path) == (tmp_path / FILE).read_bytes()  # of a model that was trained further


def test_word_vectors_keep_the_cosines_of_the_embeddings_without_their_common_part(tiny_encoder: Path):
    """Against the whole embeddings, centred, of which the tiny encoder loses no direction: 32 / 100 rounds to none."""
    stored = load_file(tiny_encoder / "model.safetensors")["embeddings.word_embeddings.weight"]
    found = load(vectors_file(tiny_encoder))["words"].astype(np.float64)

    def cosines(vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        product: np.ndarray = unit @ unit.T
        return product

    expected = cosines((stored - stored.mean(axis=0)).astype(np.float64))
    np.testing.assert_allclose(cosines(found), expected, atol=0.02)  # int8


def test_a_folder_without_word_embeddings_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"long_text=select: .* has no word embeddings"):
        word_vectors(tmp_path)
