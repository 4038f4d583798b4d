"""Baselines of every model: the most frequent class, and TF-IDF with logistic regression.

Shape letters: N rows, C classes, F features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertray.model.terms import NoTerms, Terms, Texts, listed, terms_in_words, unit_of

MAJORITY = "majority"
TFIDF_LOGREG = "tfidf_logreg"
TEACHER = "teacher"
TITLES = {
    MAJORITY: "the majority baseline",
    TFIDF_LOGREG: "the TF-IDF baseline",
    TEACHER: "its teacher",
}  # as sentences call them


def majority(train_label_ids: np.ndarray, num_classes: int, num_rows: int) -> np.ndarray:
    """Shares of the classes in train, the same for every row: read-only float64 [N, C]."""
    shares_C = np.bincount(train_label_ids, minlength=num_classes) / len(train_label_ids)
    return np.broadcast_to(shares_C, (num_rows, num_classes))


@dataclass(frozen=True)
class TfidfLogreg:
    """A fitted baseline; texts may be given in several batches."""

    vocabulary: Terms | None  # None: there was no term, or one class, to learn from
    classifier: Any | None
    shares_C: np.ndarray
    terms: str  # what counts as a term, for the report

    def probs(self, texts: Texts) -> np.ndarray:
        """float64 [N, C]; a class without a train row has probability 0."""
        if self.vocabulary is None or self.classifier is None:
            return np.broadcast_to(self.shares_C, (len(texts), len(self.shares_C)))
        probs_NC = np.zeros((len(texts), len(self.shares_C)))
        features_NF = self.vocabulary.features(listed(texts))
        probs_NC[:, self.classifier.classes_] = self.classifier.predict_proba(features_NF)
        return probs_NC


def fit_tfidf_logreg(texts: Texts, label_ids_N: np.ndarray, num_classes: int, seed: int) -> TfidfLogreg:
    """Fit on train rows: word 1-2-grams, or characters 1-3-grams where most texts are Han, Kana or Hangul.

    Args:
        texts: cleaned texts, N of them.
        label_ids_N: int [N] in 0..C-1.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    shares_C = np.bincount(label_ids_N, minlength=num_classes) / max(len(label_ids_N), 1)
    kind = terms_in_words(unit_of(texts))
    try:
        vocabulary = Terms.fit(texts) if np.count_nonzero(shares_C) > 1 else None
    except NoTerms:
        vocabulary = None
    if vocabulary is None:
        return TfidfLogreg(None, None, shares_C, kind)
    classifier = LogisticRegression(C=4.0, max_iter=50, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        # A baseline a little short of its optimum is still the baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(vocabulary.features(listed(texts)), label_ids_N)
    return TfidfLogreg(vocabulary, classifier, shares_C, kind)
