"""Scored rows of tokenized work units, staged as a part with its receipt by an actor."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.console import Ticker
from bertray.execution import metrics
from bertray.execution.executor import Executor, Progress, Stage, Task, actors
from bertray.io import faults
from bertray.io.store import Store, check_seen, open_store
from bertray.io.tables import parquet_bytes
from bertray.outputs.control_files import SCORE_BINS, TOKEN_BANDS, Receipt, Span, StagedFile
from bertray.outputs.receipts import adopt, whole_receipts
from bertray.reviews.kept_rows import Keep
from bertray.reviews.labels import value_counts
from bertray.reviews.rows import WorkUnit
from bertray.runtime import without_collection
from bertray.scoring.read_unit import ReadAndTokenize, ReadForEach, ReadSettings, ReadUnit, intervals, name_of
from bertray.scoring.row_makers import PartSettings
from bertray.training.token_shards import reading_of

log = logging.getLogger(__name__)


class MakePart:
    """An actor that holds a model: a tokenized work unit in, its part staged, its receipt out."""

    def __init__(self, settings: PartSettings) -> None:
        with without_collection():
            import torch

            if settings.device == "cpu":
                torch.set_num_threads(settings.threads)
            self._settings = settings
            self._store = open_store(settings.output)
            if settings.write_parts:  # else the first part may be the first thing that is written
                check_seen(self._store)
            self._maker = settings.maker()
            self._computing = threading.Lock()  # one call at a time; the staging of several may overlap

    def __call__(self, table: pa.Table) -> Receipt | None:
        """Receipt of a work unit; None where it has no row."""
        return self.make(table) if table.num_rows else None

    def make(self, table: pa.Table) -> Receipt:
        """Make and stage what there is to make of one work unit."""
        settings, started = self._settings, time.monotonic()
        refused_mask = pc.is_valid(table[s.REASON])
        kept, refused = table.filter(pc.invert(refused_mask)), _refused(table.filter(refused_mask))
        asked = time.monotonic()
        with self._computing:
            waited_s = time.monotonic() - asked
            made = self._maker.make(kept)
        if not made.finite_N.all():
            # The rows that came with a reason may have lost "not null" on their way; these have it.
            nan = _refuse_nan(kept.filter(pa.array(~made.finite_N)))
            refused = pa.concat_tables([refused, nan], promote_options="permissive")
            kept = kept.filter(pa.array(made.finite_N))
        spans = _spans(table, kept)
        name = f"{spans[0].file_no:05d}-{spans[0].lo:012d}-{uuid.uuid4().hex[:8]}"
        n_tokens_N = kept[s.N_TOKENS].to_numpy()
        counted = {"label_counts": {}, "score_histogram": [0] * SCORE_BINS, "needs_review": 0} | made.counted
        receipt = Receipt(
            spans=spans,
            reasons=value_counts(refused[s.REASON]),
            token_histogram=np.bincount(
                np.searchsorted(TOKEN_BANDS, n_tokens_N), minlength=len(TOKEN_BANDS) + 1
            ).tolist(),
            tokens=int(n_tokens_N.sum()),
            truncated=int(pc.sum(kept[s.TRUNCATED]).as_py() or 0),
            repeated=made.repeated,
            precisions={self._maker.precision: kept.num_rows} if kept.num_rows else {},
            scripts=value_counts(kept[s.SCRIPT]),
            reading=reading_of(kept),
            seconds=time.monotonic() - started - waited_s - made.aside_s,
            part=self._stage(f"part-{name}", made.rows) if settings.write_parts and kept.num_rows else None,
            quarantine=self._stage(f"q-{name}", self._quarantine_rows(refused)) if refused.num_rows else None,
            evaluation=self._stage(f"eval-{name}", made.evaluation) if made.evaluation is not None else None,
            **counted,
        )
        # Written after everything it names: without a receipt a staged file does not exist.
        self._store.put_new(f"{settings.staging}/{name}.receipt.json", receipt.to_bytes())
        faults.point("receipt.after_put")
        metrics.add(metrics.ROWS, receipt.rows_scored)
        metrics.add(metrics.TOKENS, receipt.tokens)
        metrics.add(metrics.QUARANTINED, receipt.rows_quarantined)
        metrics.add(metrics.SECONDS, receipt.seconds, "model")
        return receipt

    def _quarantine_rows(self, refused: pa.Table) -> pa.Table:
        count = refused.num_rows
        run_ids = pa.repeat(pa.scalar(self._settings.run_id), count)
        times = pa.repeat(pa.scalar(datetime.now(UTC), s.TIMESTAMP), count)
        columns = [*(refused[name] for name in s.REFUSED_SCHEMA.names), run_ids, times]
        return pa.table(columns, schema=s.QUARANTINE_SCHEMA)

    def _stage(self, name: str, table: pa.Table) -> StagedFile:
        content = parquet_bytes(table)
        key = f"{self._settings.staging}/{name}.parquet"
        etag = self._store.put(key, content)
        faults.point("part.after_put")
        digest = hashlib.sha256(content).hexdigest()
        return StagedFile(key=key, rows=table.num_rows, bytes=len(content), sha256=digest, etag=etag)


def unfinished(store: Store, folder: str, work: Sequence[WorkUnit]) -> tuple[list[Receipt], list[WorkUnit]]:
    """Receipts of finished parts that an earlier attempt left in a folder, and the work that none of them covers."""
    adopted = adopt(map(intervals, work), whole_receipts(store, folder))
    if adopted:
        log.info("%d finished parts of an earlier attempt are used", len(adopted))
    done = {receipt.intervals for receipt in adopted}
    return adopted, [unit for unit in work if intervals(unit) not in done]


class MakeParts:
    """An actor that holds one model or several: a work unit tokenized for each in, the receipts of its parts out."""

    def __init__(self, settings: Sequence[PartSettings]) -> None:
        self._makers = [MakePart(each) for each in settings]

    def __call__(self, tables: Sequence[pa.Table]) -> list[Receipt | None]:
        """Receipts of a work unit in the order of the models."""
        return [maker(table) for maker, table in zip(self._makers, tables, strict=True)]


def stage_parts(
    work: Sequence[ReadUnit],
    models: Sequence[tuple[ReadSettings, PartSettings]],
    executor: Executor,
    doing: str,
    num_rows: int,
    keep: Keep | None = None,
) -> Iterator[list[Receipt]]:
    """Read and tokenize work units in tasks, compute and stage parts in actors.

    Args:
        work: what there is to read; it is read once, whatever the number of models.
        models: how each reads, and what it stages; the specs differ in cleaning at most.
        doing: what progress is called, such as scoring.
        num_rows: of all the work.
        keep: rows to write down, as the first model cleans them.

    Yields:
        For a work unit that has rows, in any order, the receipt of each model.
    """
    readers = [ReadAndTokenize(read, keep if number == 0 else None) for number, (read, _) in enumerate(models)]
    settings = tuple(each for _, each in models)
    stages: list[Stage] = [
        Task(ReadForEach(tuple(readers)), executor.resources.reader_cpus),
        # While one call writes its part, the other one computes.
        actors(partial(MakeParts, settings), executor.resources, calls_on_gpu=2),
    ]
    done = 0
    with Ticker(doing, num_rows, "reviews") as ticker:
        for receipts in executor.run(work, stages, Progress(doing, "shard", name_of)):
            if None not in receipts:
                done += receipts[0].rows_scored + receipts[0].rows_quarantined  # of a sample, fewer than its spans
                ticker.update(done)
                yield receipts


def _spans(table: pa.Table, kept: pa.Table) -> list[Span]:
    """Rows of each file in a work unit, ascending; `kept` are the rows of `table` that were scored."""
    file_nos_F, which_N = np.unique(table[s.FILE_NO].to_numpy(), return_inverse=True)
    row_no_N = table[s.ROW_NO].to_numpy()
    lo_F = np.full(len(file_nos_F), np.iinfo(np.int64).max)
    hi_F = np.zeros(len(file_nos_F), np.int64)
    np.minimum.at(lo_F, which_N, row_no_N)
    np.maximum.at(hi_F, which_N, row_no_N + 1)
    rows_F = np.bincount(which_N, minlength=len(file_nos_F))
    scored_F = np.bincount(np.searchsorted(file_nos_F, kept[s.FILE_NO].to_numpy()), minlength=len(file_nos_F))
    columns = zip(file_nos_F, lo_F, hi_F, scored_F, rows_F - scored_F, strict=True)
    return [
        Span(file_no=file_no, lo=lo, hi=hi, rows_scored=scored, rows_quarantined=refused)
        for file_no, lo, hi, scored, refused in (map(int, values) for values in columns)
    ]


def _refused(rows: pa.Table) -> pa.Table:
    """Refused rows as the quarantine names them: by the row of the file, whatever rows were made of it."""
    if s.INPUT_ROW in rows.column_names:
        rows = rows.set_column(rows.column_names.index(s.ROW_NO), s.ROW_NO, rows[s.INPUT_ROW])
    return rows.select(s.REFUSED_SCHEMA.names)


def _refuse_nan(rows: pa.Table) -> pa.Table:
    nothing = {name: pa.nulls(rows.num_rows, s.REFUSED_SCHEMA.field(name).type) for name in s.REFUSED_SCHEMA.names}
    row_no = rows[s.INPUT_ROW if s.INPUT_ROW in rows.column_names else s.ROW_NO]
    known = {s.ROW_NO: row_no, s.ID: rows[s.ID], s.INPUT_PATH: rows[s.INPUT_PATH]}
    reason = {s.REASON: pa.repeat(pa.scalar(str(s.Reason.MODEL_NAN)), rows.num_rows)}
    columns = {**nothing, **known, **reason}
    return pa.table([columns[name] for name in s.REFUSED_SCHEMA.names], schema=s.REFUSED_SCHEMA)
