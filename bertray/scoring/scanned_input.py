"""The input of a scoring run: its files as they are listed, scans of those that are new, digests of those alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bertray.config import NightConfig
from bertray.errors import ConflictError, DataRefused
from bertray.execution.on_demand import ExecutorFor
from bertray.io.store import Store
from bertray.outputs.control_files import FileCount, FileRecord, LedgerRun, Plan
from bertray.reviews.file_identity import digests_of, is_unchanged, with_digests_where_alike
from bertray.reviews.kept_scans import kept_scans
from bertray.reviews.listing import list_inputs
from bertray.reviews.rows import Aspects, BadFile, FileEntry
from bertray.reviews.scan import FileScan, ScanSettings, scan_files
from bertray.scoring import plan as planning
from bertray.wording import counted


@dataclass(frozen=True)
class KnownFile:
    """A listed file that the ledger holds as it is; it is not opened again."""

    record: FileRecord


Seen = FileScan | BadFile | KnownFile


@dataclass(frozen=True)
class ScannedInput:
    """All files of the input, and what has to be known of scored ones to compare contents.

    Args:
        seen: files by path, in the order of the listing.
        settings: of the scans.
        digests: of scored files whose content was read again, by path.
        gone: scored files, by path, that look like a new one and cannot be read any more: they count as different.
    """

    seen: dict[str, Seen]
    settings: ScanSettings
    digests: dict[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def with_faults(self, faults: Mapping[str, BadFile]) -> ScannedInput:
        """The same with some files that cannot be used after all."""
        return replace(self, seen=self.seen | dict(faults))


def scan_input(
    config: NightConfig,
    store: Store,
    entries: Sequence[LedgerRun],
    plans: Sequence[Plan],
    executor_for: ExecutorFor,
    aspects: Aspects | None,
    *,
    ids: bool = True,
) -> ScannedInput:
    """List the input and scan what is new; files that the ledger holds are not opened, unless a slot may be rewritten.

    Args:
        config: the input.
        store: the output.
        entries: its ledger.
        plans: open ones, whose scans are used again.
        executor_for: scans files.
        aspects: that each review is read for.
        ids: find those that `ids.unique` forbids to repeat; without, no id is read.

    Raises:
        ConfigError: a path is missing.
        DataRefused: there is no file at all.
        ConflictError: a Delta table has rewritten files that were scored.
    """
    listed = list_inputs(config.input, config.reader, output=config.output)
    if not listed and not config.allow_empty:
        raise DataRefused(
            f"input: no review file in {', '.join(config.input)}.", "Check the path, or set `allow_empty=true`."
        )
    owners = planning.owners(entries)
    scored = [file for file, _ in owners.values()]
    _check_tables(config, listed, owners)
    known = {(file.path, file.size_bytes, file.modified): file for file in scored}
    may_rewrite = config.replace or config.rescore == "replace" or config.on_changed_file == "replace"
    to_scan = [entry for entry in listed if may_rewrite or entry.stamp not in known]
    settings = ScanSettings(
        config.reader,
        config.columns,
        ids=ids and config.ids.unique != "off",
        id_digests=ids and config.ids.unique == "slot",
        aspects=aspects,
    )
    kept = kept_scans(store, list(map(planning.scan_key, plans)), settings) if to_scan else {}
    found = dict(zip(to_scan, scan_files(to_scan, settings, executor_for, kept), strict=True))
    seen = {entry.path: found.get(entry) or KnownFile(_known_record(known[entry.stamp])) for entry in listed}
    return _compared(ScannedInput(seen, settings), known, scored, executor_for)


def _check_tables(
    config: NightConfig, listed: Sequence[FileEntry], owners: Mapping[str, tuple[FileCount, LedgerRun]]
) -> None:
    """Refuse a Delta table that has written rows of scored files again, unless one slot holds all of these and goes."""
    replaced = planning.replaced_in_tables(listed, (file for file, _ in owners.values()))
    slots = sorted({owners[path][1].slot for path in replaced})
    if not slots or (config.replace and slots == [config.slot]):
        return
    way = f", or rewrite the slot: `slot={slots[0]} replace=true`" if len(slots) == 1 else ""
    raise ConflictError(
        f"input: {counted(len(replaced), 'scored file')} of a Delta table were replaced by its log, "
        f"first {replaced[0]}, "
        f"in {'slot' if len(slots) == 1 else 'slots'} {', '.join(slots)}: the new files hold their rows again.",
        f"Score the table as it is now into another output{way}.",
    )


def _compared(
    scanned: ScannedInput,
    known: Mapping[tuple[str, int, str], FileCount],
    scored: Sequence[FileCount],
    executor_for: ExecutorFor,
) -> ScannedInput:
    """Digests of whole contents, where files that are not known have the size and fingerprint of another."""
    seen = dict(scanned.seen)
    scans = {path: scan for path, scan in seen.items() if isinstance(scan, FileScan)}
    new = [scan.file for scan in scans.values() if scan.file.entry.stamp not in known]
    looks = {(file.size_bytes, file.fingerprint) for file in new}
    sizes = {file.size_bytes for file in new}
    # Entries of earlier versions have a digest and no fingerprint.
    alike = [
        file
        for file in scored
        if (file.size_bytes, file.fingerprint) in looks
        or (file.fingerprint is None and file.digest is not None and file.size_bytes in sizes)
    ]
    again = [file for file in alike if file.digest is None]
    there = [file for file in again if _is_there(file)]
    gone = {file.path for file in again} - {file.path for file in there}
    comparable = [file for file in alike if file.path not in gone]
    old_sizes = {file.size_bytes for file in comparable if file.fingerprint is None}
    others = [(file.size_bytes, file.fingerprint) for file in comparable if file.fingerprint is not None]
    others += [(file.size_bytes, file.fingerprint) for file in new if file.size_bytes in old_sizes]
    for file in with_digests_where_alike(new, executor_for, others):
        seen[file.path] = replace(scans[file.path], file=file)
    for path, scan in scans.items():
        record = known.get(scan.file.entry.stamp)
        if record is not None and scan.file.digest is None:
            seen[path] = replace(scan, file=replace(scan.file, digest=record.digest))
    entries = [_entry(file) for file in there]
    digests = dict(zip([entry.path for entry in entries], digests_of(entries, executor_for), strict=True))
    return replace(scanned, seen=seen, digests=digests, gone=frozenset(gone))


def _entry(file: FileCount) -> FileEntry:
    return FileEntry(file.path, file.relative_path, file.format, file.size_bytes, file.modified)


def _is_there(file: FileCount) -> bool:
    """Whether a scored file can still be read as it was."""
    return is_unchanged(_entry(file), file.fingerprint)


def _known_record(file: FileCount) -> FileRecord:
    fields = file.model_dump(exclude={"rows_in", "rows_scored", "rows_quarantined", "seconds"})
    return FileRecord(**fields, num_rows=file.rows_in)
