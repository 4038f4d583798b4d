"""Statistics of texts by row, by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from bertray.reviews.ngrams import Characters, SeenNgrams
from bertray.reviews.text_statistics import most_repeated, statistics, unseen_statistics


def of(*texts):
    return {name: values.tolist() for name, values in statistics(pa.array(texts), Characters.of(texts)).items()}


def test_characters_are_counted_by_class():
    found = of("Ab1 ", "가ㅋ", "漢, é")
    shares = {name.removeprefix("characters:"): values for name, values in found.items() if ":" in name}
    assert shares == {
        "hangul": [0, 0.5, 0],
        "jamo": [0, 0.5, 0],
        "lower": [0.25, 0, 0],
        "upper": [0.25, 0, 0],
        "digit": [0.25, 0, 0],
        "han_kana": [0, 0, 0.25],
        "punctuation": [0, 0, 0.25],
        "space": [0.25, 0, 0.25],
        "other": [0, 0, 0.25],
    }


def test_length_words_and_links_are_told():
    found = of("ab cd", "one two three", "see www.x.y", "call 12345", "in 201")
    assert found["log_length"] == [pytest.approx(math.log(1 + n)) for n in (5, 13, 11, 10, 6)]
    assert found["short"] == [1, 0, 1, 1, 1]
    assert found["links_or_numbers"] == [0, 0, 1, 1, 0]


def test_texts_that_differ_in_digits_and_latin_letters_alone_are_one_pattern():
    found = of("쿠폰 AB12 받으세요", "쿠폰 XY99 받으세요", "쿠폰 XY99 받아요 네", "short", "short")
    assert found["templated"] == [1, 1, 0, 0, 0]  # of short texts a copy says nothing


def test_a_text_of_training_is_seen_and_another_script_is_not():
    seen = SeenNgrams.of(["좋은 영화", "좋은 영화"])
    found = unseen_statistics(Characters.of(["좋은 영화", "good film"]), seen)
    assert {name: values.tolist() for name, values in found.items()} == {
        "unseen_trigrams": [0, 1],
        "unseen_words": [0, 1],
        "mostly_unseen": [0, 1],
    }


def test_copies_are_counted_the_most_frequent_first():
    hashes = np.array([5, 7, 7, 7, 5, 9, 3, 3], np.uint64)
    lengths = [10, 12, 12, 12, 10, 50, 9, 9]  # of 3: too short to say something
    assert most_repeated(hashes, lengths, 5) == {7: 3, 5: 2}
    assert most_repeated(hashes, lengths, 1) == {7: 3}
