"""Agreement of two groupings of the same rows: NMI and ARI with intervals, and the baseline TF-IDF with k-means.

Shape letters: N rows, R draws, K cells of a table.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertray.evaluation.intervals import Estimate, percentile_estimate, resampled_counts

TITLES = {"nmi": "NMI", "ari": "ARI"}
NUM_DRAWS = 500
MAX_FEATURES = 20_000
NUM_STARTS = 3  # of k-means; the best one counts


@dataclass(frozen=True)
class Agreement:
    """Agreement of a grouping, and of a baseline's, with the known groups on the same rows.

    Args:
        rows: that were compared.
        groups: known groups among them.
        clusters: of the grouping among them.
        figures: `nmi` and `ari` of the grouping.
        baseline: those of the baseline.
        differences: grouping minus baseline, from paired draws.
    """

    rows: int
    groups: int
    clusters: int
    figures: Mapping[str, Estimate]
    baseline: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


def compare_groupings(groups_N: np.ndarray, clusters_N: np.ndarray, baseline_N: np.ndarray, seed: int) -> Agreement:
    """Normalised mutual information (arithmetic mean) and adjusted Rand index of two groupings with the known groups.

    Intervals resample rows. A resample has ties that the sample has not, which lifts NMI; draws are therefore moved so
    that their mean is the figure itself.

    Args:
        groups_N: known group of each row, any integers.
        clusters_N, baseline_N: the two groupings, any integers; each value counts as a cluster.

    Raises:
        ValueError: no row.

    Source: Strehl and Ghosh 2002; Hubert and Arabie 1985, "Comparing partitions".
    """
    if not len(groups_N):
        raise ValueError("no rows to compare")
    cells_KC, counts_K = np.unique(np.column_stack([groups_N, clusters_N, baseline_N]), axis=0, return_counts=True)
    group_K, cluster_K, baseline_K = (np.unique(cells_KC[:, column], return_inverse=True)[1] for column in range(3))
    pairs = (_Pair(group_K, cluster_K), _Pair(group_K, baseline_K))
    exact = [pair.figures(counts_K[None, :]) for pair in pairs]
    draws = [[pair.figures(counts_RK) for pair in pairs] for counts_RK in resampled_counts(counts_K, seed, NUM_DRAWS)]
    figures: list[dict[str, Estimate]] = [{}, {}, {}]
    for number, name in enumerate(TITLES):
        values = [float(found[number][0]) for found in exact]
        drawn = [np.concatenate([chunk[which][number] for chunk in draws]) for which in range(2)]
        values.append(values[0] - values[1])
        drawn.append(drawn[0] - drawn[1])
        for kept, value, draws_R in zip(figures, values, drawn, strict=True):
            kept[name] = percentile_estimate(value, draws_R - draws_R.mean() + value)
    return Agreement(
        rows=len(groups_N),
        groups=int(group_K.max()) + 1,
        clusters=int(cluster_K.max()) + 1,
        figures=figures[0],
        baseline=figures[1],
        differences=figures[2],
    )


class _Pair:
    """Two groupings of the cells of a table."""

    def __init__(self, a_K: np.ndarray, b_K: np.ndarray) -> None:
        both_K = a_K.astype(np.int64) * (int(b_K.max()) + 1) + b_K
        self._members = [_sums_by(which) for which in (a_K, b_K, np.unique(both_K, return_inverse=True)[1])]

    def figures(self, counts_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(NMI [R], ARI [R]) of tables with these counts."""
        a_RA, b_RB, both_RP = (sums(counts_RK).astype(np.float64) for sums in self._members)
        total = a_RA.sum(axis=1)
        h_a, h_b, h_both = (_entropy(sizes, total) for sizes in (a_RA, b_RB, both_RP))
        mean = (h_a + h_b) / 2
        nmi_R = np.where(mean > 0, np.maximum(h_a + h_b - h_both, 0) / np.where(mean > 0, mean, 1), 1.0)
        pairs_a, pairs_b, together = ((sizes * (sizes - 1) / 2).sum(axis=1) for sizes in (a_RA, b_RB, both_RP))
        expected = pairs_a * pairs_b / np.maximum(total * (total - 1) / 2, 1)
        most = (pairs_a + pairs_b) / 2
        ari_R = np.where(most > expected, (together - expected) / np.where(most > expected, most - expected, 1), 1.0)
        return nmi_R, ari_R


def _sums_by(which_K: np.ndarray) -> Any:
    """A function that adds up counts [R, K] by group: [R, groups]."""
    order = np.argsort(which_K, kind="stable")
    starts = np.flatnonzero(np.diff(which_K[order], prepend=-1))
    return lambda counts_RK: np.add.reduceat(counts_RK[:, order], starts, axis=1)


def _entropy(sizes_RA: np.ndarray, total_R: np.ndarray) -> np.ndarray:
    """In nats [R]; a group without a row counts nothing."""
    shares_RA = sizes_RA / total_R[:, None]
    logs_RA = np.log(np.where(shares_RA > 0, shares_RA, 1.0))
    entropy_R: np.ndarray = -(shares_RA * logs_RA).sum(axis=1)
    return entropy_R


def tfidf_kmeans(texts: Sequence[str], num_clusters: int, vectorizer: Mapping[str, Any], seed: int) -> np.ndarray:
    """Cluster of each text, int32 [N]: k-means on TF-IDF of the same words that topics are named by.

    Args:
        texts: cleaned.
        num_clusters: at most as many as texts.
        vectorizer: what a word is, for scikit-learn's `TfidfVectorizer`.
        seed: of the starts.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms = TfidfVectorizer(
        min_df=2, sublinear_tf=True, max_features=MAX_FEATURES, dtype=np.float32, **dict(vectorizer)
    )
    try:
        features_NF = terms.fit_transform(texts)
    except ValueError:  # scikit-learn's word for texts without a term in common
        return np.zeros(len(texts), np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different texts than clusters
        found = KMeans(num_clusters, n_init=NUM_STARTS, max_iter=100, random_state=seed).fit_predict(features_NF)
    clusters_N: np.ndarray = found.astype(np.int32)
    return clusters_N
