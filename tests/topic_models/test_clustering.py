"""Topics: found on vectors that lie in groups, named by what only their texts say, assigned by vote."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.topic_models.clustering import OUTLIER, Assigner, FoundTopics, NoWords, TopicSettings, find_topics

THEMES = {"cars": ["engine", "wheel", "dealer"], "ice": ["puck", "goal", "team"], "space": ["orbit", "moon", "launch"]}
SETTINGS = TopicSettings(min_topic_size=15, num_neighbors=10)


def grouped(sizes: tuple[int, ...] = (60, 40, 30), seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Vectors around a centre a theme, texts of its words, and the theme of each."""
    random = np.random.default_rng(seed)
    centres_KD = random.normal(size=(len(sizes), 24))
    themes_N = np.repeat(np.arange(len(sizes)), sizes)
    vectors_ND = centres_KD[themes_N] + 0.25 * random.normal(size=(len(themes_N), 24))
    words = list(THEMES.values())
    texts = [" ".join([*random.permutation(words[theme]), "the", "photo"]) for theme in themes_N]
    return vectors_ND.astype(np.float32), texts, themes_N


@pytest.mark.slow
def test_groups_are_found_by_size_with_their_words_and_the_same_seed_gives_the_same():
    vectors_ND, texts, themes_N = grouped()
    found = find_topics(vectors_ND, texts, SETTINGS, 3)
    assert found is not None
    assert found.num_topics == found.num_found == 3
    inside = found.topic_N != OUTLIER
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(found.topic_N[inside], themes_N[inside])
    for words, theme in zip(found.words, THEMES.values(), strict=True):
        assert {word for word, _ in words[:3]} == set(theme)
        weights = [weight for _, weight in words]
        assert weights == sorted(weights, reverse=True)
    assert found.agreement > 0.9
    assert found.position_N2 is not None
    again = find_topics(vectors_ND, texts, SETTINGS, 3)
    assert again is not None
    assert again.position_N2 is not None
    np.testing.assert_array_equal(again.topic_N, found.topic_N)
    np.testing.assert_array_equal(again.position_N2, found.position_N2)
    assert again.words == found.words


@pytest.mark.slow
def test_the_most_alike_topics_are_merged():
    vectors_ND, texts, themes_N = grouped()
    vectors_ND[themes_N == 2] = 0.7 * vectors_ND[themes_N == 2] + 0.7 * vectors_ND[themes_N == 1].mean(axis=0)
    found = find_topics(vectors_ND, texts, TopicSettings(15, num_topics=2, num_neighbors=10, with_map=False), 0)
    assert found is not None
    assert (found.num_found, found.num_topics, found.position_N2) == (3, 2, None)
    merged = [set(themes_N[found.topic_N == topic].tolist()) for topic in range(2)]
    assert merged == [{1, 2}, {0}]  # by size


@pytest.mark.slow
def test_texts_without_a_word_are_an_error():
    vectors_ND, texts, _ = grouped()
    with pytest.raises(NoWords):
        find_topics(vectors_ND, ["123 456"] * len(texts), TopicSettings(15, vectorizer={"token_pattern": "[a-z]+"}), 0)


def test_a_review_belongs_to_the_topic_that_three_of_its_five_neighbours_have():
    angles = np.radians([0, 1, 2, 3, 40, 80, 88, 90, 92, 94])
    topic_S = np.array([0, 0, 0, OUTLIER, OUTLIER, 1, 1, 1, 0, 1], np.int32)
    assigner = Assigner.of(np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32), topic_S)
    asked = np.radians([0.5, 91, 60])
    vectors_ND = 3 * np.column_stack([np.cos(asked), np.sin(asked)]).astype(np.float32)
    # 0 three times with two outliers; 1 four times; 1 three times.
    assert assigner.vote(vectors_ND).tolist() == [0, 1, 1]
    assert assigner.vote(vectors_ND[:0]).tolist() == []
    # The first two have, without their own votes, too few of their kind around them.
    places = np.array([0, 1, 7])
    assert assigner.vote(assigner.sample_SD[places], places_N=places).tolist() == [OUTLIER, OUTLIER, 1]
    assert assigner.vote(assigner.sample_SD[places]).tolist() == [0, 0, 1]


def test_outliers_can_outvote():
    vectors_SD = np.tile(np.eye(2, dtype=np.float32)[0], (6, 1))
    assigner = Assigner.of(vectors_SD, np.array([0, OUTLIER, OUTLIER, OUTLIER, OUTLIER, OUTLIER], np.int32))
    assert assigner.vote(vectors_SD[:1]).tolist() == [OUTLIER]


def test_similarity_is_the_cosine_to_the_centroid_of_the_topic_or_to_the_nearest_one():
    vectors_SD = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    assigner = Assigner.of(5 * vectors_SD, np.repeat(np.array([0, 1], np.int32), 3))
    asked_ND = np.array([[3, 0], [1, 0.8], [0.8, 1], [0, 0]], np.float32)
    assert assigner.nearest(asked_ND).tolist() == [0, 0, 1, 0]
    found_N = assigner.similarity(asked_ND, np.array([1, OUTLIER, 0, 1], np.int32))
    np.testing.assert_allclose(found_N, [0, 1 / 1.64**0.5, 0.8 / 1.64**0.5, 0], atol=1e-6)


def test_agreement_is_that_of_reviews_which_take_no_part_in_the_vote(monkeypatch):
    vectors_ND, _, themes_N = grouped()
    assert Assigner.of(vectors_ND, themes_N.astype(np.int32)).agreement() == 1.0
    # Topics that have nothing to do with where a review lies: each would only be right about itself.
    drawn_N = np.random.default_rng(0).integers(0, 9, len(themes_N)).astype(np.int32)
    assigner = Assigner.of(vectors_ND, drawn_N)
    assert assigner.agreement() < 0.2
    whole = Assigner.of(vectors_ND, themes_N.astype(np.int32))
    monkeypatch.setattr("bertray.topic_models.clustering._ROWS_AT_ONCE", 7)
    places = np.arange(len(themes_N))
    assert (whole.vote(vectors_ND, places_N=places) == themes_N).all()  # in pieces, each review still is itself


def test_topics_under_other_numbers_are_the_same_topics():
    topic_N = np.array([0, 1, OUTLIER, 2, 0], np.int32)
    assigner = Assigner(np.eye(5, dtype=np.float32), topic_N, np.eye(3, 5, dtype=np.float32))
    words = [[("zero", 1.0)], [("one", 1.0)], [("two", 1.0)]]
    found = FoundTopics(topic_N, words, assigner, 1.0, None, 3).renumbered(np.array([2, 0, 1]))
    assert found.topic_N.tolist() == found.assigner.topic_S.tolist() == [1, 2, OUTLIER, 0, 1]
    assert found.words == [words[2], words[0], words[1]]
    assert found.assigner.centroids_KD.argmax(axis=1).tolist() == [2, 0, 1]
