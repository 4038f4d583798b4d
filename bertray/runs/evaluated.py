"""Labelled rows scored for a report, by the path of `score`: ids, labels, probabilities and what groups them."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import EvaluateConfig
from bertray.errors import DataRefused
from bertray.execution.executor import Executor
from bertray.execution.resources import Resources
from bertray.io.store import Store
from bertray.io.tables import one_chunk
from bertray.model.bundle import BundleInfo
from bertray.model.profile import Profile
from bertray.outputs.control_files import Agreement, Counts
from bertray.reviews.corpus import Inputs
from bertray.reviews.kept_rows import Keep, KeptRows
from bertray.reviews.labels import LabelMap
from bertray.reviews.rows import ROWS_PER_SHARD, ReadSpec
from bertray.runs.explained import ScoredBy
from bertray.scoring.read_unit import ReadSettings, ReadUnit
from bertray.scoring.row_makers import ScoreSettings
from bertray.scoring.stage_part import stage_parts
from bertray.settings import ScoringPrecision
from bertray.wording import counted

STAGING = "control/staging"


@dataclass(frozen=True)
class EvaluatedRows:
    """Labelled rows with what the model said of them, in the order of the input."""

    ids: pa.Array
    label_ids_N: np.ndarray  # int32, in the model's order of classes
    probs_NC: np.ndarray  # float32
    n_tokens_N: np.ndarray
    script: pa.Array
    slices: dict[str, pa.Array]
    file_no_N: np.ndarray
    row_no_N: np.ndarray
    left_out: int  # rows whose label `labels` leaves out
    unknown: int  # rows whose label the model does not know
    unlabelled: int  # rows without a label
    refused: int  # rows that could not be scored
    input_hash_N: np.ndarray  # uint64, of all that the model reads of a row
    seconds: float = 0.0  # that the model took, all actors together, without their start
    int8: Agreement | None = None
    recomputed: int = 0  # rows computed in int8 and again in full precision
    precisions: Mapping[str, int] = field(default_factory=dict)  # number format -> rows
    profile: Profile | None = None  # of all scored rows, with a usable label or not
    scored_by: ScoredBy | None = None  # to explain rows; None where the model is not at hand

    @property
    def num_rows(self) -> int:
        return len(self.label_ids_N)


def new_staging() -> str:
    """Start of the names of folders for staged files, used by nobody else."""
    return f"{STAGING}/{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class EvaluatedModel:
    """A bundle, and how it reads and computes.

    Args:
        model: as `resolve_model` takes it.
        info: its `bertray.json`.
        max_length, long_text: instead of the bundle's.
        precision: in which it computes.
    """

    model: str
    info: BundleInfo
    max_length: int | None = None
    long_text: str | None = None
    precision: ScoringPrecision = "auto"

    @classmethod
    def of(cls, config: EvaluateConfig, info: BundleInfo) -> EvaluatedModel:
        """The model that a config names."""
        return cls(config.model, info, config.max_length, config.long_text, config.precision)

    def read_settings(self, spec: ReadSpec) -> ReadSettings:
        """Reading by a spec, cleaned as the bundle says."""
        info = self.info
        spec = replace(spec, cleaning=info.cleaning, max_chars=info.max_chars)
        length, long_text = self.max_length or info.max_length, self.long_text or info.long_text
        return ReadSettings(spec, self.model, length, long_text, with_terms=True)

    def score_settings(
        self, spec: ReadSpec, store: Store, staging: str, slice_columns: Sequence[str], resources: Resources
    ) -> ScoreSettings:
        """Probabilities staged for a report, and no rows to publish."""
        return ScoreSettings(
            model=self.model,
            labels=self.info.labels,
            temperature=self.info.temperature,
            model_version=self.info.model_version,
            run_id="",
            output=store.root,
            staging=staging,
            kept_columns=(),
            kept_schema=pa.schema([]),
            with_labels=True,
            slice_columns=tuple(slice_columns),
            needs_review_below=None,
            precision=self.precision,
            int8_bound=self.info.int8_bound,
            write_parts=False,
            by_aspect=spec.aspects is not None,
            device=resources.device,
            threads=resources.threads,
        )


def evaluate_model(
    inputs: Inputs,
    model: EvaluatedModel,
    labels: LabelMap,
    store: Store,
    executor: Executor,
    slice_columns: Sequence[str],
    *,
    kept: KeptRows | None = None,
) -> EvaluatedRows:
    """`evaluate_models` of one."""
    return evaluate_models(inputs, [model], labels, store, executor, slice_columns, kept=kept)[0]


def evaluate_models(
    inputs: Inputs,
    models: Sequence[EvaluatedModel],
    labels: LabelMap,
    store: Store,
    executor: Executor,
    slice_columns: Sequence[str],
    *,
    kept: KeptRows | None = None,
    keep: Keep | None = None,
    staging: str | None = None,
    needs_labels: bool = True,
) -> list[EvaluatedRows]:
    """Score labelled reviews with each model in one pass, by the scoring path, without publishing rows.

    Args:
        inputs: what to read; each model reads it cleaned as its bundle says.
        models: one at least.
        labels: label values of the input to class names.
        store: the output; staged files lie under `control/` until the report is written.
        slice_columns: input columns to break the metrics down by.
        kept: rows to score, where these have been read and cleaned; by default all of the input.
        keep: rows to write down, as the first model cleans them.
        staging: of `new_staging`, for a store that others stage in, too.
        needs_labels: rows without a label that the model knows are left out; else they stay, with a negative label id.

    Raises:
        DataRefused: no row has a label that a model knows.
    """
    executor = executor.for_rows(inputs.num_rows)
    reads = [model.read_settings(inputs.spec) for model in models]
    staging = staging or new_staging()
    scores = [
        model.score_settings(inputs.spec, store, f"{staging}-{number}", slice_columns, executor.resources)
        for number, model in enumerate(models)
    ]
    work: Sequence[ReadUnit] = inputs.work_units(ROWS_PER_SHARD) if kept is None else kept.work
    num_rows = inputs.num_rows if kept is None else kept.num_rows
    settings = list(zip(reads, scores, strict=True))
    of_units = list(stage_parts(work, settings, executor, "evaluating", num_rows, keep))
    reported = slices_of(slice_columns, by_aspect=inputs.spec.aspects is not None)
    found = []
    for number, (model, read) in enumerate(zip(models, reads, strict=True)):
        info, of_model = model.info, [receipts[number] for receipts in of_units]
        keys = [receipt.evaluation.key for receipt in of_model if receipt.evaluation]
        refused = sum(receipt.rows_quarantined for receipt in of_model) + (kept.refused if kept else 0)
        counts = sum(of_model, Counts())
        rows = replace(
            collect(store, keys, info, labels, reported, refused, needs_labels=needs_labels),
            seconds=sum(receipt.seconds for receipt in of_model),
            int8=counts.int8,
            recomputed=counts.recomputed,
            precisions=counts.precisions,
            profile=counts.profile(sum(receipt.rows_scored for receipt in of_model)),
            scored_by=ScoredBy(
                model.model, read.max_length, read.long_text, info.temperature, info.labels, model.precision
            ),
        )
        found.append(rows)
    return found


def slices_of(slice_columns: Sequence[str], *, by_aspect: bool) -> list[str]:
    """Columns that a report breaks figures down by: those of the config, and the aspect where each is a row."""
    return [*dict.fromkeys([*([s.ASPECT] if by_aspect else []), *slice_columns])]


def collect(
    store: Store,
    keys: Sequence[str],
    info: BundleInfo,
    labels: LabelMap,
    slice_columns: Sequence[str],
    refused: int,
    *,
    needs_labels: bool = True,
) -> EvaluatedRows:
    """Join staged evaluation files into arrays.

    Raises:
        DataRefused: no row has a label that the model knows.
    """
    tables = [pq.read_table(io.BytesIO(store.get(key)), page_checksum_verification=True) for key in keys]
    if not tables:
        raise DataRefused("evaluation: no row could be scored.", "Look at the input.")
    table = pa.concat_tables(tables).sort_by([(s.FILE_NO, "ascending"), (s.ROW_NO, "ascending")]).combine_chunks()
    given_N = labels.ids(one_chunk(table[s.LABEL]))
    # The input's classes in the model's order; a class the model does not have is unknown to it.
    to_model = np.array([info.labels.index(name) if name in info.labels else -1 for name in labels.names], np.int32)
    label_ids_N = np.where(given_N >= 0, to_model[np.maximum(given_N, 0)], given_N)
    usable_N = label_ids_N >= 0 if needs_labels else np.ones(len(label_ids_N), bool)
    if not usable_N.any():
        raise DataRefused(
            f"evaluation: none of {counted(table.num_rows, 'row')} has a label that the model knows "
            f"({', '.join(info.labels)}).",
            "Map the labels of this data, for example `'labels={0: negative, 1: positive}'`.",
        )
    kept = table.filter(pa.array(usable_N))
    return EvaluatedRows(
        ids=one_chunk(kept[s.ID]),
        label_ids_N=label_ids_N[usable_N].astype(np.int32),
        probs_NC=np.column_stack([kept[s.prob_column(label)].to_numpy() for label in info.labels]),
        n_tokens_N=kept[s.N_TOKENS].to_numpy(),
        script=one_chunk(kept[s.SCRIPT]),
        slices={name: one_chunk(kept[s.SLICE_PREFIX + name]) for name in slice_columns},
        file_no_N=kept[s.FILE_NO].to_numpy(),
        row_no_N=kept[s.ROW_NO].to_numpy(),
        left_out=int((label_ids_N == -2).sum()),
        unknown=int((label_ids_N == -1).sum()),
        unlabelled=int((label_ids_N == -3).sum()),
        refused=refused,
        input_hash_N=kept[s.INPUT_HASH].to_numpy(),
    )


def predictions_table(rows: EvaluatedRows, labels: Sequence[str]) -> pa.Table:
    """`predictions.parquet`."""
    names = pa.array(labels, pa.string())
    return pa.table(
        [
            rows.ids,
            names.take(pa.array(rows.label_ids_N)),
            names.take(pa.array(rows.probs_NC.argmax(axis=1))),
            *(pa.array(np.ascontiguousarray(rows.probs_NC[:, c], np.float32)) for c in range(len(labels))),
        ],
        schema=s.predictions_schema(list(labels)),
    )
