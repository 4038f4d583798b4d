"""What bad input costs a night: each of forty kinds of fault, as real files beside good ones, through a whole run.

The number in a test's docstring or id is that of the kind. Of every file, always, `rows_in` is `rows_scored` plus
`rows_quarantined`.
"""

from __future__ import annotations

import base64
import decimal
import json
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.errors import DataRefused
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.reviews.corpus import refuse_bad_files
from bertray.reviews.formats import parquet
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import BadFile, InputFile, ReadSpec
from bertray.schema import Reason
from tests.e2e.inbox import (
    GOOD_IDS,
    NUM_GOOD,
    WRITERS,
    Night,
    as_csv,
    as_parquet,
    assert_nothing_committed,
    parquet_file,
    reviews,
    with_one_good_file,
    with_text,
)
from tests.nightly import run_night
from tests.properties import examples
from tests.scanning import inspect


@pytest.fixture
def night(tmp_path, tiny_encoder) -> Night:
    return with_one_good_file(tmp_path, tiny_encoder)


# --- files that cannot be read at all --------------------------------------------------------------------------------


def cut_short() -> bytes:
    return parquet_file(reviews("bad"))[:-20]


def footer_flipped() -> bytes:
    raw = bytearray(parquet_file(reviews("bad")))
    middle = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little") // 2
    raw[middle : middle + 16] = bytes(byte ^ 0xFF for byte in raw[middle : middle + 16])
    return bytes(raw)


def footer_with_other_row_count() -> bytes:
    # The number of rows of the file and of its one row group are each a zigzag varint in the footer; one is changed.
    raw = parquet_file(reviews("bad", 61))
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    at = raw.index(b"\x16\x7a\x19", footer)  # field 3 `num_rows` = 61, then the list of row groups
    return raw[:at] + b"\x16\x7e\x19" + raw[at + 3 :]


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def with_footer(footer: bytes) -> bytes:
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def footer_of_two_billion_columns() -> bytes:
    return with_footer(b"\x15\x02\x19\xfc" + varint(2**31 - 1) + b"\x48\x01a\x15\x02\x00")


def footer_of_a_name_of_two_gigabytes() -> bytes:
    return with_footer(b"\x15\x02\x19\x1c\x48" + varint(2**31 - 1) + b"name")


def footer_nested_a_hundred_thousand_deep() -> bytes:
    group, leaf = b"\x48\x01a\x15\x02\x00", b"\x15\x0c\x25\x00\x18\x01a\x00"
    return with_footer(b"\x15\x02\x19\xfc" + varint(100_001) + group * 100_000 + leaf + b"\x16\x00\x19\x0c\x00")


def encrypted(*, plaintext_footer: bool) -> bytes:
    import pyarrow.parquet.encryption as pe

    class Kms(pe.KmsClient):
        def __init__(self, _config: object) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, _name: str) -> bytes:
            return base64.b64encode(key)

    settings = pe.EncryptionConfiguration(
        footer_key="key", column_keys={"key": ["text"]}, plaintext_footer=plaintext_footer
    )
    properties = pe.CryptoFactory(Kms).file_encryption_properties(pe.KmsConnectionConfig(), settings)
    table, sink = reviews("bad"), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unknown_codec() -> bytes:
    # path_in_schema = ["text"], then the codec: 1 (Snappy) becomes 3 (LZO), which nobody builds in.
    raw = parquet_file(reviews("bad"), compression="snappy")
    assert raw.count(b"\x04text\x15\x02") == 1
    return raw.replace(b"\x04text\x15\x02", b"\x04text\x15\x06")


def codec_bomb() -> bytes:
    return parquet_file(pa.table({"id": ["1"], "text": ["x" * (65 << 20)]}), compression="zstd", use_dictionary=False)


def json_array() -> bytes:
    return json.dumps(reviews("bad").to_pylist()).encode()


BAD_FILES: list[Any] = [
    pytest.param("bad.parquet", cut_short, "file_corrupt", None, id="1-truncated"),
    pytest.param("bad.csv.gz", lambda: __import__("gzip").compress(b"id,text\n1,a\n" * 50)[:-9], "file_corrupt", None,
                 id="1-truncated-gzip"),
    pytest.param("bad.parquet", bytes, "file_empty", 0, id="2-zero-bytes"),
    pytest.param("bad.csv", bytes, "file_empty", 0, id="2-zero-bytes-csv"),
    pytest.param("bad.jsonl", lambda: b"\n\n", "file_empty", None, id="2-blank-lines-only"),
    pytest.param("bad.parquet", lambda: b"id,text\n1,good\n", "file_not_parquet", None, id="4-csv-named-parquet"),
    pytest.param("bad.PARQUET", lambda: b"hello", "file_not_parquet", None, id="4-garbage-named-in-capitals"),
    pytest.param("bad.jsonl", json_array, "file_unsupported", None, id="4-json-array"),
    pytest.param("bad.jsonl", lambda: parquet_file(reviews("bad")), "file_unsupported", None,
                 id="4-parquet-named-jsonl"),
    pytest.param("bad.parquet", footer_flipped, "file_corrupt", None, id="6-flipped-footer"),
    pytest.param("bad.parquet", footer_with_other_row_count, "file_corrupt", None, id="6-row-counts-disagree"),
    pytest.param("bad.parquet", codec_bomb, "file_bomb", 1, id="32-codec-bomb"),
    pytest.param("bad.parquet", footer_of_two_billion_columns, "file_corrupt", None, id="33-thrift-list"),
    pytest.param("bad.parquet", footer_of_a_name_of_two_gigabytes, "file_corrupt", None, id="33-thrift-string"),
    pytest.param("bad.parquet", footer_nested_a_hundred_thousand_deep, "file_corrupt", None, id="33-thrift-depth"),
    pytest.param("bad.parquet", lambda: encrypted(plaintext_footer=False), "file_unsupported", None,
                 id="34-encrypted"),
    pytest.param("bad.parquet", lambda: encrypted(plaintext_footer=True), "file_unsupported", 10,
                 id="34-encrypted-columns-below-a-plain-footer"),
    pytest.param("bad.parquet", unknown_codec, "file_unsupported", 10, id="35-unsupported-codec"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason", "num_rows"), BAD_FILES)
def test_a_bad_file_is_refused_by_default_and_costs_no_other_when_quarantined(
    night, capsys, name, content, reason, num_rows
):
    night.add(name, content())
    assert night.run() == 6
    assert_nothing_committed(night)
    assert f"{name}: {reason}" in capsys.readouterr().err
    assert night.run(on_bad_file="quarantine") == 0
    assert night.scored == sorted(GOOD_IDS)
    assert night.refused() == [(name, None, reason)]
    assert night.counts() == {"good.parquet": (NUM_GOOD, NUM_GOOD, 0), name: (num_rows, 0, num_rows or 0)}
    assert night.run(on_bad_file="quarantine") == 0
    assert len(night.entries) == 1  # and is not looked into again


def test_a_bad_file_that_was_repaired_is_scored_by_a_later_night(night):
    """1: repair."""
    night.add("bad.parquet", cut_short())
    assert night.run(on_bad_file="quarantine", slot="dt=1") == 0
    night.add("bad.parquet", reviews("bad"))
    assert night.run(slot="dt=2") == 0
    assert night.scored == sorted([*GOOD_IDS, *reviews("bad")["id"].to_pylist()])
    assert [(entry.slot, entry.rows_in) for entry in night.entries] == [("dt=1", NUM_GOOD), ("dt=2", 10)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.parquet", lambda: parquet_file(reviews("none", 0))),
        ("none.csv", lambda: b"id,text\n"),
        ("none.parquet", lambda: parquet_file(pa.table({"id": pa.nulls(0), "text": pa.nulls(0)}))),
    ],
    ids=["parquet", "csv-header-alone", "parquet-of-null-columns"],
)
def test_a_file_without_rows_is_counted_as_nothing(night, name, content):
    """3"""
    night.add(name, content())
    assert night.run() == 0
    assert night.counts() == {"good.parquet": (NUM_GOOD, NUM_GOOD, 0), name: (0, 0, 0)}
    assert night.refused() == []


def test_files_of_unknown_formats_are_ignored_aloud(night, caplog):
    """4: by rule, names that are none of a review file."""
    for name in ("notes.txt", "c", "_SUCCESS", ".hidden.parquet"):
        night.add(name, b"hello")
    night.add("late.PQ", reviews("late"))
    with caplog.at_level(logging.INFO):
        assert night.run() == 0
    assert night.counts() == {"good.parquet": (NUM_GOOD, NUM_GOOD, 0), "late.PQ": (10, 10, 0)}
    assert "left out 2 files of unknown format, such as 'c'" in caplog.text


def test_a_flipped_bit_in_a_page_with_a_checksum_costs_its_row_group_alone(night):
    """5"""
    table = reviews("bad", 48)
    raw = bytearray(
        parquet_file(table, row_group_size=16, write_page_checksum=True, compression="none", use_dictionary=False)
    )
    raw[raw.index(b"bad 20") + 2] ^= 1
    night.add("bad.parquet", bytes(raw))
    assert night.run() == 0
    assert night.refused() == [("bad.parquet", row, "page_checksum") for row in range(16, 32)]
    assert night.scored == sorted([*GOOD_IDS, *(f"bad:{i}" for i in range(48) if not 16 <= i < 32)])


# --- columns ---------------------------------------------------------------------------------------------------------


def with_id(values: pa.Array) -> pa.Table:
    return pa.table({"id": values, "text": ["a good film"] * len(values)})


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        pytest.param(pa.table({"id": ["1"], "body": ["x"]}), "schema_missing_column", id="7-no-text"),
        pytest.param(with_text(pa.array([1, 2])), "schema_type", id="9-text-of-integers"),
        pytest.param(with_text(pa.array([["a"], ["b"]])), "schema_type", id="10-text-of-lists"),
        pytest.param(with_text(pa.array([{"a": "b"}])), "schema_type", id="10-text-of-structs"),
        pytest.param(with_id(pa.array([1.5, 2.5])), "schema_id_type", id="11-ids-of-floats"),
        pytest.param(with_id(pa.array([["a"]])), "schema_id_type", id="11-ids-of-lists"),
    ],
)
def test_a_file_with_other_columns_is_a_config_error_or_is_quarantined_alone(night, capsys, table, reason):
    night.add("bad.parquet", table)
    assert night.run() == 2
    assert_nothing_committed(night)
    assert "bad.parquet: expected column" in capsys.readouterr().err
    assert night.run(on_bad_file="quarantine") == 0
    assert night.scored == sorted(GOOD_IDS)
    assert night.refused() == [("bad.parquet", None, reason)]
    assert night.counts()["bad.parquet"] == (table.num_rows, 0, table.num_rows)


@pytest.mark.parametrize(("times", "reason"), [(0, "schema_missing_column"), (2, "schema_type")])
def test_a_file_without_the_one_column_to_break_the_report_down_by_costs_no_other(night, capsys, times, reason):
    """7, 9"""
    night.add("good.parquet", reviews("good", NUM_GOOD).append_column("shop", pa.array(["x", "y"] * (NUM_GOOD // 2))))
    bad = reviews("bad")
    for _ in range(times):
        bad = bad.append_column("shop", pa.array(["x"] * 10))
    night.add("bad.parquet", bad)
    report = {"slices": ["shop"]}
    assert night.run(report=report) == 2
    assert_nothing_committed(night)
    assert "'shop'" in capsys.readouterr().err
    assert night.run(report=report, on_bad_file="quarantine") == 0
    assert night.scored == sorted(GOOD_IDS)
    assert night.refused() == [("bad.parquet", None, reason)]


def test_ids_that_nobody_named_are_made_and_named_ones_have_to_be_there(night):
    """8"""
    night.add("bad.parquet", pa.table({"text": ["a good film", "a bad film"]}))
    assert night.run() == 0
    assert night.scored == sorted([*GOOD_IDS, "bad.parquet:0", "bad.parquet:1"])
    night.add("named.parquet", pa.table({"key": ["k1"], "text": ["a good film"]}))
    night.add("other.parquet", pa.table({"text": ["a bad film"]}))
    columns = {"id": "key", "text": "text"}
    night.add("good.parquet", reviews("good", NUM_GOOD).rename_columns(["key", "text"]))
    assert run_night(night.config(columns=columns, output="other")) == 2
    assert run_night(night.config(columns=columns, output="other", on_bad_file="quarantine")) == 0
    [entry] = ledger.read_ledger(open_store(str(night.folder / "other")))
    assert entry.reasons == {"schema_missing_column": 2}
    assert entry.rows_scored == NUM_GOOD + 1


def test_text_as_bytes_is_read_and_bytes_that_are_no_text_cost_their_row(night):
    """9"""
    night.add("bad.parquet", with_text(pa.array([b"good film", b"caf\xff", "좋은 영화".encode()], pa.binary())))
    assert night.run() == 0
    assert night.scored == sorted([*GOOD_IDS, "bad:0", "bad:2"])
    assert night.refused() == [("bad.parquet", 1, "text_encoding")]


def test_ids_of_other_types_become_canonical_text_over_files_of_different_types(night):
    """11"""
    key = uuid.UUID("12345678-1234-5678-1234-567812345678")
    night.add("a.parquet", with_id(pa.array([-7, 2**62])))
    night.add("b.parquet", with_id(pa.array([key.bytes], pa.binary(16))))
    night.add("c.parquet", with_id(pa.array([decimal.Decimal("10.50")])))
    night.add("d.parquet", with_id(pa.array([2**64 - 1], pa.uint64())))
    night.add("e.parquet", with_id(pa.array(["x", "y"]).dictionary_encode()))
    night.add("f.jsonl", b'{"id": 12, "text": "a good film"}\n{"id": "zwei", "text": "a bad film"}\n')
    assert night.run() == 0
    found = ["-7", str(2**62), key.hex, "10.50", str(2**64 - 1), "x", "y", "12", "zwei"]
    assert night.scored == sorted([*GOOD_IDS, *found])


def test_more_and_reordered_columns_change_nothing(night):
    """12"""
    table = reviews("bad").append_column("stars", pa.array(range(10)))
    night.add("bad.parquet", table.select(["stars", "text", "id"]))
    night.add("more.csv", b"stars,text,extra,id\n5,a good film,x,m1\n")
    assert night.run() == 0
    assert night.scored == sorted([*GOOD_IDS, *table["id"].to_pylist(), "m1"])


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.string_view()], ids=str)
def test_every_encoding_of_strings_is_read(night, kind):
    """13"""
    table = reviews("bad")
    night.add("bad.parquet", pa.table({name: table[name].combine_chunks().cast(kind) for name in ("id", "text")}))
    assert night.run() == 0
    assert night.scored == sorted([*GOOD_IDS, *table["id"].to_pylist()])


# --- rows ------------------------------------------------------------------------------------------------------------

LONG = "word " * 10_000  # 50,000 characters: above max_chars, below the limit
TOO_LONG = "word " * 1_000_001
BAD_ROWS: list[Any] = [
    pytest.param({"text": None}, "text_null", id="14-null-text"),
    pytest.param({"text": ""}, "text_empty", id="15-empty-text"),
    pytest.param({"text": " \t\r\n\u00a0\u3000 "}, "text_empty", id="16-white-space"),
    pytest.param({"text": "<br /><p></p>&nbsp;"}, "text_empty", id="16-mark-up-alone"),
    pytest.param({"text": TOO_LONG}, "text_too_long", id="17-five-million-characters"),
    pytest.param({"text": LONG}, None, id="17-fifty-thousand-characters"),
    pytest.param({"text": "a good\x00 film\x00"}, None, id="18-nul"),
    pytest.param({"text": b"caf\xe9 \xff"}, "text_encoding", id="19-invalid-utf8"),
    pytest.param({"id": b"caf\xe9"}, "text_encoding", id="19-invalid-utf8-in-the-id"),
    pytest.param({"text": "good \ud83d film"}, "text_encoding", id="20-lone-surrogate"),
    pytest.param({"id": "x\udfff"}, "text_encoding", id="20-lone-surrogate-in-the-id"),
    pytest.param({"text": "\u200b\u202e\u2066\x07\x1b[31m\ufeff"}, "text_empty", id="21-controls-alone"),
    pytest.param({"text": "😀👍🏽👩‍👩‍👧🇰🇷"}, None, id="21-emoji-alone"),
    pytest.param({"text": "الفيلم رائع \u202eجدا"}, None, id="21-right-to-left"),
    pytest.param({"id": None}, "id_null", id="22-null-id"),
    pytest.param({"id": ""}, "id_null", id="23-empty-id"),
    pytest.param({"id": "bad:0"}, "id_duplicate", id="24-duplicate-id"),
    pytest.param({"id": "../../etc/passwd"}, None, id="38-id-that-climbs"),
    pytest.param({"id": "s3://bucket/a/b?c=d#e"}, None, id="38-id-like-an-address"),
    pytest.param({"id": "nul\x00 in it"}, None, id="38-id-with-nul"),
    pytest.param({"id": "x" * 300}, None, id="38-id-of-300-characters"),
]


@pytest.mark.parametrize(("fault", "reason"), BAD_ROWS)
def test_a_bad_row_costs_itself_in_every_format_and_a_strange_one_nothing(night, fault, reason):
    rows = [{"id": f"bad:{i}", "text": f"the film was good and bad {i}"} for i in range(9)]
    rows[5] |= fault
    for form, content in WRITERS.items():
        night.add(f"bad.{form}", content(rows))
    assert night.run() == 0
    # CSV has no null.
    reasons = {form: "text_empty" if (form, reason) == ("csv", "text_null") else reason for form in WRITERS}
    assert night.refused() == [(f"bad.{form}", 5, reasons[form]) for form in sorted(WRITERS) if reason is not None]
    expected = [row["id"] for number, row in enumerate(rows) if reason is None or number != 5]
    assert night.scored == sorted([*GOOD_IDS, *expected * len(WRITERS)])
    for row in night.rows("quarantine"):
        assert len(row["detail"] or "") <= 200
        assert "film" not in str(row)
    if fault.get("text") == LONG:
        assert [row["id"] for row in night.rows() if row["truncated"]] == ["bad:5"] * len(WRITERS)


def test_rows_that_are_no_rows_cost_themselves(night):
    """20: of text formats, where a row can be broken as a row."""
    night.add("a.csv", b'id,text\n1,good\n2,good,more\n3\n4,"never closed\n5,bad\n')
    night.add("b.jsonl", b'{"id": 1, "text": "good"}\n{"id": 2, "text": \n[3]\n{"id": 4, "text": 4}\n{"id": "b5"}\n')
    assert night.run() == 0
    assert night.refused() == [
        *(("a.csv", row, "row_malformed") for row in (1, 2, 3)),
        *(("b.jsonl", row, "row_malformed") for row in (1, 2, 3)),
        ("b.jsonl", 4, "text_null"),
    ]
    assert night.scored == sorted([*GOOD_IDS, "1", "5", "1"])


def test_the_first_of_equal_ids_in_a_file_is_scored_whatever_shard_repeats_it(night):
    """24"""
    ids = [f"bad:{i % 30}" for i in range(40)]
    night.add("bad.parquet", pa.table({"id": ids, "text": [f"a good film {i}" for i in range(40)]}))
    assert night.run() == 0
    assert night.refused() == [("bad.parquet", row, "id_duplicate") for row in range(30, 40)]
    assert night.scored == sorted([*GOOD_IDS, *ids[:30]])
    assert run_night(night.config(output="off", ids={"unique": "off"})) == 0
    [entry] = ledger.read_ledger(open_store(str(night.folder / "off")))
    assert (entry.rows_scored, entry.rows_quarantined) == (NUM_GOOD + 40, 0)


def test_equal_ids_in_two_files_are_both_scored(night):
    """25: ids are checked within a file."""
    night.add("bad.parquet", pa.table({"id": GOOD_IDS[:3], "text": ["another text"] * 3}))
    assert night.run() == 0
    assert night.scored == sorted([*GOOD_IDS, *GOOD_IDS[:3]])


def test_equal_ids_in_two_files_of_a_slot_keep_the_first_where_asked_for(night):
    """25: the first by file and row; files without ids of their own have none to repeat."""
    night.add("later.parquet", pa.table({"id": ["new", *GOOD_IDS[:3], "new"], "text": ["another text"] * 5}))
    night.add("latest.csv", b"text,id\nfine,new\nfine,other\n")
    night.add("none.csv", b"text\nfine\nfine\n")
    assert night.run(ids={"unique": "slot"}) == 0
    assert night.scored == sorted([*GOOD_IDS, "new", "other", "none.csv:0", "none.csv:1"])
    duplicates = [("later.parquet", row, "id_duplicate") for row in (1, 2, 3, 4)]
    assert night.refused() == [*duplicates, ("latest.csv", 0, "id_duplicate")]


def test_a_file_whose_kept_column_has_another_type_costs_no_other(night):
    """9-10: of a column that is only carried along."""
    for name, stars in (("good", pa.array([1] * NUM_GOOD)), ("other", pa.array(["one"] * 5))):
        rows = reviews(name, len(stars)).append_column("stars", stars)
        night.add(f"{name}.parquet", rows)
    assert night.run(keep_columns=["stars"]) == 2
    assert_nothing_committed(night)
    assert night.run(keep_columns=["stars"], on_bad_file="quarantine") == 0
    assert night.scored == sorted(GOOD_IDS)
    assert night.refused() == [("other.parquet", None, "schema_type")]


def test_a_byte_that_is_no_utf8_in_a_kept_column_of_text_files_is_mended(night):
    """9-10"""
    night.add("good.parquet", reviews("good", NUM_GOOD).append_column("shop", pa.array(["x"] * NUM_GOOD)))
    night.add("a.csv", b"id,text,shop\na0,a good film,caf\xe9\na1,a bad film,x\n")
    night.add("b.jsonl", b'{"id": "b0", "text": "a good film", "shop": "caf\xe9"}\n')
    assert night.run(keep_columns=["shop"], report={"slices": ["shop"]}) == 0
    shops = {row["id"]: row["shop"] for row in night.rows()}
    assert shops == {**dict.fromkeys([*GOOD_IDS, "a1"], "x"), "a0": "caf\ufffd", "b0": "caf\ufffd"}


def test_of_two_types_of_a_kept_column_the_one_of_most_files_counts(night):
    """9-10: the odd file is the first one."""
    for name, stars in (("a", ["one"] * 5), ("good", [1] * NUM_GOOD), ("later", [2] * 3)):
        night.add(f"{name}.parquet", reviews(name, len(stars)).append_column("stars", pa.array(stars)))
    assert night.run(keep_columns=["stars"], on_bad_file="quarantine") == 0
    assert night.refused() == [("a.parquet", None, "schema_type")]
    assert len(night.scored) == NUM_GOOD + 3


def test_too_many_bad_rows_are_refused_before_the_commit(night, capsys):
    """14: max_quarantine_ratio applies above a hundred quarantined rows."""
    texts = [None if i < 101 else f"a good film {i}" for i in range(400)]
    night.add("bad.parquet", pa.table({"id": [f"bad:{i}" for i in range(400)], "text": texts}))
    assert night.run() == 6
    assert_nothing_committed(night)
    assert "101 of 420 rows (24.0 %) would be kept out, above max_quarantine_ratio=0.01" in capsys.readouterr().err
    assert night.run(max_quarantine_ratio=0.25) == 0
    assert night.counts()["bad.parquet"] == (400, 299, 101)


NOTHING_TO_SCORE = {
    "rows of other widths": ("z.csv", b"id,text\n" + b"1,good,a\n2,bad,b\n", "row_malformed (2)"),
    "null texts": ("z.jsonl", b'{"id": "1", "text": null}\n', "text_null (1)"),
    "a damaged file": ("z.parquet", b"PAR1 and no more PAR1", "file_corrupt (1)"),
}


@pytest.mark.parametrize("kind", NOTHING_TO_SCORE)
def test_a_night_of_which_nothing_can_be_scored_is_refused_unless_all_may_be_refused(night, capsys, kind):
    name, content, worst = NOTHING_TO_SCORE[kind]
    (night.inbox / "good.parquet").unlink()
    night.add(name, content)
    assert night.run(on_bad_file="quarantine") == 6
    said = capsys.readouterr().err
    assert f"most often {worst}" in said
    assert name in said
    assert_nothing_committed(night)
    assert night.run(on_bad_file="quarantine", max_quarantine_ratio=1) == 0
    assert night.scored == []


def test_a_file_of_which_nothing_can_be_scored_is_named_beside_good_ones(night, caplog):
    night.add("z.jsonl", b'{"id": "1", "text": null}\n')
    with caplog.at_level(logging.WARNING):
        assert night.run() == 0
    assert any("1 file gave no row to score" in message and "z.jsonl" in message for message in caplog.messages)


def test_an_output_inside_the_inbox_is_refused_before_it_is_touched(night, capsys):
    assert night.run(output="in/out") == 2
    assert "expected an input apart from the output" in capsys.readouterr().err
    assert not (night.inbox / "out").exists()


def test_nobody_is_told_to_remove_what_a_ledger_needs(night):
    assert night.run() == 0
    part = next(key for key in night.store.keys("data") if key.endswith(".parquet"))
    for key in ("control/commits/00000001.json", part):
        bad = BadFile(str(night.folder / "out" / key), key, 1, "1", Reason.FILE_CORRUPT, "cut", None)
        with pytest.raises(DataRefused, match="remove nothing there") as caught:
            refuse_bad_files("input", [bad], [bad.path, "a.parquet"], "Repair or remove them.")
        assert "Repair" not in str(caught.value)
    bad = BadFile(str(night.inbox / "a.csv"), "a.csv", 1, "1", Reason.FILE_CORRUPT, "cut", None)
    with pytest.raises(DataRefused, match=r"Repair or remove them\."):
        refuse_bad_files("input", [bad], [bad.path], "Repair or remove them.")


def test_a_key_in_folder_names_is_a_column_of_the_scored_rows(night):
    (night.inbox / "day=2026-11-01").mkdir()
    (night.inbox / "good.parquet").rename(night.inbox / "day=2026-11-01" / "good.parquet")
    assert night.run(keep_columns=["day"]) == 0
    parts = [pq.read_table(path, columns=["day"]) for path in (night.folder / "out" / "data").rglob("*.parquet")]
    assert pa.concat_tables(parts)["day"].to_pylist() == ["2026-11-01"] * NUM_GOOD


def test_a_hundred_bad_rows_pass_whatever_their_share(night):
    """14"""
    night.add("bad.parquet", with_text(pa.nulls(100, pa.string())))
    assert night.run(max_quarantine_ratio=0) == 0
    assert night.counts()["bad.parquet"] == (100, 0, 100)


def test_columns_without_a_value_are_rows_without_text_and_without_id(night):
    """14 and 22, of a whole column: Arrow's null type."""
    night.add("a.parquet", with_text(pa.nulls(3)))
    night.add("b.parquet", with_id(pa.nulls(3)))
    assert night.run() == 0
    assert night.refused() == [
        *(("a.parquet", row, "text_null") for row in range(3)),
        *(("b.parquet", row, "id_null") for row in range(3)),
    ]


# --- deliveries ------------------------------------------------------------------------------------------------------


def test_content_delivered_twice_is_scored_once_and_reported(night):
    """26"""
    night.add("again.parquet", (night.inbox / "good.parquet").read_bytes())
    night.add("again.csv", b"id,text\nc1,a good film\n")
    night.add("and_again.csv", b"id,text\nc1,a good film\n")
    assert night.run(slot="dt=1") == 0
    assert night.scored == sorted([*GOOD_IDS, "c1"])
    report = json.loads(night.store.get("reports/dt=1/run=1/report.json"))
    skipped = {(Path(item["path"]).name, item["why"].partition(" as ")[0]) for item in report["skipped"]}
    assert skipped == {("good.parquet", "same content"), ("and_again.csv", "same content")}
    night.add("tomorrow.parquet", (night.inbox / "good.parquet").read_bytes())
    assert night.run(slot="dt=2") == 0
    assert [entry.slot for entry in night.entries] == ["dt=1"]


def test_other_columns_delivered_under_two_names_are_quarantined_twice(night):
    """7, 26; the same bytes are no bad file where their name says how to read them."""
    bad = pa.table({"id": ["1", "2"], "body": ["x", "y"]})
    night.add("bad.parquet", bad)
    night.add("bad_again.parquet", bad)
    night.add("tabs.csv", b"id\ttext\nt1\ta good film\n")
    night.add("tabs.tsv", b"id\ttext\nt1\ta good film\n")
    keys = {"on_bad_file": "quarantine", "columns": {"id": "id", "text": "text"}}
    for _ in range(2):
        assert night.run(**keys) == 0
        assert night.scored == sorted([*GOOD_IDS, "t1"])
        assert night.counts() == {
            "bad.parquet": (2, 0, 2),
            "bad_again.parquet": (2, 0, 2),
            "good.parquet": (NUM_GOOD, NUM_GOOD, 0),
            "tabs.csv": (1, 0, 1),
            "tabs.tsv": (1, 1, 0),
        }
        names = ["bad.parquet", "bad_again.parquet", "tabs.csv"]
        assert night.refused() == [(name, None, "schema_missing_column") for name in names]


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_row_group_above_the_limit_is_refused(night, monkeypatch):
    """30"""
    night.add("bad.parquet", reviews("bad", 1000))
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 10_000)
    assert night.run() == 6
    assert night.run(on_bad_file="quarantine", max_quarantine_ratio=1) == 0
    assert night.refused() == [("bad.parquet", None, "row_group_too_big")]
    assert night.counts()["bad.parquet"] == (1000, 0, 1000)


def test_ten_gigabytes_of_text_in_a_small_file_are_refused_row_by_row_in_little_memory(night):
    """31"""
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([TOO_LONG]))
    path = night.add("bad.parquet", pa.table({"id": [f"bad:{i}" for i in range(2000)], "text": bomb}))
    assert path.stat().st_size < 1 << 20
    before = peak_bytes()
    assert night.run(max_quarantine_ratio=1, rows_per_shard=500) == 0
    assert peak_bytes() - before < 1 << 30
    assert night.refused() == [("bad.parquet", row, "text_too_long") for row in range(2000)]
    assert night.scored == sorted(GOOD_IDS)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["id", "label", "note"])
def test_gigabytes_of_ids_labels_or_kept_values_in_a_small_file_are_refused_in_little_memory(night, column):
    """31: of a column that is no text."""
    table = reviews("bad", 600).append_column("label", pa.array(["pos"] * 600)).append_column("note", pa.nulls(600))
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["x" * 4_000_000]))
    night.add("bad.parquet", parquet_file(table.set_column(table.column_names.index(column), column, bomb)))
    for name in ("good", "more"):
        kept = reviews(name, 5).append_column("label", pa.array(["pos"] * 5)).append_column("note", pa.array(["n"] * 5))
        night.add(f"{name}.parquet", kept)
    before = peak_bytes()
    assert night.run(max_quarantine_ratio=1, rows_per_shard=600, keep_columns=["note"]) == 0
    assert peak_bytes() - before < 1 << 30
    assert night.refused() == [("bad.parquet", row, "file_bomb") for row in range(600)]
    assert night.scored == sorted([*reviews("good", 5)["id"].to_pylist(), *reviews("more", 5)["id"].to_pylist()])


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.slow
def test_three_hundred_tiny_files_are_one_slot(night):
    """36"""
    for number in range(300):
        night.add(f"{number:04}.jsonl", b'{"id": "t%d", "text": "a good film"}\n' % number)
    assert night.run(slot="dt=1", rows_per_shard=4096) == 0
    [entry] = night.entries
    assert entry.rows_in == NUM_GOOD + 300
    assert night.scored == sorted([*GOOD_IDS, *(f"t{number}" for number in range(300))])
    assert len(entry.parts) < 3, "small files are written together"
    assert [(file.rows_in, file.rows_scored, file.rows_quarantined) for file in entry.files[:300]] == [(1, 1, 0)] * 300


# --- paths and names -------------------------------------------------------------------------------------------------


def test_a_link_out_of_the_inbox_is_not_followed(night, capsys):
    """37"""
    outside = night.folder / "private.parquet"
    outside.write_bytes(parquet_file(reviews("private")))
    (night.inbox / "link.parquet").symlink_to(outside)
    (night.inbox / "linked").symlink_to(night.folder)
    assert night.run() == 6
    assert "path_refused" in capsys.readouterr().err
    assert night.run(on_bad_file="quarantine") == 0
    assert night.scored == sorted(GOOD_IDS)
    assert night.refused() == [("link.parquet", None, "path_refused"), ("linked", None, "path_refused")]


@pytest.mark.parametrize(
    "name",
    [
        "a*b?.parquet",
        "a[1].parquet",
        "with space %20 #1.parquet",
        "한국 영화.parquet",
        "line\nbreak.parquet",
        "{a}.csv",
    ],
)
def test_names_of_files_are_names_and_nothing_else(night, name):
    """37"""
    table = reviews("bad")
    night.add(name, as_csv(table.to_pylist()) if name.endswith(".csv") else table)
    assert night.run() == 0
    assert night.counts()[name] == (10, 10, 0)


@pytest.mark.parametrize("slot", ["../evil", "a/b", "nul\x00", "x" * 300, "..", ""])
def test_slots_that_are_no_names_are_config_errors(night, slot, capsys):
    """38"""
    from bertray.cli import run

    argv = ["score", f"model={night.encoder}", f"input={night.inbox}", f"output={night.folder / 'out'}"]
    assert run([*argv, f"slot={slot}"]) == 2
    assert "slot" in capsys.readouterr().err
    assert not (night.folder / "out").exists()
    assert sorted(path.name for path in night.folder.iterdir()) == ["in"]


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_that_the_model_does_not_know_cost_no_row_and_no_figure(night):
    """39: of a night."""
    labels = ["pos", "neg", "neutral", None, "", "pos", "neg", "5", "pos", "nan"]
    night.add("good.parquet", reviews("good", 10).append_column("label", pa.array(labels)))
    assert night.run(slot="dt=1") == 0
    assert night.scored == sorted(GOOD_IDS[:10])
    assert json.loads(night.store.get("reports/dt=1/run=1/metrics.json"))["rows"] == 5


def test_labels_of_a_type_that_is_none_leave_the_night_without_figures(night):
    """39: of a night."""
    night.add("good.parquet", reviews("good", 2).append_column("label", pa.array([["pos"], ["neg"]])))
    assert night.run(slot="dt=1") == 0
    assert night.scored == sorted(GOOD_IDS[:2])
    assert not night.store.exists("reports/dt=1/run=1/metrics.json")


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([0.0, 1.0, float("inf"), 1.0], "inf (1)"),
        ([0.0, 1.0, float("-inf"), 1.0], "-inf (1)"),
        ([0, 1, 7, 7], "7 (2)"),
        (["0", "1", "yes", "1"], "yes (1)"),
        ([1, 1, 1, 1], "neg (0)"),
    ],
    ids=["infinite", "minus-infinite", "out-of-range", "unknown", "one-class"],
)
def test_training_refuses_labels_that_are_no_class_before_it_starts(tmp_path, tiny_encoder, capsys, labels, named):
    """39: of training data; the values are named and counted."""
    from bertray.cli import run

    pq.write_table(reviews("train", 4).append_column("label", pa.array(labels)), tmp_path / "train.parquet")
    argv = ["train", f"model={tiny_encoder}", f"data.train={tmp_path / 'train.parquet'}", f"output={tmp_path / 'out'}"]
    assert run([*argv, "max_length=24", "labels={0: neg, 1: pos}"]) == 6
    assert named in capsys.readouterr().err


def test_training_without_named_labels_takes_no_infinite_number_for_a_class(tmp_path, tiny_encoder, capsys):
    """39: of training data."""
    from bertray.cli import run

    labels = pa.array([0.0, 1.0, float("inf"), None])
    pq.write_table(reviews("train", 4).append_column("label", labels), tmp_path / "train.parquet")
    argv = ["train", f"model={tiny_encoder}", f"data.train={tmp_path / 'train.parquet'}", f"output={tmp_path / 'out'}"]
    assert run([*argv, "max_length=24"]) == 6
    assert "expected finite numbers, found inf" in capsys.readouterr().err


# --- nothing at all --------------------------------------------------------------------------------------------------


def test_an_empty_inbox_is_refused_unless_it_is_allowed(night, capsys):
    """40"""
    (night.inbox / "good.parquet").unlink()
    assert night.run() == 6
    assert "no review file" in capsys.readouterr().err
    assert_nothing_committed(night)
    assert night.run(allow_empty=True, slot="dt=1") == 0
    [entry] = night.entries
    assert (entry.slot, entry.rows_in, entry.files, entry.parts) == ("dt=1", 0, [], [])
    assert night.store.keys("data") == ["data/dt=1/run=1/_SUCCESS"]
    assert night.run(allow_empty=True, slot="dt=1") == 0
    assert len(night.entries) == 1


# --- any damage, any mix ---------------------------------------------------------------------------------------------


def test_any_flipped_bit_in_the_header_of_a_page_is_harmless_or_costs_rows_that_are_counted(tmp_path):
    """5"""
    table = reviews("bad", 16)
    raw = parquet_file(table, compression="zstd", write_page_checksum=True)
    chunk = pq.read_metadata(pa.BufferReader(raw)).row_group(0).column(1)
    text_of = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    path, spec, outcomes = tmp_path / "a.parquet", ReadSpec(), Counter[str]()
    for start in (chunk.dictionary_page_offset, chunk.data_page_offset):
        for bit in range(8 * start, 8 * (start + 16)):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            [entry] = list_inputs([str(path)], spec.reader)
            file = inspect(entry, spec.reader)
            assert isinstance(file, InputFile)
            [shard] = plan_shards([file], 100)
            batch = read_shard(shard, spec)
            assert batch.kept.num_rows + batch.refused.num_rows == batch.rows_in == 16
            assert all(text_of[row["id"]] == row["text"] for row in batch.kept.to_pylist()), bit
            outcomes["refused" if batch.refused.num_rows else "read"] += 1
    assert set(outcomes) == {"read", "refused"}


@dataclass(frozen=True)
class MixedRow:
    """A row of a mixed file; `broken` is what is wrong with it as a row, where the format can say so."""

    id: Any
    text: Any
    broken: str = ""


IDS = st.one_of(
    st.integers(0, 60).map(lambda number: f"r{number}"),
    st.sampled_from([None, "", "a/../b", "r\x00", b"\xff", "\udc80", "영화"]),
)
TEXTS = st.one_of(
    st.integers(0, 9).map(lambda number: f"the film was good {number}"),
    st.sampled_from([None, "", "  \t\r\n", "\x00\x07", "\u200b\ufeff", "<p>", b"caf\xe9", "\ud800", "😀", "a\x00b"]),
)
MIXED_ROWS = st.lists(
    st.builds(MixedRow, IDS, TEXTS, st.sampled_from(["", "", "", "", "shape", "type"])), min_size=1, max_size=40
)


def mixed_file(form: str, rows: Sequence[MixedRow], *, reorder: bool) -> bytes:
    """The rows in a format; Parquet cannot break a row as a row, CSV has no types."""
    if form == "parquet":
        raw = pq.read_table(pa.BufferReader(as_parquet([{"id": row.id, "text": row.text} for row in rows])))
        table = raw.append_column("stars", pa.array(range(len(rows))))
        return parquet_file(table.select(["stars", "text", "id"]) if reorder else table, row_group_size=16)
    header = b"" if form == "jsonl" else b"text,id\n" if reorder else b"id,text\n"
    lines = []
    for row in rows:
        values = {"text": row.text, "id": row.id} if reorder else {"id": row.id, "text": row.text}
        if form == "jsonl" and row.broken == "type":
            values["text"] = 5
        line = WRITERS[form]([values]).removeprefix(header)
        if row.broken == "shape":
            line = line[:-1] + (b",more\n" if form == "csv" else b"}\n")
        lines.append(line)
    return header + b"".join(lines)


def expected_outcome(form: str, rows: Sequence[MixedRow]) -> tuple[list[str], int]:
    """(ids to be scored, rows to be refused), by the rules as design.md states them."""
    scored: list[str] = []
    seen: set[str] = set()
    for row in rows:
        if row.broken == "shape" and form != "parquet":
            continue  # no row, so it has no id
        if not is_unicode(row.id) or row.id in (None, ""):
            continue
        is_first = row.id not in seen
        seen.add(row.id)
        has_text = not (row.broken == "type" and form == "jsonl") and is_unicode(row.text)
        if is_first and has_text and any(part in (row.text or "") for part in ("film", "😀", "b")):
            scored.append(row.id)
    return scored, len(rows) - len(scored)


def is_unicode(value: Any) -> bool:
    return not isinstance(value, bytes) and (value is None or not any("\ud800" <= char <= "\udfff" for char in value))


@settings(max_examples=examples(25))
@given(files=st.lists(st.tuples(MIXED_ROWS, st.booleans(), st.booleans()), min_size=1, max_size=2))
def test_any_mix_of_good_and_bad_rows_and_files_adds_up_and_scores_exactly_the_good_ones(tmp_path, tiny_encoder, files):
    night = Night(tmp_path / uuid.uuid4().hex, tiny_encoder)
    night.inbox.mkdir(parents=True)
    scored: list[str] = []
    counts: dict[str, tuple[int | None, int, int]] = {}
    for number, (mixed, reorder, is_damaged) in enumerate(files):
        for form in WRITERS:
            rows = [MixedRow(f"first of {number}", "a good film"), *mixed]
            content = mixed_file(form, rows, reorder=reorder)
            good, refused = expected_outcome(form, rows)
            name = f"{number}.{form}"
            if is_damaged and form == "parquet":
                content, counts[name] = content[:-9], (None, 0, 0)
            else:
                scored += good
                counts[name] = (len(rows), len(good), refused)
            night.add(name, content)
    assert night.run(on_bad_file="quarantine", max_quarantine_ratio=1) == 0
    assert night.scored == sorted(scored)
    assert night.counts() == counts
