"""The passes of `topics` over reviews, by Ray Data or in this process: embed once, read a sample, assign the rest.

work items → read + clean + tokenize (tasks) → vectors (actors) → parts, kept for the next run
parts → sampled vectors (tasks);  shards → sampled texts (tasks);  parts → topics of all rows (tasks)
"""

from __future__ import annotations

import functools
import io
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.console import Ticker
from bertray.errors import ConflictError, DataRefused, InfrastructureError
from bertray.execution.cluster import blocks_of, numbers
from bertray.execution.resources import READER_CPUS, Resources
from bertray.execution.shards import ReadSettings, stage_parts
from bertray.execution.stalls import Pending
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import one_chunk, to_ipc
from bertray.model.bundle import BundleInfo
from bertray.outputs.control_files import Receipt, Record, StagedFile, add_counts
from bertray.reviews.corpus import Inputs
from bertray.reviews.reader import Shard, kept_schema, read_shard
from bertray.scoring import plan as planning
from bertray.scoring.stage_part import SHARD, EmbedSettings, Made, Maker, VectorMaker, shards_of
from bertray.topic_models.clustering import Assigner
from bertray.wording import counted

log = logging.getLogger(__name__)

FOLDER = "control/embeddings"
ROWS_PER_SHARD = 4096

Task = Callable[[int], pa.Table]


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
    """Of vectors that know from which row they come."""

    with_labels: bool = False

    def maker(self) -> Maker:
        maker = super().maker()
        assert isinstance(maker, VectorMaker)
        return PlacedVectorMaker(self, maker)


class PlacedVectorMaker(Maker):
    """Reviews to one vector each, with file, row and given label."""

    def __init__(self, settings: PlacedVectorSettings, maker: VectorMaker) -> None:
        self._settings, self._maker = settings, maker

    def make(self, kept: pa.Table) -> Made:
        made = self._maker.make(kept)
        kept = kept.filter(pa.array(made.finite_N))
        names = [s.FILE_NO, s.ROW_NO, s.ID, *([s.LABEL] if self._settings.with_labels else [])]
        columns = {name: one_chunk(kept[name]) for name in names}
        columns[s.EMBEDDING] = made.rows[s.EMBEDDING]
        columns |= {s.KEEP_PREFIX + name: one_chunk(kept[s.KEEP_PREFIX + name]) for name in self._settings.kept_columns}
        return replace(made, rows=pa.table(columns))


def embed_rows(
    inputs: Inputs, model: str, info: BundleInfo, pooling: Any, store: Store, resources: Resources
) -> EmbeddedRows:
    """Vectors of every usable review; those that an earlier run of this output made are used.

    Args:
        inputs: what to read; its spec says which columns are kept.
        model: the encoder, as `resolve_model` takes it.
        info: how reviews are read, and the version of the encoder.
        pooling: mean or cls.
        store: the output.
        resources: layout of the workers.

    Raises:
        DataRefused: no row is usable.
    """
    folder = f"{FOLDER}/{embedding_key(inputs, info, pooling)}"
    manifest = f"{folder}/manifest.json"
    if store.exists(manifest):
        return EmbeddedRows.from_bytes(store.get(manifest), store.uri(manifest))
    spec = inputs.spec
    settings = PlacedVectorSettings(
        model=model,
        model_version=info.model_version,
        run_id="",
        output=store.root,
        staging=f"{folder}/{uuid.uuid4().hex[:8]}",
        kept_columns=spec.keep_columns,
        kept_schema=kept_schema(inputs.files, spec),
        write_parts=True,
        device=resources.device,
        threads=resources.threads,
        pooling=pooling,
        normalize=True,
        dtype="float16",
        with_labels=spec.wants_label,
    )
    work = inputs.work_items(ROWS_PER_SHARD)
    pieces = [tuple((shard.file_no, shard.lo, shard.hi) for shard in item) for item in work]
    receipts = planning.adopt(pieces, _whole_receipts(store, folder))
    if receipts:
        log.info("%d finished parts of an earlier run are used", len(receipts))
    done = {receipt.intervals for receipt in receipts}
    todo = [item for item, piece in zip(work, pieces, strict=True) if piece not in done]
    read = ReadSettings(spec, model, info.max_length, info.long_text)
    with Ticker("embedding", inputs.num_rows, "reviews") as ticker:
        for receipt in stage_parts(todo, read, settings, resources):
            receipts.append(receipt)
            ticker.update(sum(receipt.rows_in for receipt in receipts))
    receipts = sorted(planning.without_overlap(receipts), key=lambda receipt: receipt.intervals)
    if sum(receipt.rows_in for receipt in receipts) != inputs.num_rows:
        raise InfrastructureError(
            f"embedding: expected {inputs.num_rows} rows, found {sum(receipt.rows_in for receipt in receipts)}.",
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
    """Of everything that vectors, and the columns beside them, depend on."""
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


def _whole_receipts(store: Store, folder: str) -> list[Receipt]:
    """Of parts that an earlier run finished."""
    found = []
    for key in store.keys(folder):
        if key.endswith(".receipt.json"):
            try:
                receipt = Receipt.from_bytes(store.get(key), store.uri(key))
            except ConflictError:
                log.warning("%s: damaged; its rows are embedded again", store.uri(key))
                continue
            if planning.is_whole(store, receipt):
                found.append(receipt)
    return found


# --- sample ----------------------------------------------------------------------------------------------------------


def read_sample(embedded: EmbeddedRows, wanted_W: np.ndarray, store: Store, resources: Resources) -> pa.Table:
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
    read = ReadPicked(store.root, [embedded.keys[number] for number in some], [picks[number] for number in some])
    return pa.concat_tables(in_tasks(read, len(some), resources)).combine_chunks()


class ReadPicked:
    """Some rows of a part."""

    def __init__(self, output: str, keys: Sequence[str], picks: Sequence[np.ndarray]) -> None:
        self._output, self._keys, self._picks = output, list(keys), list(picks)

    def __call__(self, number: int) -> pa.Table:
        return read_part(open_store(self._output), self._keys[number]).take(pa.array(self._picks[number]))


def read_texts(inputs: Inputs, file_no_N: np.ndarray, row_no_N: np.ndarray, resources: Resources) -> list[str]:
    """Cleaned texts of some rows, in the order asked for; read again, for vectors do not carry them along."""
    shards, places = [], []
    for shard in inputs.shards(ROWS_PER_SHARD):
        where = np.flatnonzero((file_no_N == shard.file_no) & (row_no_N >= shard.lo) & (row_no_N < shard.hi))
        if len(where):
            shards.append(shard)
            places.append(where)
    read = ReadTexts(inputs, shards, [row_no_N[where] for where in places])
    texts = np.empty(len(row_no_N), object)
    for where, table in zip(places, in_tasks(read, len(shards), resources), strict=True):
        texts[where] = table[s.TEXT].to_pylist()
    found: list[str] = texts.tolist()
    return found


class ReadTexts:
    """Texts of some rows of a shard."""

    def __init__(self, inputs: Inputs, shards: Sequence[Shard], rows: Sequence[np.ndarray]) -> None:
        self._spec, self._shards, self._rows = inputs.spec, list(shards), list(rows)

    def __call__(self, number: int) -> pa.Table:
        kept = read_shard(self._shards[number], self._spec).kept
        places = np.searchsorted(kept[s.ROW_NO].to_numpy(), self._rows[number])
        return kept.select([s.TEXT]).take(pa.array(places)).combine_chunks()


# --- assign ----------------------------------------------------------------------------------------------------------


def assign_rows(embedded: EmbeddedRows, assigner: Assigner, store: Store, resources: Resources) -> pa.Table:
    """Every row, in order, without its vector: `topic`, `nearest_topic`, `similarity` and what the parts carry."""
    assign = Assign(store.root, embedded.keys, assigner)
    return pa.concat_tables(in_tasks(assign, len(embedded.keys), resources)).combine_chunks()


class Assign:
    """The rows of a part with the topic of each."""

    def __init__(self, output: str, keys: Sequence[str], assigner: Assigner) -> None:
        self._output, self._keys, self._assigner = output, list(keys), assigner

    def __call__(self, number: int) -> pa.Table:
        table = read_part(open_store(self._output), self._keys[number])
        vectors_ND = vectors_of(table)
        topic_N = self._assigner.vote(vectors_ND)
        columns = {name: table[name] for name in table.column_names if name != s.EMBEDDING}
        columns[s.TOPIC] = pa.array(topic_N)
        columns[s.NEAREST_TOPIC] = pa.array(self._assigner.nearest(vectors_ND))
        columns[s.SIMILARITY] = pa.array(self._assigner.similarity(vectors_ND, topic_N))
        return pa.table(columns)


def read_part(store: Store, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.get(key)), page_checksum_verification=True)


def vectors_of(table: pa.Table) -> np.ndarray:
    """float32 [N, D]."""
    column = one_chunk(table[s.EMBEDDING])
    vectors_ND: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
    return vectors_ND


def in_tasks(task: Task, count: int, resources: Resources) -> list[pa.Table]:
    """`task(0)` … `task(count - 1)`, in Ray tasks or in this process alone; the tables in order.

    They travel as bytes: Ray may split no table.
    """
    if resources.alone:
        return [task(number) for number in range(count)]
    import ray

    dataset = numbers(count, resources).map_batches(
        _AsBytes(ray.put(task)), batch_size=1, batch_format="pyarrow", num_cpus=READER_CPUS
    )
    found: dict[int, pa.Table] = {}
    for batch in blocks_of(dataset, "topics", Pending("part", count, str), resources):
        found |= dict(zip(batch["id"].to_pylist(), shards_of(batch), strict=True))
    return [found[number] for number in range(count)]


class _AsBytes:
    """Items to the tables that a task makes of them; a process fetches the task once."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __call__(self, items: pa.Table) -> pa.Table:
        task = _fetched(self._task)
        tables = [to_ipc(task(number)) for number in items["id"].to_pylist()]
        return pa.table({"id": items["id"], SHARD: pa.array(tables, pa.large_binary())})


@functools.lru_cache(maxsize=1)
def _fetched(task: Any) -> Task:
    import ray

    found: Task = ray.get(task)
    return found
