"""What `audit` does in tasks: every row read once and turned into numbers, and some rows read again for their text.

work items → read + clean + tokenize + hash (tasks) → numbers of each row on the driver, MinHash bands on its disk
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.auditing.near_duplicates import band_hashes, folded, shingle_sets
from bertray.auditing.text_marks import marks_of
from bertray.execution.resources import Resources
from bertray.execution.shards import name_of, tables_of
from bertray.io.tables import from_ipc, one_chunk, to_ipc
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.reader import ReadSpec, WorkItem, read_shard
from bertray.reviews.split import group_hash

KEY, STORED, ID_HASH, FOLDED, NUM_SHINGLES, CHARS, MARKS = (
    "key",
    "stored",
    "id_hash",
    "folded",
    "num_shingles",
    "chars",
    "marks",
)
SHINGLES = "shingles"
_NUMBER, _ROWS, _BANDS, _REFUSED = "number", "rows", "bands", "refused"
_BETWEEN = "\x1f"  # a text and its second text, as one


@dataclass(frozen=True)
class AuditItem:
    """A work item, the split that it is of, and of a second reading the rows that are wanted, by file_no."""

    split: int
    item: WorkItem
    wanted: Mapping[int, np.ndarray] | None = None


@dataclass(frozen=True)
class ScanSettings:
    """What a scanning task needs."""

    specs: tuple[ReadSpec, ...]  # of each split; the text column is kept as it is stored
    model: str
    max_length: int
    threshold: float | None  # None: nobody looks for near-duplicates


@dataclass(frozen=True)
class Scanned:
    """A work item as numbers. rows: FILE_NO, ROW_NO, hashes, counts, LABEL, SCRIPT; bands_BN: uint64; refused rows."""

    number: int
    rows: pa.Table
    bands_BN: np.ndarray
    refused: pa.Table


def scan(work: Sequence[AuditItem], settings: ScanSettings, resources: Resources) -> Iterator[Scanned]:
    """Every row of every item as numbers; items arrive in no particular order."""
    for row in _run(work, lambda shared: _Scan(shared, settings), resources, "scanning"):
        rows = _table(row[_ROWS])
        bands = np.frombuffer(row[_BANDS].as_buffer(), np.uint64).reshape(-1, max(rows.num_rows, 1))
        yield Scanned(row[_NUMBER].as_py(), rows, bands, _table(row[_REFUSED]))


def read_again(
    work: Sequence[AuditItem], specs: tuple[ReadSpec, ...], what: str, resources: Resources
) -> Iterator[pa.Table]:
    """Some columns of the wanted rows: FILE_NO, ROW_NO and what is asked for, a table an item.

    Args:
        work: with `wanted` rows.
        specs: of each split.
        what: `id`; `text`, which has the second text behind it; `shingles`, the sorted set of each text.
    """
    for row in _run(work, lambda shared: _ReadAgain(shared, specs, what), resources, "reading again"):
        yield _table(row[_ROWS])


def _run(
    work: Sequence[AuditItem], task: Callable[[Sequence[AuditItem]], Any], resources: Resources, stage: str
) -> Iterator[dict[str, Any]]:
    for batch in tables_of(work, task, resources, stage, lambda audited: name_of(audited.item)):
        for row in range(batch.num_rows):
            yield {name: batch[name][row] for name in batch.column_names}


def _table(content: Any) -> pa.Table:
    return from_ipc(content.as_buffer())


@functools.lru_cache(maxsize=4)
def _tokenizer(model: str, max_length: int) -> ReviewTokenizer:
    return ReviewTokenizer(resolve_model(model), max_length)


class _Scan:
    """Work items to numbers."""

    def __init__(self, work: Sequence[AuditItem], settings: ScanSettings) -> None:
        self._work, self._settings = work, settings

    def __call__(self, items: pa.Table) -> pa.Table:
        numbers = items["id"].to_pylist()
        scanned = [self._scanned(self._work[number]) for number in numbers]
        columns = [pa.array(numbers, pa.int64())]
        columns += [pa.array(list(values), pa.large_binary()) for values in zip(*scanned, strict=True)]
        return pa.table(columns, [_NUMBER, _ROWS, _BANDS, _REFUSED])

    def _scanned(self, item: AuditItem) -> tuple[bytes, bytes, bytes]:
        settings, spec = self._settings, self._settings.specs[item.split]
        kept, refused = _read(item, spec)
        texts, pairs = _texts(kept)
        stored = one_chunk(kept[s.KEEP_PREFIX + spec.columns.text]).cast(pa.string())
        tokens = _tokenizer(settings.model, settings.max_length).encode(texts, pairs)
        same = folded(texts)
        columns: dict[str, Any] = {
            s.FILE_NO: kept[s.FILE_NO],
            s.ROW_NO: kept[s.ROW_NO],
            KEY: group_hash(_joined(texts, pairs)),
            STORED: group_hash(_joined(stored, pairs)),
            ID_HASH: group_hash(one_chunk(kept[s.ID])),
            FOLDED: group_hash(_joined(same, pairs)),
            CHARS: pc.utf8_length(stored),
            s.N_TOKENS: tokens[s.N_TOKENS],
            s.TRUNCATED: pc.or_(one_chunk(tokens[s.TRUNCATED]), one_chunk(kept[s.CUT])),
            MARKS: marks_of(stored),
            s.SCRIPT: kept[s.SCRIPT],
            s.LABEL: kept[s.LABEL] if spec.wants_label else pa.nulls(len(texts), pa.string()),
        }
        bands = np.empty((0, len(texts)), np.uint64)
        columns[NUM_SHINGLES] = np.zeros(len(texts), np.uint32)
        if settings.threshold is not None and len(texts):
            bands, columns[NUM_SHINGLES] = band_hashes(same, one_chunk(kept[s.SCRIPT]), settings.threshold, pairs)
        return to_ipc(pa.table(columns)), bands.tobytes(), to_ipc(refused)


class _ReadAgain:
    """Wanted rows of work items to what is asked for."""

    def __init__(self, work: Sequence[AuditItem], specs: tuple[ReadSpec, ...], what: str) -> None:
        self._work, self._specs, self._what = work, specs, what

    def __call__(self, items: pa.Table) -> pa.Table:
        found = [to_ipc(self._read(self._work[number])) for number in items["id"].to_pylist()]
        return pa.table({_ROWS: pa.array(found, pa.large_binary())})

    def _read(self, item: AuditItem) -> pa.Table:
        kept, _ = _read(item, self._specs[item.split])
        texts, pairs = _texts(kept)
        columns: dict[str, Any] = {s.FILE_NO: kept[s.FILE_NO], s.ROW_NO: kept[s.ROW_NO]}
        if self._what == s.ID:
            columns[s.ID] = kept[s.ID]
        elif self._what == s.TEXT:
            columns[s.TEXT] = texts if pairs is None else pc.binary_join_element_wise(texts, pairs, " · ")
        else:
            sets = shingle_sets(folded(texts), one_chunk(kept[s.SCRIPT]), pairs)
            offsets = np.cumsum([0, *map(len, sets)])
            values = np.concatenate(sets) if sets else np.empty(0, np.uint64)
            columns[SHINGLES] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
        return pa.table(columns)


def _read(item: AuditItem, spec: ReadSpec) -> tuple[pa.Table, pa.Table]:
    """(kept rows, those that are wanted where a choice is made; refused rows), both with FILE_NO."""
    batches = [(shard, read_shard(shard, spec)) for shard in item.item]
    kept = pa.concat_tables(
        [_of_file(batch.kept, shard.file_no) for shard, batch in batches], promote_options="permissive"
    )
    if item.wanted is not None:
        mask = np.zeros(kept.num_rows, bool)
        for file_no, rows in item.wanted.items():
            mask |= (kept[s.FILE_NO].to_numpy() == file_no) & np.isin(kept[s.ROW_NO].to_numpy(), rows)
        kept = kept.filter(pa.array(mask))
    return kept, pa.concat_tables([_of_file(batch.refused, shard.file_no) for shard, batch in batches])


def _of_file(rows: pa.Table, file_no: int) -> pa.Table:
    return rows.append_column(s.FILE_NO, pa.array(np.full(rows.num_rows, file_no, np.int32)))


def _texts(kept: pa.Table) -> tuple[pa.Array, pa.Array | None]:
    """Cleaned texts, and second texts where there are."""
    pairs = one_chunk(kept[s.TEXT_PAIR]) if s.TEXT_PAIR in kept.column_names else None
    return one_chunk(kept[s.TEXT]), pairs


def _joined(texts: pa.Array, pairs: pa.Array | None) -> pa.Array:
    return texts if pairs is None else pc.binary_join_element_wise(texts, pairs, _BETWEEN)
