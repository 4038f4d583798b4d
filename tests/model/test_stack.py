"""A stack is one logistic regression, whatever part of it is computed where."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix, hstack
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from bertray.errors import ConfigError
from bertray.model.bundle import INFO_FILE, BundleInfo, write_bundle
from bertray.model.embedder import Embedder
from bertray.model.explanations import explain
from bertray.model.heads import LinearHead, normalized
from bertray.model.pooling import PooledReadout
from bertray.model.predictor import Predictor
from bertray.model.stack import TERMS_FILE, Stack, encoder_weight_for, fit_stack, read_term_scorer, terms_of
from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.clean import Cleaning
from tests.corpus import sentences

LABELS = {2: ("neg", "pos"), 3: ("neg", "odd", "pos")}


def rows(num_rows: int, num_classes: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, normalised vectors that know a little of the label, and the labels."""
    texts, given = sentences(num_rows, seed)
    label_ids_N = np.array([label == "pos" for label in given], np.int64) * (num_classes - 1)
    if num_classes == 3:
        label_ids_N[::5] = 1
    centres = np.random.default_rng(1).normal(size=(num_classes, 8))
    vectors = centres[label_ids_N] + 2 * np.random.default_rng(seed).normal(size=(num_rows, 8))
    return texts, normalized(vectors), label_ids_N


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_stack_gives_what_one_logistic_regression_of_scikit_learn_gives(num_classes, weight):
    texts, means_ND, label_ids_N = rows(150, num_classes, 0)
    others, other_means, _ = rows(40, num_classes, 9)
    stack = fit_stack(terms_of(texts), texts, means_ND, label_ids_N, num_classes, encoder_weight=weight)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\b\w+\b")

    def features(texts: list[str], means: np.ndarray) -> csr_matrix:
        return hstack([vectorizer.transform(texts), csr_matrix(weight * means)], "csr")

    vectorizer.fit(texts)
    reference = LogisticRegression(C=4.0, max_iter=1000, tol=1e-6).fit(features(texts, means_ND), label_ids_N)
    expected_NC = reference.predict_proba(features(others, other_means))
    found_NC = softmax(stack.logits(others, other_means), axis=1)
    np.testing.assert_allclose(found_NC, expected_NC, atol=5e-3)
    assert expected_NC.std(axis=0).min() > 0.05


def test_the_encoder_counts_half_where_most_reviews_are_cut_and_can_be_left_out():
    assert [encoder_weight_for(share) for share in (0.0, 0.5, 0.51, 1.0)] == [1.0, 1.0, 0.5, 0.5]
    texts, _, label_ids_N = rows(80, 2, 0)
    nothing = np.empty((80, 0), np.float32)
    stack = fit_stack(terms_of(texts), texts, nothing, label_ids_N, 2)
    assert stack.head.weight_CD.shape == (2, 0)
    assert (stack.logits(texts, nothing).argmax(axis=1) == label_ids_N).mean() > 0.95


def test_texts_without_a_term_leave_the_encoder_alone():
    _, means_ND, label_ids_N = rows(80, 2, 0)
    texts = ["…"] * 80
    stack = fit_stack(terms_of(texts), texts, means_ND, label_ids_N, 2)
    assert len(stack.term_scorer.terms) == 0
    assert stack.logits(["…", "good"], means_ND[:2]).tolist() == stack.head.logits(means_ND[:2]).tolist()


def test_a_class_without_a_row_is_refused():
    texts, means_ND, label_ids_N = rows(20, 2, 0)
    with pytest.raises(ValueError, match=r"found none of \[2\]"):
        fit_stack(terms_of(texts), texts, means_ND, label_ids_N, 3)


@pytest.fixture(scope="module")
def fitted(tiny_encoder, tmp_path_factory):
    """(a fitted stack, its bundle, texts, their normalised means)."""
    texts, _, label_ids_N = rows(120, 2, 0)
    texts = [*texts[:-1], texts[-1] + " very" * 60 + " great"]
    tokens = ReviewTokenizer(tiny_encoder, 24).encode(pa.array(texts))
    means_ND = normalized(Embedder(tiny_encoder, precision="fp32").vectors(tokens))
    stack = fit_stack(terms_of(texts), texts, means_ND, label_ids_N, 2)
    info = BundleInfo(("neg", "pos"), {"neg": "neg", "pos": "pos"}, 24, "head", Cleaning(), head="stack_on_mean")
    folder = tmp_path_factory.mktemp("stack") / "model"
    write_bundle(folder, PooledReadout().load(tiny_encoder), tiny_encoder, info, "", stack.files())
    return stack, folder, texts, means_ND


def test_a_bundle_gives_back_what_was_fitted(fitted):
    stack, folder, texts, means_ND = fitted
    tokens = ReviewTokenizer(folder, 24).encode(pa.array(texts))
    predictor = Predictor(folder, precision="fp32")
    scorer = read_term_scorer(folder)
    assert scorer is not None
    assert (scorer.logits(texts) == stack.term_scorer.logits(texts)).all()
    found_NC = predictor.probs(scorer.appended_to(tokens, pa.array(texts), None))
    np.testing.assert_allclose(found_NC, softmax(stack.logits(texts, means_ND), axis=1), atol=1e-4)
    with pytest.raises(ValueError, match="term_logits"):  # never the encoder alone, in silence
        predictor.probs(tokens)
    assert read_term_scorer(folder.parent) is None


def test_a_word_that_decides_is_left_out_of_both_parts(fitted):
    _, folder, _, _ = fitted
    predictor, tokenizer = Predictor(folder, precision="fp32"), ReviewTokenizer(folder, 24)
    scorer = predictor.term_scorer
    assert scorer is not None
    whole, without = ["the film was great and a story"], ["the film was  and a story"]
    (found,) = explain(predictor, tokenizer, whole, None, np.array([1]))
    probs = [
        predictor.probs(scorer.appended_to(tokenizer.encode(pa.array(texts)), pa.array(texts), None))[0, 1]
        for texts in (whole, without)
    ]
    assert found[0].text == "great"
    assert found[0].change == pytest.approx(probs[0] - probs[1], abs=1e-5)
    assert found[0].change > 0.1


def test_a_stack_without_its_encoder_computes_nothing_with_it(tiny_encoder, fitted, tmp_path, monkeypatch):
    stack, _, texts, _ = fitted
    alone = Stack(stack.term_scorer, LinearHead(np.empty((2, 0), np.float32), stack.head.bias_C, 4.0, {}))
    info = BundleInfo(("neg", "pos"), {}, 24, "head", Cleaning(), head="stack_on_mean")
    write_bundle(tmp_path / "model", PooledReadout().load(tiny_encoder), tiny_encoder, info, "", alone.files())
    predictor = Predictor(tmp_path / "model", precision="fp32")
    monkeypatch.setattr(predictor.engine, "logits", lambda _: pytest.fail("the encoder computed"))
    tokens = ReviewTokenizer(tiny_encoder, 24).encode(pa.array(texts))
    found_NC = predictor.probs(alone.term_scorer.appended_to(tokens, pa.array(texts), None))
    np.testing.assert_allclose(
        found_NC, softmax(alone.term_scorer.logits(texts) + alone.head.bias_C, axis=1), atol=1e-6
    )


def test_files_of_a_later_version_are_refused(fitted, tmp_path):
    folder = shutil.copytree(fitted[1], tmp_path / "model")
    terms = json.loads((folder / TERMS_FILE).read_text())
    (folder / TERMS_FILE).write_text(json.dumps({**terms, "schema_version": 2}))
    with pytest.raises(ConfigError, match=r"terms\.json: expected schema_version 1, found 2"):
        read_term_scorer(folder)
    info = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**info, "head": "forest"}))
    with pytest.raises(ConfigError, match=r"expected `head` in bertray\.json to be one of sequence_classification"):
        read_term_scorer(folder)
