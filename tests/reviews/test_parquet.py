"""Parquet: footers, row ranges, damage, and memory."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.errors import InfrastructureError
from bertray.reviews import parquet
from bertray.reviews.sources import (
    BadFile,
    FileEntry,
    InputFile,
    ReadSpec,
    inspect,
    list_inputs,
    plan_shards,
    read_shard,
)
from bertray.schema import Reason

AUTO = TextFormat()


def look_at(path: Path) -> InputFile | BadFile:
    [entry] = list_inputs([str(path)], AUTO)
    return inspect(entry, AUTO)


def write(path: Path, rows: int = 10, **options: object) -> pa.Table:
    table = pa.table({"id": [f"r{i}" for i in range(rows)], "text": [f"text number {i}" for i in range(rows)]})
    pq.write_table(table, path, **options)
    return table


def test_inspect_counts_rows_and_columns(tmp_path):
    write(tmp_path / "a.parquet")
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, InputFile)
    assert (file.num_rows, file.columns, file.row_offsets) == (10, {"id": "string", "text": "string"}, ())


@pytest.mark.parametrize(("row_group_size", "rows_per_shard"), [(1000, 7), (3, 10), (4, 4), (1, 100), (1000, 1000)])
def test_shards_give_the_rows_of_one_whole_read(tmp_path, read_all, row_group_size, rows_per_shard):
    table = write(tmp_path / "a.parquet", rows=53, row_group_size=row_group_size)
    kept = read_all(tmp_path / "a.parquet", rows_per_shard=rows_per_shard).kept
    assert kept["row_no"].to_pylist() == list(range(53))
    assert kept["text"].to_pylist() == table["text"].to_pylist()
    assert kept["id"].to_pylist() == table["id"].to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.large_binary(),
    ],
    ids=str,
)
def test_every_encoding_of_text_reads_alike(tmp_path, read_all, kind):
    values = ["good film", "한국 영화", "good film", None]
    plain = pa.array(values, pa.string() if not pa.types.is_large_binary(kind) else pa.large_string())
    pq.write_table(pa.table({"text": plain.cast(kind), "note": plain.cast(kind)}), tmp_path / "a.parquet")
    batch = read_all(tmp_path / "a.parquet")
    assert batch.kept["text"].to_pylist() == values[:3]
    assert batch.refused["reason"].to_pylist() == ["text_null"]
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        kept = read_all(tmp_path / "a.parquet", keep_columns=("note",)).kept
        assert kept["keep:note"].to_pylist() == values[:3]
        assert kept.schema.field("keep:note").type == pa.string()


def test_ids_of_any_type_become_canonical_text(tmp_path, read_all):
    unique = uuid.UUID("12345678-1234-5678-1234-567812345678")
    for values, expected in [
        (pa.array([-7], pa.int64()), "-7"),
        (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1)),
        (pa.array([unique.bytes], pa.binary(16)), unique.hex),
        (pa.array([unique.bytes], pa.uuid()), unique.hex),
        (pa.array([b"abc"], pa.binary()), "abc"),
        (pa.array(["x"]).dictionary_encode(), "x"),
    ]:
        pq.write_table(pa.table({"id": values, "text": ["t"]}), tmp_path / "a.parquet")
        assert read_all(tmp_path / "a.parquet").kept["id"].to_pylist() == [expected]


def test_a_column_name_with_a_dot_and_nested_neighbours_read_well(tmp_path, read_all):
    from bertray.config import Columns

    table = pa.table({"review.text": ["a text"], "review": [{"text": 5}], "id": ["1"], "tags": [["x", "y"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    kept = read_all(tmp_path / "a.parquet", columns=Columns(text="review.text"), keep_columns=("tags",)).kept
    assert kept["text"].to_pylist() == ["a text"]
    assert kept["keep:tags"].to_pylist() == [["x", "y"]]


def bad_bytes(tmp_path: Path) -> dict[str, tuple[bytes, Reason, int | None]]:
    write(tmp_path / "good", compression="zstd")
    good = (tmp_path / "good").read_bytes()
    middle_of_footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little") // 2
    flipped = bytearray(good)
    for at in range(middle_of_footer, middle_of_footer + 16):
        flipped[at] ^= 0xFF
    return {
        "empty": (b"", Reason.FILE_EMPTY, 0),
        "five bytes": (b"hello", Reason.FILE_NOT_PARQUET, None),
        "csv": (b"id,text\n1,good\n", Reason.FILE_NOT_PARQUET, None),
        "truncated": (good[:-20], Reason.FILE_CORRUPT, None),
        "only magic": (b"PAR1", Reason.FILE_CORRUPT, None),
        "footer longer than file": (b"PAR1" + (1 << 30).to_bytes(4, "little") + b"PAR1", Reason.FILE_CORRUPT, None),
        "damaged footer": (bytes(flipped), Reason.FILE_CORRUPT, None),
        "encrypted": (good[:-4] + b"PARE", Reason.FILE_UNSUPPORTED, None),
    }


@pytest.mark.parametrize(
    "kind",
    ["empty", "five bytes", "csv", "truncated", "only magic", "footer longer than file", "damaged footer", "encrypted"],
)
def test_a_file_that_is_no_whole_parquet_is_a_bad_file(tmp_path, kind):
    raw, reason, rows = bad_bytes(tmp_path)[kind]
    (tmp_path / "a.parquet").write_bytes(raw)
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, BadFile)
    assert (file.reason, file.num_rows, file.size_bytes) == (reason, rows, len(raw))
    assert len(file.detail) <= 200


def test_every_truncation_is_found_on_inspection(tmp_path):
    write(tmp_path / "good.parquet", rows=3)
    good = (tmp_path / "good.parquet").read_bytes()
    for length in range(0, len(good) - 1, 7):
        (tmp_path / "cut.parquet").write_bytes(good[:length])
        assert isinstance(look_at(tmp_path / "cut.parquet"), BadFile), length


def test_a_file_without_rows_is_fine(tmp_path, read_all):
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, InputFile)
    assert plan_shards([file], 100) == []


def test_an_explosive_file_is_refused_by_its_footer(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BOMB_FLOOR_BYTES", 1 << 20)
    pq.write_table(pa.table({"text": ["x" * 2_000_000]}), tmp_path / "a.parquet", compression="zstd")
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, BadFile)
    assert (file.reason, file.num_rows) == (Reason.FILE_BOMB, 1)


def test_a_row_group_above_the_limit_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", rows=1000)
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 1000)
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, BadFile)
    assert (file.reason, file.num_rows) == (Reason.ROW_GROUP_TOO_BIG, 1000)


def test_a_text_repeated_twenty_thousand_times_is_in_memory_once(tmp_path):
    # 20 GB of text in a file of 20 kB, of which the footer says nothing.
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["word " * 800_000]))
    pq.write_table(pa.table({"text": one}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    program = f"""
import resource
from bertray.config import TextFormat
from bertray.reviews.sources import *
[entry] = list_inputs([{str(tmp_path / "a.parquet")!r}], TextFormat())
file = inspect(entry, TextFormat())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = 0
for shard in plan_shards([file], 1000):
    batch = read_shard(shard, ReadSpec(max_chars=1000))
    rows += batch.kept.num_rows
assert batch.kept["cut"].to_pylist() == [True] * 1000
assert set(batch.kept["text"].to_pylist()) == {{("word " * 200).strip()}}
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, grown_mib = map(int, done.stdout.split())
    assert rows == 5000
    assert grown_mib < 400


def test_one_damaged_page_costs_the_rest_of_its_row_group_and_nothing_else(tmp_path, read_all):
    table = write(
        tmp_path / "a.parquet",
        rows=3000,
        row_group_size=1000,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    at = raw.index(b"text number 1500")
    raw[at + 5] ^= 0x01
    (tmp_path / "a.parquet").write_bytes(raw)
    batch = read_all(tmp_path / "a.parquet", rows_per_shard=500)
    assert batch.kept["row_no"].to_pylist() == [*range(1000), *range(2000, 3000)]
    assert batch.kept["text"].to_pylist() == table["text"].to_pylist()[:1000] + table["text"].to_pylist()[2000:]
    assert set(batch.refused["reason"].to_pylist()) == {"page_checksum"}
    assert batch.refused["row_no"].to_pylist() == list(range(1000, 2000))


def test_a_file_that_changes_or_vanishes_after_planning_is_no_data_fault(tmp_path):
    write(tmp_path / "a.parquet")
    file = look_at(tmp_path / "a.parquet")
    [shard] = plan_shards([file], 100)
    write(tmp_path / "a.parquet", rows=20)
    with pytest.raises(InfrastructureError, match="changed since it was listed") as caught:
        read_shard(shard, ReadSpec())
    assert caught.value.exit_code == 7
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InfrastructureError):
        read_shard(shard, ReadSpec())
    entry = FileEntry(file.path, file.relative_path, file.format, file.size_bytes, file.modified)
    with pytest.raises(InfrastructureError):
        inspect(entry, AUTO)


def test_a_repeated_column_name_is_marked(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, InputFile)
    assert file.columns == {"text": "repeated"}


@pytest.mark.slow
def test_a_huge_row_group_is_read_in_bounded_memory(tmp_path):
    text = pa.array([f"{i} " + "some words of a review " * 20 for i in range(400_000)])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet", row_group_size=400_000, compression="none")
    # In a process of its own: the peak of this one belongs to whatever ran before.
    program = f"""
import resource
from bertray.config import TextFormat
from bertray.reviews.sources import ReadSpec, inspect, list_inputs, plan_shards, read_shard
[entry] = list_inputs([{str(tmp_path / "a.parquet")!r}], TextFormat())
shard = plan_shards([inspect(entry, TextFormat())], 4096)[-1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = read_shard(shard, ReadSpec()).kept.num_rows
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, grown_mib = map(int, done.stdout.split())
    assert rows == 400_000 % 4096
    assert grown_mib < 300  # the text alone is 190 MiB as it is stored
