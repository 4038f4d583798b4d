"""What counts as a word of a review."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.feature_extraction.text import CountVectorizer

from bertray.topic_models.word_pattern import pieces, words_of

ENGLISH = ["I don't think that the film is good, and they've paid $20 for it on 555-0199."]
GERMAN = ["Der Film war nicht gut und die Handlung ist mir zu lang gewesen, leider."]
CHINESE = ["这个手机很好用, iPhone 也好"]
KOREAN = ["영화가 정말 재미있어요"]


def taken_apart(texts: list[str], stop_words: Any = "auto") -> list[str]:
    return list(
        CountVectorizer(**words_of(texts, stop_words).vectorizer_arguments()).fit(texts).get_feature_names_out()
    )


def test_english_texts_lose_stop_words_numbers_and_halves_of_contractions():
    assert taken_apart(ENGLISH) == ["film", "good", "paid", "think"]
    assert "english" in words_of(ENGLISH, "auto").described.lower()


def test_texts_in_another_language_keep_their_words():
    assert {"der", "film", "und", "gut"} <= set(taken_apart(GERMAN))
    assert words_of(GERMAN, "auto").stop_words == ()
    assert taken_apart(KOREAN) == ["영화가", "재미있어요", "정말"]


def test_where_words_are_not_separated_pairs_of_characters_stand_for_them():
    assert pieces("这个手机 iPhone 好 ok2") == ["这个", "个手", "手机", "iphone", "好", "ok2"]
    words = words_of(CHINESE, "auto")
    assert words.unspaced
    assert {"手机", "iphone"} <= set(taken_apart(CHINESE))
    assert "手机" not in taken_apart(CHINESE, ["手机"])


@pytest.mark.parametrize(
    ("stop_words", "left"),
    [("none", {"the", "film", "don"}), ("english", {"film"}), (("FILM", "good"), {"the", "think"})],
)
def test_stop_words_are_those_that_were_asked_for(stop_words, left):
    found = set(taken_apart(ENGLISH, stop_words))
    assert left <= found
    assert ("film" in found) == (stop_words != ("FILM", "good"))


def test_no_text_at_all_is_in_no_language():
    assert words_of([], "auto").stop_words == ()
