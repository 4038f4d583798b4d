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

from bertray.reviews.split import group_hash, validation_mask


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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
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
