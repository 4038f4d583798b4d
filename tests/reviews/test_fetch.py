"""Rows read again by number: the right ones, in order, and no other row cleaned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import Columns, TextFormat
from bertray.execution.executor import THIS_PROCESS
from bertray.reviews.clean import clean_texts
from bertray.reviews.fetch import RowUnit, fetch_rows, fetch_texts, shard_rows
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import InputFile, ReadSpec, Shard
from tests.scanning import inspect

NUM_ROWS = 40


def rows(shards: list[Shard], spec: ReadSpec | None = None) -> list[RowUnit]:
    return shard_rows(shards, spec or ReadSpec())


@pytest.fixture(params=["parquet", "csv", "jsonl"])
def shards(request, tmp_path) -> list[Shard]:
    """Two files of 40 rows, in shards of 16; every tenth row has no text."""
    for name in ("a", "b"):
        rows = [
            {"id": f"{name}{n}", "text": "" if n % 10 == 9 else f"text {name} {n}", "aspect": f"aspect {n}"}
            for n in range(NUM_ROWS)
        ]
        _write(tmp_path / f"{name}.{request.param}", rows)
    files = [inspect(entry, TextFormat()) for entry in list_inputs([str(tmp_path)], TextFormat())]
    return plan_shards([file for file in files if isinstance(file, InputFile)], 16)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("id,text,aspect\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def cleaned(monkeypatch) -> list[str]:
    """Texts that were cleaned, as they come."""
    met: list[str] = []

    def counting(texts, cleaning):
        met.extend(texts.to_pylist())
        return clean_texts(texts, cleaning)

    monkeypatch.setattr("bertray.reviews.screening.clean_texts", counting)
    return met


def test_texts_come_in_the_order_asked_for_and_no_other_row_is_cleaned(shards, cleaned):
    file_no_N, row_no_N = np.array([1, 0, 0, 1]), np.array([38, 17, 0, 2])
    texts = fetch_texts(THIS_PROCESS, rows(shards), file_no_N, row_no_N)
    assert texts == ["text b 38", "text a 17", "text a 0", "text b 2"]
    assert sorted(cleaned) == sorted(texts)


def test_a_row_that_is_asked_for_twice_is_given_twice(shards):
    assert fetch_texts(THIS_PROCESS, rows(shards), np.array([0, 0]), np.array([5, 5])) == ["text a 5"] * 2


def test_a_text_and_its_second_text_come_as_one(shards):
    spec = ReadSpec(Columns(text_pair="aspect"))
    assert fetch_texts(THIS_PROCESS, rows(shards, spec), np.array([1]), np.array([3])) == ["text b 3 · aspect 3"]


def test_a_function_of_rows_gets_those_of_one_shard_with_their_positions(shards):
    file_no_N, row_no_N = np.array([0, 1, 0]), np.array([20, 1, 18])
    found = fetch_rows(THIS_PROCESS, rows(shards), file_no_N, row_no_N, lambda kept: kept["id"].to_pylist())
    assert sorted((positions.tolist(), ids) for positions, ids in found) == [([1], ["b1"]), ([2, 0], ["a18", "a20"])]


def test_nothing_is_read_for_no_rows(shards, cleaned):
    assert fetch_texts(THIS_PROCESS, rows(shards), np.empty(0, np.int64), np.empty(0, np.int64)) == []
    assert cleaned == []


def test_some_rows_of_a_shard_are_kept_or_refused_as_they_are_among_all(shards):
    batch = read_shard(shards[0], ReadSpec(), np.array([2, 9, 11, 39]))
    assert batch.rows_in == 3  # row 39 is of another shard
    assert batch.kept["id"].to_pylist() == ["a2", "a11"]
    assert batch.refused["row_no"].to_pylist() == [9]
    assert read_shard(shards[0], ReadSpec(), np.array([39])).rows_in == 0
