"""Tasks of `audit`: every row read once and turned into numbers; some rows read again for their text.

work units → read + clean + tokenize + hash (tasks) → numbers of each row on the driver, MinHash bands on its disk
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.auditing.near_duplicates import band_hashes, folded, shingle_sets
from bertray.auditing.text_marks import marks_of
from bertray.execution.executor import Executor, Progress, Task
from bertray.io.tables import one_chunk
from bertray.model.bundle import kept_of_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import ReadSpec, WorkUnit
from bertray.reviews.split import group_hash
from bertray.scoring.read_unit import name_of

KEY, STORED, ID_HASH, FOLDED, NUM_SHINGLES, CHARS, MARKS = (
    "key",
    "stored",
    "id_hash",
    "folded",
    "num_shingles",
    "chars",
    "marks",
)
_BETWEEN = "\x1f"  # a text and its second text, as one


@dataclass(frozen=True)
class AuditUnit:
    """A work unit and the number of its split."""

    split: int
    unit: WorkUnit


@dataclass(frozen=True)
class ScanSettings:
    """Settings of a task that scans reviews for an audit."""

    specs: tuple[ReadSpec, ...]  # of each split; the text column is kept as it is stored
    model: str
    max_length: int
    threshold: float | None  # None: no search for near-duplicates


@dataclass(frozen=True)
class Scanned:
    """A work unit as numbers. rows: FILE_NO, ROW_NO, hashes, counts, LABEL, SCRIPT; bands_BN: uint64; refused rows."""

    number: int
    rows: pa.Table
    bands_BN: np.ndarray
    refused: pa.Table


def scan(work: Sequence[AuditUnit], settings: ScanSettings, executor: Executor) -> Iterator[Scanned]:
    """Every row of every unit as numbers; units arrive in no particular order."""
    progress = Progress("scanning", "work unit", lambda numbered: name_of(numbered[1].unit))
    return executor.run(enumerate(work), [Task(_Scan(settings))], progress)


# Functions for `fetch_rows`: kept rows read again to one value each.


def ids_of(kept: pa.Table) -> list[str]:
    ids: list[str] = kept[s.ID].to_pylist()
    return ids


def shingles_of(kept: pa.Table) -> list[np.ndarray]:
    """The sorted set of shingles of each text, uint64."""
    texts, pairs = _texts(kept)
    return shingle_sets(folded(texts), one_chunk(kept[s.SCRIPT]), pairs)


_tokenizer = kept_of_model(ReviewTokenizer)


@dataclass(frozen=True)
class _Scan:
    """(number, unit) to numbers of its rows."""

    settings: ScanSettings

    def __call__(self, numbered: tuple[int, AuditUnit]) -> Scanned:
        number, unit = numbered
        settings, spec = self.settings, self.settings.specs[unit.split]
        kept, refused = _read(unit, spec)
        texts, pairs = _texts(kept)
        stored = one_chunk(kept[s.KEEP_PREFIX + spec.columns.text_name]).cast(pa.string())
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
        return Scanned(number, pa.table(columns), bands, refused)


def _read(unit: AuditUnit, spec: ReadSpec) -> tuple[pa.Table, pa.Table]:
    """(kept rows, refused rows), both with FILE_NO."""
    batches = [(shard, read_shard(shard, spec)) for shard in unit.unit]
    kept = pa.concat_tables(
        [_of_file(batch.kept, shard.file_no) for shard, batch in batches], promote_options="permissive"
    )
    return kept, pa.concat_tables([_of_file(batch.refused, shard.file_no) for shard, batch in batches])


def _of_file(rows: pa.Table, file_no: int) -> pa.Table:
    return rows.append_column(s.FILE_NO, pa.array(np.full(rows.num_rows, file_no, np.int32)))


def _texts(kept: pa.Table) -> tuple[pa.Array, pa.Array | None]:
    """Cleaned texts, and second texts where there are."""
    pairs = one_chunk(kept[s.TEXT_PAIR]) if s.TEXT_PAIR in kept.column_names else None
    return one_chunk(kept[s.TEXT]), pairs


def _joined(texts: pa.Array, pairs: pa.Array | None) -> pa.Array:
    return texts if pairs is None else pc.binary_join_element_wise(texts, pairs, _BETWEEN)
