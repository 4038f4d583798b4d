"""Cleaned rows kept in an output for as long as a run needs them, so that no text is read and cleaned again.

Shape letters: N rows of an input, W of them in one unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.io.store import Store, open_store
from bertray.io.tables import from_ipc, ipc_buffer
from bertray.reviews.fetch import RowUnit, Wanted, row_keys, wanted_rows
from bertray.reviews.split import mixed

ALL = 1 << 64
_NAME = re.compile(r"rows-(\d+)-(\d+)-(\d+)\.arrow$")  # number of the file, of the first row, number of rows
_PER_SAMPLED = 2  # rows kept for each of a sample: some are held out, and some have no usable label


def draw(file_no_N: np.ndarray, row_no_N: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [N]: a uniform number for each row, the same in whatever task it is drawn."""
    return mixed(row_keys(file_no_N, row_no_N).astype(np.uint64), seed)


@dataclass(frozen=True)
class KeepRule:
    """Rows of an input to keep.

    Args:
        below: those whose `draw` is below it; ALL: every row.
    """

    below: int = ALL
    seed: int = 0

    @classmethod
    def for_sample(cls, num_rows: int, max_rows: int, seed: int) -> KeepRule:
        """Rows of an input for a sample of `max_rows`: enough, and few more."""
        kept = _PER_SAMPLED * max_rows
        return cls(ALL if kept >= num_rows else ALL * kept // num_rows, seed)

    def keeps(self, draw_N: np.ndarray) -> np.ndarray:
        """bool [N]: rows of some draws that are kept."""
        return np.ones(len(draw_N), bool) if self.below >= ALL else np.asarray(draw_N < np.uint64(self.below))


@dataclass(frozen=True)
class Keep:
    """Rows that the tasks which read an input keep, and where.

    Args:
        output: root of a store.
        folder: below it.
        rule: says which.
    """

    output: str
    folder: str
    rule: KeepRule = KeepRule()

    def write(self, kept: pa.Table) -> None:
        """Keep rows of one work unit; `kept` as `ReviewBatch` has them, with `file_no`."""
        if not kept.num_rows:
            return
        first = f"{kept[s.FILE_NO][0].as_py():05d}-{kept[s.ROW_NO][0].as_py():012d}"
        draw_N = draw(kept[s.FILE_NO].to_numpy(), kept[s.ROW_NO].to_numpy(), self.rule.seed)
        kept = kept.filter(pa.array(self.rule.keeps(draw_N)))
        if kept.num_rows:
            key = f"{self.folder}/rows-{first}-{kept.num_rows}.arrow"
            open_store(self.output).put(key, ipc_buffer(kept, "zstd").to_pybytes())


@dataclass(frozen=True)
class KeptUnit:
    """Kept rows of one work unit; `keys` as `RowUnit` has them."""

    output: str
    key: str
    keys: tuple[int, int]

    @property
    def name(self) -> str:
        return self.key

    def rows(self, keys_W: np.ndarray | None) -> pa.Table:
        rows = from_ipc(open_store(self.output).get(self.key))
        if keys_W is None:
            return rows
        keys_N = row_keys(rows[s.FILE_NO].to_numpy(), rows[s.ROW_NO].to_numpy())
        at_W = np.searchsorted(keys_N, keys_W)
        if not np.array_equal(keys_N[np.minimum(at_W, len(keys_N) - 1)], keys_W):
            raise LookupError(f"{self.key}: rows that were not kept are asked for")
        return rows.take(at_W)


@dataclass(frozen=True)
class KeptRows:
    """Kept rows of an input, in the order of files and rows.

    Args:
        work: units with the rows of each that count.
        num_rows: of all of them.
        refused: rows of the input that are not fit for use.
    """

    work: tuple[Wanted, ...]
    num_rows: int
    refused: int = 0

    @classmethod
    def in_folder(cls, store: Store, folder: str) -> KeptRows:
        """All that `Keep.write` has put into a folder."""
        found, num_rows = [], 0
        for key in store.keys(folder):
            if place := _NAME.search(key):
                file_no, row_no, rows = (np.array(int(number)) for number in place.groups())
                found.append((int(row_keys(file_no, row_no)), key))
                num_rows += int(rows)
        found.sort()
        ends = [first for first, _ in found[1:]] + [np.iinfo(np.int64).max]
        units = [KeptUnit(store.root, key, (first, end)) for (first, key), end in zip(found, ends, strict=True)]
        return cls(tuple(Wanted(unit) for unit in units), num_rows)

    def of(self, num_rows: int) -> KeptRows:
        """All rows of an input of so many that are fit for use: the others were refused."""
        return replace(self, refused=num_rows - self.num_rows)

    @property
    def units(self) -> list[RowUnit]:
        """Places of the rows, for `fetch_rows`."""
        return [wanted.unit for wanted in self.work]

    def only(self, file_no_N: np.ndarray, row_no_N: np.ndarray) -> KeptRows:
        """Some of them, all fit for use."""
        work = tuple(wanted for wanted, _, _ in wanted_rows(self.units, file_no_N, row_no_N))
        return KeptRows(work, len(row_no_N))
