"""Which rows are refused, for which reason, and that the refused row never holds text."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.config import Columns
from bertray.reviews.rows import InputFile, RawRows, ReadSpec, Shard
from bertray.reviews.screening import screen
from bertray.schema import REFUSED_SCHEMA
from tests.properties import examples


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def file(rows: int) -> InputFile:
    return InputFile(
        "/data/a.parquet", "a.parquet", "parquet", 1, "0", rows, {"id": "string", "text": "string"}, digest="d"
    )


def test_every_row_is_kept_or_refused_with_one_reason():
    texts = [b"good", None, b"", b" <br> \xe2\x80\x8b", b"caf\xff", b"x" * 60, b"fine", b"also", b"dup", b"null id"]
    ids = ["0", "1", "2", "3", "4", "5", "6", "", "0", None]
    raw = RawRows(np.arange(100, 110), {"id": pa.array(ids), "text": pa.array(texts, pa.binary())})
    spec = ReadSpec(max_text_chars=50)
    kept, refused = screen(raw, Shard(file(200), 0, 100, 110, duplicates=(108,)), spec)
    assert kept.to_pylist() == [
        {"row_no": 100, "id": "0", "text": "good", "cut": False, "script": "latin"},
        {"row_no": 106, "id": "6", "text": "fine", "cut": False, "script": "latin"},
    ]
    assert refused.schema == REFUSED_SCHEMA
    expected = [
        (101, "1", "text_null", None, None, None),
        (102, "2", "text_empty", "nothing is left after cleaning", sha(b""), 0),
        (103, "3", "text_empty", "nothing is left after cleaning", sha(b" <br> \xe2\x80\x8b"), 7),
        (104, "4", "text_encoding", "not valid Unicode", sha(b"caf\xff"), 4),
        (105, "5", "text_too_long", "over 50 characters", sha(b"x" * 60), 60),
        (107, None, "id_null", None, sha(b"also"), 4),
        (108, "0", "id_duplicate", "the id stands earlier in this file", sha(b"dup"), 3),
        (109, None, "id_null", None, sha(b"null id"), 7),
    ]
    columns = ["row_no", "id", "reason", "detail", "text_sha256", "text_len"]
    assert [tuple(row[name] for name in columns) for row in refused.to_pylist()] == expected
    assert set(refused["input_path"].to_pylist()) == {"/data/a.parquet"}


def test_a_text_pair_is_cleaned_and_screened_too():
    columns = {
        "id": pa.array(["0", "1", "2", "3"]),
        "text": pa.array(["a", "b", "c", "d"]),
        "aspect": pa.array(["food<br>", None, " ", "staff"]),
    }
    spec = ReadSpec(columns=Columns(text_pair="aspect"))
    kept, refused = screen(RawRows(np.arange(4), columns), Shard(file(4), 0, 0, 4), spec)
    assert kept.select(["id", "text", "text_pair"]).to_pylist() == [
        {"id": "0", "text": "a", "text_pair": "food"},
        {"id": "3", "text": "d", "text_pair": "staff"},
    ]
    assert refused.select(["id", "reason"]).to_pylist() == [
        {"id": "1", "reason": "text_null"},
        {"id": "2", "reason": "text_empty"},
    ]


def test_long_texts_are_cut_and_flagged():
    texts = pa.array(["word " * 30, "x" * 100, "y" * 101, "<br>" * 200 + "z", "한" * 600])
    raw = RawRows(np.arange(5), {"id": pa.array(list("abcde")), "text": texts})
    kept, refused = screen(raw, Shard(file(5), 0, 0, 5), ReadSpec(max_chars=100))
    assert kept.select(["id", "text", "cut"]).to_pylist() == [
        {"id": "a", "text": ("word " * 20).strip(), "cut": True},
        {"id": "b", "text": "x" * 100, "cut": False},
        {"id": "c", "text": "y" * 100, "cut": True},
        {"id": "e", "text": "한" * 100, "cut": True},
    ]
    # Cleaning sees five times max_chars at most: what stands behind 500 characters of mark-up is not looked at.
    assert refused.select(["id", "reason"]).to_pylist() == [{"id": "d", "reason": "text_empty"}]


def test_kept_columns_travel_under_a_prefix_and_broken_strings_are_mended():
    columns = {
        "id": pa.array(["0", "1"]),
        "text": pa.array(["a", "b"]),
        "label": pa.array([1.0, None]),
        "day": pa.array(["x", "y"]).dictionary_encode(),
        "note": pa.array([b"ok", b"caf\xe9"], pa.binary()).view(pa.string()),
        "stars": pa.array([5, 4], pa.int8()),
    }
    spec = ReadSpec(wants_label=True, keep_columns=("day", "note", "stars", "text"))
    kept, _ = screen(RawRows(np.arange(2), columns), Shard(file(2), 0, 0, 2), spec)
    assert kept.drop_columns(["row_no", "cut", "script", "id", "text"]).to_pylist() == [
        {"label": "1", "keep:day": "x", "keep:note": "ok", "keep:stars": 5, "keep:text": "a"},
        {"label": None, "keep:day": "y", "keep:note": "caf\ufffd", "keep:stars": 4, "keep:text": "b"},
    ]
    assert kept.schema.field("keep:stars").type == pa.int8()


def test_kept_bytes_of_parquet_stay_bytes():
    columns = {"id": pa.array(["0"]), "text": pa.array(["a"]), "key": pa.array([b"caf\xe9"], pa.binary())}
    kept, _ = screen(RawRows(np.arange(1), columns), Shard(file(1), 0, 0, 1), ReadSpec(keep_columns=("key",)))
    assert kept["keep:key"].to_pylist() == [b"caf\xe9"]


def test_invalid_ids_are_refused_as_encoding_faults():
    ids = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())
    raw = RawRows(np.arange(2), {"id": ids, "text": pa.array(["a", "b"])})
    kept, refused = screen(raw, Shard(file(2), 0, 0, 2), ReadSpec())
    assert kept["id"].to_pylist() == ["ok"]
    assert refused.select(["id", "reason", "detail"]).to_pylist() == [
        {"id": None, "reason": "text_encoding", "detail": "the id is not valid Unicode"}
    ]


ROW = st.tuples(
    st.one_of(st.none(), st.sampled_from(["", "a", "b", "c"])),
    st.one_of(st.none(), st.binary(max_size=6), st.text(max_size=20).map(lambda t: t.encode("utf-8", "surrogatepass"))),
)


@settings(max_examples=examples(40))
@given(rows=st.lists(ROW, max_size=25), rows_per_shard=st.integers(1, 10))
def test_counts_add_up_for_any_rows_and_shards(tmp_path, read_all, rows, rows_per_shard):
    ids = pa.array([row[0] for row in rows], pa.string())
    texts = pa.array([row[1] for row in rows], pa.binary())
    if not rows:
        return
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "a.parquet")
    batch = read_all(tmp_path / "a.parquet", rows_per_shard=rows_per_shard)  # checks rows_in == kept + refused
    numbers = sorted(batch.kept["row_no"].to_pylist() + batch.refused["row_no"].to_pylist())
    assert numbers == list(range(len(rows)))
    kept_ids = batch.kept["id"].to_pylist()
    assert len(set(kept_ids)) == len(kept_ids)
    assert all(kept_ids)
    assert all(batch.kept["text"].to_pylist())
    for row in batch.refused.to_pylist():
        assert len(row["detail"] or "") <= 200
        raw = rows[row["row_no"]][1]
        assert row["text_sha256"] == (None if raw is None else sha(raw))


def test_refused_rows_never_hold_text(tmp_path, read_all):
    secret = "canary-4711"
    path = tmp_path / "a.csv"
    path.write_bytes(
        f'id,text\n1,{secret},{secret}\n2,"{secret}\x00\r\n3,{secret}\xff\n'.encode("latin-1")
        + f"4,<br>\n,{secret}".encode()
    )
    refused = read_all(path).refused
    assert refused.num_rows >= 4
    assert secret not in str(refused.to_pylist())


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_of_faults_only_keeps_nothing(rows):
    from bertray.reviews.rows import RowFault
    from bertray.schema import Reason

    faults = tuple(RowFault(row, Reason.FILE_CORRUPT, "damaged") for row in range(rows))
    kept, refused = screen(RawRows(np.empty(0, np.int64), {}, faults), Shard(file(1), 0, 0, 1), ReadSpec())
    assert kept.num_rows == 0
    assert refused["reason"].to_pylist() == ["file_corrupt"] * rows
