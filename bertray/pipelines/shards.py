"""The Ray Data pipelines over shards of review files: read, clean, tokenize, then score or keep as token shards.

work items → read + clean + tokenize (tasks) → model → part + receipt (actors) → receipts on the driver
work items → read + clean + tokenize → token shard (tasks)
"""

from __future__ import annotations

import functools
import hashlib
import io
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.errors import InfrastructureError
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.pipelines.cluster import Resources, configure_data
from bertray.reviews.sources import KEEP_PREFIX, ReadSpec, Shard, WorkItem, read_shard
from bertray.reviews.split import group_hash, group_or_text_hash
from bertray.storage import faults
from bertray.storage.records import SCORE_BINS, TOKEN_BANDS, Receipt, Span, StagedFile
from bertray.storage.store import open_store
from bertray.training.token_shards import COLUMNS, FILE_NO, to_ipc

# Ray Data keeps bookkeeping for each block; beyond this many, one block carries several work items.
MAX_ITEMS = 20_000
FEW_ITEMS = 64  # up to here every reading task carries them all
EVALUATION_COLUMNS = (FILE_NO, s.ROW_NO, s.ID, s.LABEL, s.SCRIPT, s.N_TOKENS, s.TEXT_HASH)
SHARD = "shard"  # column that carries a tokenized shard as an Arrow IPC file


@dataclass(frozen=True)
class ReadSettings:
    """What a reading task needs; small, because every task carries it."""

    spec: ReadSpec
    model: str
    max_length: int
    long_text: str
    group_column: str | None = None  # column whose equal values stay in one split; by default the text itself


@dataclass(frozen=True)
class ScoreSettings:
    """What a scoring actor needs."""

    model: str
    labels: tuple[str, ...]
    temperature: float
    model_version: str
    run_id: str
    output: str
    staging: str  # folder below the output that receives parts and receipts
    kept_columns: tuple[str, ...]
    kept_schema: pa.Schema
    with_labels: bool  # stage what a report on labelled rows needs
    slice_columns: tuple[str, ...]
    needs_review_below: float | None
    write_parts: bool  # False: only the report's staging (evaluate, train)
    device: str
    threads: int


@functools.lru_cache(maxsize=4)
def _tokenizer(model: str, max_length: int, long_text: str) -> ReviewTokenizer:
    """One tokenizer a process, whatever the number of shards it reads."""
    return ReviewTokenizer(resolve_model(model), max_length, long_text)


class _SharedWork(Sequence[WorkItem]):
    """Work items in Ray's object store: a process that reads fetches them once, instead of each task carrying all."""

    def __init__(self, work: Sequence[WorkItem]) -> None:
        import ray

        self._ref, self._length = ray.put(list(work)), len(work)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        return _fetched(self._ref)[number]


@functools.lru_cache(maxsize=1)
def _fetched(ref: Any) -> list[WorkItem]:
    import ray

    work: list[WorkItem] = ray.get(ref)
    return work


class ReadAndTokenize:
    """Work items to tokenized reviews, kept and refused rows together.

    A refused row has a `reason` and no tokens; so each row of an item travels exactly once, and what a later stage
    counts is what was read. A whole item travels as one row of Ray's, as bytes: Ray may join and split blocks as it
    likes and never cuts an item.
    """

    def __init__(
        self, work: Sequence[WorkItem], settings: ReadSettings, only_rows: Mapping[int, np.ndarray] | None = None
    ) -> None:
        self._work, self._settings, self._only_rows = work, settings, only_rows

    def __call__(self, items: pa.Table) -> pa.Table:
        tables = [to_ipc(self.read(self._work[number])) for number in items["id"].to_pylist()]
        return pa.table({SHARD: pa.array(tables, pa.large_binary())})

    def read(self, item: WorkItem) -> pa.Table:
        """The rows of an item; what is tokenized is tokenized in one go, however many files it comes from."""
        batches = [read_shard(shard, self._settings.spec) for shard in item]
        kept = self._tokenized([self._wanted(batch.kept, shard) for batch, shard in zip(batches, item, strict=True)])
        if self._only_rows is not None:
            return kept
        refused = [_of_file(batch.refused, shard) for batch, shard in zip(batches, item, strict=True)]
        return pa.concat_tables([kept, *(rows for rows in refused if rows.num_rows)], promote_options="default")

    def _wanted(self, kept: pa.Table, shard: Shard) -> pa.Table:
        if self._only_rows is not None:
            wanted = np.isin(kept[s.ROW_NO].to_numpy(), self._only_rows.get(shard.file_no, np.empty(0, np.int64)))
            kept = kept.filter(pa.array(wanted))
        path = pa.repeat(pa.scalar(shard.file.path), kept.num_rows)
        return _of_file(kept.append_column(s.INPUT_PATH, path), shard)

    def _tokenized(self, tables: Sequence[pa.Table]) -> pa.Table:
        settings = self._settings
        kept = pa.concat_tables(tables, promote_options="default")
        tokenizer = _tokenizer(settings.model, settings.max_length, settings.long_text)
        texts = _one_chunk(kept[s.TEXT])
        pairs = _one_chunk(kept[s.TEXT_PAIR]) if s.TEXT_PAIR in kept.column_names else None
        tokens = tokenizer.encode(texts, pairs)
        # A text that was cut before tokenizing is truncated too, whatever the tokenizer saw of it.
        truncated = pc.or_(_one_chunk(tokens[s.TRUNCATED]), _one_chunk(kept["cut"]))
        tokens = tokens.set_column(tokens.column_names.index(s.TRUNCATED), s.TRUNCATED, truncated)
        columns = {name: kept[name] for name in kept.column_names if name not in (s.TEXT, s.TEXT_PAIR, "cut")}
        columns |= {name: tokens[name] for name in tokens.column_names}
        group = settings.group_column
        columns[s.TEXT_HASH] = pa.array(group_hash(texts))
        if group is not None:
            columns[s.GROUP_HASH] = pa.array(group_or_text_hash(_one_chunk(kept[KEEP_PREFIX + group]), texts))
        else:
            columns[s.GROUP_HASH] = columns[s.TEXT_HASH]
        for name in (s.REASON, s.DETAIL, s.TEXT_SHA256, s.TEXT_LEN):
            columns[name] = pa.nulls(kept.num_rows, s.REFUSED_SCHEMA.field(name).type)
        return pa.table(columns)


class WriteTokenShard:
    """Tokenized, labelled reviews to one Arrow IPC file; returns where it lies and what it holds."""

    def __init__(self, output: str, folder: str) -> None:
        self._output, self._folder = output, folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([self._write(table) for table in _shards_of(batch)])

    def _write(self, table: pa.Table) -> pa.Table:
        refused = pc.is_valid(table[s.REASON])
        reasons = pc.value_counts(table[s.REASON].filter(refused)).to_pylist()
        examples = table.filter(pc.invert(refused)).select(list(COLUMNS))
        key = None
        if examples.num_rows:
            first = examples.slice(0, 1).to_pylist()[0]
            key = f"{self._folder}/tokens-{first[FILE_NO]:05d}-{first[s.ROW_NO]:012d}.arrow"
            open_store(self._output).put(key, to_ipc(examples))
        return pa.table(
            {
                "key": pa.array([key], pa.string()),
                "rows": pa.array([table.num_rows], pa.int64()),
                "refused": pa.array([int(pc.sum(refused).as_py() or 0)], pa.int64()),
                "tokens": pa.array([int(pc.sum(examples[s.N_TOKENS]).as_py() or 0)], pa.int64()),
                "truncated": pa.array([int(pc.sum(table[s.TRUNCATED]).as_py() or 0)], pa.int64()),
                "reasons": pa.array([str({r["values"]: r["counts"] for r in reasons})], pa.string()),
            }
        )


class ScoreShard:
    """An actor that holds the model: a tokenized work item in, its part staged, its receipt out."""

    def __init__(self, settings: ScoreSettings) -> None:
        import torch

        from bertray.model.predictor import Predictor

        if settings.device == "cpu":
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._store = open_store(settings.output)
        self._predictor = Predictor(
            resolve_model(settings.model), temperature=settings.temperature, device=settings.device
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        receipts = [self._score(table).model_dump_json() for table in _shards_of(batch) if table.num_rows]
        return pa.table({"receipt": pa.array(receipts, pa.string())})

    def _score(self, table: pa.Table) -> Receipt:
        settings, started = self._settings, time.monotonic()
        refused_mask = pc.is_valid(table[s.REASON])
        kept, refused = table.filter(pc.invert(refused_mask)), table.filter(refused_mask).select(s.REFUSED_SCHEMA.names)
        repeated_before = self._predictor.repeated_rows
        probs_NC = self._predictor.probs(kept)
        finite_N = np.isfinite(probs_NC).all(axis=1)
        if not finite_N.all():
            # The rows that came with a reason may have lost "not null" on their way; these have it.
            nan = _refuse_nan(kept.filter(pa.array(~finite_N)))
            refused = pa.concat_tables([refused, nan], promote_options="permissive")
            kept, probs_NC = kept.filter(pa.array(finite_N)), probs_NC[finite_N]
        spans = _spans(table, kept)
        name = f"{spans[0].file_no:05d}-{spans[0].lo:012d}-{uuid.uuid4().hex[:8]}"
        scored = self._scored_rows(kept, probs_NC)
        score_N = scored[s.SCORE].to_numpy()
        n_tokens_N = scored[s.N_TOKENS].to_numpy()
        receipt = Receipt(
            spans=spans,
            reasons=_counts(refused[s.REASON]),
            label_counts=_counts(scored[s.LABEL]),
            score_histogram=np.histogram(score_N, SCORE_BINS, (0.0, 1.0))[0].tolist(),
            token_histogram=np.bincount(
                np.searchsorted(TOKEN_BANDS, n_tokens_N), minlength=len(TOKEN_BANDS) + 1
            ).tolist(),
            tokens=int(n_tokens_N.sum()),
            truncated=int(pc.sum(scored[s.TRUNCATED]).as_py() or 0),
            repeated=self._predictor.repeated_rows - repeated_before,
            needs_review=int(pc.sum(scored[s.NEEDS_REVIEW]).as_py() or 0) if settings.needs_review_below else 0,
            seconds=time.monotonic() - started,
            part=self._stage(f"part-{name}", scored) if settings.write_parts and kept.num_rows else None,
            quarantine=self._stage(f"q-{name}", self._quarantine_rows(refused)) if refused.num_rows else None,
            evaluation=self._stage(f"eval-{name}", self._evaluation_rows(kept, probs_NC))
            if settings.with_labels and kept.num_rows
            else None,
        )
        # Written after everything it names: without a receipt a staged file does not exist.
        self._store.put_new(f"{settings.staging}/{name}.receipt.json", receipt.to_bytes())
        faults.point("receipt.after_put")
        return receipt

    def _scored_rows(self, kept: pa.Table, probs_NC: np.ndarray) -> pa.Table:
        settings, num_rows = self._settings, kept.num_rows
        best_N = probs_NC.argmax(axis=1) if num_rows else np.empty(0, np.int64)
        score_N = probs_NC[np.arange(num_rows), best_N].astype(np.float32)
        labels = pa.DictionaryArray.from_arrays(pa.array(best_N, pa.int32()), pa.array(settings.labels, pa.string()))
        columns: list[Any] = [_one_chunk(kept[s.ID]), labels.cast(pa.string()), pa.array(score_N)]
        columns += [pa.array(np.ascontiguousarray(probs_NC[:, c], np.float32)) for c in range(len(settings.labels))]
        columns += [_one_chunk(kept[s.N_TOKENS]), _one_chunk(kept[s.TRUNCATED])]
        if settings.needs_review_below is not None:
            columns.append(pa.array(score_N < settings.needs_review_below))
        columns += [
            pa.repeat(pa.scalar(settings.model_version), num_rows),
            pa.repeat(pa.scalar(settings.run_id), num_rows),
            pa.repeat(pa.scalar(datetime.now(UTC), s.TIMESTAMP), num_rows),
        ]
        columns += [_one_chunk(kept[KEEP_PREFIX + name]) for name in settings.kept_columns]
        kept_schema = s.scored_schema(
            list(settings.labels), settings.kept_schema, needs_review=settings.needs_review_below is not None
        )
        return pa.table(columns, schema=kept_schema)

    def _quarantine_rows(self, refused: pa.Table) -> pa.Table:
        count = refused.num_rows
        run_ids = pa.repeat(pa.scalar(self._settings.run_id), count)
        times = pa.repeat(pa.scalar(datetime.now(UTC), s.TIMESTAMP), count)
        columns = [*(refused[name] for name in s.REFUSED_SCHEMA.names), run_ids, times]
        return pa.table(columns, schema=s.QUARANTINE_SCHEMA)

    def _evaluation_rows(self, kept: pa.Table, probs_NC: np.ndarray) -> pa.Table:
        """What the report needs of labelled rows; not part of the output."""
        columns: dict[str, Any] = {name: kept[name] for name in EVALUATION_COLUMNS}
        for number, label in enumerate(self._settings.labels):
            columns[s.prob_column(label)] = pa.array(np.ascontiguousarray(probs_NC[:, number], np.float32))
        for name in self._settings.slice_columns:
            columns[f"slice:{name}"] = kept[KEEP_PREFIX + name].cast(pa.string())
        return pa.table(columns)

    def _stage(self, name: str, table: pa.Table) -> StagedFile:
        content = parquet_bytes(table)
        key = f"{self._settings.staging}/{name}.parquet"
        self._store.put(key, content)
        faults.point("part.after_put")
        return StagedFile(key=key, rows=table.num_rows, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def score_shards(
    work: Sequence[WorkItem],
    read: ReadSettings,
    score: ScoreSettings,
    resources: Resources,
    *,
    only_rows: Mapping[int, np.ndarray] | None = None,
) -> Iterator[Receipt]:
    """Run the scoring pipeline; receipts arrive as parts are staged, in no particular order."""
    from ray.data import ActorPoolStrategy
    from ray.data.exceptions import ExecutionTimeoutError

    if not work:
        return
    dataset = _tokenized(work, read, resources, only_rows).map_batches(
        ScoreShard,
        fn_constructor_args=(score,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(resources.num_workers, len(work))),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker or None,
    )
    waiting = {(item[0].file_no, item[0].lo): item[0] for item in work}
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for text in batch["receipt"].to_pylist():
                receipt = Receipt.model_validate_json(text)
                waiting.pop((receipt.spans[0].file_no, receipt.spans[0].lo), None)
                yield receipt
    except ExecutionTimeoutError as error:
        first = next(iter(waiting.values()))
        raise InfrastructureError(
            f"scoring: no shard was finished for {resources.stall_timeout_s:,.0f} s; {len(waiting)} are waiting, first "
            f"{first.file.path} rows {first.lo}-{first.hi}.",
            "Look for a worker that hangs (`ray list actors`), then run the same command again; a slow model needs a "
            "longer workers.stall_timeout_s.",
        ) from error


def write_token_shards(
    work: Sequence[WorkItem], read: ReadSettings, output: str, folder: str, resources: Resources
) -> Iterator[dict[str, Any]]:
    """Tokenize labelled reviews in parallel into token shards; one summary a shard."""
    if not work:
        return
    dataset = _tokenized(work, read, resources, None).map_batches(
        WriteTokenShard(output, folder), batch_size=1, batch_format="pyarrow", num_cpus=0.5
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def _tokenized(
    work: Sequence[WorkItem], read: ReadSettings, resources: Resources, only_rows: Mapping[int, np.ndarray] | None
) -> Any:
    import ray.data

    configure_data(resources.stall_timeout_s)
    num_blocks = min(len(work), MAX_ITEMS)
    if len(work) > FEW_ITEMS:
        work = _SharedWork(work)
    return ray.data.range(len(work), override_num_blocks=num_blocks).map_batches(
        ReadAndTokenize(work, read, only_rows), batch_size=None, batch_format="pyarrow", num_cpus=0.5
    )


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet as bertray writes it everywhere: zstd, with a checksum on every page."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _shards_of(batch: pa.Table) -> Iterator[pa.Table]:
    """The tokenized shards in a batch of Ray's, without a copy."""
    for content in _one_chunk(batch[SHARD]):
        yield pa.ipc.open_file(content.as_buffer()).read_all()


def _of_file(rows: pa.Table, shard: Shard) -> pa.Table:
    return rows.append_column(FILE_NO, pa.array(np.full(rows.num_rows, shard.file_no, np.int32)))


def _spans(table: pa.Table, kept: pa.Table) -> list[Span]:
    """What of each file is in a work item, ascending; `kept` are the rows of `table` that were scored."""
    file_nos_F, which_N = np.unique(table[FILE_NO].to_numpy(), return_inverse=True)
    row_no_N = table[s.ROW_NO].to_numpy()
    lo_F = np.full(len(file_nos_F), np.iinfo(np.int64).max)
    hi_F = np.zeros(len(file_nos_F), np.int64)
    np.minimum.at(lo_F, which_N, row_no_N)
    np.maximum.at(hi_F, which_N, row_no_N + 1)
    rows_F = np.bincount(which_N, minlength=len(file_nos_F))
    scored_F = np.bincount(np.searchsorted(file_nos_F, kept[FILE_NO].to_numpy()), minlength=len(file_nos_F))
    columns = zip(file_nos_F, lo_F, hi_F, scored_F, rows_F - scored_F, strict=True)
    return [
        Span(file_no=file_no, lo=lo, hi=hi, rows_scored=scored, rows_quarantined=refused)
        for file_no, lo, hi, scored, refused in (map(int, values) for values in columns)
    ]


def _refuse_nan(rows: pa.Table) -> pa.Table:
    nothing = {name: pa.nulls(rows.num_rows, s.REFUSED_SCHEMA.field(name).type) for name in s.REFUSED_SCHEMA.names}
    known = {s.ROW_NO: rows[s.ROW_NO], s.ID: rows[s.ID], s.INPUT_PATH: rows[s.INPUT_PATH]}
    reason = {s.REASON: pa.repeat(pa.scalar(str(s.Reason.MODEL_NAN)), rows.num_rows)}
    columns = {**nothing, **known, **reason}
    return pa.table([columns[name] for name in s.REFUSED_SCHEMA.names], schema=s.REFUSED_SCHEMA)


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
