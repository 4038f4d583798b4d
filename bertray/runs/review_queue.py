"""`queue`: the reviews of a slot that are worth a person's minutes, as a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.config import Columns, QueueConfig, TextFormat, identity_of, to_yaml
from bertray.errors import ConfigError, DataRefused, InfrastructureError
from bertray.execution.executor import Progress, Task
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import csv_bytes, parquet_bytes
from bertray.outputs import ledger
from bertray.outputs.claims import claimed_output, finished_run, mark_finished
from bertray.outputs.committed_rows import read_rows
from bertray.outputs.control_files import LedgerRun
from bertray.reviews.clean import Cleaning
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import ROWS_PER_SHARD, FileEntry, ReadSpec, Shard
from bertray.reviews.scan import FileScan, ScanSettings, scan_files
from bertray.runs.filled_queues import QUEUE_CSV, QUEUE_PARQUET
from bertray.runs.trust_results import QueueResult
from bertray.trust.sampling import RANDOM, UNCERTAIN, distinct, entropy, stratified_draw
from bertray.wording import counted

LABELS_KEY, ROWS_KEY = b"labels", b"rows"  # of the model, and of the slot, in the metadata of queue.parquet
_CANDIDATES = 8  # uncertain rows whose texts are looked at, for each that is asked
_MAX_CHARS = 20_000


@dataclass(frozen=True)
class _Scored:
    """Rows that a queue is drawn from.

    Args:
        rows: each id once: an answer to an id that several rows have would be of none of them.
        num_repeated: rows that were left out for it.
    """

    rows: pa.Table
    labels: tuple[str, ...]
    num_repeated: int

    @property
    def probs_NC(self) -> np.ndarray:
        return np.column_stack([self.rows[s.prob_column(label)].to_numpy() for label in self.labels]).astype(float)


def queue_reviews(config: QueueConfig, executors: Executors | None = None) -> QueueResult:
    """Draw a queue; the same run again gives back the one that it wrote.

    Raises:
        ConfigError: nothing is committed, or no such slot.
        DataRefused: no row, or reviews that are not there any more.
    """
    scored, store = open_store(config.scored), open_store(config.output)
    entries = ledger.current(ledger.committed_entries(scored, config.slot))
    runs = [run for run in entries if run.slot == entries[-1].slot and run.rows_scored]
    _check(config, runs)
    key = cache_key({"config": identity_of(config), "runs": [run.run_id for run in runs]})
    if finished_run(store, "queue", key):
        return QueueResult(store.root, already_done=True)
    with claimed_output(store, "queue", key, to_yaml(config)):
        found = _read(scored, runs)
        # Draws of several queues are independent of each other, so that their answers can be taken together.
        drawn = stratified_draw(found.probs_NC, -(-config.budget // 2), [config.seed, int(key, 16)])
        with executors_of(config.workers, executors, imports=("ray.data",)) as opened:
            table, skipped = _table(config, found, drawn.rows, drawn.probability, runs, opened, key)
        metadata = {
            LABELS_KEY: "\n".join(found.labels).encode(),
            ROWS_KEY: str(found.rows.num_rows + found.num_repeated).encode(),
        }
        store.put(QUEUE_PARQUET, parquet_bytes(table.replace_schema_metadata(metadata)))
        asked = _asked_once(table)
        store.put(QUEUE_CSV, csv_bytes(asked, exact=True))
        mark_finished(store)
    notes = [f"{counted(skipped, 'uncertain review')} left out as near-duplicates of others."] if skipped else []
    if asked.num_rows < table.num_rows:
        notes.append(
            f"{counted(table.num_rows - asked.num_rows, 'review')} with the very text of another one not in "
            f"{QUEUE_CSV}: the answer to that one counts for them."
        )
    if found.num_repeated:
        notes.append(
            f"{counted(found.num_repeated, 'row')} not asked about: other rows of the slot have the same id "
            "(`ids.unique=slot` puts them into quarantine)."
        )
    num_random = len(drawn.rows)
    return QueueResult(store.root, tuple(notes), num_random=num_random, num_uncertain=table.num_rows - num_random)


def _check(config: QueueConfig, runs: Sequence[LedgerRun]) -> None:
    if not runs:
        raise DataRefused(f"scored: {config.scored} holds no scored row to ask about.", "Name another `slot`.")
    if any("pooling" in run.settings for run in runs):
        raise ConfigError(f"scored: {config.scored} holds vectors of `embed`.", "Give the output of a score run.")
    if any("aspects" in run.settings for run in runs):
        raise ConfigError(
            f"scored: {config.scored} has a row for each aspect of a review, which a queue does not ask about.",
            "Give the output of a model that labels whole reviews.",
        )
    if any(set(run.labels) != set(runs[0].labels) for run in runs):
        raise DataRefused("slot: its runs are of models of other classes.", "Score it again (rescore=replace).")


def _read(store: Store, runs: Sequence[LedgerRun]) -> _Scored:
    labels = tuple(runs[-1].labels)
    names = [s.ID, s.LABEL, s.SCORE, *map(s.prob_column, labels)]
    tables = [read_rows(store, run, names) for run in runs]
    tables = [
        table.append_column(s.SLOT, pa.repeat(run.slot, table.num_rows))
        for table, run in zip(tables, runs, strict=True)
    ]
    rows = pa.concat_tables(tables).combine_chunks()
    ids = rows[s.ID].combine_chunks().dictionary_encode()
    counts = np.bincount(ids.indices.to_numpy(), minlength=len(ids.dictionary))
    once_N = counts[ids.indices.to_numpy()] == 1
    return _Scored(rows.filter(pa.array(once_N)), labels, int((~once_N).sum()))


def _table(
    config: QueueConfig,
    found: _Scored,
    random_M: np.ndarray,
    probability_M: np.ndarray,
    runs: Sequence[LedgerRun],
    executors: Executors,
    key: str,
) -> tuple[pa.Table, int]:
    """The queue, and uncertain reviews that were left out as near-duplicates."""
    num_uncertain = config.budget - len(random_M)
    order = np.argsort(-entropy(found.probs_NC), kind="stable")
    candidates = order[~np.isin(order, random_M)][: _CANDIDATES * num_uncertain]
    wanted = np.concatenate([random_M, candidates])
    texts = _texts(runs, found.rows[s.ID].take(pa.array(wanted)), executors)
    ids = found.rows[s.ID].to_pylist()
    text_of = dict(zip(texts[s.ID].to_pylist(), map("\n".join, texts_of(texts)), strict=True))
    missing = [row for row in random_M.tolist() if ids[row] not in text_of]
    if missing:
        raise DataRefused(
            f"scored: {counted(len(missing), 'review')} of it cannot be read any more, such as {ids[missing[0]]}.",
            "Put the input files back to where they were scored from.",
        )
    candidates = np.array([row for row in candidates.tolist() if ids[row] in text_of], np.int64)
    beside = [text_of[ids[row]] for row in random_M.tolist()]
    kept = distinct([text_of[ids[row]] for row in candidates.tolist()], beside, num_uncertain)
    rows = np.concatenate([random_M, candidates[kept]]).astype(np.int64)
    why = [RANDOM] * len(random_M) + [UNCERTAIN] * len(kept)
    probability = [*probability_M.tolist(), *([None] * len(kept))]
    mixed = np.random.default_rng(config.seed).permutation(len(rows))
    skipped = (max(kept) + 1 if kept else 0) - len(kept)
    return _as_table(
        found, rows[mixed], [why[at] for at in mixed], [probability[at] for at in mixed], texts, key
    ), skipped


def texts_of(table: pa.Table) -> list[tuple[str, str]]:
    """Text and second text of each row; the second is empty where there is none."""
    second = table[s.TEXT_PAIR].to_pylist() if s.TEXT_PAIR in table.column_names else [None] * table.num_rows
    return [(one or "", two or "") for one, two in zip(table[s.TEXT].to_pylist(), second, strict=True)]


def _asked_once(table: pa.Table) -> pa.Table:
    """The queue without rows whose very text another one has."""
    first = {texts: at for at, texts in reversed([*enumerate(texts_of(table))])}
    return table.take(pa.array(sorted(first.values()), pa.int64()))


def _as_table(
    found: _Scored, rows: np.ndarray, why: list[str], probability: list[float | None], texts: pa.Table, key: str
) -> pa.Table:
    taken = found.rows.take(pa.array(rows))
    place = {id_: at for at, id_ in enumerate(texts[s.ID].to_pylist())}
    read = texts.take(pa.array([place[id_] for id_ in taken[s.ID].to_pylist()], pa.int64()))
    count = len(rows)
    return pa.table(
        {
            s.ID: taken[s.ID],
            s.SLOT: taken[s.SLOT],
            s.INPUT_PATH: read[s.INPUT_PATH],
            s.ROW_NO: read[s.ROW_NO],
            s.TEXT: read[s.TEXT],
            **({s.TEXT_PAIR: read[s.TEXT_PAIR]} if s.TEXT_PAIR in read.column_names else {}),
            s.LABEL: pa.nulls(count, pa.string()),
            s.PREDICTION: taken[s.LABEL],
            s.SCORE: taken[s.SCORE],
            s.WHY: pa.array(why, pa.string()),
            s.PROBABILITY: pa.array(probability, pa.float64()),
            s.QUEUE: pa.repeat(key, count),
        }
    )


def _texts(runs: Sequence[LedgerRun], ids: pa.ChunkedArray, executors: Executors) -> pa.Table:
    """Texts of some ids with where they stand, read again from the files of the ledger."""
    tables: list[pa.Table] = []
    for run in runs:
        columns, reader = Columns(**run.settings["columns"]), TextFormat(**run.settings["reader"])
        files = [file for file in run.files if file.reason is None]
        entries = [FileEntry(f.path, f.relative_path, f.format, f.size_bytes, f.modified) for f in files]
        try:
            scans = scan_files(entries, ScanSettings(reader, columns), executors.for_bytes, {})
        except InfrastructureError as error:
            raise DataRefused(
                f"scored: the reviews of slot {run.slot} cannot be read any more ({error.message}).",
                "Put the input files back to where they were scored from.",
            ) from error
        good = [scan.file for scan in scans if isinstance(scan, FileScan)]
        were = {file.path: file.fingerprint for file in files}
        changed = [file.path for file in good if file.fingerprint != (were[file.path] or file.fingerprint)]
        if changed:
            raise DataRefused(
                f"scored: {changed[0]} of slot {run.slot} has changed since it was scored.",
                "Put the file back as it was, or score it again (on_changed_file=replace).",
            )
        spec = ReadSpec(columns=columns, reader=reader, cleaning=Cleaning(), max_chars=_MAX_CHARS)
        shards = plan_shards(good, ROWS_PER_SHARD)
        executor = executors.for_rows(sum(shard.hi - shard.lo for shard in shards))
        task = Task(_Pick(spec, ids.combine_chunks()))
        tables += executor.run(shards, [task], Progress("reading texts", "shard", lambda shard: shard.file.path))
    return pa.concat_tables(tables, promote_options="default") if tables else pa.table({s.ID: [], s.TEXT: []})


@dataclass(frozen=True)
class _Pick:
    """A shard to its rows of some ids."""

    spec: ReadSpec
    ids: pa.Array

    def __call__(self, shard: Shard) -> pa.Table:
        kept = read_shard(shard, self.spec).kept
        names = [s.ID, s.ROW_NO, s.TEXT, *([s.TEXT_PAIR] if s.TEXT_PAIR in kept.column_names else [])]
        kept = kept.filter(pc.is_in(kept[s.ID], value_set=self.ids)).select(names)
        return kept.append_column(s.INPUT_PATH, pa.repeat(shard.file.path, kept.num_rows))
