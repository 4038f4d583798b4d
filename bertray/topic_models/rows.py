"""The passes of `topics` over reviews, by Ray Data or in this process: embed once, read a sample, assign the rest.

work units → read + clean + tokenize (tasks) → vectors (actors) → parts, kept for the next run
parts → sampled vectors (tasks);  shards → sampled texts (tasks);  parts → topics of all rows (tasks)
"""

from __future__ import annotations

import io
import logging
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.errors import DataRefused, InfrastructureError
from bertray.execution.executor import Executor, Progress, in_order
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import one_chunk
from bertray.model.bundle import BundleInfo
from bertray.outputs.control_files import Record, StagedFile, add_counts
from bertray.outputs.receipts import without_overlap
from bertray.reviews.corpus import Inputs
from bertray.reviews.reader import kept_schema
from bertray.reviews.rows import ROWS_PER_SHARD
from bertray.scoring.read_unit import ReadSettings, num_rows_of
from bertray.scoring.row_makers import EmbedSettings, Made, Maker, VectorMaker
from bertray.scoring.stage_part import stage_parts, unfinished
from bertray.topic_models.clustering import Assigner
from bertray.wording import counted

log = logging.getLogger(__name__)

FOLDER = "control/embeddings"

PARTS = Progress("topics", "part")


class EmbeddedRows(Record):
    """The parts that hold the vectors of an input, in the order of its rows, and what became of the other rows."""

    parts: list[StagedFile]
    reasons: dict[str, int]
    tokens: int
    truncated: int

    @property
    def num_rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def keys(self) -> list[str]:
        return [part.key for part in self.parts]


# --- embed -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlacedVectorSettings(EmbedSettings):
    """Settings of a part of vectors with the places of their rows."""

    with_labels: bool = False

    def maker(self) -> Maker:
        maker = super().maker()
        assert isinstance(maker, VectorMaker)
        return PlacedVectorMaker(self, maker)


class PlacedVectorMaker(Maker):
    """Reviews to one vector each, with file, row and given label."""

    def __init__(self, settings: PlacedVectorSettings, maker: VectorMaker) -> None:
        self._settings, self._maker = settings, maker

    @property
    def precision(self) -> str:
        return self._maker.precision

    def make(self, kept: pa.Table) -> Made:
        made = self._maker.make(kept)
        kept = kept.filter(pa.array(made.finite_N))
        names = [s.FILE_NO, s.ROW_NO, s.ID, *([s.LABEL] if self._settings.with_labels else [])]
        columns = {name: one_chunk(kept[name]) for name in names}
        columns[s.EMBEDDING] = made.rows[s.EMBEDDING]
        columns |= {s.KEEP_PREFIX + name: one_chunk(kept[s.KEEP_PREFIX + name]) for name in self._settings.kept_columns}
        return replace(made, rows=pa.table(columns))


def embed_rows(
    inputs: Inputs, model: str, info: BundleInfo, pooling: Any, store: Store, executor: Executor
) -> EmbeddedRows:
    """Vectors of every usable review; those that an earlier run of this output made are used.

    Args:
        inputs: what to read; its spec says which columns are kept.
        model: the encoder, as `resolve_model` takes it.
        info: how reviews are read, and the version of the encoder.
        pooling: mean or cls.

    Raises:
        DataRefused: no row is usable.
    """
    folder = f"{FOLDER}/{embedding_key(inputs, info, pooling)}"
    manifest = f"{folder}/manifest.json"
    if store.exists(manifest):
        return EmbeddedRows.from_bytes(store.get(manifest), store.uri(manifest))
    spec = inputs.spec
    work = inputs.work_units(ROWS_PER_SHARD)
    adopted, work = unfinished(store, folder, work)
    executor = executor.for_rows(num_rows_of(work))
    settings = PlacedVectorSettings(
        model=model,
        model_version=info.model_version,
        run_id="",
        output=store.root,
        staging=f"{folder}/{uuid.uuid4().hex[:8]}",
        kept_columns=spec.keep_columns,
        kept_schema=kept_schema(inputs.files, spec),
        write_parts=True,
        device=executor.resources.device,
        threads=executor.resources.threads,
        pooling=pooling,
        normalize=True,
        dtype="float16",
        with_labels=spec.wants_label,
    )
    read = ReadSettings(spec, model, info.max_length, info.long_text)
    made = stage_parts(work, [(read, settings)], executor, "embedding", num_rows_of(work))
    receipts = without_overlap([*adopted, *(receipt for (receipt,) in made)])
    found = sum(receipt.rows_in for receipt in receipts)
    if found != inputs.num_rows:
        raise InfrastructureError(
            f"embedding: expected {inputs.num_rows} rows, found {found}.",
            "Run the same command again; it embeds what is missing.",
        )
    embedded = EmbeddedRows(
        parts=[receipt.part for receipt in receipts if receipt.part is not None],
        reasons=add_counts(receipt.reasons for receipt in receipts),
        tokens=sum(receipt.tokens for receipt in receipts),
        truncated=sum(receipt.truncated for receipt in receipts),
    )
    if not embedded.num_rows:
        raise DataRefused(
            f"input: none of {counted(inputs.num_rows, 'row')} is usable ({embedded.reasons}).", "Look at the input."
        )
    store.put(manifest, embedded.to_bytes())
    return embedded


def embedding_key(inputs: Inputs, info: BundleInfo, pooling: str) -> str:
    """Digest of everything that vectors, and the columns beside them, depend on."""
    spec = inputs.spec
    return cache_key(
        {
            "files": [(file.path, file.size_bytes, file.digest) for file in inputs.files],
            "columns": spec.columns.model_dump(),
            "reader": spec.reader.model_dump(),
            "keep_columns": list(spec.keep_columns),
            "labels": spec.wants_label,
            "cleaning": asdict(spec.cleaning),
            "max_chars": spec.max_chars,
            "model": info.model_version,
            "max_length": info.max_length,
            "long_text": info.long_text,
            "pooling": pooling,
        }
    )


# --- sample ----------------------------------------------------------------------------------------------------------


def read_sample(embedded: EmbeddedRows, wanted_W: np.ndarray, store: Store, executor: Executor) -> pa.Table:
    """Some rows of the parts, in order, with their vectors.

    Args:
        wanted_W: numbers of rows, ascending; they count through the parts.
    """
    ends_P = np.cumsum([part.rows for part in embedded.parts])
    starts_P = ends_P - [part.rows for part in embedded.parts]
    picks = [
        wanted_W[np.searchsorted(wanted_W, lo) : np.searchsorted(wanted_W, hi)] - lo
        for lo, hi in zip(starts_P, ends_P, strict=True)
    ]
    some = [number for number, rows in enumerate(picks) if len(rows)]
    parts = [(embedded.keys[number], picks[number]) for number in some]
    return pa.concat_tables(in_order(executor, parts, _ReadPicked(store.root), PARTS)).combine_chunks()


@dataclass(frozen=True)
class _ReadPicked:
    """(key of a part, numbers of some of its rows) to these rows."""

    output: str

    def __call__(self, picked: tuple[str, np.ndarray]) -> pa.Table:
        key, rows = picked
        return read_part(open_store(self.output), key).take(pa.array(rows))


# --- assign ----------------------------------------------------------------------------------------------------------


def assign_rows(embedded: EmbeddedRows, assigner: Assigner, store: Store, executor: Executor) -> pa.Table:
    """Every row, in order, without its vector: `topic`, `nearest_topic`, `similarity` and what the parts carry."""
    assign = _Assign(store.root, assigner)
    return pa.concat_tables(in_order(executor, embedded.keys, assign, PARTS)).combine_chunks()


@dataclass(frozen=True)
class _Assign:
    """Key of a part to its rows with the topic of each."""

    output: str
    assigner: Assigner

    def __call__(self, key: str) -> pa.Table:
        table = read_part(open_store(self.output), key)
        vectors_ND = vectors_of(table)
        topic_N = self.assigner.vote(vectors_ND)
        columns = {name: table[name] for name in table.column_names if name != s.EMBEDDING}
        columns[s.TOPIC] = pa.array(topic_N)
        columns[s.NEAREST_TOPIC] = pa.array(self.assigner.nearest(vectors_ND))
        columns[s.SIMILARITY] = pa.array(self.assigner.similarity(vectors_ND, topic_N))
        return pa.table(columns)


def read_part(store: Store, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.get(key)), page_checksum_verification=True)


def vectors_of(table: pa.Table) -> np.ndarray:
    """float32 [N, D]."""
    column = one_chunk(table[s.EMBEDDING])
    vectors_ND: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
    return vectors_ND
