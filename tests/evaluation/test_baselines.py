"""Baselines learn what can be learned from words or characters, and stand up to poor data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray.evaluation.baselines import fit_tfidf_logreg, majority


def test_majority_predicts_the_largest_class_of_train_with_its_shares():
    probs_NC = majority(np.array([1, 1, 0, 1]), num_classes=3, num_rows=2)
    assert probs_NC.tolist() == [[0.25, 0.75, 0.0]] * 2


def test_tfidf_learns_words_and_two_words_together():
    texts = ["not good", "good", "not bad", "bad"] * 10
    labels_N = np.array([0, 1, 1, 0] * 10)  # neither word alone decides
    model = fit_tfidf_logreg(texts, labels_N, num_classes=2, seed=0)
    probs_NC = model.probs(pa.array(["not bad", "good", "bad", "not good"]))
    assert model.terms == "words 1-2"
    assert probs_NC.argmax(axis=1).tolist() == [1, 1, 0, 0]
    assert probs_NC.sum(axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("frame", "good", "bad"),
    [
        ("이 영화{}", "재밌어요", "지루해요"),
        ("这个{}了", "质量很好", "质量很差"),
        ("この本は{}です", "おもしろい", "つまらない"),
    ],
)
def test_tfidf_learns_characters_where_words_are_not_separated(frame, good, bad):
    texts = pa.chunked_array([[frame.format(good), frame.format(bad)]] * 20)
    model = fit_tfidf_logreg(texts, np.array([0, 1] * 20), num_classes=2, seed=0)
    assert model.terms == "characters 1-3"
    assert model.probs([good, bad]).argmax(axis=1).tolist() == [0, 1]  # not one whole "word" of train


def test_tfidf_takes_words_where_a_few_texts_are_korean():
    texts = ["lovely film", "awful film", "lovely plot", "재밌어요"]
    assert fit_tfidf_logreg(texts, np.array([0, 1, 0, 0]), num_classes=2, seed=0).terms == "words 1-2"


def test_tfidf_gives_an_unseen_class_no_probability():
    probs_NC = fit_tfidf_logreg(["good", "bad"] * 5, np.array([0, 2] * 5), num_classes=3, seed=0).probs(["good"])
    assert probs_NC.shape == (1, 3)
    assert probs_NC[0, 1] == 0
    assert probs_NC[0].argmax() == 0


@pytest.mark.parametrize(
    ("texts", "labels"),
    [(["…", "!!", "?"], [0, 1, 1]), (["good", "fine", "nice"], [1, 1, 1])],
    ids=["no term", "one class"],
)
def test_tfidf_falls_back_on_class_shares_when_there_is_nothing_to_learn(texts, labels):
    shares_C = np.bincount(labels, minlength=2) / 3
    assert (
        fit_tfidf_logreg(texts, np.array(labels), 2, seed=0).probs(["good", "bad"]).tolist() == [shares_C.tolist()] * 2
    )


def test_tfidf_gives_the_same_for_the_same_seed_whatever_the_batches():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(200)]
    labels_N = rng.integers(0, 3, 200)
    model = fit_tfidf_logreg(texts, labels_N, 3, seed=1)
    whole = model.probs(texts)
    assert (np.concatenate([model.probs(texts[:70]), model.probs(texts[70:])]) == whole).all()
    assert (fit_tfidf_logreg(texts, labels_N, 3, seed=1).probs(texts) == whole).all()
