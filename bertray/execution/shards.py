"""The pipelines over shards of review files, by Ray Data or in this process alone: read, clean, tokenize, then score or
keep as token shards.

work items → read + clean + tokenize (tasks) → model → part + receipt (actors) → receipts on the driver
work items → read + clean + tokenize → token shard (tasks)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.execution.cluster import blocks_of, numbers
from bertray.execution.resources import READER_CPUS, Resources
from bertray.execution.stalls import Pending
from bertray.io.store import open_store
from bertray.io.tables import one_chunk, to_ipc
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.outputs.control_files import Receipt
from bertray.reviews.reader import ReadSpec, Shard, WorkItem, read_shard
from bertray.reviews.split import group_hash, group_or_text_hash, input_hash
from bertray.scoring.stage_part import SHARD, MakePart, PartSettings, shards_of
from bertray.training.token_shards import COLUMNS

FEW_ITEMS = 64  # up to here every reading task carries them all


@dataclass(frozen=True)
class ReadSettings:
    """What a reading task needs; small, because every task carries it."""

    spec: ReadSpec
    model: str
    max_length: int
    long_text: str
    group_column: str | None = None  # column whose equal values stay in one split; by default the text itself


@functools.lru_cache(maxsize=4)
def _tokenizer(model: str, max_length: int, long_text: str) -> ReviewTokenizer:
    """One tokenizer a process, whatever the number of shards it reads."""
    return ReviewTokenizer(resolve_model(model), max_length, long_text)


class SharedWork(Sequence[Any]):
    """Work items in Ray's object store: a process that reads fetches them once, instead of each task carrying all."""

    def __init__(self, work: Sequence[Any]) -> None:
        import ray

        self._ref, self._length = ray.put(list(work)), len(work)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        return _fetched(self._ref)[number]


@functools.lru_cache(maxsize=1)
def _fetched(ref: Any) -> list[Any]:
    import ray

    work: list[Any] = ray.get(ref)
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
        texts = one_chunk(kept[s.TEXT])
        pairs = one_chunk(kept[s.TEXT_PAIR]) if s.TEXT_PAIR in kept.column_names else None
        tokens = tokenizer.encode(texts, pairs)
        # A text that was cut before tokenizing is truncated too, whatever the tokenizer saw of it.
        truncated = pc.or_(one_chunk(tokens[s.TRUNCATED]), one_chunk(kept[s.CUT]))
        tokens = tokens.set_column(tokens.column_names.index(s.TRUNCATED), s.TRUNCATED, truncated)
        columns = {name: kept[name] for name in kept.column_names if name not in (s.TEXT, s.TEXT_PAIR, s.CUT)}
        columns |= {name: tokens[name] for name in tokens.column_names}
        group = settings.group_column
        text_hash_N = group_hash(texts)
        columns[s.TEXT_HASH] = pa.array(text_hash_N)
        columns[s.INPUT_HASH] = pa.array(input_hash(text_hash_N, texts, pairs))
        columns |= tokenizer.coverage(texts)
        if group is not None:
            columns[s.GROUP_HASH] = pa.array(group_or_text_hash(one_chunk(kept[s.KEEP_PREFIX + group]), texts))
        else:
            columns[s.GROUP_HASH] = columns[s.TEXT_HASH]
        for name in (s.REASON, s.DETAIL, s.TEXT_SHA256, s.TEXT_LEN):
            columns[name] = pa.nulls(kept.num_rows, s.REFUSED_SCHEMA.field(name).type)
        return pa.table(columns)


@dataclass(frozen=True)
class TokenShardSummary:
    """What became of one work item.

    Args:
        key: of the token shard; None: no row of it was fit for use.
        rows: that were read.
        reasons: rows that cannot be used, by `Reason`.
    """

    key: str | None
    rows: int
    reasons: dict[str, int]


class WriteTokenShard:
    """Tokenized reviews to one Arrow IPC file; returns its summary as JSON."""

    def __init__(self, output: str, folder: str) -> None:
        self._output, self._folder = output, folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        summaries = [json.dumps(asdict(self.write(table))) for table in shards_of(batch)]
        return pa.table({"id": batch["id"], "summary": pa.array(summaries, pa.string())})

    def write(self, table: pa.Table) -> TokenShardSummary:
        """Write the reviews of a shard that are fit for use."""
        if s.LABEL not in table.column_names:
            table = table.append_column(s.LABEL, pa.nulls(table.num_rows, pa.string()))
        refused = pc.is_valid(table[s.REASON])
        examples = table.filter(pc.invert(refused)).select(list(COLUMNS))
        key = None
        if examples.num_rows:
            first = examples.slice(0, 1).to_pylist()[0]
            key = f"{self._folder}/tokens-{first[s.FILE_NO]:05d}-{first[s.ROW_NO]:012d}.arrow"
            open_store(self._output).put(key, to_ipc(examples))
        counts = pc.value_counts(table[s.REASON].filter(refused)).to_pylist()
        return TokenShardSummary(key, table.num_rows, {count["values"]: count["counts"] for count in counts})


def stage_parts(
    work: Sequence[WorkItem],
    read: ReadSettings,
    settings: PartSettings,
    resources: Resources,
    *,
    only_rows: Mapping[int, np.ndarray] | None = None,
) -> Iterator[Receipt]:
    """Run the pipeline of a night; receipts arrive as parts are staged, in no particular order.

    Where this process is alone, or reviews are few (`Resources.in_process_rows`), they go through it here, on the cores
    of all workers.
    """
    if not work:
        return
    num_rows = sum(shard.hi - shard.lo for item in work for shard in item)
    if resources.alone or num_rows <= resources.in_process_rows:
        settings = replace(settings, threads=settings.threads * resources.num_workers)
        reader, parts = ReadAndTokenize(work, read, only_rows), MakePart(settings)
        yield from (parts.make(table) for table in map(reader.read, work) if table.num_rows)
        return
    from ray.data import ActorPoolStrategy

    dataset = _tokenized(work, read, resources, only_rows).map_batches(
        MakePart,
        fn_constructor_args=(settings,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(resources.num_workers, len(work))),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker or None,
        runtime_env=resources.runtime_env,
    )
    pending = Pending("shard", len(work), lambda number: name_of(work[number]))
    number_of = {(item[0].file_no, item[0].lo): number for number, item in enumerate(work)}
    for batch in blocks_of(dataset, "scoring", pending, resources):
        for text in batch["receipt"].to_pylist():
            receipt = Receipt.model_validate_json(text)
            pending.arrived(number_of.get((receipt.spans[0].file_no, receipt.spans[0].lo), -1))
            yield receipt


def write_token_shards(
    work: Sequence[WorkItem],
    read: ReadSettings,
    output: str,
    folder: str,
    resources: Resources,
    *,
    only_rows: Mapping[int, np.ndarray] | None = None,
) -> Iterator[TokenShardSummary]:
    """Tokenize reviews in parallel into token shards; one summary a work item."""
    if not work:
        return
    writer = WriteTokenShard(output, folder)
    if resources.alone:
        reader = ReadAndTokenize(work, read, only_rows)
        yield from (writer.write(reader.read(item)) for item in work)
        return
    dataset = _tokenized(work, read, resources, only_rows).map_batches(
        writer, batch_size=1, batch_format="pyarrow", num_cpus=READER_CPUS
    )
    pending = Pending("shard", len(work), lambda number: name_of(work[number]))
    for batch in blocks_of(dataset, "tokenizing", pending, resources):
        yield from (TokenShardSummary(**json.loads(text)) for text in batch["summary"].to_pylist())


class ReadTexts:
    """Work items to their cleaned texts."""

    def __init__(self, work: Sequence[WorkItem], spec: ReadSpec) -> None:
        self._work, self._spec = work, spec

    def __call__(self, items: pa.Table) -> pa.Table:
        shards = [shard for number in items["id"].to_pylist() for shard in self._work[number]]
        return pa.table(
            {s.TEXT: pa.chunked_array([one_chunk(read_shard(shard, self._spec).kept[s.TEXT]) for shard in shards])}
        )


def read_texts(work: Sequence[WorkItem], spec: ReadSpec, resources: Resources) -> Iterator[list[str]]:
    """Cleaned texts, work item after work item."""
    for batch in tables_of(work, lambda items: ReadTexts(items, spec), resources, "reading texts", name_of):
        yield batch[s.TEXT].to_pylist()


def _tokenized(
    work: Sequence[WorkItem], read: ReadSettings, resources: Resources, only_rows: Mapping[int, np.ndarray] | None
) -> Any:
    return _in_tasks(work, lambda items: ReadAndTokenize(items, read, only_rows), resources)


Function = Callable[[pa.Table], pa.Table]


def tables_of(
    work: Sequence[Any],
    function_of: Callable[[Sequence[Any]], Function],
    resources: Resources,
    stage: str,
    name_of_item: Callable[[Any], str],
) -> Iterator[pa.Table]:
    """What a function makes of work items, in no particular order: in Ray's tasks, or here where this process is alone.

    Args:
        function_of: makes the function, which takes a table with the numbers of some items, of the items; these lie in
            Ray's object store where they are many.
        stage: what the function does, for the log: `scanning`.
        name_of_item: a work item in the log.
    """
    if resources.alone:
        function = function_of(work)
        yield from (function(pa.table({"id": [number]})) for number in range(len(work)))
    elif work:
        pending = Pending("item", len(work), lambda number: name_of_item(work[number]))
        for block in blocks_of(_in_tasks(work, function_of, resources), stage, pending, resources):
            yield block.drop_columns("id")


def _in_tasks(work: Sequence[Any], function_of: Callable[[Sequence[Any]], Function], resources: Resources) -> Any:
    """A data set of what a function makes of work items, in tasks; its column `id` tells of which. See `tables_of`."""
    items = SharedWork(work) if len(work) > FEW_ITEMS else work
    return numbers(len(work), resources).map_batches(
        _Numbered(function_of(items)), batch_size=None, batch_format="pyarrow", num_cpus=READER_CPUS
    )


class _Numbered:
    """A function of one item after the other, each row with the number of its item as `id`."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, items: pa.Table) -> pa.Table:
        tables = [self._function(items.slice(at, 1)) for at in range(items.num_rows)]
        ids = [pa.repeat(number, table.num_rows) for number, table in zip(items["id"], tables, strict=True)]
        return pa.concat_tables([table.append_column("id", id_) for table, id_ in zip(tables, ids, strict=True)])


def name_of(item: WorkItem) -> str:
    """The first rows of a work item, for the log."""
    return f"{item[0].file.path} rows {item[0].lo}-{item[0].hi}"


def _of_file(rows: pa.Table, shard: Shard) -> pa.Table:
    return rows.append_column(s.FILE_NO, pa.array(np.full(rows.num_rows, shard.file_no, np.int32)))
