"""`bertray audit`: what is wrong with reviews, before somebody learns from them: one page, and tables of the rows."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import bertray
from bertray import schema as s
from bertray.config import AuditConfig, Columns, to_yaml
from bertray.console import Ticker, duration, say
from bertray.errors import ConfigError, DataRefused
from bertray.evaluation.label_errors import (
    MIN_MCC,
    Suspects,
    accuracy_and_mcc,
    assign_folds,
    find_suspects,
    out_of_sample_probs,
    tfidf_features,
)
from bertray.model.bundle import resolve_model, weights_digest
from bertray.pipelines import audit_tasks as tasks
from bertray.pipelines.audit_tasks import AuditItem, ScanSettings
from bertray.pipelines.cluster import Resources, ray_session
from bertray.pipelines.features import FOLDER as FEATURES_FOLDER
from bertray.pipelines.features import embed_token_shards
from bertray.pipelines.inputs import Inputs, check_length, inspect_inputs, read_spec
from bertray.pipelines.parts import parquet_bytes
from bertray.pipelines.runs import claim_output, finished_run, mark_finished, remove_folder
from bertray.pipelines.shards import ReadSettings, write_token_shards
from bertray.reports.audit import AuditReport, BrokenFile, Doubt, Example, Leak, Repeats, SplitRows
from bertray.reviews.findings import AuditRows, Found, candidates, distinct_texts, find, labels_differ
from bertray.reviews.label_counts import count_labels
from bertray.reviews.labels import LabelMap
from bertray.reviews.marks import MARKS
from bertray.reviews.near import NumberFile, bands_and_rows, components, jaccard
from bertray.reviews.repeats import ALONE, Leaks, NearTexts, num_groups
from bertray.reviews.sources import BadFile, InputFile, check_columns, with_digests
from bertray.storage.store import Store, open_store
from bertray.training.token_shards import FILE_NO, cache_key

log = logging.getLogger(__name__)

TOKENS = "control/tokens"
ROWS_PER_SHARD = 4096
DAMAGE = ("control_characters", "replacement_character")
_DEFAULT_LABEL = Columns.model_fields["label"].default
_DEFAULT_ID = Columns.model_fields["id"].default


@dataclass(frozen=True)
class Split:
    """A split as it was given."""

    name: str
    inputs: Inputs
    bad: list[BadFile]
    first_file: int  # number of its first file, over all splits

    @property
    def has_labels(self) -> bool:
        return self.inputs.spec.wants_label


@dataclass(frozen=True)
class Scan:
    """Everything that one pass over the data tells."""

    rows: AuditRows
    refused: pa.Table  # REFUSED_SCHEMA and SPLIT
    scripts: dict[int, Counter[str]]
    bands: NumberFile
    blocks: list[tuple[int, int]]  # (start in `bands`, rows) of each work item, in the order of the rows
    num_bands: int


def run_audit(config: AuditConfig) -> int:
    """Audit; the same command on a finished output says so in one line."""
    started = time.monotonic()
    _check_installed(config)
    folder = resolve_model(config.model)
    check_length(config.max_length, config.model, folder)
    splits = open_splits(config)
    labels = open_labels(config, splits)
    run_key = _run_key(config, splits, weights_digest(folder))
    store = open_store(config.output)
    if finished_run(store, "audit", run_key):
        say(f"already audited: {store.uri('report.html')}")
        return 0
    claim_output(store, "audit", run_key, to_yaml(config))
    imports = ["ray.data", *(["cleanlab.filter", "sklearn.linear_model"] if config.label_errors.find else [])]
    with ray_session(config.workers, imports=imports) as resources:
        report, tables = _Audit(config, splits, labels, store, resources).run()
    report = replace(
        report,
        facts={**report.facts, "time": duration(time.monotonic() - started), "bertray": bertray.__version__},
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        config=to_yaml(config),
    )
    for name, rows in tables.items():
        store.put(f"{name}.parquet", parquet_bytes(rows))
    store.put("report.json", json.dumps(report.to_json(), indent=1, ensure_ascii=False).encode())
    store.put("report.html", report.to_html().encode())
    mark_finished(store)
    _print(report)
    say(f"report   {store.uri('report.html')}")
    return 0


def _check_installed(config: AuditConfig) -> None:
    needed = {"rensa": config.near_duplicates.find, "cleanlab": config.label_errors.find}
    missing = [name for name, is_needed in needed.items() if is_needed and find_spec(name) is None]
    if missing:
        raise ConfigError(f"audit: {missing[0]} is not installed.", "Run `pip install 'bertray[audit]'`.")


# --- inputs ----------------------------------------------------------------------------------------------------------


def open_splits(config: AuditConfig) -> list[Split]:
    """The files of each split; those that cannot be read are findings, not errors.

    Raises:
        ConfigError: a path or a column is missing.
        DataRefused: a split has no file that can be read, or no row.
    """
    splits: list[Split] = []
    for name, paths in config.splits.items():
        looked_at = inspect_inputs(paths, config)
        bad = [file for file in looked_at if isinstance(file, BadFile)]
        files = [file for file in looked_at if isinstance(file, InputFile)]
        if not files:
            reasons = f": {bad[0].reason} ({bad[0].detail})" if bad else ""
            raise DataRefused(f"data.{name}: none of {len(bad)} files can be read{reasons}.", "Give files of reviews.")
        column = config.columns.label
        wants_label = column != _DEFAULT_LABEL or any(column in file.columns for file in files)
        spec = read_spec(
            config, config.cleaning, config.max_chars, wants_label=wants_label, keep_columns=[config.columns.text]
        )
        check_columns(files, spec)
        first = sum(len(split.inputs.files) for split in splits)
        inputs = Inputs(with_digests(files), spec, range(first, first + len(files)))
        if inputs.num_rows == 0:
            raise DataRefused(f"data.{name}: {len(files)} files, no row.", "Give files that hold reviews.")
        splits.append(Split(name, inputs, bad, first))
    return splits


def open_labels(config: AuditConfig, splits: Sequence[Split]) -> LabelMap | None:
    """Which value means which class, one class being enough; None without a label.

    Raises:
        DataRefused: a value is neither a class of `labels` nor left out.
    """
    counts = {split.name: count_labels(split.inputs.files, split.inputs.spec) for split in splits if split.has_labels}
    seen = {value for found in counts.values() for value in found}
    if not seen:
        return None
    if config.labels is None and len(seen) == 1:
        return LabelMap(tuple(seen), {value: value for value in seen})
    labels = LabelMap.from_config(config.labels, seen)
    for name, found in counts.items():
        labels.check_known(found, f"data.{name}")
    return labels


def _run_key(config: AuditConfig, splits: Sequence[Split], model: str) -> str:
    files = [
        [(f.path, f.size_bytes, f.digest, f.num_rows) for f in split.inputs.files]
        + [(f.path, f.size_bytes, f.modified, f.reason) for f in split.bad]
        for split in splits
    ]
    identity = config.model_dump(mode="json", exclude={"output", "price_per_hour", "workers"})
    return cache_key({"config": identity, "files": files, "model": model})


# --- the audit -------------------------------------------------------------------------------------------------------


class _Audit:
    """One audit, step by step."""

    def __init__(
        self,
        config: AuditConfig,
        splits: Sequence[Split],
        labels: LabelMap | None,
        store: Store,
        resources: Resources,
    ) -> None:
        self._config, self._splits, self._labels = config, splits, labels
        self._store, self._resources = store, resources
        self._names = [split.name for split in splits]
        self._files = [file for split in splits for file in split.inputs.files]
        self._specs = tuple(split.inputs.spec for split in splits)
        self._has_ids = all(config.columns.id in file.columns for file in self._files)
        self._work = [
            AuditItem(number, item)
            for number, split in enumerate(splits)
            for item in split.inputs.work_items(ROWS_PER_SHARD)
        ]
        self._notes: list[str] = []
        self._ids: dict[int, str] = {}
        self._near_texts: NearTexts | None = None

    def run(self) -> tuple[AuditReport, dict[str, pa.Table]]:
        """The page, and the tables by name."""
        scan = self._scan()
        rows = scan.rows
        near = self._near_texts = self._near(scan) if self._config.near_duplicates.find else None
        scan.bands.close()
        found = find(rows, near, len(self._splits), has_ids=self._has_ids)
        doubt, suspects = self._doubt(rows, near)
        tables = self._tables(rows, found, suspects, scan.refused)
        return self._report(rows, found, doubt, suspects, scan, tables), tables

    # reading

    def _scan(self) -> Scan:
        near = self._config.near_duplicates
        settings = ScanSettings(
            self._specs, self._config.model, self._config.max_length, near.threshold if near.find else None
        )
        bands = NumberFile()
        num_bands = bands_and_rows(near.threshold)[0] if near.find else 0
        columns: dict[int, dict[str, np.ndarray]] = {}
        starts: dict[int, int] = {}
        refused: dict[int, pa.Table] = {}
        scripts: dict[int, Counter[str]] = {number: Counter() for number in range(len(self._splits))}
        total = sum(split.inputs.num_rows for split in self._splits)
        with Ticker("reading", total, "reviews") as ticker:
            done = 0
            for part in tasks.scan(self._work, settings, self._resources):
                split = self._work[part.number].split
                starts[part.number] = bands.append(part.bands_BN)
                columns[part.number] = self._numbers(part.rows, split)
                scripts[split].update(
                    {pair["values"]: pair["counts"] for pair in pc.value_counts(part.rows[s.SCRIPT]).to_pylist()}
                )
                name = pa.repeat(pa.scalar(self._names[split]), part.refused.num_rows)
                refused[part.number] = part.refused.drop_columns([FILE_NO]).add_column(0, s.SPLIT, name)
                done += part.rows.num_rows + part.refused.num_rows
                ticker.update(done)
        order = range(len(self._work))
        joined = {
            name: np.concatenate([columns[number][name] for number in order]) for name in next(iter(columns.values()))
        }
        return Scan(
            AuditRows(**joined),
            pa.concat_tables([refused[number] for number in order]),
            scripts,
            bands,
            [(starts[number], len(columns[number]["key_N"])) for number in order],
            num_bands,
        )

    def _numbers(self, part: pa.Table, split: int) -> dict[str, np.ndarray]:
        label_ids = np.full(part.num_rows, -3, np.int32)
        if self._labels is not None:
            label_ids = self._labels.ids(part[s.LABEL].combine_chunks())
        return {
            "split_N": np.full(part.num_rows, split, np.int8),
            "label_N": label_ids,
            **{
                name: part[column].to_numpy()
                for name, column in {
                    "file_no_N": FILE_NO,
                    "row_no_N": s.ROW_NO,
                    "key_N": tasks.KEY,
                    "stored_N": tasks.STORED,
                    "id_N": tasks.ID_HASH,
                    "folded_N": tasks.FOLDED,
                    "chars_N": tasks.CHARS,
                    "tokens_N": s.N_TOKENS,
                    "num_shingles_N": tasks.NUM_SHINGLES,
                    "truncated_N": s.TRUNCATED,
                    "marks_N": tasks.MARKS,
                }.items()
            },
        }

    def _again(self, rows: AuditRows, members: np.ndarray, what: str) -> Iterator[tuple[int, Any]]:
        """(position, value) of some rows, read again; in no particular order."""
        members = np.unique(members)
        by_file = {
            int(number): rows.row_no_N[members[rows.file_no_N[members] == number]]
            for number in np.unique(rows.file_no_N[members])
        }
        work = []
        for item in self._work:
            wanted = {}
            for shard in item.item:
                numbers = by_file.get(shard.file_no, np.empty(0, np.int64))
                inside = numbers[np.searchsorted(numbers, shard.lo) : np.searchsorted(numbers, shard.hi)]
                if len(inside):
                    wanted[shard.file_no] = inside
            if wanted:
                work.append(replace(item, wanted=wanted))
        for part in tasks.read_again(work, self._specs, what, self._resources):
            positions = rows.positions(part[FILE_NO].to_numpy(), part[s.ROW_NO].to_numpy())
            values = part[what]
            yield from zip(positions.tolist(), values if what == tasks.SHINGLES else values.to_pylist(), strict=True)

    # near-duplicates

    def _near(self, scan: Scan) -> NearTexts:
        rows, threshold = scan.rows, self._config.near_duplicates.threshold
        texts = distinct_texts(rows)
        bands = (
            np.concatenate([scan.bands.read(start + band * size, size) for start, size in scan.blocks])
            for band in range(scan.num_bands)
        )
        found = candidates(rows, texts, bands, threshold)
        if found.is_full or found.crowded:
            self._notes.append(
                "So many texts resemble each other that not all of them were compared: there are more near-duplicates "
                "than are told here."
            )
        pairs = found.pairs()
        similarity = self._similarities(rows, texts.first_V, pairs)
        alike = similarity >= threshold
        log.info("%d candidates for near-duplicates, %d are", len(pairs), alike.sum())
        return NearTexts(texts.node_N, len(texts.first_V), pairs[alike], similarity[alike])

    def _similarities(self, rows: AuditRows, first_V: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """float64 [P]: Jaccard of the n-grams themselves; MinHash only chose the pairs."""
        sets = NumberFile()
        places: dict[int, tuple[int, int]] = {}
        for position, values in self._again(rows, first_V[np.unique(pairs)], tasks.SHINGLES):
            numbers = values.values.to_numpy()
            places[position] = sets.append(numbers), len(numbers)
        found = np.array(
            [
                jaccard(sets.read(*places[first]), sets.read(*places[second]))
                for first, second in first_V[pairs].tolist()
            ]
        )
        sets.close()
        return found.reshape(len(pairs))

    # label errors

    def _doubt(self, rows: AuditRows, near: NearTexts | None) -> tuple[Doubt, Suspects | None]:
        """What the search for label errors came to, and the rows in doubt by position."""
        options = self._config.label_errors
        labelled = np.flatnonzero(rows.label_N >= 0)
        counts = np.bincount(rows.label_N[labelled], minlength=1)
        # Each class has to be in every fold, or a model is asked for what it cannot know.
        usable = np.flatnonzero(counts >= options.folds)
        why = ""
        if not options.find:
            why = "Nobody looked for label errors (label_errors.find=false)."
        elif not len(labelled):
            why = "There are no labels, so nobody looked for label errors."
        elif len(usable) < 2:
            why = (
                f"Label errors need two classes with {options.folds} rows at least, and there "
                f"{'is' if len(usable) == 1 else 'are'} {len(usable)}: nobody looked."
            )
        nothing = Doubt(0, len(labelled), 0, 0.0, 0.0, 0.0, "", why)
        if why:
            return nothing, None
        assert self._labels is not None
        rare = [self._labels.names[number] for number in np.flatnonzero((counts > 0) & (counts < options.folds))]
        members = labelled[np.isin(rows.label_N[labelled], usable)]
        if len(members) > options.max_rows:
            members = np.sort(np.random.default_rng(self._config.seed).permutation(members)[: options.max_rows])
        label_ids = np.searchsorted(usable, rows.label_N[members])
        groups = rows.folded_N if near is None else components(near.num_nodes, near.pairs_P2)[near.node_N]
        fold = assign_folds(groups[members], label_ids, options.folds)
        try:
            features, means = self._features(rows, members)
        except ValueError:
            return replace(nothing, skipped="The texts have no words to judge labels by: nobody looked."), None
        probs = out_of_sample_probs(features, label_ids, fold, len(usable), options.by, self._config.seed)
        accuracy, mcc = accuracy_and_mcc(probs, label_ids)
        majority = float(np.bincount(label_ids).max() / len(label_ids))
        doubt = replace(nothing, judged=len(members), accuracy=accuracy, majority=majority, mcc=mcc, means=means)
        if mcc < MIN_MCC:
            said = (
                f"No list of doubtful labels: {means}, cannot tell the classes apart (right on {100 * accuracy:.1f} %, "
                f"the largest class: {100 * majority:.1f} %, MCC {mcc:.2f}), so what it doubts would be noise."
            )
            if options.by == "tfidf":
                said += " Embeddings may do better: label_errors.by=embeddings."
            return replace(doubt, skipped=said), None
        found = find_suspects(probs, label_ids)
        if rare:
            self._notes.append(f"Classes with fewer than {options.folds} rows were not judged: {', '.join(rare[:10])}.")
        suspects = replace(found, rows=members[found.rows], suggested=usable[found.suggested])
        return replace(doubt, suspected=len(suspects.rows)), suspects

    def _features(self, rows: AuditRows, members: np.ndarray) -> tuple[Any, str]:
        """(features of some rows in their order, what learns from them in words)."""
        folds = f"{self._config.label_errors.folds} folds"
        if self._config.label_errors.by == "embeddings":
            name = Path(self._config.model).name
            return self._embeddings(rows, members), f"logistic regression on embeddings of {name}, {folds}"
        texts = dict(self._again(rows, members, s.TEXT))
        features, terms = tfidf_features([texts[position] for position in members.tolist()])
        return features, f"logistic regression on TF-IDF of {terms}, {folds}"

    def _embeddings(self, rows: AuditRows, members: np.ndarray) -> np.ndarray:
        """float32 [len(members), D], by the actors of `training.method=features`."""
        config = self._config
        keys: list[str] = []
        for number, split in enumerate(self._splits):
            here = members[rows.split_N[members] == number]
            if not len(here):
                continue
            wanted = {
                int(file_no): rows.row_no_N[here[rows.file_no_N[here] == file_no]]
                for file_no in np.unique(rows.file_no_N[here])
            }
            work = [
                item.item
                for item in self._work
                if item.split == number and any(shard.file_no in wanted for shard in item.item)
            ]
            settings = ReadSettings(split.inputs.spec, config.model, config.max_length, "head")
            written = write_token_shards(
                work, settings, self._store.root, f"{TOKENS}/{split.name}", self._resources, only_rows=wanted
            )
            keys += sorted(summary["key"] for summary in written if summary["key"])
        features: np.ndarray = embed_token_shards(
            config.model,
            weights_digest(resolve_model(config.model)),
            config.label_errors.pooling,
            keys,
            np.arange(len(members)),
            self._store,
            self._resources,
        )
        for folder in (TOKENS, FEATURES_FOLDER):
            remove_folder(self._store, folder)
        return features

    # tables

    def _tables(
        self, rows: AuditRows, found: Found, suspects: Suspects | None, refused: pa.Table
    ) -> dict[str, pa.Table]:
        """What was found, row by row, without texts."""
        damaged = np.flatnonzero(rows.marks_N & _bits(DAMAGE))
        groups = {"duplicates": found.duplicate_N}
        if found.near_N is not None:
            groups["near_duplicates"] = found.near_N
        if found.id_N is not None:
            groups["repeated_ids"] = found.id_N
        if self._labels is not None:
            groups["conflicts"] = found.conflict_N
        members = {name: _by_group(group_N) for name, group_N in groups.items()}
        leaks = list(found.leaks.values())
        later = np.concatenate([np.empty(0, np.int64), *(leak.later for leak in leaks)])
        earlier = np.concatenate([np.empty(0, np.int64), *(leak.earlier for leak in leaks)])
        leaking = np.unique(np.concatenate([np.empty(0, np.int64), *found.leaking.values()]))
        doubted = suspects.rows if suspects is not None else np.empty(0, np.int64)
        self._ids = dict(
            self._again(rows, np.concatenate([*members.values(), later, earlier, leaking, doubted, damaged]), s.ID)
        )
        tables = {}
        for name, group_N in groups.items():
            at = members[name]
            tables[name] = self._rows_table(rows, at).add_column(0, s.GROUP, pa.array(group_N[at]))
        first_N = _first_of_group(found.duplicate_N)
        at = members["duplicates"]
        same = rows.stored_N[at] == rows.stored_N[first_N[at]]
        tables["duplicates"] = tables["duplicates"].append_column(s.AS_STORED, pa.array(same))
        if found.near_N is not None:
            at = members["near_duplicates"]
            tables["near_duplicates"] = tables["near_duplicates"].append_column(
                s.SIMILARITY, pa.array(found.similarity_N[at])
            )
        if len(self._splits) > 1:
            kinds = [np.where(leak.exact, "exact", "near") for leak in leaks]
            sides = self._rows_table(rows, earlier)
            tables["leaking"] = self._rows_table(rows, leaking)
            tables["leakage"] = self._rows_table(rows, later)
            tables["leakage"] = tables["leakage"].append_column(
                s.KIND, pa.array(np.concatenate(kinds).tolist(), pa.string())
            )
            tables["leakage"] = tables["leakage"].append_column(
                s.SIMILARITY, pa.array(np.concatenate([leak.similarity for leak in leaks]))
            )
            for name in sides.column_names:
                tables["leakage"] = tables["leakage"].append_column(f"{s.EARLIER_PREFIX}{name}", sides[name])
        if suspects is not None:
            tables["label_errors"] = self._rows_table(rows, suspects.rows)
            for name, values in (
                (s.SUGGESTED, pa.array([self._label(number) for number in suspects.suggested], pa.string())),
                (s.PROB_GIVEN, pa.array(suspects.given_probs)),
                (s.PROB_SUGGESTED, pa.array(suspects.suggested_probs)),
            ):
                tables["label_errors"] = tables["label_errors"].append_column(name, values)
        tables["damaged"] = self._rows_table(rows, damaged)
        for mark in DAMAGE:
            has = (rows.marks_N[damaged] & _bits([mark])) > 0
            tables["damaged"] = tables["damaged"].append_column(mark, pa.array(has))
        tables["broken"] = pa.concat_tables([refused, self._bad_files()])
        return tables

    def _rows_table(self, rows: AuditRows, at: np.ndarray) -> pa.Table:
        """Where some rows stand, and what they are called."""
        paths = [file.path for file in self._files]
        return pa.table(
            {
                s.SPLIT: pa.array([self._names[split] for split in rows.split_N[at]], pa.string()),
                s.INPUT_PATH: pa.array([paths[number] for number in rows.file_no_N[at]], pa.string()),
                s.ROW_NO: pa.array(rows.row_no_N[at], pa.int64()),
                s.ID: pa.array([self._ids[position] for position in at.tolist()], pa.string()),
                s.LABEL: pa.array([self._label(number) for number in rows.label_N[at]], pa.string()),
            }
        )

    def _label(self, number: int) -> str | None:
        return self._labels.names[number] if self._labels is not None and number >= 0 else None

    def _bad_files(self) -> pa.Table:
        rows = [
            {s.SPLIT: split.name, s.INPUT_PATH: file.path, s.REASON: str(file.reason), s.DETAIL: file.detail}
            for split in self._splits
            for file in split.bad
        ]
        schema = pa.schema([pa.field(s.SPLIT, pa.string()), *s.REFUSED_SCHEMA])
        return pa.Table.from_pylist(rows, schema)

    # page

    def _report(
        self,
        rows: AuditRows,
        found: Found,
        doubt: Doubt,
        suspects: Suspects | None,
        scan: Scan,
        tables: Mapping[str, pa.Table],
    ) -> AuditReport:
        config, names = self._config, self._names
        in_split = {name: rows.of(number) for number, name in enumerate(names)}
        broken = {name: Counter[str]() for name in names}
        by_file: dict[tuple[str, str], Counter[str]] = {}
        counts = (
            tables["broken"]
            .group_by([s.SPLIT, s.INPUT_PATH, s.REASON], use_threads=False)
            .aggregate([(s.ROW_NO, "count"), ([], "count_all")])
        )
        for row in counts.to_pylist():
            by_file.setdefault((row[s.SPLIT], row[s.INPUT_PATH]), Counter())[row[s.REASON]] += row["count_all"]
            if row[f"{s.ROW_NO}_count"]:  # 0: the whole file
                broken[row[s.SPLIT]][row[s.REASON]] += row[f"{s.ROW_NO}_count"]
        rows_of_file = {file.path: file.num_rows for file in self._files}
        conflicts = None
        if self._labels is not None:
            conflicts = {"all": _counted(found.conflict_N)}
            conflicts |= {name: _counted(found.conflicts_in[number]) for number, name in enumerate(names)}
        return AuditReport(
            title=f"Audit {Path(config.output).name}",
            splits=[
                SplitRows(
                    split.name,
                    len(split.inputs.files) + len(split.bad),
                    split.inputs.num_rows,
                    len(in_split[split.name]),
                    _percentiles(rows.chars_N[in_split[split.name]]),
                    _percentiles(rows.tokens_N[in_split[split.name]]),
                    int(rows.truncated_N[in_split[split.name]].sum()),
                )
                for split in self._splits
            ],
            repeats={name: self._duplicates(rows, found, at) for name, at in in_split.items()},
            near=None
            if found.near_N is None
            else {name: _counted(found.near_N[at], rows.label_N[at]) for name, at in in_split.items()},
            threshold=config.near_duplicates.threshold,
            ids=None if found.id_N is None else _counted(found.id_N, rows.label_N),
            ids_in_two_splits=0 if found.id_N is None else len(labels_differ(found.id_N, rows.split_N)),
            leaks=[
                Leak(
                    names[first],
                    names[second],
                    len(in_split[names[second]]),
                    int(leak.exact.sum()),
                    len(np.unique(rows.key_N[leak.later[leak.exact]])),
                    int((~leak.exact).sum()),
                    _other_labels(rows.label_N, leak),
                )
                for (first, second), leak in found.leaks.items()
            ],
            conflicts=conflicts,
            broken={name: dict(counts) for name, counts in broken.items()},
            broken_files=[
                BrokenFile(split, path, rows_of_file.get(path), dict(reasons))
                for (split, path), reasons in by_file.items()
            ],
            labels={name: self._label_counts(rows.label_N[at]) for name, at in in_split.items()},
            unlabelled={name: int((rows.label_N[at] < 0).sum()) for name, at in in_split.items()},
            doubt=doubt,
            marks={
                name: {mark: int((rows.marks_N[at] & _bits([mark]) > 0).sum()) for mark in MARKS}
                for name, at in in_split.items()
            },
            scripts={name: dict(scan.scripts[number].most_common()) for number, name in enumerate(names)},
            max_length=config.max_length,
            tokenizer=Path(config.model).name,
            examples=self._examples(rows, found, suspects),
            notes=self._notes,
            facts={
                "compared by": "text and second text, after cleaning"
                if config.columns.text_pair is not None
                else "text after cleaning",
                "tokenizer": config.model,
                "rows read": f"{sum(split.inputs.num_rows for split in self._splits):,}",
            },
        )

    def _duplicates(self, rows: AuditRows, found: Found, at: np.ndarray) -> Repeats:
        group_N, first_N = found.duplicate_N[at], _first_of_group(found.duplicate_N)[at]
        beyond = (group_N != ALONE) & (first_N != at)
        same = int((rows.stored_N[at[beyond]] == rows.stored_N[first_N[beyond]]).sum())
        return replace(_counted(group_N, rows.label_N[at]), as_stored=same)

    def _label_counts(self, label_N: np.ndarray) -> dict[str, int]:
        if self._labels is None or not (label_N >= 0).any():
            return {}
        counts = np.bincount(label_N[label_N >= 0], minlength=len(self._labels.names))
        return {name: int(number) for name, number in zip(self._labels.names, counts, strict=True) if number}

    def _examples(self, rows: AuditRows, found: Found, suspects: Suspects | None) -> dict[str, list[Example]]:
        """Some of each finding, with text."""
        most = self._config.report.examples
        picked: dict[str, list[tuple[list[int], dict[str, str]]]] = {}
        for name, group_N, texts in (
            ("duplicates", found.duplicate_N, 1),
            ("conflicts", found.conflict_N, 1),
            ("near_duplicates", found.near_N, 2),
            ("repeated_ids", found.id_N, 2),
        ):
            if group_N is not None:
                picked[name] = [self._group(rows, found, at, texts, name) for at in _largest(group_N, most)]
        for (first, second), leak in found.leaks.items():
            exact, near = np.flatnonzero(leak.exact), np.flatnonzero(~leak.exact)
            near = near[np.argsort(-leak.similarity[near], kind="stable")]
            some = [*exact[: max(most - len(near), most // 2)], *near]
            picked[f"leakage_{self._names[first]}_{self._names[second]}"] = [
                self._leaked(rows, int(leak.later[n]), int(leak.earlier[n]), float(leak.similarity[n]), leak.exact[n])
                for n in some[:most]
            ]
        if suspects is not None:
            picked["label_errors"] = [
                ([int(row)], self._doubted(rows, int(row), int(other), float(given), float(prob)))
                for row, other, given, prob in zip(
                    suspects.rows[:most],
                    suspects.suggested,
                    suspects.given_probs,
                    suspects.suggested_probs,
                    strict=False,
                )
            ]
        shown = [position for some in picked.values() for positions, _ in some for position in positions]
        texts_of = dict(self._again(rows, np.array(shown, np.int64), s.TEXT))
        return {
            name: [Example(tuple(texts_of[position] for position in at), facts) for at, facts in some]
            for name, some in picked.items()
        }

    def _group(
        self, rows: AuditRows, found: Found, at: np.ndarray, num_texts: int, name: str
    ) -> tuple[list[int], dict[str, str]]:
        _, first = np.unique(rows.key_N[at], return_index=True)
        shown = at[np.sort(first)[:num_texts]].tolist()
        facts = {"rows": f"{len(at):,}"}
        if name == "near_duplicates":
            assert self._near_texts is not None
            shown = list(self._near_texts.nearest(rows.key_N, at))
            facts["alike"] = _alike(float(found.similarity_N[shown[0]]), *rows.folded_N[shown])
        if self._labels is not None:
            facts["labels"] = self._label_words(rows.label_N[at])
        if len(self._names) > 1:
            facts["split"] = ", ".join(self._names[split] for split in np.unique(rows.split_N[at]))
        ids = [self._ids[position] for position in (shown if num_texts > 1 else at[:3].tolist())]
        facts["id"] = ", ".join(dict.fromkeys(ids)) + (", …" if len(at) > len(ids) and name != "repeated_ids" else "")
        return shown, facts

    def _leaked(
        self, rows: AuditRows, later: int, earlier: int, similarity: float, exact: bool
    ) -> tuple[list[int], dict[str, str]]:
        facts = {"alike": "exactly" if exact else _alike(similarity, *rows.folded_N[[later, earlier]])}
        for position in (later, earlier):
            name = self._names[rows.split_N[position]]
            label = self._label(rows.label_N[position])
            facts[name] = self._ids[position] + (f" ({label})" if label is not None else "")
        return [later] if exact else [later, earlier], facts

    def _doubted(
        self, rows: AuditRows, position: int, suggested: int, given_prob: float, prob: float
    ) -> dict[str, str]:
        return {
            "given": f"{self._label(rows.label_N[position])} ({given_prob:.2f})",
            "suggested": f"{self._label(suggested)} ({prob:.2f})",
            **({"split": self._names[rows.split_N[position]]} if len(self._names) > 1 else {}),
            "id": self._ids[position],
        }

    def _label_words(self, label_N: np.ndarray) -> str:
        counts = Counter(self._label(number) or "none" for number in label_N.tolist())
        return ", ".join(f"{label} {number:,}" for label, number in counts.most_common(4))


def _other_labels(label_N: np.ndarray, leak: Leaks) -> int:
    """Leaked rows with another label on the other side; rows without one do not count."""
    later, earlier = label_N[leak.later], label_N[leak.earlier]
    return int(((later != earlier) & (later >= 0) & (earlier >= 0)).sum())


def _alike(similarity: float, folded: int, other_folded: int) -> str:
    return "but for case, spaces and punctuation" if folded == other_folded else f"{math.floor(100 * similarity)} %"


def _bits(marks: Sequence[str]) -> np.uint16:
    return np.uint16(sum(1 << list(MARKS).index(mark) for mark in marks))


def _by_group(group_N: np.ndarray) -> np.ndarray:
    """Rows of groups, those of one group together."""
    members = np.flatnonzero(group_N != ALONE)
    return members[np.argsort(group_N[members], kind="stable")]


def _first_of_group(group_N: np.ndarray) -> np.ndarray:
    """int64 [N]: the first row of the group of each row; of a row without one, itself."""
    first_N = np.arange(len(group_N))
    members = np.flatnonzero(group_N != ALONE)
    _, first, inverse = np.unique(group_N[members], return_index=True, return_inverse=True)
    first_N[members] = members[first][inverse]
    return first_N


def _largest(group_N: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of the groups with most rows, the largest first."""
    if not num_groups(group_N):
        return []
    sizes = np.bincount(group_N[group_N != ALONE])
    return [np.flatnonzero(group_N == group) for group in np.argsort(-sizes, kind="stable")[:most]]


def _counted(group_N: np.ndarray, label_N: np.ndarray | None = None) -> Repeats:
    members = group_N[group_N != ALONE]
    differing = 0 if label_N is None else len(labels_differ(group_N, label_N))
    return Repeats(len(np.unique(members)), len(members), other_labels=differing)


def _percentiles(values: np.ndarray) -> dict[str, int]:
    if not len(values):
        return {}
    found = np.percentile(values, [50, 90, 99, 100], method="inverted_cdf")
    return dict(zip(("p50", "p90", "p99", "max"), found.astype(int).tolist(), strict=True))


def _print(report: AuditReport) -> None:
    """The findings, on the console."""
    for finding in report.findings:
        say(f"{finding.weight_words:>14}  {finding.title}: {finding.sentences[0]}")
