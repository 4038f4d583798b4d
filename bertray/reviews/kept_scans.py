"""Scans that an output keeps, so that a run that is taken up again need not scan its files once more."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from bertray.io.pool import in_pool
from bertray.io.store import Store, get_if_there
from bertray.io.tables import parquet_bytes
from bertray.reviews.rows import Expansion, FileEntry
from bertray.reviews.scan import FileScan, ScanSettings

log = logging.getLogger(__name__)

KEPT_ABOVE_BYTES = 1 << 20  # of input; less is scanned again sooner than a request is answered
_SCAN = TypeAdapter(FileScan)
_SETTINGS = TypeAdapter(ScanSettings)


def scans_to_bytes(scans: Sequence[FileScan], settings: ScanSettings) -> bytes:
    """Scans as a Parquet file; `scans_from_bytes` reads them."""
    plain = [
        replace(scan, id_digests=b"", id_rows=b"", file=replace(scan.file, arrow_schema=b"", expansion=None))
        for scan in scans
    ]
    expansions = [scan.file.expansion for scan in scans]
    table = pa.table(
        {
            "scan": pa.array([_SCAN.dump_json(scan) for scan in plain], pa.large_binary()),
            "id_digests": pa.array([scan.id_digests for scan in scans], pa.large_binary()),
            "id_rows": pa.array([scan.id_rows for scan in scans], pa.large_binary()),
            "arrow_schema": pa.array([scan.file.arrow_schema for scan in scans], pa.binary()),
            "stored_rows": pa.array([of and of.hi for of in expansions], pa.int64()),
            "width": pa.array([of and of.width for of in expansions], pa.int64()),
            "counts": pa.array([of and of.counts for of in expansions], pa.large_binary()),
        }
    )
    return parquet_bytes(table.replace_schema_metadata({"settings": _SETTINGS.dump_json(settings)}))


def scans_from_bytes(content: bytes, settings: ScanSettings) -> list[FileScan]:
    """Scans of a file; none where they lack what other settings ask for, or another version of this code made them."""
    try:
        table = pq.read_table(io.BytesIO(content))
        if not _SETTINGS.validate_json((table.schema.metadata or {})[b"settings"]).covers(settings):
            return []
        rows = table.to_pylist()
        scans = [_SCAN.validate_json(row["scan"]) for row in rows]
    except (pa.ArrowException, OSError, ValidationError, KeyError):
        log.info("kept scans cannot be read: files are scanned again")
        return []
    return [
        replace(
            scan,
            id_digests=row["id_digests"],
            id_rows=row["id_rows"],
            file=replace(
                scan.file,
                arrow_schema=row["arrow_schema"],
                expansion=row["stored_rows"]
                if row["stored_rows"] is None
                else Expansion(0, row["stored_rows"], width=row["width"], counts=row["counts"]),
            ),
        )
        for scan, row in zip(scans, rows, strict=True)
    ]


def keep_scans(store: Store, key: str, scans: Sequence[FileScan], settings: ScanSettings) -> None:
    """Store scans, so that a run that is taken up again need not scan; those of little input are not worth it."""
    if sum(scan.file.size_bytes for scan in scans) >= KEPT_ABOVE_BYTES:
        store.put(key, scans_to_bytes(scans, settings))


def kept_scans(store: Store, keys: Sequence[str], settings: ScanSettings) -> dict[FileEntry, FileScan]:
    """Stored scans that hold what some settings ask for, by the file as it was listed; a key may be absent."""
    found: dict[FileEntry, FileScan] = {}
    for content in in_pool(partial(get_if_there, store), keys, store.num_threads):
        if content is not None:
            found |= {scan.file.entry: scan for scan in scans_from_bytes(content, settings)}
    return found
