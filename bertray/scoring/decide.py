"""Decisions of a scoring run, made before any compute: which files are new, which slots are rewritten, and how.

`plan` shows them, `score` follows them: `next_plan` makes each the files of one version of one slot.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from bertray import schema as s
from bertray.config import EmbedConfig, NightConfig, ScoreConfig
from bertray.errors import ConfigError, ConflictError
from bertray.io.store import Store
from bertray.model.bundle import BundleInfo
from bertray.outputs import ledger
from bertray.outputs.claims import check_claim
from bertray.outputs.control_files import FileRecord, LedgerRun
from bertray.outputs.ledger import Ledger
from bertray.reviews.corpus import read_spec, refuse_bad_files
from bertray.reviews.labels import label_map
from bertray.reviews.reader import check_columns, check_slices, column_fault, kept_faults, label_is_readable
from bertray.reviews.rows import Aspects, BadFile, InputFile, ReadSpec
from bertray.reviews.scan import FileScan
from bertray.scoring import plan as planning
from bertray.scoring.scanned_input import KnownFile, ScannedInput, Seen
from bertray.wording import counted

log = logging.getLogger(__name__)

# Settings that may differ between vectors that are compared.
_FREE = ("columns", "reader", "keep_columns", "unique_ids")


@dataclass(frozen=True)
class Rewrite:
    """A committed slot that gets a new version: one run in place of all that it has."""

    slot: str
    version: int
    files: list[FileRecord]
    why: str


@dataclass(frozen=True)
class Tonight:
    """Everything decided about a run."""

    info: BundleInfo
    entries: Ledger
    decisions: list[planning.FileDecision]
    rewrites: list[Rewrite]
    scanned: ScannedInput
    settings: dict[str, Any]

    @property
    def new_files(self) -> list[FileRecord]:
        """Files of no slot, sorted by path; those that a rewrite takes are not among them."""
        rewritten = {file.path for rewrite in self.rewrites for file in rewrite.files}
        new = [d.file for d in self.decisions if d.verdict == "score" and d.file.path not in rewritten]
        return sorted(new, key=lambda file: file.path)

    @property
    def to_read(self) -> list[FileRecord]:
        return [*self.new_files, *(file for rewrite in self.rewrites for file in rewrite.files)]

    def readable(self, files: Sequence[FileRecord]) -> list[InputFile]:
        return [scan.file for scan in self.scans(files)]

    def scans(self, files: Sequence[FileRecord]) -> list[FileScan]:
        """Scans of some files, of those that can be read."""
        found = [self.scanned.seen[file.path] for file in files]
        return [scan for scan in found if isinstance(scan, FileScan)]


def decide(config: NightConfig, info: BundleInfo, entries: Ledger, scanned: ScannedInput) -> Tonight:
    """Hold the input against the ledger: which files are new, which slots are rewritten.

    Raises:
        ConfigError: a column is missing.
        DataRefused: bad files with on_bad_file=fail.
        ConflictError: a scored file changed, or files of a slot to rewrite are not in the input any more.
    """
    _check_slot(config, list(info.labels))
    settings = night_settings(config, info)
    tonight = _decided(config, info, entries, settings, scanned)
    if config.on_bad_file == "quarantine":  # a file with other columns is a bad file too, and costs no other
        # What repeats the content of a bad file is no duplicate any more, and is looked at in its turn.
        while faults := _column_faults(config, tonight):
            tonight = _decided(config, info, entries, settings, tonight.scanned.with_faults(faults))
    else:
        bad = [seen for file in tonight.to_read if isinstance(seen := scanned.seen[file.path], BadFile)]
        refuse_bad_files("input", bad, list(scanned.seen), "Repair or remove them, or set `on_bad_file=quarantine`.")
    for decision in tonight.decisions:
        if decision.is_unsure:
            log.warning("%s: %s", decision.file.path, decision.why)
    readable = tonight.readable(tonight.to_read)
    spec = spec_for(config, info, readable)
    check_columns(readable, spec)
    check_slices(readable, spec, config.report_options.slices)
    check_slices(readable, spec, _profiled(config), "drift.by")
    return tonight


def _column_faults(config: NightConfig, tonight: Tonight) -> dict[str, BadFile]:
    """By path, the files to read whose columns are missing, or other than those of most files read with them."""
    spec = spec_for(config, tonight.info, tonight.readable(tonight.to_read))
    found: dict[str, BadFile] = {}
    for together in (tonight.new_files, *(rewrite.files for rewrite in tonight.rewrites)):
        readable = tonight.readable(together)
        faults = {file.path: fault for file in readable if (fault := column_fault(file, spec)) is not None}
        found |= faults | kept_faults([file for file in readable if file.path not in faults], spec)
    again = [d.file for d in tonight.decisions if d.verdict == "duplicate" and d.twin in found]
    repeated = {file.path: column_fault(file, spec) for file in tonight.readable(again)}
    return found | {path: fault for path, fault in repeated.items() if fault is not None}


def _decided(
    config: NightConfig,
    info: BundleInfo,
    entries: Ledger,
    settings: dict[str, Any],
    scanned: ScannedInput,
) -> Tonight:
    records = [_record(file) for file in scanned.seen.values()]
    decisions = planning.decide_files(records, entries, digests=scanned.digests, gone=scanned.gone)
    rewrites = list(_rewrites(config, info, entries, settings, decisions))
    rewritten = {rewrite.slot for rewrite in rewrites}
    changed = [d for d in decisions if d.verdict == "changed" and d.slot not in rewritten]
    if changed:
        raise ConflictError(
            f"input: {counted(len(changed), 'scored file')} changed: {changed[0].file.path} ({changed[0].why}).",
            "Deliver changes under a new name, set `on_changed_file=replace`, or score into another output.",
        )
    return Tonight(info, entries, decisions, rewrites, scanned, settings)


def _rewrites(
    config: NightConfig,
    info: BundleInfo,
    entries: Sequence[LedgerRun],
    settings: Mapping[str, Any],
    decisions: Sequence[planning.FileDecision],
) -> Iterator[Rewrite]:
    """Slots to rewrite, each once with the files of all its runs, in the order in which they were first committed."""
    by_path = {decision.file.path: decision for decision in decisions}
    owned: defaultdict[str, list[str]] = defaultdict(list)
    for path, (_, entry) in sorted(planning.owners(entries).items()):
        owned[entry.slot].append(path)
    runs_of: dict[str, list[LedgerRun]] = {}
    for entry in ledger.current(entries):
        runs_of.setdefault(entry.slot, []).append(entry)
    for slot, runs in runs_of.items():
        version = runs[0].version
        mine = [by_path[path].file for path in owned[slot] if path in by_path]
        missing = [path for path in owned[slot] if path not in by_path]
        changed = [d for d in decisions if d.verdict == "changed" and d.slot == slot]
        others = [entry.model_version for entry in runs if entry.model_version != info.model_version]
        if config.replace and slot == config.slot:
            new = [d.file for d in decisions if d.verdict == "score" and d.file.path not in owned[slot]]
            files = sorted([*mine, *new], key=lambda file: file.path)
            key = planning.plan_key(files, info.model_version, settings, version=version)
            if [run.plan_key for run in runs] != [key]:
                yield Rewrite(slot, version + 1, files, "replace=true")
        elif changed and config.on_changed_file == "replace":
            if missing:
                raise ConflictError(
                    f"slot {slot}: {changed[0].file.path} changed, and rewriting the slot also needs {missing[0]}, "
                    "which is not in the input.",
                    "Give all files of the slot as `input`.",
                )
            yield Rewrite(slot, version + 1, mine, f"{len(changed)} of its files changed")
        elif config.rescore == "replace" and others:
            if missing:
                log.warning(
                    "slot %s keeps its model: %d of its %d files are not in the input",
                    slot,
                    len(missing),
                    len(owned[slot]),
                )
            elif mine:
                yield Rewrite(slot, version + 1, mine, f"scored with model {', '.join(dict.fromkeys(others))}")


def _check_slot(config: NightConfig, labels: list[str]) -> None:
    if config.replace and config.slot is None:
        raise ConfigError(
            "replace=true: expected a slot to replace, found none.", "Name it: `slot=dt=2026-11-20 replace=true`."
        )
    keys = [key.casefold() for key in s.partition_columns(config.slot or "")]
    names = s.scored_schema(labels, pa.schema([]), needs_review=True, aspect=True).names
    ours = {name.casefold() for name in (*names, s.EMBEDDING)}
    ours.add(s.TOKENS)
    if len(set(keys)) < len(keys) or not ours.isdisjoint(keys):
        raise ConfigError(
            f"slot={config.slot}: readers would see two columns {keys[0]!r}, that of the slot and that of the rows.",
            "Name the slot with another key.",
        )


def spec_for(config: NightConfig, info: BundleInfo, files: Sequence[InputFile]) -> ReadSpec:
    """Settings for reading some files; labels are used when every file has the column."""
    aspects = Aspects.of(config, info.aspects)
    looks_at_labels = isinstance(config, ScoreConfig) and bool(files)
    return read_spec(
        config,
        info.cleaning,
        info.max_chars,
        wants_label=looks_at_labels and all(label_is_readable(file, config.columns, aspects) for file in files),
        keep_columns=list(dict.fromkeys([*config.keep_columns, *config.report_options.slices, *_profiled(config)])),
        unique_ids=config.ids.unique != "off",
        trained_for=info.aspects,
        text_columns=info.text_columns,
    )


def _profiled(config: NightConfig) -> tuple[str, ...]:
    """Input columns whose values the profile counts apart."""
    return config.drift.by if isinstance(config, ScoreConfig) else ()


def night_settings(config: NightConfig, info: BundleInfo) -> dict[str, Any]:
    """The part of the config that decides what is written."""
    settings = {
        "columns": config.columns.trained_for(info.text_columns).model_dump(),
        "reader": config.reader.model_dump(),
        "keep_columns": list(config.keep_columns),
        "max_length": config.max_length or info.max_length,
        "long_text": config.long_text or info.long_text,
        "unique_ids": config.ids.unique,
    }
    if (aspects := Aspects.of(config, info.aspects)) is not None:
        settings["aspects"] = aspects.column or aspects.label_columns
    if isinstance(config, EmbedConfig):
        if config.vocabulary_unit is not None:
            settings["unit"] = config.vocabulary_unit
        return settings | {
            "pooling": config.pooling,
            "normalize": config.normalize,
            "dtype": config.dtype,
            "cleaning": asdict(info.cleaning),
            "max_chars": info.max_chars,
        }
    assert isinstance(config, ScoreConfig)
    if config.precision != "auto":
        settings["precision"] = config.precision
    if config.drift.by:
        settings["drift_by"] = list(config.drift.by)
    return settings | {
        "needs_review_below": config.needs_review_below or info.needs_review_below,
        "labels": label_map(config.labels, info.label_map).to_json(),
        "slices": list(config.report.slices),
    }


def check_comparable(config: EmbedConfig, info: BundleInfo, store: Store, entries: Sequence[LedgerRun]) -> None:
    """Refuse to put vectors of two kinds into one output, where they are meant to be compared with each other.

    Raises:
        ConflictError: those that are there were made in another way or by another model.
    """
    check_claim(store, config.verb, config.verb)
    wanted = night_settings(config, info)
    for entry in ledger.current(entries):
        for name in wanted:
            held = entry.settings.get(name)
            if name not in _FREE and held != wanted[name]:
                raise ConflictError(
                    f"{config.output}: holds vectors with {name}={held}, not {wanted[name]}.",
                    "Choose another `output`; vectors of two kinds cannot be compared.",
                )
        if entry.model_version != info.model_version:
            raise ConflictError(
                f"{config.output}: holds vectors of model version {entry.model_version}, not {info.model_version}.",
                "Choose another `output`; vectors of two models cannot be compared.",
            )


def _record(seen: Seen) -> FileRecord:
    if isinstance(seen, KnownFile):
        return seen.record
    scan = seen if isinstance(seen, FileScan) else None
    bad = seen if isinstance(seen, BadFile) else None
    file = seen.file if isinstance(seen, FileScan) else seen
    return FileRecord(
        path=file.path,
        relative_path=file.relative_path,
        format=scan.file.format if scan else "unknown",
        size_bytes=file.size_bytes,
        modified=file.modified,
        num_rows=file.num_rows,
        fingerprint=scan.file.fingerprint if scan else None,
        digest=scan.file.digest if scan else None,
        reason=None if bad is None else str(bad.reason),
        detail=None if bad is None else bad.detail,
    )
