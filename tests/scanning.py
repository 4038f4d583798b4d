"""What a scan finds of a file, for tests that need no executor."""

from __future__ import annotations

from bertray.config import TextFormat
from bertray.reviews.rows import BadFile, FileEntry, InputFile, ReadSpec
from bertray.reviews.scan import FileScan, ScanSettings, scan_file


def inspect(entry: FileEntry, reader: TextFormat) -> InputFile | BadFile:
    """The file, with its rows counted."""
    scan = scan_file(entry, ScanSettings(reader))
    return scan if isinstance(scan, BadFile) else scan.file


def scanned(entry: FileEntry, spec: ReadSpec, *, id_digests: bool = False) -> FileScan:
    """A scan of all that a spec needs."""
    settings = ScanSettings(
        spec.reader, spec.columns, ids=spec.unique_ids, id_digests=id_digests, labels=spec.wants_label,
        period=spec.period, aspects=spec.aspects,
    )  # fmt: skip
    scan = scan_file(entry, settings)
    assert isinstance(scan, FileScan), scan
    return scan
