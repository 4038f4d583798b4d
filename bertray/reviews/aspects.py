"""Reviews read for several aspects: each row of a file becomes one row for each of its aspects.

Everything after the reader counts these rows: shards, quarantine, receipts and the ledger know no others.

Legend: N rows as stored, M rows after the expansion.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.io.tables import decoded
from bertray.label_text import label_text
from bertray.reviews.labels import canonical
from bertray.reviews.rows import AspectRows, Aspects, Expansion, RawRows
from bertray.schema import Reason

SEPARATOR = "#"  # between the id of a review and the aspect
MOST_ASPECTS = 1000  # of one review; a longer list is taken for a mistake
_FINE, _NONE, _NO_LIST, _TOO_MANY, _OTHER_LABELS, _CHANGED = range(6)
PROBLEMS = {
    _NONE: (Reason.ASPECT_NONE, ""),
    _NO_LIST: (Reason.ROW_MALFORMED, "expected a list of texts as aspects"),
    _TOO_MANY: (Reason.ROW_MALFORMED, f"more than {MOST_ASPECTS} aspects"),
    _OTHER_LABELS: (Reason.ROW_MALFORMED, "the list of labels is not as long as the list of aspects"),
    _CHANGED: (Reason.ROW_MALFORMED, "the list of aspects is another one than when the file was scanned"),
}


def expanded(rows: RawRows, aspects: Aspects, within: Expansion, label: str, *, wants_label: bool) -> RawRows:
    """Rows as stored to one row for each of their aspects, faults too.

    Args:
        rows: with the columns that `Aspects.columns` names, as far as the file has them.
        within: numbers of the rows; their counts are those of the scan, whatever is read now.
        label: the key `columns.label`.
        wants_label: the rows get the labels of their aspects.
    """
    starts_N, counts_N = within.starts_of(rows.row_nos)
    which_M = np.repeat(np.arange(len(counts_N)), counts_N)
    ends_N = np.cumsum(counts_N)
    place_M = np.arange(len(which_M)) - (ends_N - counts_N)[which_M]  # of a row among those of its stored row
    if aspects.column is None:
        found = _of_all(rows, aspects, which_M, place_M, wants_label=wants_label)
    else:
        found = _of_lists(rows, aspects.column, label if wants_label else None, counts_N, which_M, place_M)
    take = pa.array(which_M)
    faults = []
    for fault in rows.faults:
        start, count = (int(numbers[0]) for numbers in within.starts_of(np.array([fault.row_no])))
        faults += [replace(fault, row_no=number, input_row=fault.row_no) for number in range(start, start + count)]
    return replace(
        rows,
        row_nos=starts_N[which_M] + place_M,
        columns={name: values.take(take) for name, values in rows.columns.items()},
        faults=tuple(faults),
        aspects=found,
    )


def expanded_ids(ids: pa.Array, names: pa.Array) -> pa.Array:
    """`<id>#<aspect>` of reviews; an id that is null or empty stays so.

    Args:
        ids: string [M].
        names: string [M]; where null, the id is that of the review.
    """
    joined = pc.binary_join_element_wise(ids, names, SEPARATOR)
    has_both = pc.and_(pc.fill_null(pc.not_equal(ids, ""), False), names.is_valid())
    return pc.if_else(has_both, joined, ids)


def rows_of_lists(values: pa.Array) -> np.ndarray:
    """int64 [N]: rows of each review by its list of aspects, at least one."""
    lists = _lists(values)
    return np.where(lists.problem_N() == _FINE, lists.lens_N, 1)


def _of_all(
    rows: RawRows, aspects: Aspects, which_M: np.ndarray, place_M: np.ndarray, *, wants_label: bool
) -> AspectRows:
    """The same aspects for every review; each label stands in a column of its own."""
    names = pa.array(list(aspects.label_columns), pa.string()).take(pa.array(place_M))
    labels = None
    if wants_label:
        num_rows = len(rows.row_nos)
        columns = [
            canonical(rows.columns[column]) if column in rows.columns else pa.nulls(num_rows, pa.string())
            for column in aspects.label_columns.values()
        ]
        labels = pa.concat_arrays(columns).take(pa.array(place_M * num_rows + which_M))
    return AspectRows(rows.row_nos[which_M], names, labels, np.zeros(len(which_M), np.int8))


def _of_lists(
    rows: RawRows, column: str, label: str | None, counts_N: np.ndarray, which_M: np.ndarray, place_M: np.ndarray
) -> AspectRows:
    """The aspects that a review lists; a list of labels stands beside them."""
    num_rows = len(rows.row_nos)
    lists = _lists(rows.columns[column] if column in rows.columns else pa.nulls(num_rows, pa.string()))
    problem_N = lists.problem_N()
    problem_N[np.where(problem_N == _FINE, lists.lens_N, 1) != counts_N] = _CHANGED
    named_N = problem_N == _FINE
    labels = None
    if label is not None:
        given = _lists(rows.columns[label] if label in rows.columns else pa.nulls(num_rows, pa.string()))
        labelled_N = named_N & (given.lens_N == lists.lens_N) & ~given.odd_N
        problem_N[named_N & ~labelled_N & ((given.lens_N > 0) | given.odd_N)] = _OTHER_LABELS
        labels = canonical(given.at(which_M, place_M, labelled_N))
    return AspectRows(rows.row_nos[which_M], lists.at(which_M, place_M, named_N), labels, problem_N[which_M])


# --- columns of lists ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lists:
    """A column of lists: all items end to end, items of each row, rows that hold no list of texts."""

    items: pa.Array
    lens_N: np.ndarray
    odd_N: np.ndarray

    def problem_N(self) -> np.ndarray:
        problem_N = np.where(self.lens_N == 0, _NONE, _FINE).astype(np.int8)
        problem_N[self.lens_N > MOST_ASPECTS] = _TOO_MANY
        problem_N[self.odd_N] = _NO_LIST
        return problem_N

    def at(self, which_M: np.ndarray, place_M: np.ndarray, wanted_N: np.ndarray) -> pa.Array:
        """Item `place_M` of row `which_M`, [M]; null where the row is not wanted."""
        index_M = (np.cumsum(self.lens_N) - self.lens_N)[which_M] + place_M
        unwanted_M = ~wanted_N[which_M]
        return self.items.take(pa.array(np.where(unwanted_M, 0, index_M), mask=unwanted_M))


def _lists(values: pa.Array) -> _Lists:
    """Lists as Parquet has them; or text cells, of JSON Lines and CSV: a JSON list, a Python list, or one item."""
    values = decoded(values)
    if pa.types.is_nested(values.type):
        lens_N = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return _Lists(values.flatten(), lens_N, np.zeros(len(values), bool))
    cells = [_cell(value) for value in values.to_pylist()]
    items = [item for cell in cells for item in cell or ()]
    encoded = [item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item for item in items]
    texts = pa.array(encoded, pa.binary())
    with contextlib.suppress(pa.ArrowInvalid):  # no valid Unicode: such a row is refused with its reason
        texts = texts.cast(pa.string())
    lens_N = np.array([len(cell or ()) for cell in cells], np.int64)
    odd_N = np.array([cell is None for cell in cells], bool)
    return _Lists(texts, lens_N, odd_N)


def _cell(value: Any) -> Sequence[str | bytes | None] | None:
    """Items of a cell; None: it looks like a list and is none of texts."""
    if value is None:
        return ()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return (value,)  # refused with its reason, as any text
    if not isinstance(value, str):
        return (label_text(value),)
    text = value.strip()
    if not text.startswith("["):
        return (text,) if text else ()
    for parse in (json.loads, ast.literal_eval):  # pandas writes lists to CSV as Python does
        try:
            items = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        plain = isinstance(items, list) and all(isinstance(item, str | int | float | None) for item in items)
        return [item if isinstance(item, str) else label_text(item) for item in items] if plain else None
    return None
