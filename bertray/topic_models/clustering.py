"""Topics of reviews: found by BERTopic (UMAP, HDBSCAN, c-TF-IDF) on a sample; its nearest reviews vote on any other.

Shape letters: N reviews, S sampled reviews, D hidden, K topics, V voters.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

OUTLIER = -1
NUM_DIMENSIONS = 5  # in which HDBSCAN looks for groups; BERTopic's default
ROWS_FOR_MIN_DF = 1000  # from here on a word of a topic must stand in five reviews, below in two
# HDBSCAN groups by neighbourhood, and so do a few nearest reviews: on posts of 20 newsgroups the vote of five says what
# it says of 90 in 100 that took no part in the vote, the nearest centroid, with the best threshold, of 78.
NUM_VOTERS = 5
NUM_AGREEING = 3  # so many of them for one topic, or the review is an outlier
_ROWS_AT_ONCE = 512  # x 20,000 sampled reviews: 40 MB of cosines
_ROWS_JUDGED = 5000  # of a sample, for its agreement with the vote

Vectors = NDArray[np.float32]


class NoWords(ValueError):
    """Texts without a word that could name a topic."""


@dataclass(frozen=True)
class TopicSettings:
    """Settings of the search for topics.

    Args:
        min_topic_size: reviews of the smallest one.
        num_topics: number to which the most similar topics are merged.
        num_neighbors: of UMAP.
        num_words: of a topic.
        max_features: most frequent words among which they are chosen.
        vectorizer: arguments of scikit-learn's `CountVectorizer` that say what a word is.
        weigh_down_frequent: take the root of word frequencies, for want of a list of stop words.
        with_map: also lay the reviews out in two dimensions.
    """

    min_topic_size: int
    num_topics: int | None = None
    num_neighbors: int = 15
    num_words: int = 10
    max_features: int = 20_000
    vectorizer: Mapping[str, Any] | None = None
    weigh_down_frequent: bool = False
    with_map: bool = True


@dataclass(frozen=True)
class Assigner:
    """A review belongs to the topic that most of the sampled reviews next to it have, by cosine.

    Args:
        sample_SD: vectors of the sample, of length 1.
        topic_S: of each, or OUTLIER.
        centroids_KD: mean of each topic's members, of length 1.
    """

    sample_SD: Vectors
    topic_S: NDArray[np.int32]
    centroids_KD: Vectors

    @classmethod
    def of(cls, vectors_SD: Vectors, topic_S: NDArray[np.int32]) -> Assigner:
        """From a sample; each topic from 0 to the largest number has a member."""
        sample_SD = _unit(vectors_SD)
        sums_KD = np.zeros((int(topic_S.max()) + 1, sample_SD.shape[1]), np.float64)
        inside_S = topic_S >= 0
        np.add.at(sums_KD, topic_S[inside_S], sample_SD[inside_S])
        return cls(sample_SD, topic_S, _unit(sums_KD.astype(np.float32)))

    def vote(self, vectors_ND: Vectors, *, places_N: NDArray[np.int64] | None = None) -> NDArray[np.int32]:
        """int32 [N]: the topic of at least NUM_AGREEING of the NUM_VOTERS nearest sampled reviews, or OUTLIER.

        Args:
            vectors_ND: float32 [N, D], of any length.
            places_N: where each of them is in the sample; a review has no vote on itself.
        """
        said = [
            self._vote(_unit(vectors_ND[at : at + _ROWS_AT_ONCE]), None if places_N is None else places_N[at:])
            for at in range(0, len(vectors_ND), _ROWS_AT_ONCE)
        ]
        return np.concatenate([np.empty(0, np.int32), *said])

    def _vote(self, vectors_ND: Vectors, places_N: NDArray[np.int64] | None) -> NDArray[np.int32]:
        cosines_NS = vectors_ND @ self.sample_SD.T
        rows_N = np.arange(len(cosines_NS))
        if places_N is not None:
            cosines_NS[rows_N, places_N[: len(rows_N)]] = -np.inf
        nearest_NV = np.argpartition(-cosines_NS, NUM_VOTERS, axis=1)[:, :NUM_VOTERS]
        votes_NV = self.topic_S[nearest_NV]
        agreeing_NV = (votes_NV[:, :, None] == votes_NV[:, None, :]).sum(axis=2)
        best_N = agreeing_NV.argmax(axis=1)
        enough_N = agreeing_NV[rows_N, best_N] >= NUM_AGREEING
        return np.where(enough_N, votes_NV[rows_N, best_N], np.int32(OUTLIER)).astype(np.int32)

    def nearest(self, vectors_ND: Vectors) -> NDArray[np.int32]:
        """int32 [N]: the topic with the nearest centroid."""
        nearest_N: NDArray[np.int32] = (_unit(vectors_ND) @ self.centroids_KD.T).argmax(axis=1).astype(np.int32)
        return nearest_N

    def similarity(self, vectors_ND: Vectors, topic_N: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32 [N]: cosine of each review to the centroid of its topic; of an outlier to the nearest one."""
        cosines_NK = _unit(vectors_ND) @ self.centroids_KD.T
        of_own_N = cosines_NK[np.arange(len(topic_N)), np.maximum(topic_N, 0)]
        return np.where(topic_N >= 0, of_own_N, cosines_NK.max(axis=1)).astype(np.float32)

    def agreement(self) -> float:
        """Share of the sample, or of 5,000 of it, of which the vote of the others says what was found."""
        places_N = np.linspace(0, len(self.topic_S) - 1, min(len(self.topic_S), _ROWS_JUDGED)).astype(np.int64)
        said_N = self.vote(self.sample_SD[places_N], places_N=places_N)
        return float((said_N == self.topic_S[places_N]).mean())


@dataclass(frozen=True)
class FoundTopics:
    """Topics of a sample, numbered by size; the largest is 0.

    Args:
        topic_N: of each sampled review, or OUTLIER.
        words: of each topic (word, c-TF-IDF weight), the heaviest first.
        assigner: of other reviews.
        agreement: share of the sample of which the assigner, without the review itself, says the same.
        position_N2: of each review on a map; None where none was asked for.
        num_found: topics before similar ones were merged.
    """

    topic_N: NDArray[np.int32]
    words: list[list[tuple[str, float]]]
    assigner: Assigner
    agreement: float
    position_N2: NDArray[np.float32] | None
    num_found: int

    @property
    def num_topics(self) -> int:
        return len(self.words)

    def renumbered(self, order_K: NDArray[np.int64]) -> FoundTopics:
        """The same topics under other numbers.

        Args:
            order_K: the present number of each new one.
        """
        topic_N, assigner = new_numbers(self.topic_N, order_K), self.assigner
        return replace(
            self,
            topic_N=topic_N,
            words=[self.words[topic] for topic in order_K],
            assigner=Assigner(
                assigner.sample_SD, new_numbers(assigner.topic_S, order_K), assigner.centroids_KD[order_K]
            ),
        )


def new_numbers(topic_N: NDArray[np.int32], order_K: NDArray[np.int64]) -> NDArray[np.int32]:
    """Topics of some reviews under the numbers of `renumbered`; outliers stay."""
    number_of = np.append(np.argsort(order_K), OUTLIER).astype(np.int32)  # the last, for OUTLIER
    numbered_N: NDArray[np.int32] = number_of[topic_N]
    return numbered_N


def find_topics(vectors_ND: Vectors, texts: Sequence[str], settings: TopicSettings, seed: int) -> FoundTopics | None:
    """Fit BERTopic on a sample; the same seed gives the same topics.

    Args:
        vectors_ND: float32 [N, D], of any length.
        texts: of the same reviews, cleaned.
        settings: how.
        seed: of UMAP.

    Returns:
        None where no group of `min_topic_size` reviews stands out from the others.

    Raises:
        ImportError: the extra `topics` is not installed.
        NoWords: there is none in the texts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba, UMAP and HDBSCAN speak of their own insides
        return _found(_unit(vectors_ND), list(texts), settings, seed)


def _found(vectors_ND: Vectors, texts: list[str], settings: TopicSettings, seed: int) -> FoundTopics | None:
    from bertopic import BERTopic
    from bertopic.vectorizers import ClassTfidfTransformer
    from hdbscan import HDBSCAN
    from sklearn.feature_extraction.text import CountVectorizer

    how = dict(settings.vectorizer or {})
    bertopic = BERTopic(
        language="multilingual",  # "english" would strip every letter beyond a-z
        top_n_words=settings.num_words,
        umap_model=_umap(settings.num_neighbors, NUM_DIMENSIONS, len(texts), seed),
        hdbscan_model=HDBSCAN(min_cluster_size=settings.min_topic_size, core_dist_n_jobs=1),
        vectorizer_model=CountVectorizer(vocabulary=_vocabulary(texts, settings.max_features, how), **how),
        ctfidf_model=ClassTfidfTransformer(reduce_frequent_words=settings.weigh_down_frequent),
    )
    bertopic.fit(texts, embeddings=vectors_ND)
    num_found = len(set(bertopic.topics_) - {OUTLIER})
    if not num_found:
        return None
    if settings.num_topics is not None and settings.num_topics < num_found:
        # BERTopic counts the outliers as a topic.
        bertopic.reduce_topics(texts, nr_topics=settings.num_topics + (OUTLIER in bertopic.topics_))
    topic_N = np.array(bertopic.topics_, np.int32)
    position_N2 = None
    if settings.with_map:
        position_N2 = _umap(settings.num_neighbors, 2, len(texts), seed, min_dist=0.1).fit_transform(vectors_ND)
    words = [
        [(word, float(weight)) for word, weight in bertopic.get_topic(topic) if word]
        for topic in range(int(topic_N.max()) + 1)
    ]
    assigner = Assigner.of(vectors_ND, topic_N)
    return FoundTopics(topic_N, words, assigner, assigner.agreement(), position_N2, num_found)


def _umap(num_neighbors: int, num_dimensions: int, num_rows: int, seed: int, *, min_dist: float = 0.0) -> Any:
    from umap import UMAP

    return UMAP(
        n_neighbors=min(num_neighbors, num_rows - 1),
        n_components=num_dimensions,
        min_dist=min_dist,
        metric="cosine",
        random_state=seed,
        n_jobs=1,  # several threads would give another result every time
    )


def _vocabulary(texts: Sequence[str], max_features: int, how: Mapping[str, Any]) -> list[str]:
    """Words that stand in several reviews: what only one writer says names no topic."""
    from sklearn.feature_extraction.text import CountVectorizer

    min_df = 5 if len(texts) >= ROWS_FOR_MIN_DF else 2
    for least in (min_df, 1):
        try:
            vectorizer = CountVectorizer(min_df=least, max_features=max_features, **how).fit(texts)
        except ValueError:  # scikit-learn's word for texts without a single term
            continue
        return [str(word) for word in vectorizer.get_feature_names_out()]
    raise NoWords("no word in the texts")


def _unit(vectors_ND: Vectors) -> Vectors:
    vectors_ND = np.asarray(vectors_ND, np.float32)
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: Vectors = vectors_ND / np.maximum(lengths_N1, np.float32(1e-12))
    return unit
