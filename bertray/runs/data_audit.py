"""Audit of reviews before somebody learns from them: one page, and tables of the rows."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import bertray
from bertray import schema as s
from bertray.auditing import tasks
from bertray.auditing.analysis import AuditRows, candidates, distinct_texts, find
from bertray.auditing.duplicates import NearTexts
from bertray.auditing.near_duplicates import NumberFile, bands_and_rows, components, jaccard
from bertray.auditing.tables import Audited, Split
from bertray.auditing.tasks import AuditUnit, ScanSettings
from bertray.config import AuditConfig, Columns, identity_of, to_yaml
from bertray.console import Ticker
from bertray.errors import DataRefused
from bertray.evaluation.label_errors import (
    MIN_MCC,
    LabelErrorSearch,
    Suspects,
    accuracy_and_mcc,
    assign_folds,
    find_suspects,
    judged_classes,
    out_of_sample_probs,
    tfidf_features,
)
from bertray.execution.executor import Executor
from bertray.execution.on_demand import ExecutorFor, Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import resolve_model, weights_digest
from bertray.model.pretrained.tokenizer import check_tokenizer
from bertray.model.terms import NoTerms
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder
from bertray.reports.audit import WEIGHT_WORDS, AuditReport
from bertray.reports.html import created_now
from bertray.reports.plain import json_bytes
from bertray.reviews.clean import Cleaning
from bertray.reviews.corpus import read_spec, scan_inputs, settings_for
from bertray.reviews.fetch import fetch_rows, shard_rows, whole_texts
from bertray.reviews.labels import NO_LABEL, LabelMap
from bertray.reviews.rows import ROWS_PER_SHARD, ReadSpec
from bertray.runs.audit_content import Picker, audit_report, with_texts
from bertray.runs.fit.labelled_data import write_token_shards
from bertray.runs.results import AuditFinding, AuditResult
from bertray.runtime import check_installed
from bertray.scoring.models import check_length
from bertray.scoring.read_unit import ReadAndTokenize, ReadSettings
from bertray.settings import settings_of
from bertray.training.features import FOLDER as FEATURES_FOLDER
from bertray.training.features import FrozenEncoder, embed_token_shards
from bertray.wording import counted, duration, percent

log = logging.getLogger(__name__)

TOKENS = "control/tokens"
_DEFAULT_LABEL = Columns.model_fields["label"].default


@dataclass(frozen=True)
class Scan:
    """Everything that one pass over the data tells."""

    rows: AuditRows
    refused: pa.Table  # REFUSED_SCHEMA and SPLIT
    scripts: dict[int, Counter[str]]
    bands: NumberFile
    blocks: list[tuple[int, int]]  # (start in `bands`, rows) of each work unit, in the order of the rows
    num_bands: int


def audit(config: AuditConfig, executors: Executors | None = None) -> AuditResult:
    """Audit; the same run again gives back what it had found."""
    imports = ["ray.data", *(["cleanlab.filter", "sklearn.linear_model"] if config.label_errors.find else [])]
    with executors_of(config.workers, executors, imports=imports) as opened:
        return _run(config, opened)


def _run(config: AuditConfig, executors: Executors) -> AuditResult:
    started = time.monotonic()
    _check_installed(config)
    folder = resolve_model(config.model)
    check_length(config.max_length, config.model, folder)
    check_tokenizer(folder, config.model)
    splits = open_splits(config, executors.for_bytes)
    labels = open_labels(config, splits)
    run_key = _run_key(config, splits, weights_digest(folder))
    store = open_store(config.output)
    if finished_run(store, "audit", run_key):
        return _result(store, json.loads(store.get("report.json")), already_done=True)
    with claimed_output(store, "audit", run_key, to_yaml(config)):
        for split in splits:
            split.inputs.keep_scan(store)
        num_rows = sum(split.inputs.num_rows for split in splits)
        with executors.session(num_rows) as executor:
            report, tables = _Audit(config, splits, labels, store, executor).run()
        report = replace(
            report,
            facts={**report.facts, "time": duration(time.monotonic() - started), "bertray": bertray.__version__},
            created=created_now(),
            config=to_yaml(config),
        )
        for name, rows in tables.items():
            store.put(f"{name}.parquet", parquet_bytes(rows))
        store.put("report.json", json_bytes(report.to_json()))
        store.put("report.html", report.to_html().encode())
        mark_finished(store)
    return _result(store, report.to_json(), already_done=False)


def _result(store: Store, content: Mapping[str, Any], *, already_done: bool) -> AuditResult:
    """The result of the content of `report.json`."""
    findings = tuple(
        AuditFinding(
            weight=WEIGHT_WORDS[finding["weight"]],
            title=finding["title"],
            sentences=tuple(finding["sentences"]),
            rows=store.uri(finding["table"]) if finding["table"] else None,
        )
        for finding in content["findings"]
    )
    return AuditResult(
        store.root, tuple(content["notes"]), sentence=content["headline"], findings=findings, already_done=already_done
    )


def _check_installed(config: AuditConfig) -> None:
    needed = {"rensa": config.near_duplicates.find, "cleanlab": config.label_errors.find}
    check_installed("audit", [name for name, is_needed in needed.items() if is_needed])


# --- inputs ----------------------------------------------------------------------------------------------------------


def open_splits(config: AuditConfig, executor_for: ExecutorFor) -> list[Split]:
    """The files of each split; those that cannot be read are findings, not errors.

    Raises:
        ConfigError: a path or a column is missing.
        DataRefused: a split has no file that can be read, or no row.
    """
    splits: list[Split] = []
    for name, paths in config.splits.items():
        settings = settings_for(ReadSpec(config.columns, config.reader, unique_ids=False), labels=True)
        scanned = scan_inputs(f"data.{name}", paths, config, settings, executor_for)
        bad, files = scanned.bad, scanned.files
        if not files:
            reasons = f": {bad[0].reason} ({bad[0].detail})" if bad else ""
            raise DataRefused(
                f"data.{name}: none of {counted(len(bad), 'file')} can be read{reasons}.", "Give files of reviews."
            )
        column = config.columns.label
        wants_label = column != _DEFAULT_LABEL or all(column in file.columns for file in files)
        spec = read_spec(
            config,
            settings_of(Cleaning, config.cleaning),
            config.max_chars,
            wants_label=wants_label,
            keep_columns=[config.columns.text_name],
        )
        first = sum(len(split.inputs.files) for split in splits)
        inputs = scanned.inputs(spec, range(first, first + len(files)))
        splits.append(Split(name, inputs, bad))
    return splits


def open_labels(config: AuditConfig, splits: Sequence[Split]) -> LabelMap | None:
    """Label map of the audited rows, for which one class is enough; None without a label column.

    Raises:
        DataRefused: a value is neither a class of `labels` nor left out.
    """
    counts = {split.name: split.inputs.label_counts for split in splits if split.has_labels}
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
        [*split.inputs.identity, *((f.path, f.size_bytes, f.modified, f.reason) for f in split.bad)] for split in splits
    ]
    return cache_key({"config": identity_of(config), "files": files, "model": model})


# --- the audit -------------------------------------------------------------------------------------------------------


class _Audit:
    """One audit, step by step."""

    def __init__(
        self,
        config: AuditConfig,
        splits: Sequence[Split],
        labels: LabelMap | None,
        store: Store,
        executor: Executor,
    ) -> None:
        self._config, self._splits, self._labels = config, splits, labels
        self._store, self._executor = store, executor
        self._names = [split.name for split in splits]
        self._files = [file for split in splits for file in split.inputs.files]
        self._specs = tuple(split.inputs.spec for split in splits)
        with_ids = sum(config.columns.id in file.columns for file in self._files)
        self._has_ids = with_ids > 0  # those that are made up repeat no other
        self._work = [
            AuditUnit(number, unit)
            for number, split in enumerate(splits)
            for unit in split.inputs.work_units(ROWS_PER_SHARD)
        ]
        self._notes: list[str] = []
        if 0 < with_ids < len(self._files):
            self._notes.append(
                f"{with_ids} of {counted(len(self._files), 'file')} have ids; only these were looked at for repeats."
            )
        for split in splits:
            with_label = sum(config.columns.label in file.columns for file in split.inputs.files)
            if with_label and not split.has_labels:
                self._notes.append(
                    f"data.{split.name}: {with_label} of {len(split.inputs.files)} files have a column "
                    f"{config.columns.label!r}, so the labels of this split were not looked at."
                )

    def run(self) -> tuple[AuditReport, dict[str, pa.Table]]:
        """The page, and the tables by name."""
        scan = self._scan()
        rows = scan.rows
        near = self._near(scan) if self._config.near_duplicates.find else None
        scan.bands.close()
        found = find(rows, near, len(self._splits), has_ids=self._has_ids)
        doubt, suspects = self._doubt(rows, near)
        audited = Audited(self._splits, self._labels, rows, found, near, doubt, suspects, scan.refused, scan.scripts)
        ids = dict(self._again(rows, audited.told(), tasks.ids_of))
        tables = audited.tables(ids)
        picked = Picker(audited, ids, self._config.report.examples).pick()
        shown = [position for some in picked.values() for one in some for position in one.at]
        examples = with_texts(picked, dict(self._again(rows, np.array(shown, np.int64), whole_texts)))
        return audit_report(self._config, audited, tables, examples, self._notes), tables

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
            for part in tasks.scan(self._work, settings, self._executor):
                split = self._work[part.number].split
                starts[part.number] = bands.append(part.bands_BN)
                columns[part.number] = self._numbers(part.rows, split)
                scripts[split].update(
                    {pair["values"]: pair["counts"] for pair in pc.value_counts(part.rows[s.SCRIPT]).to_pylist()}
                )
                name = pa.repeat(pa.scalar(self._names[split]), part.refused.num_rows)
                refused[part.number] = part.refused.drop_columns([s.FILE_NO]).add_column(0, s.SPLIT, name)
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
        label_ids = np.full(part.num_rows, NO_LABEL, np.int32)
        if self._labels is not None:
            label_ids = self._labels.ids(part[s.LABEL].combine_chunks())
        return {
            "split_N": np.full(part.num_rows, split, np.int8),
            "label_N": label_ids,
            **{
                name: part[column].to_numpy()
                for name, column in {
                    "file_no_N": s.FILE_NO,
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

    def _again(
        self, rows: AuditRows, members: np.ndarray, function: Callable[[pa.Table], list[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """(position, value) of some rows, read again; in no particular order."""
        members = np.unique(members)
        inputs = [split.inputs for split in self._splits]
        units = [unit for one in inputs for unit in shard_rows(one.shards(ROWS_PER_SHARD), one.spec)]
        where = rows.file_no_N[members], rows.row_no_N[members]
        for positions_W, values in fetch_rows(self._executor, units, *where, function):
            yield from zip(members[positions_W].tolist(), values, strict=True)

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
        for position, numbers in self._again(rows, first_V[np.unique(pairs)], tasks.shingles_of):
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

    def _doubt(self, rows: AuditRows, near: NearTexts | None) -> tuple[LabelErrorSearch, Suspects | None]:
        """Result of the search for label errors, and the suspected rows by position."""
        options = self._config.label_errors
        members = labelled = np.flatnonzero(rows.label_N >= 0)
        if len(members) > options.max_rows:
            members = np.sort(np.random.default_rng(self._config.seed).permutation(members)[: options.max_rows])
        groups = rows.folded_N if near is None else components(near.num_nodes, near.pairs_P2)[near.node_N]
        present = np.unique(rows.label_N[members])
        usable = judged_classes(groups[members], rows.label_N[members], options.folds)
        why = ""
        if not options.find:
            why = "Nobody looked for label errors (label_errors.find=false)."
        elif not len(labelled):
            why = "There are no labels, so nobody looked for label errors."
        elif len(usable) < 2:
            why = (
                f"Label errors need two classes with {options.folds} different texts at least, and there "
                f"{'is' if len(usable) == 1 else 'are'} {len(usable)}: nobody looked."
            )
        nothing = LabelErrorSearch(0, len(labelled), 0, 0.0, 0.0, 0.0, "", why)
        if why:
            return nothing, None
        assert self._labels is not None
        rare = [self._labels.names[number] for number in np.setdiff1d(present, usable)]
        members = members[np.isin(rows.label_N[members], usable)]
        label_ids = np.searchsorted(usable, rows.label_N[members])
        fold = assign_folds(groups[members], label_ids, options.folds)
        try:
            features, means = self._features(rows, members)
        except NoTerms:
            return replace(nothing, skipped="The texts have no words to judge labels by: nobody looked."), None
        probs = out_of_sample_probs(features, label_ids, fold, len(usable), options.by, self._config.seed)
        accuracy, mcc = accuracy_and_mcc(probs, label_ids)
        majority = float(np.bincount(label_ids).max() / len(label_ids))
        doubt = replace(nothing, judged=len(members), accuracy=accuracy, majority=majority, mcc=mcc, means=means)
        if mcc < MIN_MCC:
            said = (
                f"No list of doubtful labels: {means}, cannot tell the classes apart (right on {percent(accuracy)}, "
                f"the largest class: {percent(majority)}, MCC {mcc:.2f}), so what it doubts would be noise."
            )
            if options.by == "tfidf":
                said += " Embeddings may do better: label_errors.by=embeddings."
            return replace(doubt, skipped=said), None
        found = find_suspects(probs, label_ids)
        if rare:
            self._notes.append(
                f"Classes with fewer than {options.folds} different texts among the {len(members):,} rows that were "
                f"looked at were not judged: {', '.join(rare[:10])}."
            )
        suspects = replace(found, rows=members[found.rows], suggested=usable[found.suggested])
        return replace(doubt, suspected=len(suspects.rows)), suspects

    def _features(self, rows: AuditRows, members: np.ndarray) -> tuple[Any, str]:
        """(features of some rows in their order, what learns from them in words)."""
        folds = f"{self._config.label_errors.folds} folds"
        if self._config.label_errors.by == "embeddings":
            name = Path(self._config.model).name
            return self._embeddings(rows, members), f"logistic regression on embeddings of {name}, {folds}"
        texts = dict(self._again(rows, members, whole_texts))
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
                audited.unit
                for audited in self._work
                if audited.split == number and any(shard.file_no in wanted for shard in audited.unit)
            ]
            settings = ReadSettings(split.inputs.spec, config.model, config.max_length, "head")
            read = ReadAndTokenize(settings, only_rows=wanted)
            written = write_token_shards(work, read, self._store.root, f"{TOKENS}/{split.name}", self._executor)
            keys += sorted(summary.key for summary in written if summary.key)
        encoder = FrozenEncoder(config.model, weights_digest(resolve_model(config.model)), config.label_errors.pooling)
        features = embed_token_shards(encoder, keys, np.arange(len(members)), self._store, self._executor)
        for folder in (TOKENS, FEATURES_FOLDER):
            remove_folder(self._store, folder)
        return features
