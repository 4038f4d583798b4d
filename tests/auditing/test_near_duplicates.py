"""Texts that are nearly the same: what counts as the same, which pairs are found, and that Jaccard decides."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from bertray.auditing.near_duplicates import (
    Candidates,
    NumberFile,
    band_hashes,
    bands_and_rows,
    best_of_each,
    components,
    folded,
    jaccard,
    shingle_sets,
    shingles,
)

LATIN = "latin"


def strings(*texts: str) -> pa.Array:
    return pa.array(texts, pa.string())


def grams(text: str, size: int) -> set[str]:
    return {text[start : start + size] for start in range(max(len(text) - size + 1, 1))}


def test_spellings_of_one_text_are_one():
    texts = strings("Great film!", "great  FILM", "재밌다!!", "재 밌다", "!!!", "Éclair?")
    assert folded(texts).to_pylist() == ["greatfilm", "greatfilm", "재밌다", "재밌다", "!!!", "éclair"]


def test_a_text_has_as_many_shingles_as_different_n_grams():
    texts = strings("abcdefgh", "aaaaaaaa", "abc", "정말재밌다", "x")
    scripts = strings(LATIN, LATIN, LATIN, "hangul", LATIN)
    sizes = [len(found) for found in shingle_sets(texts, scripts)]
    assert sizes == [len(grams(text, 3 if text[0] == "정" else 5)) for text in texts.to_pylist()] == [4, 1, 1, 3, 1]


def test_jaccard_of_shingles_is_that_of_the_n_grams():
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcd"), size=40)) for _ in range(20)]
    texts += [text[:30] + "xyz" for text in texts]
    sets = shingle_sets(strings(*texts), strings(*[LATIN] * 40))
    for (first, second), (one, other) in zip(pairwise(sets), pairwise(texts), strict=True):
        a, b = grams(one, 5), grams(other, 5)
        assert jaccard(first, second) == len(a & b) / len(a | b)


def test_a_text_has_the_same_shingles_whatever_stands_beside_it():
    alone = shingles(strings("good film"), strings(LATIN)).hashes_S
    beside = shingles(strings("a", "good film", "좋다"), strings(LATIN, LATIN, "hangul"))
    lo, hi = beside.offsets_N[1:3].astype(int)
    assert beside.hashes_S[lo:hi].tolist() == alone.tolist()


def test_texts_with_different_second_texts_have_nothing_in_common():
    texts, scripts = strings("good food", "good food", "good food"), strings(LATIN, LATIN, LATIN)
    first, second, third = shingle_sets(texts, scripts, strings("food", "service", "food"))
    assert jaccard(first, second) == 0
    assert jaccard(first, third) == 1


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_texts_of_the_threshold_and_no_longer_band_would(threshold):
    bands, rows = bands_and_rows(threshold)
    assert bands * rows <= 256
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert 1 - (1 - threshold ** (rows + 1)) ** (256 // (rows + 1)) < 0.99 or threshold == 1.0


def test_every_near_pair_is_a_candidate_and_few_others_are():
    """600 texts of 200 letters, 100 of them copied with 3 letters changed: about 85 % of the n-grams stay."""
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list("abcdefghijklmnop"), size=200)) for _ in range(600)]
    for number in range(100):
        changed = list(texts[number])
        for place in random.choice(200, size=3, replace=False):
            changed[place] = "z"
        texts.append("".join(changed))
    scripts = strings(*[LATIN] * len(texts))
    bands, sizes = band_hashes(strings(*texts), scripts, 0.8)
    found = Candidates(sizes.astype(np.int64))
    for band in bands:
        found.add(band, threshold=0.8)
    sets = shingle_sets(strings(*texts), scripts)
    alike = {(first, 600 + first) for first in range(100) if jaccard(sets[first], sets[600 + first]) >= 0.8}
    pairs = {tuple(pair) for pair in found.pairs().tolist()}
    assert len(alike) > 80
    assert len(alike - pairs) <= 2
    assert len(pairs - {(first, 600 + first) for first in range(100)}) < 10


def test_a_text_is_not_compared_with_one_of_far_another_size():
    found = Candidates(np.array([100, 90, 70]))
    found.add(np.array([7, 7, 7], np.uint64), threshold=0.8)
    assert found.pairs().tolist() == [[0, 1]]


def test_a_crowded_bucket_is_not_compared_in_full_and_says_so():
    found = Candidates(np.full(60, 10))
    found.add(np.full(60, 3, np.uint64), threshold=0.8)
    compared = len(found.pairs())
    assert compared == 60 * 50 - 50 * 51 // 2
    assert compared + found.crowded == 60 * 59 // 2


def test_numbers_come_back_from_the_file():
    kept = NumberFile()
    first = kept.append(np.arange(6, dtype=np.uint64).reshape(2, 3))
    second = kept.append(np.array([2**64 - 1], np.uint64))
    assert kept.read(second, 1).tolist() == [2**64 - 1]
    assert kept.read(first + 3, 3).tolist() == [3, 4, 5]
    kept.close()


def test_chains_are_one_component_and_the_best_pair_counts():
    pairs = np.array([[0, 1], [1, 2]])
    part = components(4, pairs)
    assert part[0] == part[1] == part[2] != part[3]
    assert best_of_each(4, pairs, np.array([0.8, 0.9])).tolist() == [0.8, 0.9, 0.9, 0.0]


def test_pairs_beyond_the_limit_of_memory_are_not_even_made(monkeypatch):
    monkeypatch.setattr("bertray.auditing.near_duplicates.MAX_PAIRS", 70)
    found = Candidates(np.full(40, 10))
    found.add(np.full(40, 3, np.uint64), threshold=0.8)
    assert found.is_full
    assert len(found.pairs()) == 70
    found.add(np.full(40, 4, np.uint64), threshold=0.8)
    assert len(found.pairs()) == 70
