"""Columns that no file holds: keys of folder names; and texts of several columns that are read as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from bertray.config import Columns, TextFormat, build_config, to_yaml
from bertray.errors import ConfigError
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import check_columns, plan_shards, read_shard
from bertray.reviews.rows import Period, RawRows, ReadSpec
from bertray.reviews.scan import RowCounts
from tests.config_files import SCORE, TRAIN, load_config
from tests.scanning import scanned

AUTO = TextFormat()


def write(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(rows) + "\n")
    elif path.suffix == ".jsonl":
        import json

        rows = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(rows) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    return path


def read(paths: list[str], spec: ReadSpec) -> list[dict[str, object]]:
    """Kept rows of all files, with the id, the text, the label and the kept columns."""
    files = [scanned(entry, spec).file for entry in list_inputs(paths, AUTO)]
    check_columns(files, spec)
    rows = [row for shard in plan_shards(files, 100) for row in read_shard(shard, spec).kept.to_pylist()]
    names = {"id": "id", "text": "text", "label": "label"} | {f"keep:{name}": name for name in spec.keep_columns}
    return [{to: row[name] for name, to in names.items() if name in row} for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_keys_of_folder_names_are_columns_of_every_format(tmp_path, kind):
    write(tmp_path / "in/day=2026-11-20/country=de" / f"a.{kind}", id=["1", "2"], text=["one", "two"])
    write(tmp_path / "in/day=2026-11-21/country=__HIVE_DEFAULT_PARTITION__" / f"a.{kind}", id=["3"], text=["three"])
    write(tmp_path / "in/day=2026-11-22/country=New%20Zealand" / f"a.{kind}", id=["4"], text=["four"])
    found = read([str(tmp_path / "in")], ReadSpec(keep_columns=("day", "country")))
    assert found == [
        {"id": "1", "text": "one", "day": "2026-11-20", "country": "de"},
        {"id": "2", "text": "two", "day": "2026-11-20", "country": "de"},
        {"id": "3", "text": "three", "day": "2026-11-21", "country": None},
        {"id": "4", "text": "four", "day": "2026-11-22", "country": "New Zealand"},
    ]


def test_keys_in_the_path_that_was_named_count_and_those_above_it_do_not(tmp_path, monkeypatch):
    write(tmp_path / "top=0/in/day=1/part=7/a.parquet", id=["1"], text=["one"])
    for named in ("in/day=1", "in/day=1/part=7/a.parquet", "in/day=*/**/*.parquet", "in/*/part=7"):
        monkeypatch.chdir(tmp_path / "top=0")
        [entry] = list_inputs([named], AUTO)
        assert dict(entry.given) == {"day": "1", "part": "7"}, named


def test_hidden_folders_are_those_of_spark_and_keys_may_have_any_name(tmp_path):
    for folder in ("_grp=1", "Sp%20ace=2", "day-1=3", "지역=4", "_temporary", ".tmp=5", "_grp=1/_tmp"):
        write(tmp_path / "in" / folder / "a.parquet", id=["1"], text=["one"])
    found = [entry.given for entry in list_inputs([str(tmp_path / "in")], AUTO)]
    assert sorted(found) == [(("Sp ace", "2"),), (("_grp", "1"),), (("day-1", "3"),), (("지역", "4"),)]


def test_a_key_takes_the_place_of_a_column_of_its_name(tmp_path):
    write(tmp_path / "in/day=1/a.parquet", id=["1"], text=["one"], day=["other"])
    assert read([str(tmp_path / "in")], ReadSpec(keep_columns=("day",))) == [{"id": "1", "text": "one", "day": "1"}]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_key_can_be_the_label_and_the_time(tmp_path, kind):
    write(tmp_path / "in/stars=1/day=2026-11-01" / f"a.{kind}", id=["1", "2"], text=["one", "two"])
    write(tmp_path / "in/stars=5/day=2026-11-09" / f"a.{kind}", id=["3"], text=["three"])
    period = Period("day", "2026-11-05", after=False)
    spec = ReadSpec(columns=Columns(label="stars"), wants_label=True, period=period)
    scans = [scanned(entry, spec) for entry in list_inputs([str(tmp_path / "in")], AUTO)]
    assert [scan.counts for scan in scans] == [RowCounts(2, {"1": 2}), RowCounts(0)]
    assert [scan.later for scan in scans] == [RowCounts(0), RowCounts(1, {"5": 1})]
    labelled = ReadSpec(columns=Columns(label="stars"), wants_label=True)
    assert [row["label"] for row in read([str(tmp_path / "in")], labelled)] == ["1", "1", "5"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_texts_of_several_columns_are_read_as_one(tmp_path, kind):
    write(tmp_path / f"a.{kind}", id=["1", "2"], title=["Great", "So so"], body=["Dry after rain.", "The zip broke."])
    spec = ReadSpec(columns=Columns(text=("title", "body")))
    assert [row["text"] for row in read([str(tmp_path / f"a.{kind}")], spec)] == [
        "Great Dry after rain.",
        "So so The zip broke.",
    ]


def test_a_row_without_any_of_its_texts_is_refused_and_one_text_is_enough(tmp_path):
    path = write(tmp_path / "a.parquet", id=["1", "2", "3"], title=["Great", None, None], body=[None, "Dry.", None])
    spec = ReadSpec(columns=Columns(text=("title", "body")))
    [entry] = list_inputs([str(path)], AUTO)
    [shard] = plan_shards([scanned(entry, spec).file], 100)
    batch = read_shard(shard, spec)
    assert batch.kept["text"].to_pylist() == ["Great", "Dry."]
    assert batch.refused["reason"].to_pylist() == ["text_null"]
    assert batch.refused["row_no"].to_pylist() == [2]


def test_texts_with_bytes_that_are_no_unicode_are_joined_as_bytes():
    columns = {
        "a": pa.array([b"x", b"\xff", None], pa.binary()),
        "b": pa.array(["1", "2", "3"]).dictionary_encode(),
        "c": pa.nulls(3),
    }
    joined = RawRows(np.arange(3), columns).joined(("a", "b", "c"), "all").columns["all"]
    assert joined.to_pylist() == [b"x\n1\n", b"\xff\n2\n", b"\n3\n"]


def test_every_text_column_must_be_there(tmp_path):
    path = write(tmp_path / "a.parquet", id=["1"], title=["Great"])
    [entry] = list_inputs([str(path)], AUTO)
    spec = ReadSpec(columns=Columns(text=("title", "body")))
    with pytest.raises(ConfigError, match=r"expected column 'body' \(string\), found columns 'id', 'title'"):
        check_columns([scanned(entry, spec).file], spec)


def test_several_columns_are_typed_as_a_list_and_one_as_it_is():
    assert load_config("train", [], [*TRAIN, "columns.text=[title, body]"]).columns.texts == ("title", "body")
    assert load_config("train", [], [*TRAIN, "columns.text=body"]).columns.texts == ("body",)
    assert load_config("train", [], [*TRAIN, "columns.text=1"]).columns.texts == ("1",)
    with pytest.raises(ConfigError, match=r"columns\.text"):
        load_config("train", [], [*TRAIN, "columns.text=[title]"])
    for verb, data in (("audit", {"data": {"train": ["x"]}}), ("topics", {"input": ["x"]})):
        with pytest.raises(ConfigError, match=f"columns.text: {verb} reads one column"):
            build_config(verb, {"columns": {"text": ["a", "b"]}, "output": "o", **data})


def test_the_columns_of_a_bundle_are_read_where_the_config_names_none():
    assert Columns().trained_for(("title", "body")).texts == ("title", "body")
    assert Columns(text="review").trained_for(("title", "body")).texts == ("review",)
    for stated in (Columns(text="text"), load_config("score", [], [*SCORE, "columns.text=text"]).columns):
        assert stated.trained_for(("title", "body")).texts == ("text",)
    assert load_config("score", [], [*SCORE, "columns.id=key"]).columns.trained_for(("a", "b")).texts == ("a", "b")
    assert Columns().trained_for(()).texts == ("text",)


@pytest.mark.parametrize("words", [[], ["columns.id=key"], ["columns.text=text"], ["columns.text=[title, body]"]])
def test_a_config_that_is_written_out_states_no_more_than_the_one_it_is_of(words):
    columns = load_config("score", [], [*SCORE, *words]).columns
    again: Any = build_config("score", yaml.safe_load(to_yaml(load_config("score", [], [*SCORE, *words]))))
    assert again.columns.trained_for(("a", "b")) == columns.trained_for(("a", "b"))


def test_a_written_config_of_train_names_the_column_that_its_model_reads():
    assert yaml.safe_load(to_yaml(load_config("train", [], ["data.train=x", "output=y"])))["columns"]["text"] == "text"
    assert "text" not in yaml.safe_load(to_yaml(load_config("score", [], SCORE)))["columns"]
