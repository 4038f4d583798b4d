"""Slices: values, their order, their cap, and the figures in them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, f1_score

from bertray.evaluation.slices import MISSING, OTHER, length_bands, slice_metrics


def test_length_bands_include_their_upper_bound():
    n_tokens_N = np.array([1, 16, 17, 64, 65, 128, 129, 256, 257, 512, 513, 9000])
    assert length_bands(n_tokens_N).to_pylist() == [
        *["1-16"] * 2,
        *["17-64"] * 2,
        *["65-128"] * 2,
        *["129-256"] * 2,
        *["257-512"] * 2,
        *["513+"] * 2,
    ]


def test_length_slices_stand_in_the_order_of_length_and_leave_empty_bands_out():
    bands = length_bands(np.array([700, 3, 3, 100]))
    found = slice_metrics(np.zeros(4, int), np.zeros(4, int), bands, 2, seed=0)
    assert [(value, row.rows) for value, row in found.items()] == [("1-16", 2), ("65-128", 1), ("513+", 1)]


def test_slices_equal_scikit_learn_on_their_rows_and_flag_small_ones():
    rng = np.random.default_rng(0)
    column = np.array(["kettle"] * 100 + ["청소기"] * 29 + ["toaster"] * 30)
    label_ids_N, predictions_N = rng.integers(0, 3, 159), rng.integers(0, 3, 159)
    found = slice_metrics(label_ids_N, predictions_N, column, 3, seed=0)
    assert list(found) == ["kettle", "toaster", "청소기"]
    for value, row in found.items():
        rows = column == value
        given, predicted = label_ids_N[rows], predictions_N[rows]
        assert row.rows == rows.sum()
        assert row.accuracy.value == pytest.approx(accuracy_score(given, predicted), abs=1e-12)
        assert row.macro_f1.value == pytest.approx(f1_score(given, predicted, average="macro"), abs=1e-12)
    assert [row.small for row in found.values()] == [False, False, True]


def test_values_beyond_the_thirty_most_frequent_are_together_with_a_real_other():
    column = [OTHER] * 50 + [f"v{n:02d}" for n in range(40) for _ in range(41 - n)]
    label_ids_N = np.zeros(len(column), int)
    found = slice_metrics(label_ids_N, label_ids_N, pa.chunked_array([column[:60], column[60:]]), 2, seed=0)
    # 30 most frequent: the real `other` and v00..v28; v29..v39 have 12 + 11 + ... + 2 rows.
    assert list(found) == [*(f"v{n:02d}" for n in range(29)), OTHER]
    assert found[OTHER].rows == 50 + sum(range(2, 13))
    assert sum(row.rows for row in found.values()) == len(column)


def test_a_missing_value_is_a_slice_of_its_own_and_numbers_become_text():
    found = slice_metrics(np.zeros(3, int), np.zeros(3, int), pa.array([5, None, 5]), 2, seed=0)
    assert {value: row.rows for value, row in found.items()} == {"5": 2, MISSING: 1}


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 2 values, found 1"):
        slice_metrics(np.zeros(2, int), np.zeros(2, int), ["a"], 2, seed=0)
