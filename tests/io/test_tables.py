"""Arrow tables as bytes and back, and columns in one piece."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.io.tables import (
    csv_bytes,
    from_ipc,
    from_streams,
    one_chunk,
    parquet_bytes,
    stream_buffer,
    to_ipc,
    unguarded,
)

TABLE = pa.concat_tables([pa.table({"id": ["a", None], "ids": [[1, 2], []]}), pa.table({"id": ["b"], "ids": [[3]]})])


def test_a_table_of_several_chunks_comes_back_as_one_batch_with_its_metadata():
    table = TABLE.replace_schema_metadata({b"key": b"value"})
    found = from_ipc(to_ipc(table))
    assert found.equals(table, check_metadata=True)
    assert found["id"].num_chunks == 1


def test_a_table_is_read_from_a_buffer_without_a_copy():
    buffer = pa.py_buffer(to_ipc(pa.table({"n": pa.array(range(1000), pa.int64())})))
    address = from_ipc(buffer)["n"].chunk(0).buffers()[1].address
    assert buffer.address <= address < buffer.address + buffer.size


def test_several_tables_travel_in_one_buffer_without_a_copy():
    tables = [TABLE, pa.table({"n": pa.array(range(1000), pa.int64())}), TABLE.slice(0, 0)]
    buffer = stream_buffer(tables)
    found = from_streams(buffer)
    assert found == tables
    assert buffer.address <= found[1]["n"].chunk(0).buffers()[1].address < buffer.address + buffer.size


def test_parquet_is_zstd_with_a_checksum_on_every_page():
    content = parquet_bytes(TABLE)
    column = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert pq.read_table(pa.BufferReader(content), page_checksum_verification=True).equals(TABLE)
    damaged = bytearray(content)
    damaged[column.data_page_offset + column.total_compressed_size // 2 + 8] ^= 1
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(pa.BufferReader(bytes(damaged)), page_checksum_verification=True)


def test_one_chunk_of_chunks_and_of_an_array():
    assert one_chunk(TABLE["id"]).to_pylist() == ["a", None, "b"]
    array = pa.array([1])
    assert one_chunk(array) is array


@pytest.mark.parametrize(
    ("exact", "carriage_return", "escape"), [(True, "'\rx", "\x1b[2J\u202ex"), (False, "x", "[2Jx")]
)
def test_csv_has_no_cell_that_a_spreadsheet_computes(exact, carriage_return, escape):
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\x1b[2J\u202ex", 'fine, "quoted"\nline', None, "질량"]
    content = csv_bytes(pa.table({"=text": cells, "number": list(range(10))}), exact=exact)
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert rows[0] == ["'=text", "number"]
    assert [row[0] for row in rows[1:]] == [
        *("'=1+1", "'+1", "'-1", "'@x", "'\tx", carriage_return, escape, 'fine, "quoted"\nline', "", "질량"),
    ]
    assert [row[1] for row in rows[1:]] == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    ("cell", "guarded"),
    [
        ("＝1+1", "'＝1+1"),
        ("＋1", "'＋1"),
        ("－1", "'－1"),
        ("＠x", "'＠x"),
        ("fine;=1+1;fine", "fine;'=1+1;fine"),  # where semicolons cut cells
        ("fine\n@x", "fine\n'@x"),
        ("fine\t+1", "fine\t'+1"),
        ("fine; a = b", "fine; a = b"),
        ("\nfine", "'\nfine"),
        ("'quoted'", "'quoted'"),
    ],
)
def test_what_another_spreadsheet_would_compute_is_guarded_and_comes_back_as_it_was(cell, guarded):
    rows = list(csv.reader(io.StringIO(csv_bytes(pa.table({"text": [cell]})).decode("utf-8-sig"), newline="")))
    assert rows == [["text"], [guarded]]
    assert unguarded(guarded) == cell
