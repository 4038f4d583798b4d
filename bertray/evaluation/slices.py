"""The same figures for parts of the rows: by length, by script, by any column.

Shape letters: N rows, V values of a column, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import matrix_metrics

SMALL_ROWS = 30  # a slice below this says little; pages show it in grey
MAX_VALUES = 30
OTHER = "other"
MISSING = "(none)"
LENGTH_BOUNDS = (16, 64, 128, 256, 512)

Values: TypeAlias = pa.Array | pa.ChunkedArray | np.ndarray | Sequence[str | None]


@dataclass(frozen=True)
class SliceMetrics:
    """Figures on the rows that share one value of a column."""

    rows: int
    accuracy: Estimate
    macro_f1: Estimate

    @property
    def small(self) -> bool:
        return self.rows < SMALL_ROWS

    def to_json(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "accuracy": self.accuracy.to_json(),
            "macro_f1": self.macro_f1.to_json(),
            "small": self.small,
        }


def length_bands(n_tokens_N: np.ndarray) -> pa.DictionaryArray:
    """Band of each review's length in tokens, `1-16` to `513+`; the dictionary keeps the bands in order."""
    starts = [1, *(bound + 1 for bound in LENGTH_BOUNDS)]
    names = [f"{low}-{high}" for low, high in zip(starts[:-1], LENGTH_BOUNDS, strict=True)] + [f"{starts[-1]}+"]
    band_N = np.searchsorted(LENGTH_BOUNDS, n_tokens_N, side="left").astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(band_N), pa.array(names))


def slice_metrics(
    label_ids_N: np.ndarray, predictions_N: np.ndarray, values: Values, num_classes: int, seed: int
) -> dict[str, SliceMetrics]:
    """Figures for each value of a column.

    Args:
        label_ids_N: given labels, int [N].
        predictions_N: predicted labels, int [N].
        values: the column, N values; what is not text is turned into text, null becomes `(none)`.

    Returns:
        value -> figures; a dictionary array in the order of its dictionary, anything else by falling number of rows,
        where values beyond the 30 most frequent are together `other`.
    """
    names, codes_N = coded(values)
    if len(codes_N) != len(label_ids_N):
        raise ValueError(f"slice column: expected {len(label_ids_N)} values, found {len(codes_N)}.")
    cells_N = (codes_N * num_classes + label_ids_N) * num_classes + predictions_N
    counts_VCC = np.bincount(cells_N, minlength=len(names) * num_classes**2).reshape(-1, num_classes, num_classes)
    figures = {}
    for name, matrix_CC in zip(names, counts_VCC, strict=True):
        if matrix_CC.any():
            estimates = matrix_metrics(matrix_CC, seed)
            figures[name] = SliceMetrics(int(matrix_CC.sum()), estimates["accuracy"], estimates["macro_f1"])
    return figures


def coded(values: Values, max_values: int = MAX_VALUES) -> tuple[list[str], np.ndarray]:
    """Distinct values in the order to show, and the place of each row's value among them: int64 [N].

    Args:
        values: as for `slice_metrics`.
        max_values: most frequent values that are named; the others are together `other`.
    """
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    ordered = isinstance(array, pa.DictionaryArray)
    if not ordered:
        array = pc.fill_null(array.cast(pa.string()), MISSING).dictionary_encode()
    names, codes_N = array.dictionary.to_pylist(), array.indices.to_numpy().astype(np.int64)
    if ordered:
        return names, codes_N
    counts_V = np.bincount(codes_N, minlength=len(names))
    by_rows = sorted(range(len(names)), key=lambda v: (-counts_V[v], names[v]))
    shown = [names[v] for v in by_rows[:max_values]]
    if len(names) > max_values:
        shown = [name for name in shown if name != OTHER] + [OTHER]  # a real value `other` joins the rest
    place = {name: number for number, name in enumerate(shown)}
    place_V = np.array([place.get(name, len(shown) - 1) for name in names], np.int64)
    return shown, place_V[codes_N]
