"""Label errors: whole groups in a fold, probabilities of models that did not see the row, planted errors found."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.evaluation.label_errors import (
    accuracy_and_mcc,
    assign_folds,
    find_suspects,
    judged_classes,
    out_of_sample_probs,
    tfidf_features,
)
from bertray.model.terms import NoTerms
from tests.corpus import sentences


def test_folds_keep_groups_together_and_spread_classes_evenly():
    random = np.random.default_rng(0)
    group_N = random.integers(0, 400, size=1000).astype(np.uint64)
    label_N = (group_N % np.uint64(10) < 2).astype(np.int64)
    fold_N = assign_folds(group_N, label_N, 5)
    assert all(len(set(fold_N[group_N == group].tolist())) == 1 for group in np.unique(group_N))
    shares = [label_N[fold_N == fold].mean() for fold in range(5)]
    assert max(shares) - min(shares) < 0.08
    order = random.permutation(1000)
    assert assign_folds(group_N[order], label_N[order], 5).tolist() == fold_N[order].tolist()


@pytest.mark.parametrize("kind", ["tfidf", "embeddings"])
def test_a_row_does_not_change_its_own_probabilities(kind):
    """With another label of a row, what the models of the other folds say of it stays."""
    random = np.random.default_rng(1)
    features = random.normal(size=(60, 4)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int64)
    fold_N = np.arange(60) % 3
    before = out_of_sample_probs(features, labels, fold_N, 2, kind, 0)
    changed = labels.copy()
    changed[7] = 1 - changed[7]
    after = out_of_sample_probs(features, changed, fold_N, 2, kind, 0)
    assert after[7].tolist() == before[7].tolist()
    assert after[8].tolist() != before[8].tolist()
    np.testing.assert_allclose(before.sum(axis=1), 1)


def test_planted_errors_are_found_and_nothing_else_is():
    texts, names = sentences(600, 3)
    labels = np.array([name == "pos" for name in names]).astype(np.int64)
    wrong = [5, 50, 500]
    labels[wrong] = 1 - labels[wrong]
    features, terms = tfidf_features(texts)
    probs = out_of_sample_probs(features, labels, np.arange(600) % 5, 2, "tfidf", 0)
    assert terms == "words 1-2"
    found = find_suspects(probs, labels)
    assert sorted(found.rows.tolist()) == wrong
    assert found.suggested.tolist() == (1 - labels[found.rows]).tolist()
    assert (found.suggested_probs > 0.5).all()
    np.testing.assert_allclose(found.given_probs + found.suggested_probs, 1)
    assert (np.diff(found.given_probs) >= 0).all()


def test_a_class_that_no_other_fold_has_gets_no_probability():
    labels = np.array([0, 1, 0, 1, 2, 2])
    fold_N = np.array([0, 0, 1, 1, 1, 1])
    probs = out_of_sample_probs(np.eye(6, dtype=np.float32), labels, fold_N, 3, "tfidf", 0)
    assert probs[2:, 2].tolist() == [0.0] * 4
    assert out_of_sample_probs(np.eye(2, dtype=np.float32), labels[:2], np.array([0, 1]), 2, "tfidf", 0).tolist() == [
        [0, 1],
        [1, 0],
    ]


def test_accuracy_and_mcc():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    assert accuracy_and_mcc(probs, np.array([0, 1, 1, 1])) == (0.75, pytest.approx(1 / np.sqrt(3)))


def test_a_class_that_some_fold_could_not_learn_is_not_judged():
    labels = np.repeat([0, 1, 2, 3], [20, 20, 6, 4])
    groups = np.arange(50, dtype=np.uint64)
    assert judged_classes(groups, labels, 5).tolist() == [0, 1, 2]  # four rows of class 3
    groups[40:46] = 40  # class 2 is one text, six times
    assert judged_classes(groups, labels, 5).tolist() == [0, 1]
    assert judged_classes(groups[:0], labels[:0], 5).tolist() == []


def test_texts_without_a_term_are_told_as_that():
    with pytest.raises(NoTerms):
        tfidf_features(["!", "?"])
