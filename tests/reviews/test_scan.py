"""The scan: one pass over one file, the same for every format, and what is kept of it."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.errors import DataRefused
from bertray.execution.on_demand import in_this_process
from bertray.reviews import file_access
from bertray.reviews.file_identity import digest_file
from bertray.reviews.formats import parquet
from bertray.reviews.listing import list_inputs
from bertray.reviews.rows import BadFile, FileEntry, Period
from bertray.reviews.scan import (
    FileScan,
    ScanSettings,
    bytes_to_scan,
    repeated_across,
    repeats,
    scan_file,
    scan_files,
)
from bertray.schema import Reason

ROWS = [
    {"id": "a", "text": "good", "label": "pos", "when": "2026-10-30"},
    {"id": "b", "text": 'bad, "very"\nbad', "label": "neg", "when": "2026-11-02"},
    {"id": "a", "text": "again", "label": "pos", "when": "2026-11-03"},
    {"id": "", "text": "no id", "label": None, "when": ""},
]
ALL = ScanSettings(ids=True, labels=True, period=Period("when", "2026-11-01", after=False))


def quoted(value: object) -> str:
    return '"' + str(value or "").replace('"', '""') + '"'


def written(folder: Path, name: str) -> FileEntry:
    """The rows in the format that a name says."""
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif "csv" in name:
        lines = ["id,text,label,when", *(",".join(map(quoted, row.values())) for row in ROWS)]
        path.write_bytes((gzip.compress if name.endswith(".gz") else bytes)(("\n".join(lines) + "\n").encode()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    [entry] = list_inputs([str(path)], TextFormat())
    return entry


def good(entry: FileEntry, settings: ScanSettings = ALL) -> FileScan:
    scan = scan_file(entry, settings)
    assert isinstance(scan, FileScan), scan
    return scan


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.jsonl", "f.parquet"])
def test_formats_give_the_same_scan(tmp_path, name):
    entry = written(tmp_path, name)
    scan = good(entry)
    assert (scan.file.num_rows, list(scan.file.columns)) == (4, ["id", "text", "label", "when"])
    assert scan.repeated_ids == (2,)
    assert (scan.counts.rows, scan.counts.labels) == (2, {"pos": 1})  # a row without a time stands before the moment
    assert (scan.later.rows, scan.later.labels) == (2, {"pos": 1, "neg": 1})
    assert scan.without_time == 1
    content = Path(entry.path).read_bytes()
    assert scan.file.fingerprint == scan.file.digest == hashlib.sha256(content).hexdigest()
    if name == "f.csv":
        assert content[scan.file.row_offsets[0] :].startswith(b'"a"')


def test_only_what_is_asked_for_is_counted(tmp_path):
    scan = good(written(tmp_path, "f.parquet"), ScanSettings())
    assert (scan.repeated_ids, scan.counts.labels, scan.counts.rows, scan.id_digests) == ((), {}, 4, b"")


def test_acl_imdb_folders_are_labels(tmp_path):
    for label in ("pos", "neg"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}_7.txt").write_text(f"text {number} {label}")
    neg, pos = (good(entry) for entry in list_inputs([str(tmp_path)], TextFormat()))
    assert (neg.counts.labels, pos.counts.labels) == ({"neg": 3}, {"pos": 3})
    assert neg.file.fingerprint == pos.file.fingerprint  # names and sizes are equal
    neg_digest, pos_digest = (digest_file(scan.file) for scan in (neg, pos))
    assert neg_digest != pos_digest


def test_parquet_is_not_read_beyond_its_footer_and_the_columns_that_are_counted(tmp_path, monkeypatch):
    path = tmp_path / "f.parquet"
    words = [f"{number} " * 200 for number in range(5000)]
    pq.write_table(pa.table({"id": [str(n) for n in range(5000)], "text": words}), path, compression="none")
    read = 0
    opened = file_access.open_random_access

    class Counting:
        def __init__(self, path: str) -> None:
            self._file = opened(path)

        def __enter__(self):
            return pa.PythonFile(self, mode="r")

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            content = self._file.read(size)
            read += len(content)
            return content

        def read_buffer(self, size: int = -1) -> pa.Buffer:
            return pa.py_buffer(self.read(size))

        def __getattr__(self, name: str):
            return getattr(self._file, name)

    monkeypatch.setattr(parquet, "open_random_access", Counting)
    [entry] = list_inputs([str(path)], TextFormat())
    assert good(entry, ScanSettings(ids=True)).file.num_rows == 5000
    assert 5000 < read < entry.size_bytes / 10


def test_damaged_files_are_bad_with_their_reason(tmp_path):
    entry = written(tmp_path, "f.csv.gz")
    content = Path(entry.path).read_bytes()
    Path(entry.path).write_bytes(content[: len(content) // 2])
    scan = scan_file(entry, ALL)
    assert isinstance(scan, BadFile)
    assert scan.reason == Reason.FILE_CORRUPT
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and no end")
    [entry] = list_inputs([str(tmp_path / "f.parquet")], TextFormat())
    assert isinstance(scan_file(entry, ALL), BadFile)


def test_ids_of_a_type_that_is_none_and_columns_that_are_not_there_are_left_to_the_checks(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"id": [{"a": 1}], "text": ["t"], "label": [[1]]}), path)
    [entry] = list_inputs([str(path)], TextFormat())
    scan = good(entry)
    assert (scan.repeated_ids, scan.counts.labels) == ((), {})


def test_a_value_that_is_no_time_is_told_when_the_period_is_asked_for(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("text,when\na,2026-11-01\nb,yesterday\n")
    [entry] = list_inputs([str(path)], TextFormat())
    scan = good(entry)
    with pytest.raises(DataRefused, match="yesterday"):
        scan.of(ALL.period)


def test_ids_that_repeat_in_another_file_are_found_from_digests(tmp_path):
    settings = ScanSettings(ids=True, id_digests=True)
    scans = []
    for name, ids in (("a.parquet", ["x", None, "y"]), ("b.parquet", ["z", "y", "z", "x"])):
        pq.write_table(pa.table({"id": ids, "text": ["t"] * len(ids)}), tmp_path / name)
        [entry] = list_inputs([str(tmp_path / name)], TextFormat())
        scans.append(good(entry, settings))
    assert repeated_across(scans) == [(), (1, 2, 3)]
    assert [scan.repeated_ids for scan in scans] == [(), (2,)]


def test_numbers_and_texts_of_the_same_digits_are_the_same_id(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": 7, "text": "a"}\n{"id": "7", "text": "b"}\n')
    [entry] = list_inputs([str(path)], TextFormat())
    assert good(entry, ScanSettings(ids=True)).repeated_ids == (1,)


def test_repeats_are_later_positions_of_a_value_in_whatever_chunk():
    values = pa.chunked_array([pa.array(["b", "a", "b"]), pa.array([], pa.string()), pa.array(["c", "a", "d", "a"])])
    assert repeats(values).tolist() == [2, 4, 6]
    assert repeats(pa.chunked_array([], pa.string())).tolist() == []


@pytest.mark.parametrize(
    ("settings", "megabytes"),
    [(ScanSettings(), 100 + 1 / 8), (ScanSettings(ids=True), 100 + 1 / 8 + 100 / 64), (ALL, 100 + 1 / 8 + 100 / 64)],
)
def test_work_of_a_scan_is_what_it_reads(settings, megabytes):
    size = 100 << 20
    entries = [FileEntry(f"/f.{kind}", "f", kind, size, "0") for kind in ("csv", "parquet")]
    assert bytes_to_scan(entries, settings) == megabytes * (1 << 20)
    assert bytes_to_scan([replace(entries[1], size_bytes=1000)], settings) == 1000


def test_scans_come_in_the_order_of_the_files(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.csv").write_text("text\n" + "a\n" * number)
    entries = list_inputs([str(tmp_path)], TextFormat())
    scans = scan_files(entries, ScanSettings(), in_this_process)
    assert [scan.file.num_rows for scan in scans if isinstance(scan, FileScan)] == list(range(40))


@pytest.mark.ray
def test_scans_in_tasks_are_those_of_this_process(tmp_path, ray_cluster):
    from bertray.config import Workers
    from bertray.execution.on_demand import OnDemand

    for number in range(40):
        (tmp_path / f"{number:02}.csv").write_text("id,text\n" + "1,a\n" * number)
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    entries = list_inputs([str(tmp_path)], TextFormat())
    with OnDemand(Workers()) as executors:
        in_tasks = scan_files(entries, ScanSettings(ids=True), executors.for_bytes)
    assert in_tasks == scan_files(entries, ScanSettings(ids=True), in_this_process)
