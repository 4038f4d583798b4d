"""Scored rows of tokenized work units, staged as a part with its receipt by an actor."""

from __future__ import annotations

import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.execution.executor import Executor, Progress, Stage, Task, actors
from bertray.io import faults
from bertray.io.store import open_store
from bertray.io.tables import one_chunk, parquet_bytes
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.outputs.control_files import SCORE_BINS, TOKEN_BANDS, Agreement, Receipt, Span, StagedFile
from bertray.reviews.reader import WorkItem
from bertray.runtime import without_collection
from bertray.scoring.read_unit import ReadAndTokenize, ReadSettings, name_of
from bertray.settings import EmbeddingKind, ScoringPrecision
from bertray.training.token_shards import reading_of

if TYPE_CHECKING:
    from bertray.model.predictor import Predictor

EVALUATION_COLUMNS = (s.FILE_NO, s.ROW_NO, s.ID, s.LABEL, s.SCRIPT, s.N_TOKENS, s.INPUT_HASH)
COMPARED_ROWS = 256  # of each process that computes in int8: so many are computed in fp32, too


@dataclass(frozen=True)
class Made:
    """Scored rows of one work unit.

    Args:
        finite_N: bool, of which of them something could be made; the others were not finite.
        rows: what is written, a row for each of those.
        repeated: reviews among them that had been met before.
        counted: further fields of the receipt.
        evaluation: what a report on labelled rows needs.
        aside_s: spent on something else than making it.
    """

    finite_N: np.ndarray
    rows: pa.Table
    repeated: int
    counted: dict[str, Any] = field(default_factory=dict)
    evaluation: pa.Table | None = None
    aside_s: float = 0.0


class Maker(ABC):
    """Holds a model; reviews in, finished rows out."""

    @abstractmethod
    def make(self, kept: pa.Table) -> Made:
        """Reviews for which the model gives a number that is not finite are left out, and go to quarantine."""


@dataclass(frozen=True)
class PartSettings(ABC):
    """Settings of an actor that stages parts."""

    model: str
    model_version: str
    run_id: str
    output: str
    staging: str  # folder below the output that receives parts and receipts
    kept_columns: tuple[str, ...]
    kept_schema: pa.Schema
    write_parts: bool  # False: only the report's staging (evaluate, train)
    device: str
    threads: int
    partition_columns: tuple[str, ...] = field(default=(), kw_only=True)  # names that no column of the rows may have

    @abstractmethod
    def maker(self) -> Maker:
        """Loads the model."""

    def provenance(self, num_rows: int) -> list[pa.Array]:
        """Columns that say which model and run made a row, and when."""
        return [
            pa.repeat(pa.scalar(self.model_version), num_rows),
            pa.repeat(pa.scalar(self.run_id), num_rows),
            pa.repeat(pa.scalar(datetime.now(UTC), s.TIMESTAMP), num_rows),
        ]

    def kept_values(self, kept: pa.Table) -> list[pa.Array]:
        """The kept input columns."""
        return [one_chunk(kept[s.KEEP_PREFIX + name]) for name in self.kept_columns]


class MakePart:
    """An actor that holds a model: a tokenized work item in, its part staged, its receipt out."""

    def __init__(self, settings: PartSettings) -> None:
        with without_collection():
            import torch

            if settings.device == "cpu":
                torch.set_num_threads(settings.threads)
            self._settings = settings
            self._store = open_store(settings.output)
            self._maker = settings.maker()

    def __call__(self, table: pa.Table) -> Receipt | None:
        """Receipt of a work unit; None where it has no row."""
        return self.make(table) if table.num_rows else None

    def make(self, table: pa.Table) -> Receipt:
        """Make and stage what there is to make of one work item."""
        settings, started = self._settings, time.monotonic()
        refused_mask = pc.is_valid(table[s.REASON])
        kept, refused = table.filter(pc.invert(refused_mask)), table.filter(refused_mask).select(s.REFUSED_SCHEMA.names)
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
            reasons=_counts(refused[s.REASON]),
            token_histogram=np.bincount(
                np.searchsorted(TOKEN_BANDS, n_tokens_N), minlength=len(TOKEN_BANDS) + 1
            ).tolist(),
            tokens=int(n_tokens_N.sum()),
            truncated=int(pc.sum(kept[s.TRUNCATED]).as_py() or 0),
            repeated=made.repeated,
            scripts=_counts(kept[s.SCRIPT]),
            reading=reading_of(kept),
            seconds=time.monotonic() - started - made.aside_s,
            part=self._stage(f"part-{name}", made.rows) if settings.write_parts and kept.num_rows else None,
            quarantine=self._stage(f"q-{name}", self._quarantine_rows(refused)) if refused.num_rows else None,
            evaluation=self._stage(f"eval-{name}", made.evaluation) if made.evaluation is not None else None,
            **counted,
        )
        # Written after everything it names: without a receipt a staged file does not exist.
        self._store.put_new(f"{settings.staging}/{name}.receipt.json", receipt.to_bytes())
        faults.point("receipt.after_put")
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


def stage_parts(
    work: Sequence[WorkItem],
    read: ReadSettings,
    settings: PartSettings,
    executor: Executor,
    *,
    only_rows: Mapping[int, np.ndarray] | None = None,
) -> Iterator[Receipt]:
    """Read and tokenize work units in tasks, compute and stage parts in actors; yields receipts in any order.

    Args:
        only_rows: file_no -> numbers of the rows that are wanted; by default all.
    """
    stages: list[Stage] = [
        Task(ReadAndTokenize(read, only_rows)),
        actors(partial(MakePart, settings), executor.resources),
    ]
    for receipt in executor.run(work, stages, Progress("scoring", "shard", name_of)):
        if receipt is not None:
            yield receipt


# --- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreSettings(PartSettings):
    """Settings of parts with labels and their probabilities."""

    labels: tuple[str, ...]
    temperature: float
    with_labels: bool  # stage what a report on labelled rows needs
    slice_columns: tuple[str, ...]
    needs_review_below: float | None
    precision: ScoringPrecision

    def maker(self) -> Maker:
        predictor = self._predictor(self.precision)
        return LabelMaker(self, predictor, self._predictor("fp32") if predictor.engine.quantized else None)

    def _predictor(self, precision: ScoringPrecision) -> Predictor:
        from bertray.model.predictor import Predictor

        path = resolve_model(self.model)
        return Predictor(path, temperature=self.temperature, device=self.device, precision=precision)


class LabelMaker(Maker):
    """Reviews to scored rows.

    Args:
        settings: what is written.
        predictor: gives probabilities, and counts reviews that come again.
        reference: what COMPARED_ROWS reviews are also computed with, to tell what int8 costs; then it is dropped.
    """

    def __init__(self, settings: ScoreSettings, predictor: Predictor, reference: Predictor | None = None) -> None:
        self._settings, self._predictor, self._reference = settings, predictor, reference
        self._to_compare = COMPARED_ROWS

    def make(self, kept: pa.Table) -> Made:
        settings, repeated_before = self._settings, self._predictor.repeated_rows
        probs_NC = self._predictor.probs(kept)
        started = time.monotonic()
        int8 = self._agreement(kept, probs_NC)
        aside_s = time.monotonic() - started
        finite_N = np.asarray(np.isfinite(probs_NC).all(axis=1))
        if not finite_N.all():
            kept, probs_NC = kept.filter(pa.array(finite_N)), probs_NC[finite_N]
        scored = self._scored_rows(kept, probs_NC)
        counted = {
            "label_counts": _counts(scored[s.LABEL]),
            "score_histogram": np.histogram(scored[s.SCORE].to_numpy(), SCORE_BINS, (0.0, 1.0))[0].tolist(),
            "needs_review": int(pc.sum(scored[s.NEEDS_REVIEW]).as_py() or 0) if settings.needs_review_below else 0,
            "int8": int8,
        }
        evaluation = self._evaluation_rows(kept, probs_NC) if settings.with_labels and kept.num_rows else None
        return Made(finite_N, scored, self._predictor.repeated_rows - repeated_before, counted, evaluation, aside_s)

    def _agreement(self, kept: pa.Table, probs_NC: np.ndarray) -> Agreement | None:
        """Agreement with the reference until enough reviews have been compared; non-finite values agree with none."""
        if self._reference is None or not kept.num_rows:
            return None
        rows_R = np.sort(np.random.default_rng(0).permutation(kept.num_rows)[: self._to_compare])
        expected_RC = self._reference.probs(kept.take(rows_R))
        finite_R = np.isfinite(expected_RC).all(axis=1)
        probs_RC, expected_RC = probs_NC[rows_R][finite_R], expected_RC[finite_R]
        if not len(probs_RC):
            return None
        self._to_compare -= len(probs_RC)
        if not self._to_compare:
            self._reference = None
        computed_R = np.isfinite(probs_RC).all(axis=1)
        same_R = computed_R & (probs_RC.argmax(axis=1) == expected_RC.argmax(axis=1))
        differences_RC = np.abs(probs_RC - expected_RC)[computed_R]
        return Agreement(
            rows=len(same_R), same_label=int(same_R.sum()), largest_difference=float(differences_RC.max(initial=0.0))
        )

    def _scored_rows(self, kept: pa.Table, probs_NC: np.ndarray) -> pa.Table:
        settings, num_rows = self._settings, kept.num_rows
        best_N = probs_NC.argmax(axis=1) if num_rows else np.empty(0, np.int64)
        score_N = probs_NC[np.arange(num_rows), best_N].astype(np.float32)
        labels = pa.DictionaryArray.from_arrays(pa.array(best_N, pa.int32()), pa.array(settings.labels, pa.string()))
        columns: list[Any] = [one_chunk(kept[s.ID]), labels.cast(pa.string()), pa.array(score_N)]
        columns += [pa.array(np.ascontiguousarray(probs_NC[:, c], np.float32)) for c in range(len(settings.labels))]
        columns += [one_chunk(kept[s.N_TOKENS]), one_chunk(kept[s.TRUNCATED])]
        if settings.needs_review_below is not None:
            columns.append(pa.array(score_N < settings.needs_review_below))
        columns += [*settings.provenance(num_rows), *settings.kept_values(kept)]
        kept_schema = s.scored_schema(
            list(settings.labels),
            settings.kept_schema,
            needs_review=settings.needs_review_below is not None,
            taken=settings.partition_columns,
        )
        return pa.table(columns, schema=kept_schema)

    def _evaluation_rows(self, kept: pa.Table, probs_NC: np.ndarray) -> pa.Table:
        """Rows for the report, not part of the output; where none was read with its label, that is null."""
        columns: dict[str, Any] = {
            name: kept[name] if name in kept.column_names else pa.nulls(kept.num_rows, pa.string())
            for name in EVALUATION_COLUMNS
        }
        for number, label in enumerate(self._settings.labels):
            columns[s.prob_column(label)] = pa.array(np.ascontiguousarray(probs_NC[:, number], np.float32))
        for name in self._settings.slice_columns:
            columns[s.SLICE_PREFIX + name] = kept[s.KEEP_PREFIX + name].cast(pa.string())
        return pa.table(columns)


# --- embeddings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbedSettings(PartSettings):
    """Settings of parts with vectors."""

    pooling: EmbeddingKind
    normalize: bool
    dtype: Literal["float32", "float16"]

    def maker(self) -> Maker:
        from bertray.model.embedder import Embedder

        path = resolve_model(self.model)
        pooling = "mean" if self.pooling == "tokens" else self.pooling
        embedder = Embedder(path, pooling=pooling, normalize=self.normalize, device=self.device)
        if self.pooling == "tokens":
            return TokenVectorMaker(self, embedder, ReviewTokenizer(path, 16).words)
        return VectorMaker(self, embedder)


class VectorMaker(Maker):
    """Reviews to one vector each."""

    def __init__(self, settings: EmbedSettings, embedder: Any) -> None:
        self._settings, self._embedder = settings, embedder

    def make(self, kept: pa.Table) -> Made:
        repeated_before = self._embedder.repeated_rows
        vectors_ND = _in_dtype(self._embedder.vectors(kept), self._settings.dtype)
        finite_N = np.isfinite(vectors_ND).all(axis=1)
        if not finite_N.all():
            kept, vectors_ND = kept.filter(pa.array(finite_N)), vectors_ND[finite_N]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), self._embedder.width)
        rows = _embedded_rows(self._settings, kept, [vectors])
        return Made(finite_N, rows, self._embedder.repeated_rows - repeated_before)


class TokenVectorMaker(Maker):
    """Reviews to one vector for each of their tokens.

    Args:
        words: the vocabulary as text, string [V], so that a vector can be told whose it is.
    """

    def __init__(self, settings: EmbedSettings, embedder: Any, words: pa.Array) -> None:
        self._settings, self._embedder, self._words = settings, embedder, words

    def make(self, kept: pa.Table) -> Made:
        vectors_TD = _in_dtype(self._embedder.token_vectors(kept), self._settings.dtype)
        ids = one_chunk(kept[s.INPUT_IDS])
        lens_N = ids.value_lengths().to_numpy(zero_copy_only=False)
        finite_N = np.ones(len(lens_N), bool)
        finite_N[np.repeat(np.arange(len(lens_N)), lens_N)[~np.isfinite(vectors_TD).all(axis=1)]] = False
        if not finite_N.all():
            kept, vectors_TD = kept.filter(pa.array(finite_N)), vectors_TD[np.repeat(finite_N, lens_N)]
            ids, lens_N = one_chunk(kept[s.INPUT_IDS]), lens_N[finite_N]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lens_N)]).astype(np.int32))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_TD.ravel()), self._embedder.width)
        tokens = pa.ListArray.from_arrays(offsets, self._words.take(ids.flatten()))
        rows = _embedded_rows(self._settings, kept, [tokens, pa.ListArray.from_arrays(offsets, vectors)])
        return Made(finite_N, rows, 0)


def _in_dtype(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """As numbers of that type; what is too large for float16 becomes infinite, and so is put in quarantine."""
    with np.errstate(over="ignore"):
        return vectors.astype(dtype, copy=False)


def _embedded_rows(settings: EmbedSettings, kept: pa.Table, made: list[pa.Array]) -> pa.Table:
    columns = [one_chunk(kept[s.ID]), *made, one_chunk(kept[s.N_TOKENS]), one_chunk(kept[s.TRUNCATED])]
    columns += [*settings.provenance(kept.num_rows), *settings.kept_values(kept)]
    schema = s.embedded_schema([array.type for array in made], settings.kept_schema, taken=settings.partition_columns)
    return pa.table(columns, schema=schema)


# --- helpers ---------------------------------------------------------------------------------------------------------


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


def _refuse_nan(rows: pa.Table) -> pa.Table:
    nothing = {name: pa.nulls(rows.num_rows, s.REFUSED_SCHEMA.field(name).type) for name in s.REFUSED_SCHEMA.names}
    known = {s.ROW_NO: rows[s.ROW_NO], s.ID: rows[s.ID], s.INPUT_PATH: rows[s.INPUT_PATH]}
    reason = {s.REASON: pa.repeat(pa.scalar(str(s.Reason.MODEL_NAN)), rows.num_rows)}
    columns = {**nothing, **known, **reason}
    return pa.table([columns[name] for name in s.REFUSED_SCHEMA.names], schema=s.REFUSED_SCHEMA)


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}
