"""Baselines of every model: the most frequent class, and TF-IDF with logistic regression.

Shape letters: N rows, C classes, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.reviews.writing_system import UNSPACED_SCRIPTS, dominant_script

MAJORITY = "majority"
TFIDF_LOGREG = "tfidf_logreg"
TEACHER = "teacher"
TITLES = {
    MAJORITY: "the majority baseline",
    TFIDF_LOGREG: "the TF-IDF baseline",
    TEACHER: "its teacher",
}  # as sentences call them

MAX_FEATURES = 50_000
SCRIPT_SAMPLE_ROWS = 2000
ROWS_FOR_MIN_DF = 1000  # from here on a term must stand in two texts

Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str]


def majority(train_label_ids: np.ndarray, num_classes: int, num_rows: int) -> np.ndarray:
    """Shares of the classes in train, the same for every row: read-only float64 [N, C]."""
    shares_C = np.bincount(train_label_ids, minlength=num_classes) / len(train_label_ids)
    return np.broadcast_to(shares_C, (num_rows, num_classes))


@dataclass(frozen=True)
class TfidfLogreg:
    """A fitted baseline; texts may be given in several batches."""

    vectorizer: Any | None  # None: there was no term, or one class, to learn from
    classifier: Any | None
    shares_C: np.ndarray
    terms: str  # what counts as a term, for the report

    def probs(self, texts: Texts) -> np.ndarray:
        """float64 [N, C]; a class without a train row has probability 0."""
        if self.vectorizer is None or self.classifier is None:
            return np.broadcast_to(self.shares_C, (len(texts), len(self.shares_C)))
        probs_NC = np.zeros((len(texts), len(self.shares_C)))
        probs_NC[:, self.classifier.classes_] = self.classifier.predict_proba(self.vectorizer.transform(listed(texts)))
        return probs_NC


def fit_tfidf_logreg(texts: Texts, label_ids_N: np.ndarray, num_classes: int, seed: int) -> TfidfLogreg:
    """Fit on train rows: word 1-2-grams, or characters 1-3-grams where most texts are Han, Kana or Hangul.

    Args:
        texts: cleaned texts, N of them.
        label_ids_N: int [N] in 0..C-1.
        num_classes: C.
        seed: of the solver.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    shares_C = np.bincount(label_ids_N, minlength=num_classes) / max(len(label_ids_N), 1)
    vectorizer, terms = tfidf_vectorizer(texts)
    if np.count_nonzero(shares_C) < 2:
        return TfidfLogreg(None, None, shares_C, terms)
    try:
        features_NF = vectorizer.fit_transform(listed(texts))
    except ValueError:  # scikit-learn's word for texts without a single term
        return TfidfLogreg(None, None, shares_C, terms)
    classifier = LogisticRegression(C=4.0, max_iter=50, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        # A baseline a little short of its optimum is still the baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(features_NF, label_ids_N)
    return TfidfLogreg(vectorizer, classifier, shares_C, terms)


def tfidf_logreg(
    train_texts: Texts, train_label_ids: np.ndarray, test_texts: Texts, num_classes: int, seed: int
) -> np.ndarray:
    """Fit on train, predict test: float64 [N, C]."""
    return fit_tfidf_logreg(train_texts, train_label_ids, num_classes, seed).probs(test_texts)


def tfidf_vectorizer(texts: Texts) -> tuple[Any, str]:
    """(scikit-learn's vectorizer as these texts need it, not fitted; what counts as a term, in words)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    characters = _unspaced(texts)
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        min_df=2 if len(texts) >= ROWS_FOR_MIN_DF else 1,
        max_features=MAX_FEATURES,
        dtype=np.float32,
        **(
            {"analyzer": "char_wb", "ngram_range": (1, 3)}
            if characters
            else {"ngram_range": (1, 2), "token_pattern": r"\b\w+\b"}
        ),
    )
    return vectorizer, "characters 1-3" if characters else "words 1-2"


def listed(texts: Texts) -> list[str]:
    """The texts as Python strings."""
    return texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else list(texts)


def _unspaced(texts: Texts) -> bool:
    """Most texts of an even sample are in a script without spaces between words."""
    step = max(1, len(texts) // SCRIPT_SAMPLE_ROWS)
    sample = pa.array([str(texts[i]) for i in range(0, len(texts), step)], pa.string())
    found = pc.is_in(dominant_script(sample), pa.array(UNSPACED_SCRIPTS))
    return bool(len(sample)) and 2 * (pc.sum(found).as_py() or 0) > len(sample)
