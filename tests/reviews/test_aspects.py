"""Reviews read for several aspects: one row for each, whatever the format, the shards and the damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from bertray.config import Columns, TextFormat
from bertray.errors import ConfigError
from bertray.execution.executor import THIS_PROCESS
from bertray.reviews.fetch import fetch_texts, shard_rows
from bertray.reviews.kept_scans import scans_from_bytes, scans_to_bytes
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import check_columns, plan_shards, read_shard
from bertray.reviews.rows import Aspects, Expansion, Period, ReadSpec
from bertray.schema import ID, INPUT_ROW, LABEL, REASON, ROW_NO, TEXT_PAIR
from tests.reviews.conftest import ReadAll
from tests.scanning import scanned

FOOD_AND_PRICE = Aspects({"food": "food", "price": "cost"})
LISTED = {"columns": Columns(aspects="topics", label="moods"), "aspects": Aspects({}, "topics")}


def rows_of(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_a_review_is_a_row_for_each_aspect_with_the_label_of_its_column(tmp_path, read_all: ReadAll):
    table = pa.table({"id": ["a", "b"], "text": ["good", "bad"], "food": ["pos", None], "cost": [1, 0]})
    pq.write_table(table, tmp_path / "wide.parquet")
    kept = read_all(tmp_path, aspects=FOOD_AND_PRICE, wants_label=True).kept
    assert rows_of(kept, ROW_NO, ID, TEXT_PAIR, LABEL, INPUT_ROW) == [
        (0, "a#food", "food", "pos", 0),
        (1, "a#price", "price", "1", 0),
        (2, "b#food", "food", None, 1),
        (3, "b#price", "price", "0", 1),
    ]


def lists_as(kind: str, folder: Path) -> None:
    """Five reviews with lists of 2, 0, 1, 3 and no aspects, in a format."""
    ids, texts = list("abcde"), [f"text {name}" for name in "abcde"]
    topics = [["food", "price"], [], ["staff"], ["food", "bar", "food"], None]
    moods = [["pos", "neg"], [], ["neu"], ["neg", "pos", "neg"], None]
    if kind == "parquet":
        pq.write_table(pa.table({"id": ids, "text": texts, "topics": topics, "moods": moods}), folder / "r.parquet")
    elif kind == "jsonl":
        rows = [
            dict(zip(("id", "text", "topics", "moods"), row, strict=True))
            for row in zip(ids, texts, topics, moods, strict=True)
        ]
        (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:  # as pandas writes lists, or one word for a single aspect
        cells = [["" if items is None else str(items) for items in column] for column in (topics, moods)]
        cells[0][2], cells[1][2] = "staff", "neu"
        table = pa.table({"id": ids, "text": texts, "topics": cells[0], "moods": cells[1]})
        pa.csv.write_csv(table, folder / "r.csv")


@pytest.mark.parametrize("rows_per_shard", [1, 3, 4096])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_list_of_aspects_is_read_from_every_format_in_shards_of_any_size(tmp_path, read_all, kind, rows_per_shard):
    lists_as(kind, tmp_path)
    batch = read_all(tmp_path, rows_per_shard, wants_label=True, unique_ids=True, **LISTED)
    assert rows_of(batch.kept, ROW_NO, ID, LABEL, INPUT_ROW) == [
        (0, "a#food", "pos", 0),
        (1, "a#price", "neg", 0),
        (3, "c#staff", "neu", 2),
        (4, "d#food", "neg", 3),
        (5, "d#bar", "pos", 3),
    ]
    assert rows_of(batch.refused, ROW_NO, ID, REASON, INPUT_ROW) == [
        (2, "b", "aspect_none", 1),
        (6, "d#food", "id_duplicate", 3),
        (7, "e", "aspect_none", 4),
    ]


def test_labels_of_another_number_than_aspects_cost_the_review(tmp_path, read_all: ReadAll):
    table = pa.table(
        {
            "text": ["one", "two", "three", "four"],
            "topics": [["food", "bar"], ["food"], ["bar"], ["food", "bar"]],
            "moods": [["pos"], ["neg", "pos"], ["neg"], None],
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    batch = read_all(tmp_path, wants_label=True, **LISTED)
    assert rows_of(batch.refused, ROW_NO, ID, REASON) == [
        (0, "r.parquet:0#food", "row_malformed"),
        (1, "r.parquet:0#bar", "row_malformed"),
        (2, "r.parquet:1#food", "row_malformed"),
    ]
    assert rows_of(batch.kept, ID, LABEL) == [  # a review without any label is one that nobody labelled
        ("r.parquet:2#bar", "neg"),
        ("r.parquet:3#food", None),
        ("r.parquet:3#bar", None),
    ]


def test_cells_that_are_no_lists_of_texts_are_refused_with_their_row(tmp_path, read_all: ReadAll):
    cells = ['["food", {"a": 1}]', "[food", " ", '["  "]', "[1, 2.0]"]
    pq.write_table(pa.table({"text": ["t"] * 5, "topics": cells}), tmp_path / "r.parquet")
    batch = read_all(tmp_path, **LISTED)
    assert rows_of(batch.refused, INPUT_ROW, REASON) == [
        (0, "row_malformed"),
        (1, "row_malformed"),
        (2, "aspect_none"),
        (3, "text_empty"),
    ]
    assert batch.kept[TEXT_PAIR].to_pylist() == ["1", "2"]


def test_ids_that_collide_after_the_expansion_are_duplicates(tmp_path, read_all: ReadAll):
    table = pa.table({"id": ["a", "a#b"], "text": ["t", "u"], "topics": [["b#c"], ["c"]]})
    pq.write_table(table, tmp_path / "r.parquet")
    assert rows_of(read_all(tmp_path, **LISTED).refused, ID, REASON) == [("a#b#c", "id_duplicate")]


def test_malformed_rows_count_for_each_aspect_that_all_reviews_have(tmp_path, read_all: ReadAll):
    (tmp_path / "r.csv").write_text("id,text,topics\na,fine,bar\nb,too,many,fields\nc,good,bar\n")
    refused = read_all(tmp_path, aspects=FOOD_AND_PRICE).refused
    assert rows_of(refused, ROW_NO, REASON, INPUT_ROW) == [(2, "row_malformed", 1), (3, "row_malformed", 1)]
    refused = read_all(tmp_path, **LISTED).refused
    assert rows_of(refused, ROW_NO, REASON, INPUT_ROW) == [(1, "row_malformed", 1)]


def test_rows_whose_text_is_damaged_keep_the_number_of_rows_that_the_scan_counted(tmp_path, read_all: ReadAll):
    # A string under `text` is wanted, so that only reading finds the fault; the scan has seen three aspects.
    rows = [{"id": "a", "text": 5, "topics": ["x", "y", "z"]}, {"id": "b", "text": "fine", "topics": ["x"]}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = read_all(tmp_path, **LISTED)
    assert rows_of(batch.refused, ROW_NO, INPUT_ROW) == [(0, 0), (1, 0), (2, 0)]
    assert rows_of(batch.kept, ROW_NO, ID) == [(3, "b#x")]


def many(folder: Path, num_reviews: int = 9000) -> tuple[ReadSpec, list[str]]:
    """A CSV file of reviews with one to three aspects, and the ids of all its rows."""
    counts = np.random.default_rng(0).integers(1, 4, num_reviews).tolist()
    topics = [json.dumps(["food", "bar", "staff"][:count]) for count in counts]
    table = pa.table({"id": list(map(str, range(num_reviews))), "text": ["t"] * num_reviews, "topics": topics})
    pa.csv.write_csv(table, folder / "many.csv")
    ids = [f"{number}#{name}" for number, count in enumerate(counts) for name in ["food", "bar", "staff"][:count]]
    return ReadSpec(columns=Columns(aspects="topics"), aspects=Aspects({}, "topics")), ids


def test_shards_of_a_text_file_start_at_the_review_that_holds_their_first_row(tmp_path):
    spec, ids = many(tmp_path)
    [entry] = list_inputs([str(tmp_path)], spec.reader)
    file = scanned(entry, spec).file
    assert file.num_rows == len(ids)
    shards = plan_shards([file], 5000)
    assert [shard.start_row for shard in shards] == [0, 0, 4096, 4096]
    found = [name for shard in shards for name in read_shard(shard, spec).kept[ID].to_pylist()]
    assert found == ids


def test_some_rows_are_read_again_by_their_number(tmp_path):
    spec, ids = many(tmp_path)
    [entry] = list_inputs([str(tmp_path)], spec.reader)
    [shard] = plan_shards([scanned(entry, spec).file], 50_000)
    wanted = np.array([17, 9000, len(ids) - 1])
    assert read_shard(shard, spec, wanted).kept[ID].to_pylist() == [ids[row] for row in wanted]
    texts = fetch_texts(THIS_PROCESS, shard_rows([shard], spec), np.zeros(2, np.int32), np.array([9000, 17]))
    assert texts == [f"t · {ids[row].partition('#')[2]}" for row in (9000, 17)]


def test_a_period_counts_rows_of_aspects(tmp_path, read_all: ReadAll):
    table = pa.table(
        {"text": ["a", "b", "c"], "day": ["2026-01-01", "2026-02-01", None], "food": ["pos"] * 3, "cost": ["neg"] * 3}
    )
    pq.write_table(table, tmp_path / "r.parquet")
    [entry] = list_inputs([str(tmp_path)], TextFormat())
    early = ReadSpec(aspects=FOOD_AND_PRICE, wants_label=True, period=Period("day", "2026-01-15", after=False))
    scan = scanned(entry, early)
    assert (scan.of(early.period).rows, scan.of(early.period).labels) == (4, {"pos": 2, "neg": 2})
    [shard] = plan_shards([scan.file], 100)
    assert rows_of(read_shard(shard, early).kept, ROW_NO, INPUT_ROW) == [(0, 0), (1, 0), (4, 2), (5, 2)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            ReadSpec(aspects=Aspects({"food": "food", "price": "price"}), wants_label=True),
            "expected column 'price' (string, number or boolean), found columns 'text', 'food', 'topics'. Name the "
            "column with the labels of each aspect, aspects={ASPECT: COLUMN, …}.",
        ),
        (
            ReadSpec(columns=Columns(aspects="tags"), aspects=Aspects({}, "tags")),
            "expected column 'tags' (list of strings), found columns 'text', 'food', 'topics'. Set `columns.aspects` "
            "to the column that holds it.",
        ),
        (
            ReadSpec(columns=Columns(aspects="topics"), aspects=Aspects({}, "topics")),
            "expected column 'topics' to be list of strings, found list<element: int64>. Set `columns.aspects` to a "
            "column of that type, or write the file again.",
        ),
        (
            ReadSpec(columns=Columns(aspects="food", label="text"), aspects=Aspects({}, "food"), wants_label=True),
            "",
        ),
    ],
)
def test_columns_of_aspects_are_checked_before_anything_is_read(tmp_path, spec, message):
    pq.write_table(pa.table({"text": ["a"], "food": ["pos"], "topics": [[1]]}), tmp_path / "r.parquet")
    [entry] = list_inputs([str(tmp_path)], spec.reader)
    files = [scanned(entry, spec).file]
    if not message:
        check_columns(files, spec)  # one text stands for a list of one
        return
    with pytest.raises(ConfigError) as caught:
        check_columns(files, spec)
    assert str(caught.value) == f"{tmp_path}/r.parquet: {message}"


def test_kept_scans_know_the_rows_of_each_review(tmp_path):
    spec, _ = many(tmp_path, 40)
    from bertray.reviews.corpus import settings_for

    [entry] = list_inputs([str(tmp_path)], spec.reader)
    scan, settings = scanned(entry, spec), settings_for(spec)
    assert scans_from_bytes(scans_to_bytes([scan], settings), settings) == [scan]


def test_an_expansion_is_cut_to_the_stored_rows_that_hold_some_rows():
    counts = np.array([2, 1, 3, 1], "<u2")
    by_counts = Expansion(10, 14, first=100, counts=counts.tobytes())  # rows 100-101, 102, 103-105, 106
    assert by_counts.end == 107
    assert by_counts.cut(101, 104) == Expansion(10, 13, 100, counts=counts[:3].tobytes())
    assert by_counts.cut(103, 106) == Expansion(12, 13, 103, counts=counts[2:3].tobytes())
    by_width = Expansion(10, 14, first=100, width=3)
    assert by_width.end == 112
    assert by_width.cut(104, 107) == Expansion(11, 13, 103, width=3)
