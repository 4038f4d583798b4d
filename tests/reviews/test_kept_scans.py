"""Scans that an output keeps are those that were made, and used for the same file alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bertray.config import Columns
from bertray.errors import InfrastructureError
from bertray.execution.on_demand import in_this_process
from bertray.io.store import open_store
from bertray.reviews import kept_scans as keeping
from bertray.reviews.kept_scans import keep_scans, kept_scans, scans_from_bytes, scans_to_bytes
from bertray.reviews.scan import scan_files
from tests.reviews.test_scan import ALL, good, written


def test_kept_scans_are_those_that_were_made(tmp_path):
    entries = [written(tmp_path, name) for name in ("f.csv", "f.parquet", "f.jsonl")]
    settings = replace(ALL, id_digests=True)
    scans = [good(entry, settings) for entry in entries]
    content = scans_to_bytes(scans, settings)
    assert scans_from_bytes(content, settings) == scans
    assert scans_from_bytes(content, replace(settings, ids=False, id_digests=False, labels=False)) == scans
    assert scans_from_bytes(content, replace(settings, columns=Columns(id="key"))) == []
    assert scans_from_bytes(scans_to_bytes(scans, replace(settings, ids=False)), settings) == []
    assert scans_from_bytes(content[:-9], settings) == []


def test_a_kept_scan_is_used_for_the_file_as_it_was_listed(tmp_path):
    entry = written(tmp_path, "f.csv")
    store = open_store(str(tmp_path / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "KEPT_ABOVE_BYTES", 0)
        keep_scans(store, "control/scans/input.parquet", [good(entry)], ALL)
    kept = kept_scans(store, ["control/scans/input.parquet", "control/scans/other.parquet"], ALL)
    Path(entry.path).unlink()
    assert scan_files([entry], ALL, in_this_process, kept) == [good_scan := kept[entry]]
    assert good_scan.file.num_rows == 4
    for other in (replace(entry, relative_path="in/f.csv"), replace(entry, modified="1")):  # generated ids; the content
        with pytest.raises(InfrastructureError):
            scan_files([other], ALL, in_this_process, kept)
