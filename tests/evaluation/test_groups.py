"""Agreement of groupings: against scikit-learn, with intervals, beside k-means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from bertray.evaluation.groups import compare_groupings, tfidf_kmeans


def noisy(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A grouping that differs from the known one in a share of the rows."""
    random = np.random.default_rng(seed)
    moved = random.random(len(groups)) < share
    return np.where(moved, random.integers(0, 9, len(groups)), groups)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn(seed):
    groups = np.random.default_rng(seed).integers(0, 5, 300)
    near, far = noisy(groups, 0.2, seed), noisy(groups, 0.8, seed) - 1  # with -1, as outliers have
    found = compare_groupings(groups, near, far, seed)
    for figures, clusters in ((found.figures, near), (found.baseline, far)):
        assert figures["nmi"].value == pytest.approx(normalized_mutual_info_score(groups, clusters))
        assert figures["ari"].value == pytest.approx(adjusted_rand_score(groups, clusters))
    for name in ("nmi", "ari"):
        difference = found.differences[name]
        assert difference.value == pytest.approx(found.figures[name].value - found.baseline[name].value)
        assert 0 < difference.low <= difference.value <= difference.high
    assert (found.rows, found.groups, found.clusters) == (300, 5, len(set(near)))


def test_the_same_grouping_is_one_and_one_cluster_says_nothing():
    groups = np.repeat([0, 1, 2], 40)
    found = compare_groupings(groups, (groups + 1) % 3, np.zeros(120, int), 0)
    assert [found.figures[name].value for name in ("nmi", "ari")] == pytest.approx([1, 1])
    assert [found.baseline[name].value for name in ("nmi", "ari")] == pytest.approx([0, 0])


def test_intervals_hold_the_figure_and_narrow_with_the_rows():
    widths = []
    for num_rows in (200, 5000):
        groups = np.random.default_rng(1).integers(0, 4, num_rows)
        nmi = compare_groupings(groups, noisy(groups, 0.3, 2), noisy(groups, 0.5, 3), 0).figures["nmi"]
        assert nmi.low < nmi.value < nmi.high
        widths.append(nmi.high - nmi.low)
    assert widths[1] < widths[0] / 2


def test_the_interval_of_two_groupings_that_are_as_good_holds_zero():
    groups = np.random.default_rng(0).integers(0, 4, 2000)
    found = compare_groupings(groups, noisy(groups, 0.4, 1), noisy(groups, 0.4, 2), 0)
    assert all(difference.low < 0 < difference.high for difference in found.differences.values())


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        compare_groupings(np.empty(0, int), np.empty(0, int), np.empty(0, int), 0)


def test_kmeans_tells_apart_what_has_no_word_in_common():
    texts = [
        "engine oil car",
        "oil car wheel",
        "engine wheel car",
        "goal team puck",
        "team puck score",
        "goal score team",
    ]
    clusters = tfidf_kmeans(texts, 2, {}, 0)
    assert clusters.tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert tfidf_kmeans(texts, 2, {}, 0).tolist() == clusters.tolist()


def test_kmeans_of_texts_without_a_common_term_is_one_cluster():
    assert tfidf_kmeans(["one", "two", "three"], 2, {}, 0).tolist() == [0, 0, 0]
