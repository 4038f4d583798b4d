"""Results of an audit and their tables: row by row, without texts.

Legend: N rows, M some of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.auditing.analysis import AuditRows, Found
from bertray.auditing.duplicates import ALONE, NearTexts
from bertray.auditing.text_marks import DAMAGE, bits
from bertray.evaluation.label_errors import LabelErrorSearch, Suspects
from bertray.reviews.corpus import Inputs
from bertray.reviews.labels import LabelMap
from bertray.reviews.rows import BadFile

_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Split:
    """A split as it was given."""

    name: str
    inputs: Inputs
    bad: list[BadFile]

    @property
    def has_labels(self) -> bool:
        return self.inputs.spec.wants_label


@dataclass(frozen=True)
class Audited:
    """Results of an audit.

    near: None without a search for near-duplicates. suspects: None where there is no list of doubtful labels.
    refused: REFUSED_SCHEMA behind a column of splits. scripts: of each split, rows by script.
    """

    splits: Sequence[Split]
    labels: LabelMap | None
    rows: AuditRows
    found: Found
    near: NearTexts | None
    doubt: LabelErrorSearch
    suspects: Suspects | None
    refused: pa.Table
    scripts: Mapping[int, Counter[str]]

    @property
    def split_names(self) -> list[str]:
        return [split.name for split in self.splits]

    def label(self, number: int) -> str | None:
        """Name of a label by its number; None for a row without one."""
        return self.labels.names[number] if self.labels is not None and number >= 0 else None

    def groups(self) -> dict[str, np.ndarray]:
        """Tables of rows that belong together: name -> group of each row, int64 [N]."""
        found = {
            "duplicates": self.found.duplicate_N,
            "near_duplicates": self.found.near_N,
            "repeated_ids": self.found.id_N,
            "conflicts": self.found.conflict_N if self.labels is not None else None,
        }
        return {name: group_N for name, group_N in found.items() if group_N is not None}

    def told(self) -> np.ndarray:
        """int64: positions of the rows that tables name, in no order and more than once."""
        leaks = self.found.leaks.values()
        return np.concatenate(
            [
                *map(_by_group, self.groups().values()),
                *(leak.later for leak in leaks),
                *(leak.earlier for leak in leaks),
                *self.found.leaking.values(),
                self._doubted(),
                self._damaged(),
            ]
        )

    def tables(self, ids: Mapping[int, str]) -> dict[str, pa.Table]:
        """The tables by name.

        Args:
            ids: of the rows that `told` says, by position.
        """
        rows_of = _Rows(self, ids)
        tables = {name: _grouped(group_N, rows_of) for name, group_N in self.groups().items()}
        at = _by_group(self.found.duplicate_N)
        same_M = self.rows.stored_N[at] == self.rows.stored_N[first_of_group(self.found.duplicate_N)[at]]
        tables["duplicates"] = _with(tables["duplicates"], {s.AS_STORED: pa.array(same_M)})
        if self.found.near_N is not None:
            similarity_M = self.found.similarity_N[_by_group(self.found.near_N)]
            tables["near_duplicates"] = _with(tables["near_duplicates"], {s.SIMILARITY: pa.array(similarity_M)})
        if len(self.splits) > 1:
            tables["leaking"] = rows_of(np.unique(np.concatenate([_NO_ROWS, *self.found.leaking.values()])))
            tables["leakage"] = self._leakage(rows_of)
        if self.suspects is not None:
            suggested = [self.label(number) for number in self.suspects.suggested]
            columns = {
                s.SUGGESTED: pa.array(suggested, pa.string()),
                s.PROB_GIVEN: pa.array(self.suspects.given_probs),
                s.PROB_SUGGESTED: pa.array(self.suspects.suggested_probs),
            }
            tables["label_errors"] = _with(rows_of(self._doubted()), columns)
        at = self._damaged()
        marks = {mark: pa.array((self.rows.marks_N[at] & bits([mark])) > 0) for mark in DAMAGE}
        tables["damaged"] = _with(rows_of(at), marks)
        tables["broken"] = pa.concat_tables([self.refused, self._bad_files()])
        return tables

    def _leakage(self, rows_of: _Rows) -> pa.Table:
        """Rows of a later split, each with the row of the earlier one that it repeats."""
        leaks = list(self.found.leaks.values())
        earlier = rows_of(np.concatenate([leak.earlier for leak in leaks]))
        exact_M = np.concatenate([leak.exact for leak in leaks])
        columns = {
            s.KIND: pa.array(np.where(exact_M, "exact", "near").tolist(), pa.string()),
            s.SIMILARITY: pa.array(np.concatenate([leak.similarity for leak in leaks])),
            **{f"{s.EARLIER_PREFIX}{name}": earlier[name] for name in earlier.column_names},
        }
        return _with(rows_of(np.concatenate([leak.later for leak in leaks])), columns)

    def _doubted(self) -> np.ndarray:
        return self.suspects.rows if self.suspects is not None else _NO_ROWS

    def _damaged(self) -> np.ndarray:
        return np.flatnonzero(self.rows.marks_N & bits(DAMAGE))

    def _bad_files(self) -> pa.Table:
        rows = [
            {s.SPLIT: split.name, s.INPUT_PATH: file.path, s.REASON: str(file.reason), s.DETAIL: file.detail}
            for split in self.splits
            for file in split.bad
        ]
        schema = pa.schema([pa.field(s.SPLIT, pa.string()), *s.REFUSED_SCHEMA])
        return pa.Table.from_pylist(rows, schema)


class _Rows:
    """Places and ids of some rows."""

    def __init__(self, audited: Audited, ids: Mapping[int, str]) -> None:
        self._audited, self._ids = audited, ids
        self._paths = [file.path for split in audited.splits for file in split.inputs.files]

    def __call__(self, at: np.ndarray) -> pa.Table:
        audited, rows = self._audited, self._audited.rows
        names = audited.split_names
        return pa.table(
            {
                s.SPLIT: pa.array([names[split] for split in rows.split_N[at]], pa.string()),
                s.INPUT_PATH: pa.array([self._paths[number] for number in rows.file_no_N[at]], pa.string()),
                s.ROW_NO: pa.array(rows.row_no_N[at], pa.int64()),
                s.ID: pa.array([self._ids[position] for position in at.tolist()], pa.string()),
                s.LABEL: pa.array([audited.label(number) for number in rows.label_N[at]], pa.string()),
            }
        )


def first_of_group(group_N: np.ndarray) -> np.ndarray:
    """int64 [N]: the first row of the group of each row; of a row without one, itself."""
    first_N = np.arange(len(group_N))
    members = np.flatnonzero(group_N != ALONE)
    _, first, inverse = np.unique(group_N[members], return_index=True, return_inverse=True)
    first_N[members] = members[first][inverse]
    return first_N


def _by_group(group_N: np.ndarray) -> np.ndarray:
    """Rows of groups, those of one group together."""
    members = np.flatnonzero(group_N != ALONE)
    return members[np.argsort(group_N[members], kind="stable")]


def _grouped(group_N: np.ndarray, rows_of: _Rows) -> pa.Table:
    at = _by_group(group_N)
    return rows_of(at).add_column(0, s.GROUP, pa.array(group_N[at]))


def _with(table: pa.Table, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table
