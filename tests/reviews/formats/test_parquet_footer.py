"""The footer of a Parquet file as pyarrow reads it too; damage of it ends no process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.reviews.formats.parquet_footer import Footer, parse_footer
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import BadFile, FileEntry, ReadSpec
from tests.scanning import inspect


def footer_of(path: Path) -> bytes:
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    return content[-8 - length : -8]


TABLES = {
    "no rows": pa.table({"text": pa.array([], pa.string())}),
    "no columns": pa.table({}),
    "nested": pa.table(
        {"text": ["a", None] * 500, "tags": [["x", "y"], []] * 500, "who": [{"age": 1}, {"age": 2}] * 500}
    ),
    "wide": pa.table({f"column {number}": [number] * 40 for number in range(300)}),
    "long values": pa.table({"text": ["x" * 70_000, "y" * 3], "more": pa.array([b"z" * 300, None])}),
}


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("name", TABLES)
def test_a_footer_says_what_pyarrow_says(name, codec, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLES[name], path, compression=codec, row_group_size=300)
    expected, found = pq.read_metadata(path), parse_footer(footer_of(path))
    assert (found.num_rows, len(found.row_groups), found.encrypted) == (
        expected.num_rows,
        expected.num_row_groups,
        False,
    )
    for number, group in enumerate(found.row_groups):
        theirs = expected.row_group(number)
        assert (group.num_rows, group.total_bytes) == (theirs.num_rows, theirs.total_byte_size)
        for index, chunk in enumerate(group.chunks):
            column = theirs.column(index)
            assert chunk.codec.partition("_")[0] == column.compression
            assert (chunk.path, chunk.uncompressed_bytes, chunk.compressed_bytes) == (
                column.path_in_schema,
                column.total_uncompressed_size,
                column.total_compressed_size,
            )
            assert chunk.has_dictionary == bool({"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(column.encodings))


def test_what_is_cut_or_no_footer_is_a_value_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLES["nested"], path)
    content = footer_of(path)
    for length in range(len(content) - 1):
        with pytest.raises(ValueError, match=r"\w"):
            parse_footer(content[:length])
    for other in (b"", b"\x00", b"PAR1" * 20, b"\xff" * 200, b"\x1c" * 5000, b"\x19" * 5000):
        with pytest.raises(ValueError, match=r"\w"):
            parse_footer(other)
    assert parse_footer(content).row_groups == parse_footer(content).row_groups != Footer(0, (), False).row_groups


def _read_damaged(path: Path, first_bit: int, end_bit: int) -> None:
    whole = path.read_bytes()
    start = len(whole) - 8 - len(footer_of(path))
    target = path.with_name("damaged.parquet")
    for bit in range(first_bit, end_bit):
        content = bytearray(whole)
        content[start + bit // 8] ^= 1 << bit % 8
        target.write_bytes(content)
        info = target.stat()
        file = inspect(
            FileEntry(str(target), target.name, "parquet", info.st_size, str(info.st_mtime_ns)), TextFormat()
        )
        if not isinstance(file, BadFile) and "text" in file.columns:
            for shard in plan_shards([file], 4096):
                batch = read_shard(shard, ReadSpec(keep_columns=("stars",) if "stars" in file.columns else ()))
                assert batch.kept.num_rows + batch.refused.num_rows == file.num_rows
    os._exit(0)


@pytest.mark.slow
def test_no_flipped_bit_of_a_footer_ends_the_process(tmp_path):
    path = tmp_path / "a.parquet"
    rows = pa.table({"id": ["1", "2"], "text": ["good", "bad"], "stars": [1, 2]})
    pq.write_table(rows, path, write_page_checksum=True, store_schema=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_read_damaged, args=(path, 0, 8 * len(footer_of(path)))
    )
    process.start()
    process.join(120)
    assert process.exitcode == 0
