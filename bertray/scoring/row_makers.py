"""Makers of rows: a model and the reviews of a work unit in, rows as the output holds them out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.io.tables import one_chunk
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.model.units import unit_sums
from bertray.outputs.control_files import SCORE_BINS, Agreement
from bertray.reviews.labels import value_counts
from bertray.scoring.profiled import profile_of
from bertray.settings import EmbeddingKind, ScoringPrecision

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

    @property
    @abstractmethod
    def precision(self) -> str:
        """Number format in which it computes, as the config names it."""

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
    by_aspect: bool = field(default=False, kw_only=True)  # a review is a row for each aspect

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

    def names(self, kept: pa.Table) -> list[pa.Array]:
        """Columns that say which row it is."""
        return [one_chunk(kept[name]) for name in (s.ID, *([s.ASPECT] if self.by_aspect else []))]

    def kept_values(self, kept: pa.Table) -> list[pa.Array]:
        """The kept input columns."""
        return [one_chunk(kept[s.KEEP_PREFIX + name]) for name in self.kept_columns]


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
    int8_bound: float | None = None  # of the bundle
    profile_by: tuple[str, ...] = field(default=(), kw_only=True)  # kept columns whose values the profile counts apart

    def maker(self) -> Maker:
        from bertray.model.predictor import Predictor

        predictor = Predictor(
            resolve_model(self.model),
            temperature=self.temperature,
            device=self.device,
            precision=self.precision,
            int8_bound=self.int8_bound,
        )
        return LabelMaker(self, predictor, predictor.in_fp32() if predictor.engine.quantized else None)


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

    @property
    def precision(self) -> str:
        return self._predictor.precision

    def make(self, kept: pa.Table) -> Made:
        settings, predictor = self._settings, self._predictor
        repeated_before, recomputed_before = predictor.repeated_rows, predictor.recomputed_rows
        probs_NC = predictor.probs(kept)
        profile = profile_of(kept, probs_NC, settings.labels, settings.profile_by)
        started = time.monotonic()
        int8 = self._agreement(kept, probs_NC)
        aside_s = time.monotonic() - started
        finite_N = np.asarray(np.isfinite(probs_NC).all(axis=1))
        if not finite_N.all():
            kept, probs_NC = kept.filter(pa.array(finite_N)), probs_NC[finite_N]
        scored = self._scored_rows(kept, probs_NC)
        counted = {
            "label_counts": value_counts(scored[s.LABEL]),
            "score_histogram": np.histogram(scored[s.SCORE].to_numpy(), SCORE_BINS, (0.0, 1.0))[0].tolist(),
            "needs_review": int(pc.sum(scored[s.NEEDS_REVIEW]).as_py() or 0) if settings.needs_review_below else 0,
            "int8": int8,
            "recomputed": predictor.recomputed_rows - recomputed_before,
            "night_profile": profile,
        }
        evaluation = self._evaluation_rows(kept, probs_NC) if settings.with_labels and kept.num_rows else None
        return Made(finite_N, scored, predictor.repeated_rows - repeated_before, counted, evaluation, aside_s)

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
        columns: list[Any] = [*settings.names(kept), labels.cast(pa.string()), pa.array(score_N)]
        columns += [pa.array(np.ascontiguousarray(probs_NC[:, c], np.float32)) for c in range(len(settings.labels))]
        columns += [one_chunk(kept[s.N_TOKENS]), one_chunk(kept[s.TRUNCATED])]
        if settings.needs_review_below is not None:
            columns.append(pa.array(score_N < settings.needs_review_below))
        columns += [*settings.provenance(num_rows), *settings.kept_values(kept)]
        kept_schema = s.scored_schema(
            list(settings.labels),
            settings.kept_schema,
            needs_review=settings.needs_review_below is not None,
            aspect=settings.by_aspect,
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
        if self._settings.by_aspect:
            columns[s.SLICE_PREFIX + s.ASPECT] = kept[s.ASPECT]
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
        if self.pooling == "vocabulary":  # sums have the length that they have
            return UnitSumMaker(self, Embedder(path, device=self.device))
        pooling = "mean" if self.pooling == "tokens" else self.pooling
        embedder = Embedder(path, pooling=pooling, normalize=self.normalize, device=self.device)
        if self.pooling == "tokens":
            return TokenVectorMaker(self, embedder, ReviewTokenizer(path, 16).words)
        return VectorMaker(self, embedder)


class _EmbeddingMaker(Maker):
    """Holds an encoder."""

    def __init__(self, settings: EmbedSettings, embedder: Any) -> None:
        self._settings, self._embedder = settings, embedder

    @property
    def precision(self) -> str:
        precision: str = self._embedder.precision
        return precision


class VectorMaker(_EmbeddingMaker):
    """Reviews to one vector each."""

    def make(self, kept: pa.Table) -> Made:
        repeated_before = self._embedder.repeated_rows
        vectors_ND = _in_dtype(self._embedder.vectors(kept), self._settings.dtype)
        finite_N = np.isfinite(vectors_ND).all(axis=1)
        if not finite_N.all():
            kept, vectors_ND = kept.filter(pa.array(finite_N)), vectors_ND[finite_N]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), self._embedder.width)
        rows = _embedded_rows(self._settings, kept, [vectors])
        return Made(finite_N, rows, self._embedder.repeated_rows - repeated_before)


class TokenVectorMaker(_EmbeddingMaker):
    """Reviews to one vector for each of their tokens.

    Args:
        words: the vocabulary as text, string [V], so that a vector can be told whose it is.
    """

    def __init__(self, settings: EmbedSettings, embedder: Any, words: pa.Array) -> None:
        super().__init__(settings, embedder)
        self._words = words

    def make(self, kept: pa.Table) -> Made:
        vectors_TD = _in_dtype(self._embedder.token_vectors(kept), self._settings.dtype)
        finite_N, kept, vectors_TD = _finite_reviews(kept, vectors_TD)
        ids = one_chunk(kept[s.INPUT_IDS])
        lens_N = ids.value_lengths().to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lens_N)]).astype(np.int32))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_TD.ravel()), self._embedder.width)
        tokens = pa.ListArray.from_arrays(offsets, self._words.take(ids.flatten()))
        rows = _embedded_rows(self._settings, kept, [tokens, pa.ListArray.from_arrays(offsets, vectors)])
        return Made(finite_N, rows, 0)


class UnitSumMaker(_EmbeddingMaker):
    """Reviews to sums of the vectors of their characters, tokens or words."""

    def make(self, kept: pa.Table) -> Made:
        finite_N, kept, vectors_TD = _finite_reviews(kept, self._embedder.token_vectors(kept))
        units, counts_U, sums_UD = unit_sums(kept, vectors_TD)
        width = self._embedder.width
        sums = pa.FixedSizeListArray.from_arrays(pa.array(sums_UD.ravel(), pa.float64()), width)
        columns = [pa.array(units, pa.string()), pa.array(counts_U, pa.int64()), sums]
        columns += self._settings.provenance(len(units))
        return Made(finite_N, pa.table(columns, schema=s.unit_sums_schema(width)), 0)


def _finite_reviews(kept: pa.Table, vectors_TD: np.ndarray) -> tuple[np.ndarray, pa.Table, np.ndarray]:
    """Mask of the reviews whose token vectors are all finite, bool [N]; these reviews and their vectors."""
    lens_N = one_chunk(kept[s.INPUT_IDS]).value_lengths().to_numpy(zero_copy_only=False)
    finite_N = np.ones(len(lens_N), bool)
    finite_N[np.repeat(np.arange(len(lens_N)), lens_N)[~np.isfinite(vectors_TD).all(axis=1)]] = False
    if finite_N.all():
        return finite_N, kept, vectors_TD
    return finite_N, kept.filter(pa.array(finite_N)), vectors_TD[np.repeat(finite_N, lens_N)]


def _in_dtype(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """As numbers of that type; what is too large for float16 becomes infinite, and so is put in quarantine."""
    with np.errstate(over="ignore"):
        return vectors.astype(dtype, copy=False)


def _embedded_rows(settings: EmbedSettings, kept: pa.Table, made: list[pa.Array]) -> pa.Table:
    columns = [*settings.names(kept), *made, one_chunk(kept[s.N_TOKENS]), one_chunk(kept[s.TRUNCATED])]
    columns += [*settings.provenance(kept.num_rows), *settings.kept_values(kept)]
    schema = s.embedded_schema(
        [array.type for array in made],
        settings.kept_schema,
        aspect=settings.by_aspect,
        taken=settings.partition_columns,
    )
    return pa.table(columns, schema=schema)
