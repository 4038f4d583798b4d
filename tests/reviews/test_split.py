"""The validation split: whole groups, same mix of labels, independent of row order."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.reviews.split import folds_of, group_hash, group_or_text_hash, joined_groups, validation_mask
from tests.properties import examples


def test_group_hash_is_blake2b_of_the_text_and_the_same_in_every_process():
    # python -c "import hashlib; print(int.from_bytes(hashlib.blake2b(b'good film', digest_size=8).digest(), 'little'))"
    program = "import hashlib; print(int.from_bytes(hashlib.blake2b(b'good film', digest_size=8).digest(), 'little'))"
    expected = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    hashes = group_hash(pa.array(["good film", "bad", "good film", None, None]))
    assert hashes.dtype == np.uint64
    assert hashes[0] == hashes[2] == expected
    assert hashes[3] == hashes[4]
    assert len(set(hashes.tolist())) == 3


def test_group_hash_takes_numbers_and_chunks():
    assert group_hash(pa.chunked_array([[7], [8, 7]])).tolist() == group_hash(pa.array(["7", "8", "7"])).tolist()
    assert group_hash(pa.array([], pa.string())).tolist() == []


def random_rows(seed: int, rows: int, groups: int, classes: int, mixed: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group_N = rng.integers(0, groups, rows)
    hashes_N = group_hash(pa.array([str(group) for group in group_N]))
    labels_N = rng.integers(0, classes, rows) if mixed else group_N % classes
    return hashes_N, labels_N.astype(np.int64)


@settings(max_examples=examples(60))
@given(
    data_seed=st.integers(0, 1000),
    rows=st.integers(1, 400),
    groups=st.integers(1, 200),
    classes=st.integers(1, 5),
    mixed=st.booleans(),
    fraction=st.floats(0.02, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_keeps_groups_whole_whatever_the_row_order(data_seed, rows, groups, classes, mixed, fraction, seed):
    hashes_N, labels_N = random_rows(data_seed, rows, groups, classes, mixed)
    mask_N = validation_mask(hashes_N, labels_N, fraction, seed)
    assert not set(hashes_N[mask_N].tolist()) & set(hashes_N[~mask_N].tolist())
    order = np.random.default_rng(seed).permutation(rows)
    assert (validation_mask(hashes_N[order], labels_N[order], fraction, seed) == mask_N[order]).all()


@settings(max_examples=examples(60))
@given(data_seed=st.integers(0, 1000), rows=st.integers(20, 2000), fraction=st.floats(0.02, 0.9))
def test_each_class_is_within_one_group_of_its_share(data_seed, rows, fraction):
    hashes_N, labels_N = random_rows(data_seed, rows, 300, 3, mixed=False)
    mask_N = validation_mask(hashes_N, labels_N, fraction, 0)
    for label in np.unique(labels_N):
        largest = np.unique(hashes_N[labels_N == label], return_counts=True)[1].max()
        assert abs(mask_N[labels_N == label].sum() - fraction * (labels_N == label).sum()) <= largest


def test_groups_of_several_classes_keep_the_mix():
    rng = np.random.default_rng(1)
    movie_N = rng.integers(0, 500, 10_000)
    labels_N = (rng.random(10_000) < 0.2 + 0.6 * (movie_N % 7) / 6).astype(np.int64)
    mask_N = validation_mask(group_hash(pa.array(movie_N)), labels_N, 0.1, 0)
    for label in (0, 1):
        assert mask_N[labels_N == label].mean() == pytest.approx(0.1, abs=0.01)  # a movie has 20 rows of 10,000


def test_identical_texts_with_different_labels_stay_together():
    hashes_N = group_hash(pa.array(["same", "same", *(f"text {i}" for i in range(100))]))
    labels_N = np.array([0, 1, *(i % 2 for i in range(100))])
    for seed in range(20):
        mask_N = validation_mask(hashes_N, labels_N, 0.3, seed)
        assert mask_N[0] == mask_N[1]
        assert abs(mask_N.sum() - 0.3 * 102) <= 2


def test_another_seed_holds_out_other_rows():
    hashes_N, labels_N = random_rows(0, 1000, 10_000, 2, mixed=False)
    one, two = (validation_mask(hashes_N, labels_N, 0.1, seed) for seed in (0, 1))
    assert one.sum() == pytest.approx(100, abs=2)
    assert (one & two).sum() < 40


def test_25_thousand_reviews_are_split_in_a_moment():
    texts = pa.array([f"{i} " + "word " * 40 for i in range(25_000)])
    start = time.process_time()
    validation_mask(group_hash(texts), np.arange(25_000) % 2, 0.1, 0)
    assert time.process_time() - start < 0.5  # about 0.05 s on an idle core


def test_impossible_requests_are_errors():
    hashes_N = group_hash(pa.array(["a", "b"]))
    with pytest.raises(ValueError, match="label id"):
        validation_mask(hashes_N, np.array([0, -1]), 0.1, 0)
    with pytest.raises(ValueError, match="label id"):
        validation_mask(hashes_N, np.array([0]), 0.1, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        validation_mask(hashes_N, np.array([0, 1]), 1.0, 0)
    assert validation_mask(np.array([], np.uint64), np.array([], np.int64), 0.1, 0).tolist() == []


def joined(rows: list[tuple[str, str | None]]) -> list[set[int]]:
    """Row numbers of each joined group."""
    texts, groups = pa.array([text for text, _ in rows]), pa.array([group for _, group in rows], pa.string())
    ids_N = joined_groups(group_hash(texts), group_or_text_hash(groups, texts))
    assert ids_N.dtype == np.uint64
    return sorted(({*np.flatnonzero(ids_N == one).tolist()} for one in np.unique(ids_N)), key=min)


def test_equal_texts_and_equal_group_keys_are_joined_along_any_chain():
    rows = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("e", "w"), ("d", "w")]
    assert joined(rows) == [{0, 1, 2, 3}, {4, 5, 6}]


def test_rows_without_a_group_key_are_joined_by_their_text_only():
    assert joined([("a", None), ("b", None), ("a", None), ("c", ""), ("d", " "), ("b", "x"), ("e", "x")]) == [
        {0, 2},
        {1, 5, 6},
        {3},
        {4},
    ]
    groups = pa.chunked_array([[1.0, float("nan")], [None, 1.0]])
    hashes_N = group_or_text_hash(groups, pa.chunked_array([["a", "b"], ["c", "d"]]))
    assert hashes_N[0] == hashes_N[3]
    assert hashes_N[1:3].tolist() == group_hash(pa.array(["b", "c"])).tolist()


def test_a_group_key_that_reads_like_a_text_joins_nothing():
    assert joined([("a", "b"), ("b", "c"), ("c", "d")]) == [{0}, {1}, {2}]


def test_joined_groups_are_named_by_their_smallest_text_whatever_the_row_order():
    text_N, group_N = np.array([9, 3, 3, 7, 8], np.uint64), np.array([1, 1, 2, 5, 5], np.uint64)
    assert joined_groups(text_N, group_N).tolist() == [3, 3, 3, 7, 7]
    order = np.array([4, 2, 0, 3, 1])
    assert joined_groups(text_N[order], group_N[order]).tolist() == [7, 3, 3, 7, 3]
    # 256 equal edges must not add up to none.
    assert set(joined_groups(np.full(256, 4, np.uint64), np.full(256, 6, np.uint64)).tolist()) == {4}
    assert joined_groups(np.array([], np.uint64), np.array([], np.uint64)).tolist() == []
    with pytest.raises(ValueError, match="as many texts as groups"):
        joined_groups(text_N, group_N[:2])


def test_a_million_rows_are_joined_in_seconds():
    rng = np.random.default_rng(0)
    text_N, group_N = rng.integers(0, 900_000, 1_000_000), rng.integers(0, 50_000, 1_000_000)
    start = time.process_time()
    joined_groups(text_N.astype(np.uint64), group_N.astype(np.uint64))
    assert time.process_time() - start < 5  # about 0.5 s on an idle core


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_hold_whole_groups_and_every_class_is_learned_from_in_each(seed, mixed):
    hashes_N, labels_N = random_rows(seed, 400, 150, 4, mixed)
    fold_N = folds_of(hashes_N, labels_N, 5, seed)
    assert set(fold_N.tolist()) == set(range(5))
    for group in np.unique(hashes_N):
        assert len(set(fold_N[hashes_N == group].tolist())) == 1
    counts = np.array([np.bincount(labels_N[fold_N == fold], minlength=4) for fold in range(5)])
    assert (abs(counts - np.bincount(labels_N) / 5) <= 6).all()  # a group has about three rows
    order = np.random.default_rng(seed).permutation(400)
    assert folds_of(hashes_N[order], labels_N[order], 5, seed).tolist() == fold_N[order].tolist()


def test_a_class_with_one_text_is_never_held_out():
    labels_N = np.array([0] * 12 + [1] * 3 + [2])
    hashes_N = group_hash(pa.array([*map(str, range(12)), "a", "b", "c", "d"]))
    fold_N = folds_of(hashes_N, labels_N, 5, 0)
    assert fold_N[-1] == -1
    assert (fold_N[:-1] >= 0).all()
    assert len(set(fold_N[12:15].tolist())) >= 2
    assert folds_of(group_hash(pa.array(["x", "x"])), np.array([0, 1]), 5, 0).tolist() == [-1, -1]
