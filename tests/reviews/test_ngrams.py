"""Hashed n-grams of texts, and the table of those that training texts hold."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.errors import ConfigError
from bertray.reviews.ngrams import FILE, NUM_BUCKETS, Characters, SeenNgrams, frequencies, read_seen_ngrams


def unseen(training, texts):
    trigrams_N, words_N = SeenNgrams.of(training).unseen(Characters.of(texts))
    return trigrams_N.tolist(), words_N.tolist()


def test_ngrams_do_not_reach_from_one_text_into_the_next():
    together = Characters.of(["ab", "cd"])
    apart = [Characters.of([text]) for text in ("ab", "cd")]
    for length in (1, 2, 3):
        hashes, text_of = together.ngrams(length)
        expected = [one.ngrams(length)[0].tolist() for one in apart]
        assert [hashes[text_of == n].tolist() for n in (0, 1)] == expected
    assert [len(together.ngrams(length)[0]) for length in (1, 2, 3)] == [8, 6, 4]  # " ab " and " cd "


def test_words_are_what_stands_between_spaces():
    hashes, text_of = Characters.of(["good film", "", "film"]).words()
    assert text_of.tolist() == [0, 0, 2]
    assert hashes[1] == hashes[2] != hashes[0]


def test_ngrams_of_two_training_texts_are_seen_and_those_of_one_are_not():
    # " a b" twice; "xyz" once. Trigrams of " q ": one, unseen.
    assert unseen(["abc", "abc", "xyz"], ["abc", "xyz", "q"]) == ([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    # " abd ": " ab" is seen, "abd" and "bd " are not.
    assert unseen(["abc", "abc"], ["abd"])[0] == [pytest.approx(2 / 3)]


def test_an_ngram_that_one_text_holds_twice_is_not_seen():
    assert unseen(["abcabc"], ["abc"])[0] == [1.0]


def test_a_text_adds_one_to_the_frequencies_of_its_fold_whatever_its_length():
    texts = ["ab", "a much longer text than the first", "", "third"]
    sums_FB = frequencies(Characters.of(texts), np.array([0, 1, 1, 0]), 2)
    assert sums_FB.shape == (2, NUM_BUCKETS)
    assert sums_FB.sum(axis=1).tolist() == pytest.approx([2.0, 2.0], abs=1e-5)
    # Each text alone, as if no other stood beside it.
    alone = [frequencies(Characters.of([text]), np.array([0]), 1)[0] for text in texts]
    assert np.allclose(sums_FB, [alone[0] + alone[3], alone[1] + alone[2]], atol=1e-6)
    # " ab ": four, three and two n-grams.
    assert np.unique(np.round(alone[0] * 9, 4)).tolist() in ([0, 1, 2], [0, 1, 2, 3])  # two spaces; buckets may meet


def test_the_table_of_a_bundle_is_read_as_it_was_written(tmp_path):
    seen = SeenNgrams.of(["abc", "abc d"])
    (tmp_path / FILE).write_bytes(seen.to_bytes())
    read = read_seen_ngrams(tmp_path)
    assert np.array_equal(read.trigrams, seen.trigrams)
    assert np.array_equal(read.words, seen.words)
    assert (tmp_path / FILE).stat().st_size < 300_000


def test_a_damaged_table_is_told_and_a_missing_one_is_none(tmp_path):
    assert read_seen_ngrams(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"no table")
    with pytest.raises(ConfigError, match=r"seen_ngrams.arrow: expected seen n-grams"):
        read_seen_ngrams(tmp_path)
