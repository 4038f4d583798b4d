"""From labelled rows to figures and pages: the same for `train`, `evaluate` and labelled nights of `score`."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.console import Ticker
from bertray.errors import DataRefused
from bertray.model.bundle import BundleInfo
from bertray.pipelines.cluster import Resources
from bertray.pipelines.inputs import Inputs
from bertray.pipelines.shards import ReadSettings, ScoreSettings, parquet_bytes, score_shards
from bertray.reviews.labels import LabelMap
from bertray.reviews.sources import Shard, read_shard
from bertray.storage.records import Receipt
from bertray.storage.store import Store
from bertray.training.token_shards import FILE_NO

ROWS_PER_SHARD = 4096
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

    @property
    def num_rows(self) -> int:
        return len(self.label_ids_N)


def evaluate_shards(
    inputs: Inputs,
    model: str,
    info: BundleInfo,
    labels: LabelMap,
    store: Store,
    resources: Resources,
    slice_columns: Sequence[str],
    *,
    max_length: int | None = None,
    long_text: str | None = None,
    only_rows: Mapping[int, np.ndarray] | None = None,
) -> EvaluatedRows:
    """Score labelled reviews by the scoring path, without publishing rows.

    Args:
        inputs: what to read.
        model: the bundle, as `resolve_model` takes it.
        info: its `bertray.json`.
        labels: label values of the input to class names.
        store: the output; staged files lie under `control/` until the report is written.
        resources: layout of the workers.
        slice_columns: input columns to break the metrics down by.
        max_length, long_text: instead of the bundle's.
        only_rows: file_no -> row numbers to score; by default all.

    Raises:
        DataRefused: no row has a label that the model knows.
    """
    read = ReadSettings(inputs.spec, model, max_length or info.max_length, long_text or info.long_text)
    score = ScoreSettings(
        model=model,
        labels=info.labels,
        temperature=info.temperature,
        model_version=info.model_version,
        run_id="",
        output=store.root,
        staging=f"{STAGING}/{uuid.uuid4().hex[:8]}",
        kept_columns=(),
        kept_schema=pa.schema([]),
        with_labels=True,
        slice_columns=tuple(slice_columns),
        needs_review_below=None,
        write_parts=False,
        whole_shards=only_rows is None,
        device=resources.device,
        threads=resources.threads,
    )
    receipts: list[Receipt] = []
    num_rows = inputs.num_rows if only_rows is None else sum(len(rows) for rows in only_rows.values())
    with Ticker("evaluating", num_rows, "reviews") as ticker:
        done = 0
        for receipt in score_shards(inputs.shards(ROWS_PER_SHARD), read, score, resources, only_rows=only_rows):
            receipts.append(receipt)
            done += receipt.rows_scored + receipt.rows_quarantined
            ticker.update(done)
    keys = [receipt.evaluation.key for receipt in receipts if receipt.evaluation]
    refused = sum(receipt.rows_quarantined for receipt in receipts)
    return collect(store, keys, info, labels, slice_columns, refused)


def collect(
    store: Store,
    keys: Sequence[str],
    info: BundleInfo,
    labels: LabelMap,
    slice_columns: Sequence[str],
    refused: int,
) -> EvaluatedRows:
    """Join staged evaluation files into arrays.

    Raises:
        DataRefused: no row has a label that the model knows.
    """
    tables = [pq.read_table(io.BytesIO(store.get(key)), page_checksum_verification=True) for key in keys]
    if not tables:
        raise DataRefused("evaluation: no row could be scored.", "Look at the input.")
    table = pa.concat_tables(tables).sort_by([(FILE_NO, "ascending"), (s.ROW_NO, "ascending")]).combine_chunks()
    given_N = labels.ids(_array(table[s.LABEL]))
    # The input's classes in the model's order; a class the model does not have is unknown to it.
    to_model = np.array([info.labels.index(name) if name in info.labels else -1 for name in labels.names], np.int32)
    label_ids_N = np.where(given_N >= 0, to_model[np.maximum(given_N, 0)], given_N)
    usable_N = label_ids_N >= 0
    if not usable_N.any():
        raise DataRefused(
            f"evaluation: none of {table.num_rows} rows has a label that the model knows ({', '.join(info.labels)}).",
            "Map the labels of this data, for example `labels={0: negative, 1: positive}`.",
        )
    kept = table.filter(pa.array(usable_N))
    return EvaluatedRows(
        ids=_array(kept[s.ID]),
        label_ids_N=label_ids_N[usable_N].astype(np.int32),
        probs_NC=np.column_stack([kept[s.prob_column(label)].to_numpy() for label in info.labels]),
        n_tokens_N=kept[s.N_TOKENS].to_numpy(),
        script=_array(kept[s.SCRIPT]),
        slices={name: _array(kept[f"slice:{name}"]) for name in slice_columns},
        file_no_N=kept[FILE_NO].to_numpy(),
        row_no_N=kept[s.ROW_NO].to_numpy(),
        left_out=int((label_ids_N == -2).sum()),
        unknown=int((label_ids_N == -1).sum()),
        unlabelled=int((label_ids_N == -3).sum()),
        refused=refused,
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


def texts_of(inputs: Inputs, rows: Sequence[tuple[int, int]]) -> list[str]:
    """Cleaned texts of a few (file_no, row_no), read again from the input; the pipeline does not carry texts along."""
    texts = []
    for file_no, row_no in rows:
        shard = next(
            shard for shard in inputs.shards(ROWS_PER_SHARD) if shard.file_no == file_no and shard.lo <= row_no < shard.hi
        )
        texts.append(_text(shard, inputs, row_no))
    return texts


def _text(shard: Shard, inputs: Inputs, row_no: int) -> str:
    kept = read_shard(shard, inputs.spec).kept
    text: str = kept.filter(pa.array(kept[s.ROW_NO].to_numpy() == row_no))[s.TEXT][0].as_py()
    return text


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


__all__ = ["EvaluatedRows", "collect", "evaluate_shards", "parquet_bytes", "predictions_table", "texts_of"]
