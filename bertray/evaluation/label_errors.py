"""Labels that are probably wrong: confident learning on out-of-sample probabilities.

Shape letters: N rows, C classes, F features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertray.model.terms import Terms, Texts, listed

# Below it a model does not separate the classes, and its doubts are noise.
MIN_MCC = 0.2
_STRENGTH = {"tfidf": 4.0, "embeddings": 0.1}


@dataclass(frozen=True)
class LabelErrorSearch:
    """Result of the search for label errors.

    Args:
        judged: labelled rows that the classifier judged out of fold.
        labelled: rows with a label.
        suspected: rows whose label is probably wrong.
        accuracy: of the classifier against the given labels; so is mcc.
        majority: share of the most frequent label.
        means: features of the classifier, in words.
        skipped: why there was no search, as a sentence.
    """

    judged: int
    labelled: int
    suspected: int
    accuracy: float
    majority: float
    mcc: float
    means: str
    skipped: str = ""


@dataclass(frozen=True)
class Suspects:
    """Rows whose label is probably wrong, the most doubtful first.

    rows: int64 [M] positions; suggested: int64 [M] label ids; given_probs, suggested_probs: float64 [M], of the given
    label and of the suggested one, out of sample.
    """

    rows: np.ndarray
    suggested: np.ndarray
    given_probs: np.ndarray
    suggested_probs: np.ndarray


def assign_folds(group_N: np.ndarray, label_ids_N: np.ndarray, num_folds: int) -> np.ndarray:
    """int64 [N] in 0..num_folds-1: whole groups, every class spread evenly, whatever the order of the rows.

    Args:
        group_N: uint64, equal for rows that must stay in one fold, such as equal texts.
        label_ids_N: int in 0..C-1; a group of several classes is dealt out with its lowest.
        num_folds: at least 2.
    """
    order = np.lexsort((label_ids_N, group_N))
    groups, first, inverse = np.unique(group_N[order], return_index=True, return_inverse=True)
    label_of = label_ids_N[order][first]
    fold_of = np.empty(len(groups), np.int64)
    fold_of[np.lexsort((groups, label_of))] = np.arange(len(groups)) % num_folds
    fold_N = np.empty(len(group_N), np.int64)
    fold_N[order] = fold_of[inverse]
    return fold_N


def judged_classes(group_N: np.ndarray, label_ids_N: np.ndarray, num_folds: int) -> np.ndarray:
    """The classes, ascending, of which every fold has others to learn from: so many different groups at least.

    Args:
        group_N, label_ids_N, num_folds: as for `assign_folds`.
    """
    classes = np.unique(label_ids_N)
    while True:
        inside = np.flatnonzero(np.isin(label_ids_N, classes))
        cells = np.unique(np.stack([label_ids_N[inside], group_N[inside].astype(np.int64)], axis=1), axis=0)
        enough = classes[[np.count_nonzero(cells[:, 0] == label) >= num_folds for label in classes]]
        if len(enough) == len(classes):
            # A group of several classes is dealt out with one of them, so the others may still be in one fold only.
            fold = assign_folds(group_N[inside], label_ids_N[inside], num_folds)
            spread = [len(np.unique(fold[label_ids_N[inside] == label])) > 1 for label in classes]
            enough = classes[spread]
        if len(enough) == len(classes):
            return classes
        classes = enough


def tfidf_features(texts: Texts) -> tuple[Any, str]:
    """(sparse float32 [N, F], what counts as a term); the weights of terms know no label.

    Raises:
        NoTerms: there is none.
    """
    terms = Terms.fit(texts)
    return terms.features(listed(texts)), terms.in_words


def out_of_sample_probs(
    features_NF: Any, label_ids_N: np.ndarray, fold_N: np.ndarray, num_classes: int, kind: str, seed: int
) -> np.ndarray:
    """float64 [N, C]: probabilities of logistic regression fitted on the rows of the other folds.

    Args:
        features_NF: sparse or dense.
        label_ids_N: int in 0..C-1.
        fold_N: of each row, as `assign_folds` gives them.
        kind: `tfidf`, or `embeddings`, which are standardised.

    A fold without a row of a class outside gives that class probability 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if kind == "embeddings":
        spread = np.maximum(features_NF.std(axis=0, dtype=np.float64), 1e-6)
        features_NF = ((features_NF - features_NF.mean(axis=0, dtype=np.float64)) / spread).astype(np.float32)
    probs_NC = np.zeros((len(label_ids_N), num_classes))
    for fold in np.unique(fold_N):
        inside, outside = np.flatnonzero(fold_N == fold), np.flatnonzero(fold_N != fold)
        seen = np.unique(label_ids_N[outside])
        if len(seen) < 2:
            probs_NC[np.ix_(inside, seen)] = 1.0
            continue
        model = LogisticRegression(C=_STRENGTH[kind], max_iter=100, tol=1e-3, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a little short of its optimum it doubts the same rows
            model.fit(features_NF[outside], label_ids_N[outside])
        probs_NC[np.ix_(inside, model.classes_)] = model.predict_proba(features_NF[inside])
    return probs_NC


def accuracy_and_mcc(probs_NC: np.ndarray, label_ids_N: np.ndarray) -> tuple[float, float]:
    """Accuracy and Matthews correlation of the most probable labels."""
    from sklearn.metrics import matthews_corrcoef

    predicted_N = probs_NC.argmax(axis=1)
    return float((predicted_N == label_ids_N).mean()), float(matthews_corrcoef(label_ids_N, predicted_N))


def find_suspects(probs_NC: np.ndarray, label_ids_N: np.ndarray) -> Suspects:
    """Confident learning: how many labels of each class are wrong is estimated first, then the least likely named.

    Args:
        probs_NC: float64, out of sample.
        label_ids_N: int in 0..C-1, each class at least once.

    Source: Northcutt, Jiang and Chuang 2021, "Confident Learning" (arXiv:1911.00068), by the library cleanlab.
    """
    from cleanlab.filter import find_label_issues

    rows = find_label_issues(
        label_ids_N, probs_NC, filter_by="prune_by_noise_rate", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    rows = np.asarray(rows, np.int64)
    suggested = probs_NC[rows].argmax(axis=1)
    rows, suggested = rows[suggested != label_ids_N[rows]], suggested[suggested != label_ids_N[rows]]
    return Suspects(rows, suggested, probs_NC[rows, label_ids_N[rows]], probs_NC[rows, suggested])
