"""Parquet: footers, row ranges, damage, and memory."""

from __future__ import annotations

import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.errors import InfrastructureError
from bertray.reviews.formats import parquet
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import BadFile, FileEntry, InputFile, ReadSpec
from bertray.schema import Reason
from tests.scanning import inspect

AUTO = TextFormat()


def look_at(path: Path) -> Any:
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


@pytest.mark.slow
def test_a_text_repeated_twenty_thousand_times_is_in_memory_once(tmp_path):
    # 20 GB of text in a file of 20 kB, of which the footer says nothing.
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["word " * 800_000]))
    pq.write_table(pa.table({"text": one}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    program = f"""
import resource
from bertray.config import TextFormat
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import ReadSpec
from tests.scanning import inspect
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
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import ReadSpec
from tests.scanning import inspect
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


def with_pages_of(table: pa.Table, path: Path, encoding: str, **options: object) -> None:
    """The strings of a table in one of Parquet's encodings; `fallback`: a dictionary that soon is full, then PLAIN."""
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    match encoding:
        case "dictionary":
            pq.write_table(table, path, **options)
        case "fallback":
            pq.write_table(table, path, dictionary_pagesize_limit=64, write_batch_size=8, **options)
        case _:
            kinds = dict.fromkeys(strings, encoding)
            pq.write_table(table, path, use_dictionary=False, column_encoding=kinds, **options)


@pytest.mark.parametrize("page_version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ["dictionary", "fallback", "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_text_ids_and_kept_values_read_alike_in_every_encoding_of_parquet(tmp_path, read_all, encoding, page_version):
    rows = 300
    texts = [f"the film number {i % 100} was good" if i % 7 else None for i in range(rows)]
    table = pa.table({"id": [f"r{i}" for i in range(rows)], "text": texts, "note": texts, "pair": texts})
    options = {"data_page_version": page_version, "row_group_size": 128, "data_page_size": 256}
    with_pages_of(table, tmp_path / "a.parquet", encoding, **options)
    batch = read_all(tmp_path / "a.parquet", rows_per_shard=37, keep_columns=("note", "pair"))
    wanted = [(f"r{i}", text) for i, text in enumerate(texts) if text is not None]
    assert list(zip(batch.kept["id"].to_pylist(), batch.kept["text"].to_pylist(), strict=True)) == wanted
    assert batch.kept["keep:note"].to_pylist() == batch.kept["keep:pair"].to_pylist() == [text for _, text in wanted]
    assert set(batch.refused["reason"].to_pylist()) == {"text_null"}


def test_nested_strings_are_kept_in_every_encoding_of_parquet(tmp_path, read_all):
    values = [[f"tag {i}", f"tag {i + 1}"] for i in range(50)]
    table = pa.table({"text": [f"t{i}" for i in range(50)], "tags": values, "of": [{"by": v[0]} for v in values]})
    for kind in ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        kinds = {"tags.list.element": kind, "of.by": kind}
        pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=kinds)
        kept = read_all(tmp_path / "a.parquet", keep_columns=("tags", "of")).kept
        assert kept["keep:tags"].to_pylist() == values
        assert kept["keep:of"].to_pylist() == table["of"].to_pylist()


def test_an_encoding_that_the_footer_does_not_list_is_read_all_the_same(tmp_path, read_all, monkeypatch):
    table = write(tmp_path / "plain.parquet", rows=50)
    with_pages_of(table, tmp_path / "a.parquet", "DELTA_BYTE_ARRAY", row_group_size=20)
    monkeypatch.setattr("bertray.reviews.formats.parquet_footer._DELTA_TEXT_ENCODINGS", set())
    assert read_all(tmp_path / "a.parquet", rows_per_shard=7).kept["text"].to_pylist() == table["text"].to_pylist()


@pytest.mark.parametrize("kind", [pa.ArrowNotImplementedError, OSError])
def test_what_the_library_cannot_read_is_unsupported_and_no_damage(tmp_path, read_all, monkeypatch, kind):
    write(tmp_path / "a.parquet", rows=5)

    def not_implemented(*_args: object, **_options: object) -> None:
        raise kind("Not yet implemented: an encoding of next year")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", not_implemented)
    refused = read_all(tmp_path / "a.parquet").refused
    assert set(refused["reason"].to_pylist()) == {"file_unsupported"}
    monkeypatch.setattr(parquet, "_opened", not_implemented)
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, BadFile)
    assert file.reason == Reason.FILE_UNSUPPORTED


@pytest.mark.slow
def test_values_that_grow_by_shared_prefixes_are_read_in_little_memory(tmp_path):
    """DELTA_BYTE_ARRAY writes a megabyte that stands a hundred thousand times as one and a hundred thousand numbers."""
    table = pa.table({"text": pa.array(["x" * (1 << 20)] * 2000)})
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(
        path, table.schema, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    ) as out:
        out.write_table(table, row_group_size=2000)
    assert path.stat().st_size < 4 << 20
    code = f"""
import resource
from bertray.config import TextFormat
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import ReadSpec
from tests.scanning import inspect
[entry] = list_inputs([{str(path)!r}], TextFormat())
file = inspect(entry, TextFormat())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = sum(read_shard(shard, ReadSpec(max_chars=100)).kept.num_rows for shard in plan_shards([file], 100))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(kept, (after - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, grown_mb = map(int, done.stdout.split())
    assert kept == 2000
    assert grown_mb < 1500  # of two gigabytes


OLD_DATES = ["0001-01-01", "1600-02-03", "1970-01-01", "2262-04-12", "9999-12-31"]


@pytest.mark.parametrize("flavor", ["spark", None])
@pytest.mark.parametrize("store_schema", [True, False])
def test_int96_timestamps_of_any_year_keep_their_date(tmp_path, read_all, flavor, store_schema):
    from bertray.reviews.rows import Period

    times = pa.array([f"{date} 01:02:03.000004" for date in OLD_DATES]).cast(pa.timestamp("us"))
    nested = pa.array([[time] for time in times.to_pylist()], pa.list_(pa.timestamp("us")))
    table = pa.table({"text": [f"t{i}" for i in range(5)], "written": times, "all": nested})
    options = {"use_deprecated_int96_timestamps": True, "store_schema": store_schema, "flavor": flavor}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    kept = read_all(tmp_path / "a.parquet", keep_columns=("written", "all")).kept
    assert kept["keep:written"].to_pylist() == times.to_pylist()
    assert kept["keep:all"].to_pylist() == nested.to_pylist()
    file = look_at(tmp_path / "a.parquet")
    assert isinstance(file, InputFile)
    [shard] = plan_shards([file], 10)
    after = ReadSpec(period=Period("written", "2262-01-01", after=True))
    assert read_shard(shard, after).kept["text"].to_pylist() == ["t3", "t4"]


STRANGE = {
    "list of views": pa.array([["a", "b"], None, []], pa.list_(pa.string_view())),
    "list of lists of views": pa.array([[["a"], []], None, []], pa.list_(pa.list_(pa.string_view()))),
    "fixed list of views": pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string_view(), 2)),
    "list of binary views": pa.array([[b"a"], None, []], pa.list_(pa.binary_view())),
    "struct of views": pa.array([{"x": "a"}, None, {"x": None}], pa.struct([("x", pa.string_view())])),
    "map of views": pa.array([[("k", "v")], None, []], pa.map_(pa.string_view(), pa.string_view())),
    "list view of views": pa.array([["a", "b"], None, []], pa.list_view(pa.string_view())),
    "large list view": pa.array([[1, 2], None, []], pa.large_list_view(pa.int64())),
    "list of dictionaries": pa.array([["a", "b"], None, []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "dictionary of numbers": pa.array([5, 5, None]).dictionary_encode(),
    "binary view": pa.array([b"\xff", None, b""], pa.binary_view()),
    "null": pa.nulls(3),
    "list of nulls": pa.array([[None], None, []], pa.list_(pa.null())),
    "half float": pa.array([1.5, None, -2.0], pa.float16()),
    "decimal256": pa.array([Decimal("1.50"), None, Decimal("-3.25")], pa.decimal256(60, 2)),
    "duration": pa.array([5, None, -5], pa.duration("ns")),
    "time": pa.array([5, None, 7], pa.time64("ns")),
    "list of uuids": pa.ListArray.from_arrays([0, 1, 1, 2], pa.array([b"0" * 16, b"1" * 16], pa.uuid())),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_kept_columns_of_any_type_keep_their_values_and_can_be_written(tmp_path, read_all, kind):
    values = STRANGE[kind]
    pq.write_table(pa.table({"text": ["one", "two", "three"], "kept": values}), tmp_path / "a.parquet")
    read = read_all(tmp_path / "a.parquet", rows_per_shard=2, keep_columns=("kept",)).kept["keep:kept"]
    pq.write_table(pa.table({"kept": read}), tmp_path / "b.parquet")
    back = pq.read_table(tmp_path / "b.parquet")["kept"].to_pylist()
    expected = values.to_pylist()
    if kind == "list of uuids":  # an extension is kept as what it is stored as
        expected = [[value.bytes for value in row] for row in expected]
    assert back == read.to_pylist() == expected
