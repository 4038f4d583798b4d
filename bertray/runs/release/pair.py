"""Two models on the same reviews: both scored here, or two outputs joined by id.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import EvaluateConfig
from bertray.errors import ConfigError, DataRefused
from bertray.evaluation.baselines import majority
from bertray.evaluation.slices import length_bands
from bertray.execution.executor import Executor
from bertray.execution.on_demand import ExecutorFor, in_this_process
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.model.bundle import BundleInfo, resolve_model
from bertray.model.training_texts import TrainingTexts, read_training_texts
from bertray.outputs import ledger
from bertray.reviews.clean import Cleaning
from bertray.reviews.corpus import Inputs, open_inputs, read_spec
from bertray.reviews.fetch import row_keys
from bertray.reviews.kept_rows import Keep
from bertray.reviews.labels import LabelMap, label_map
from bertray.reviews.reader import check_slices, read_shard
from bertray.reviews.rows import ROWS_PER_SHARD, Aspects
from bertray.runs.evaluated import EvaluatedModel, evaluate_models
from bertray.runs.evaluation_page import row_notes
from bertray.runs.explained import ScoredBy
from bertray.scoring.models import open_model
from bertray.wording import counted

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
MAX_CHARS = 20_000  # of a text that is read for its label alone


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Args:
        model: as the config names it.
        model_version: digest of its bundle; of an output what its rows say.
        rows_per_s: reviews per second while the model was at work; None where it did not score here.
        texts: that it was trained on, where known.
        scored_by: to explain rows; None where it did not score here.
        inputs: the reviews as it reads them; None where it did not score here.
    """

    model: str
    model_version: str
    rows_per_s: float | None = None
    texts: TrainingTexts | None = None
    scored_by: ScoredBy | None = None
    inputs: Inputs | None = None


@dataclass(frozen=True)
class Pair:
    """Rows with the probabilities of both models, in the order of classes of A.

    Args:
        label_ids_N: given labels; negative where there is none.
        slices: column -> N values.
        place_N2: (file_no, row_no) of each row, to read texts again; None of outputs.
        input_hash_N: `schema.INPUT_HASH` of what A reads; None of outputs.
        input_hash_b_N: the same of B.
    """

    a: Side
    b: Side
    labels: tuple[str, ...]
    ids: pa.Array
    label_ids_N: np.ndarray
    probs_a_NC: np.ndarray
    probs_b_NC: np.ndarray
    slices: Mapping[str, pa.Array] = field(default_factory=dict)
    place_N2: np.ndarray | None = None
    input_hash_N: np.ndarray | None = None
    input_hash_b_N: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.label_ids_N)

    @property
    def labelled(self) -> bool:
        return bool((self.label_ids_N >= 0).any())

    def taken(self, rows_M: np.ndarray) -> Pair:
        """Some of the rows, by position."""
        return replace(
            self,
            ids=self.ids.take(pa.array(rows_M)),
            label_ids_N=self.label_ids_N[rows_M],
            probs_a_NC=self.probs_a_NC[rows_M],
            probs_b_NC=self.probs_b_NC[rows_M],
            slices={name: values.take(pa.array(rows_M)) for name, values in self.slices.items()},
            place_N2=None if self.place_N2 is None else self.place_N2[rows_M],
            input_hash_N=None if self.input_hash_N is None else self.input_hash_N[rows_M],
            input_hash_b_N=None if self.input_hash_b_N is None else self.input_hash_b_N[rows_M],
        )


# --- two models, scored here -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedPair:
    """Two models and their input, checked before any work; A is None where B stands beside the majority class.

    Args:
        configs, infos: of A (where there is one) and B.
        inputs: as A's bundle reads them.
        labels: label values of the input to class names; None of reviews without labels.
    """

    configs: tuple[EvaluateConfig, ...]
    infos: tuple[BundleInfo, ...]
    inputs: Inputs
    labels: LabelMap | None

    @property
    def identity(self) -> str:
        """Digest of input, models, and text columns that the first model says."""
        parts = {"files": self.inputs.identity, "models": [info.model_version for info in self.infos]}
        texts = self.inputs.spec.columns.texts
        return cache_key(parts | ({"texts": texts} if len(texts) > 1 else {}))


def open_pair(
    configs: Sequence[EvaluateConfig], slice_columns: Sequence[str], executor_for: ExecutorFor, *, labelled: bool
) -> OpenedPair:
    """Open one or two models and their input.

    Args:
        configs: of A and B, or of B alone; they differ in `model`.
        slice_columns: input columns for slices.
        labelled: the rows need labels.

    Raises:
        ConfigError: a model or input that cannot be used, or models of other classes.
        DataRefused: input without two classes, or with label values that are none.
    """
    infos = tuple(open_model(config) for config in configs)
    first, config = infos[0], configs[0]
    if set(first.labels) != set(infos[-1].labels):
        raise ConfigError(
            f"expected two models of the same classes, found {', '.join(first.labels)} ({config.model}) and "
            f"{', '.join(infos[-1].labels)} ({configs[-1].model}).",
            "Train one of them again with `labels` as the other has them.",
        )
    _check_read_alike(configs, infos)
    spec = read_spec(
        config,
        first.cleaning,
        first.max_chars,
        wants_label=labelled,
        keep_columns=slice_columns,
        trained_for=first.aspects,
        text_columns=first.text_columns,
    )
    inputs = open_inputs("input", config.input, config, spec, executor_for)
    check_slices(inputs.files, inputs.spec, slice_columns)
    labels = None
    if labelled:
        labels = label_map(config.labels, first.label_map)
        labels.check(inputs.label_counts, "input", needs_all_classes=False)
    return OpenedPair(tuple(configs), infos, inputs, labels)


def _check_read_alike(configs: Sequence[EvaluateConfig], infos: Sequence[BundleInfo]) -> None:
    """Refuse a model that reads a review once beside one that reads it for each aspect.

    Raises:
        ConfigError: as said.
    """
    once = [Aspects.of(config, info.aspects) is None for config, info in zip(configs, infos, strict=True)]
    if len(set(once)) > 1:
        whole, by_aspect = (configs[once.index(found)].model for found in (True, False))
        raise ConfigError(
            f"expected two models that read the same, found one that labels a review as a whole ({whole}) and one that "
            f"labels it for each aspect ({by_aspect}).",
            "Compare models that were trained on the same kind of rows.",
        )


def score_pair(
    opened: OpenedPair,
    slice_columns: Sequence[str],
    store: Store,
    executor: Executor,
    *,
    staging: str | None = None,
    keep: Keep | None = None,
) -> Pair:
    """Score the reviews with both models in one pass, and keep the rows that both could score.

    Args:
        staging, keep: as for `evaluate_models`.

    Raises:
        DataRefused: no row has a usable label, or all rows have the same one.
    """
    scored = evaluate_models(
        opened.inputs,
        [EvaluatedModel.of(config, info) for config, info in zip(opened.configs, opened.infos, strict=True)],
        opened.labels or opened.infos[0].label_map,
        store,
        executor,
        slice_columns,
        staging=staging,
        keep=keep,
        needs_labels=opened.labels is not None,
    )
    num_workers = executor.for_rows(opened.inputs.num_rows).resources.num_workers
    sides = [
        Side(
            config.model,
            info.model_version,
            rows.num_rows * num_workers / rows.seconds if rows.seconds else None,
            read_training_texts(resolve_model(config.model)),
            rows.scored_by,
            opened.inputs.cleaned_as(info.cleaning, info.max_chars),
        )
        for config, info, rows in zip(opened.configs, opened.infos, scored, strict=True)
    ]
    a, b = scored[0], scored[-1]
    keys_a, keys_b = (row_keys(rows.file_no_N, rows.row_no_N) for rows in (a, b))
    _, rows_a, rows_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    labels = opened.infos[0].labels
    order_C = [opened.infos[-1].labels.index(label) for label in labels]
    pair = Pair(
        a=sides[0],
        b=sides[-1],
        labels=labels,
        ids=a.ids,
        label_ids_N=a.label_ids_N,
        probs_a_NC=a.probs_NC,
        probs_b_NC=np.zeros_like(a.probs_NC),
        slices={"length": length_bands(a.n_tokens_N), "script": a.script, **a.slices},
        place_N2=np.column_stack([a.file_no_N, a.row_no_N]),
        input_hash_N=a.input_hash_N,
        notes=tuple(row_notes(a)),
    ).taken(rows_a)
    pair = replace(pair, probs_b_NC=b.probs_NC[rows_b][:, order_C], input_hash_b_N=b.input_hash_N[rows_b])
    if len(scored) == 1:
        pair = beside_majority(pair)
    left_out = max(a.num_rows, b.num_rows) - len(rows_a)
    if left_out:
        pair = replace(
            pair, notes=(*pair.notes, f"{counted(left_out, 'row')} could be scored by one model only; not counted.")
        )
    if opened.labels is not None:
        check_classes(pair)
    return pair


def beside_majority(pair: Pair) -> Pair:
    """B beside the most frequent class of the rows as model A."""
    shares_NC = majority(pair.label_ids_N, len(pair.labels), pair.num_rows)
    return replace(pair, a=Side("majority class", ""), probs_a_NC=np.array(shares_NC, np.float32))


def check_classes(pair: Pair) -> None:
    """Refuse labelled rows of one class.

    Raises:
        DataRefused: as said.
    """
    present = [pair.labels[number] for number in np.unique(pair.label_ids_N) if number >= 0]
    if len(present) < 2:
        raise DataRefused(
            f"input: expected rows of two classes at least, found {', '.join(present) or 'none'} alone.",
            "Give labelled reviews of every class.",
        )


# --- two outputs, joined by id ---------------------------------------------------------------------------------------


def is_output(path: str) -> bool:
    """True for an output of score (a ledger), or of evaluate or train (`predictions.parquet`)."""
    if path == "bundled":
        return False
    store = open_store(path)
    return store.exists(PREDICTIONS) or bool(store.keys(ledger.COMMITS))


@dataclass(frozen=True)
class _Output:
    side: Side
    ids: list[str]
    labels: tuple[str, ...]
    probs_NC: np.ndarray
    given: list[str] | None


def join_outputs(a: str, b: str, truth: Mapping[str, str | None] | None) -> Pair:
    """Rows that stand in both outputs once, by id.

    Args:
        a, b: outputs of score, evaluate or train.
        truth: id -> given class; by default what an output of evaluate or train holds.

    Raises:
        ConfigError: outputs of other classes.
        DataRefused: no common id, or no row with a given class where `truth` is there.
    """
    first, second = _read_output(a), _read_output(b)
    if set(first.labels) != set(second.labels):
        raise ConfigError(
            f"expected two outputs of the same classes, found {', '.join(first.labels)} ({a}) and "
            f"{', '.join(second.labels)} ({b}).",
            "Compare outputs of models of the same classes.",
        )
    once = [{key for key, times in Counter(output.ids).items() if times == 1} for output in (first, second)]
    place_b = {key: place for place, key in enumerate(second.ids)}
    rows_a = [place for place, key in enumerate(first.ids) if key in once[0] and key in once[1]]
    if not rows_a:
        raise DataRefused(
            f"a and b: expected common ids, found none in {len(first.ids):,} and {len(second.ids):,} rows.",
            "Score the same files with both models; ids come from `columns.id`, or from the paths of the files.",
        )
    ids = [first.ids[place] for place in rows_a]
    given = truth if truth is not None else dict(zip(first.ids, first.given, strict=True)) if first.given else {}
    number = {label: c for c, label in enumerate(first.labels)}
    label_ids_N = np.array([number.get(given.get(key) or "", -1) for key in ids], np.int32)
    notes = [
        f"{len(ids):,} ids stand in both outputs once, of {len(first.ids):,} rows of a and {len(second.ids):,} of b."
    ]
    pair = Pair(
        a=first.side,
        b=second.side,
        labels=first.labels,
        ids=pa.array(ids, pa.string()),
        label_ids_N=label_ids_N,
        probs_a_NC=first.probs_NC[rows_a],
        probs_b_NC=second.probs_NC[[place_b[key] for key in ids]][:, [second.labels.index(x) for x in first.labels]],
        notes=tuple(notes),
    )
    if not given:
        return pair
    known = np.flatnonzero(label_ids_N >= 0)
    if not len(known):
        raise DataRefused(
            "input: none of the ids in both outputs has a label there.",
            "Give the labels of the reviews that were scored.",
        )
    if len(known) < len(ids):
        pair = replace(
            pair, notes=(*notes, f"{counted(len(ids) - len(known), 'row has', 'rows have')} no label; not counted.")
        )
    pair = pair.taken(known)
    check_classes(pair)
    return pair


def _read_output(path: str) -> _Output:
    store = open_store(path)
    if store.exists(PREDICTIONS):
        tables = [pq.read_table(io.BytesIO(store.get(PREDICTIONS)), page_checksum_verification=True)]
        labels = tuple(
            name.removeprefix(s.PROB_PREFIX) for name in tables[0].column_names if name.startswith(s.PROB_PREFIX)
        )
        version = ""
    else:
        entries = ledger.with_parts(store, ledger.current(ledger.committed_entries(store, None)))
        labels = tuple(entries[-1].labels)
        if any(set(entry.labels) != set(labels) for entry in entries):
            raise ConfigError(
                f"{path}: holds slots of models of other classes.", "Compare outputs of one set of classes."
            )
        version = ", ".join(dict.fromkeys(entry.model_version for entry in entries))
        columns = [s.ID, *(s.prob_column(label) for label in labels)]
        keys = [f"data/{entry.folder}/{part.name}" for entry in entries for part in entry.parts]
        tables = [pq.read_table(io.BytesIO(store.get(key)), columns=columns) for key in keys]
        tables = tables or [pa.table({name: [] for name in columns})]
    table = pa.concat_tables(tables, promote_options="default")
    probs_NC = np.column_stack([table[s.prob_column(label)].to_numpy() for label in labels]).astype(np.float32)
    given = table[s.LABEL].to_pylist() if store.exists(PREDICTIONS) else None
    return _Output(Side(path, version), table[s.ID].to_pylist(), labels, probs_NC, given)


def labels_by_id(config: EvaluateConfig, labels: Sequence[str], *, key: str = "input") -> dict[str, str | None]:
    """Given class by id, read in this process; without ids that have several.

    Args:
        config: input, columns and reader.
        labels: classes of the outputs.
        key: that names the files, for messages.

    Raises:
        DataRefused: label values that are no class.
    """
    spec = read_spec(config, Cleaning(), MAX_CHARS, wants_label=True)
    inputs = open_inputs(key, config.input, config, spec, in_this_process)
    of_outputs = LabelMap(tuple(labels), {label: label for label in labels})
    mapped = label_map(config.labels, of_outputs)
    mapped.check_known(inputs.label_counts, key)
    found: dict[str, str | None] = {}
    several: set[str] = set()
    for shard in inputs.shards(ROWS_PER_SHARD):
        kept = read_shard(shard, inputs.spec).kept
        label_ids_N = mapped.ids(kept[s.LABEL])
        for id_, label_id in zip(kept[s.ID].to_pylist(), label_ids_N.tolist(), strict=True):
            label = mapped.names[label_id] if label_id >= 0 else None
            if found.setdefault(id_, label) != label:
                several.add(id_)
    if several:
        log.warning(
            "%s: %s with different labels, such as %s; left out", key, counted(len(several), "id"), min(several)
        )
    return {id_: label for id_, label in found.items() if id_ not in several}
