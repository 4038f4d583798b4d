"""`vectors.parquet` of `embed` with `pooling=vocabulary`: one vector a unit, made of the sums that are committed.

Legend: U units, D hidden.
"""

from __future__ import annotations

import io
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import EmbedConfig
from bertray.io.digests import cache_key
from bertray.io.store import Store, get_if_there
from bertray.io.tables import one_chunk, parquet_bytes
from bertray.model.bundle import resolve_model
from bertray.model.pretrained.weights import hidden_size
from bertray.model.units import UnitSums, input_vectors
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerRun
from bertray.outputs.publish import part_names
from bertray.settings import VocabularyUnit
from bertray.wording import counted

log = logging.getLogger(__name__)

VECTORS, TEXT = "vectors.parquet", "vectors.txt"
_MADE_OF = b"bertray.made_of"  # key of the file's metadata


def write_vectors(config: EmbedConfig, store: Store) -> None:
    """Write the vectors of all committed runs, unless they are there; may run any number of times, by anyone.

    The files follow from the ledger as reports do: a run that dies before them leaves them to the next.
    """
    known = ledger.read_ledger(store)
    while True:
        runs = ledger.current(known)
        if not runs or _is_made(store, runs, config):
            return
        _write(config, store, runs)
        before, known = len(known), ledger.read_on(store, known)
        if len(known) == before:  # else another run has committed, and may have written before us
            return


def _made_of(runs: list[LedgerRun], config: EmbedConfig) -> str:
    """Digest of all that decides the content."""
    return cache_key({"runs": [run.run_id for run in runs], "format": config.format or "parquet"})


def _is_made(store: Store, runs: list[LedgerRun], config: EmbedConfig) -> bool:
    content = get_if_there(store, VECTORS)
    if content is None:
        return False
    metadata = pq.read_schema(io.BytesIO(content)).metadata or {}
    return metadata.get(_MADE_OF) == _made_of(runs, config).encode()


def _write(config: EmbedConfig, store: Store, runs: list[LedgerRun]) -> None:
    unit = config.vocabulary_unit
    assert unit is not None
    width = hidden_size(resolve_model(config.model))
    units, counts_U, means_UD = _committed_sums(store, runs, width).by_count()
    if config.normalize:
        means_UD = means_UD / np.maximum(np.linalg.norm(means_UD, axis=1, keepdims=True), np.float32(1e-12))
    vectors_UD = means_UD.astype(config.dtype)
    if config.format == "word2vec":
        store.put(TEXT, word2vec_bytes(units, vectors_UD))
    # Last, since what it says of its origin holds for the other file too.
    store.put(VECTORS, parquet_bytes(_table(config, unit, units, counts_U, vectors_UD, runs)))
    log.info("%s: %s", store.uri(VECTORS), counted(len(units), unit))


def _committed_sums(store: Store, runs: list[LedgerRun], width: int) -> UnitSums:
    """Sums over all parts that are the output now."""
    total = UnitSums(width)
    for run in runs:
        for name in part_names(run, "data"):
            part = pq.read_table(io.BytesIO(store.get(f"data/{run.folder}/{name}")), partitioning=None)
            sums = one_chunk(part[s.SUM])
            sums_UD = sums.flatten().to_numpy().reshape(len(sums), -1)
            total.add(part[s.UNIT].to_pylist(), part[s.COUNT].to_numpy(), sums_UD)
    return total


def _table(
    config: EmbedConfig,
    unit: VocabularyUnit,
    units: list[str],
    counts_U: np.ndarray,
    vectors_UD: np.ndarray,
    runs: list[LedgerRun],
) -> pa.Table:
    given = input_vectors(resolve_model(config.model), units, unit)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors_UD.ravel()), vectors_UD.shape[1])
    own_UD = given.vectors_UD.astype(config.dtype)
    unknown_U = pa.array(~given.is_known_U)
    own = pa.FixedSizeListArray.from_arrays(pa.array(own_UD.ravel()), own_UD.shape[1], mask=unknown_U)
    columns = [
        pa.array(units, pa.string()),
        pa.array(counts_U, pa.int64()),
        embedding,
        own,
        pa.array(given.num_pieces_U, pa.int32()),
        pa.array(given.is_known_U),
    ]
    schema = s.unit_vectors_schema(embedding.type, own.type)
    told = {_MADE_OF: _made_of(runs, config), s.UNIT: unit, s.MODEL_VERSION: runs[-1].model_version}
    return pa.table(columns, schema=schema.with_metadata(told))


def word2vec_bytes(units: list[str], vectors_UD: np.ndarray) -> bytes:
    """Text format of word2vec: a line with both numbers, then a unit and its numbers a line.

    White space within a unit, which would end it, becomes `_`.
    """
    lines = [f"{len(units)} {vectors_UD.shape[1]}"]
    for unit, vector_D in zip(units, vectors_UD.tolist(), strict=True):
        lines.append(" ".join(["_".join(unit.split()) or "_", *(f"{number:.6g}" for number in vector_D)]))
    return "\n".join([*lines, ""]).encode()
