"""Tables in memory are read as files are: every column type, one file a content, gone after the call."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.api import tables
from bertray.api.tables import arrow_of, as_files, is_table
from bertray.errors import ConfigError, DataRefused

DAY = datetime.date(2026, 1, 2)
TEXTS, NAMES = ["good", "bad", None], ["pos", "neg", None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables are written, of one test alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def hub_table(**features: object):
    import datasets

    return datasets.Dataset.from_dict(
        {"text": TEXTS, "label": [1, 0, -1]},
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        ),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.table({"text": TEXTS, "label": NAMES}),
        lambda: pa.RecordBatch.from_pydict({"text": TEXTS, "label": NAMES}),
        lambda: pa.table({"text": pa.chunked_array([TEXTS[:1], TEXTS[1:]]), "label": pa.chunked_array([NAMES])}),
        lambda: pa.table({"text": pa.array(TEXTS, pa.large_string()), "label": pa.array(NAMES).dictionary_encode()}),
        lambda: pd.DataFrame({"text": TEXTS, "label": NAMES}),
        lambda: pd.DataFrame({"text": pd.Series(TEXTS, dtype="object"), "label": pd.Categorical(NAMES)}),
        lambda: pd.DataFrame({"text": ["good", "bad", float("nan")], "label": NAMES}, index=[7, 7, 9]),
        lambda: pd.DataFrame({"text": TEXTS}, index=pd.Index(NAMES, name="label")),
        lambda: pl.DataFrame({"text": TEXTS, "label": NAMES}),
        hub_table,
    ],
)
def test_the_same_rows_are_the_same_reviews_in_every_kind_of_table(make):
    value = make()
    assert is_table(value)
    with as_files({"data": {"train": value}}, "train") as files:
        found = pq.read_table(files["data"]["train"])
    assert sorted(found.column_names) == ["label", "text"]
    assert found["text"].cast(pa.string()).to_pylist() == TEXTS
    assert found["label"].cast(pa.string()).to_pylist() == NAMES


def test_numbers_and_times_of_pandas_keep_their_types():
    frame = pd.DataFrame(
        {"stars": [1, 5], "score": [0.5, np.nan], "day": [datetime.date(2026, 1, 2), None], 3: [True, False]}
    )
    table = arrow_of(frame, "data")
    assert table.schema.field("stars").type == pa.int64()
    assert table["score"].to_pylist() == [0.5, None]
    assert table["day"].to_pylist() == [DAY, None]
    assert table["3"].to_pylist() == [True, False]


def test_a_column_of_several_types_is_named():
    with pytest.raises(DataRefused, match=r"data\.train: column 'label' of the table holds values of several types"):
        arrow_of(pd.DataFrame({"text": ["a", "b"], "label": ["neg", 1]}), "data.train")


def test_a_column_of_several_types_that_no_key_names_is_left_out():
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["neg", "pos"], "note": ["x", 1], "mine": ["y", 2]})
    with as_files({"data": {"train": frame}}, "train") as files:
        assert pq.read_table(files["data"]["train"]).column_names == ["text", "label"]
    for keys, is_whole in (({"columns": {"label": "mine"}}, True), ({"report": {"by": ["mine"]}}, True), ({}, False)):
        with (
            pytest.raises(DataRefused, match=r"data\.train: column '(mine|note)' of the table holds values of several"),
            as_files({"data": {"train": frame}, **keys}, "train", is_whole=is_whole),
        ):
            pass


def test_an_error_names_the_key_of_a_table_and_not_its_file():
    with (
        pytest.raises(DataRefused) as refused,
        as_files({"data": {"train": pa.table({"text": ["a"]})}}, "train") as files,
    ):
        raise DataRefused(f"{files['data']['train']}: found nothing.", f"Look at {files['data']['train']}.")
    assert (refused.value.message, refused.value.remedy) == (
        "table of data.train: found nothing.",
        "Look at table of data.train.",
    )


@pytest.mark.parametrize("columns", [{"text": ["a"], "label": ["b"]}, {"text": np.array(["a"])}])
@pytest.mark.parametrize("key", ["data", "input"])
def test_a_dict_of_columns_is_no_table(columns, key):
    refusal = f"{key}: expected paths or one table, found dict of {', '.join(columns)}."
    with pytest.raises(ConfigError, match=re.escape(refusal)), as_files({key: columns}, ""):
        pass


def test_a_mistyped_split_is_left_to_the_config():
    given = {"data": {"trian": "a.parquet"}}
    with as_files(given, "train") as files:
        assert files == given


def test_two_columns_of_one_name_are_refused():
    for table in (pa.table([[1], [2]], names=["a", "a"]), pd.DataFrame([[1, 2]], columns=["a", "a"])):
        with pytest.raises(ConfigError, match="several columns"):
            arrow_of(table, "data")


def test_rows_picked_from_a_hub_table_stay_in_their_order():
    assert arrow_of(hub_table().select([1, 0]), "data")["label"].to_pylist() == ["neg", "pos"]


def test_one_content_is_one_path_and_nothing_is_left(folder):
    def path_of(*texts: str) -> str:
        with as_files({"input": pa.table({"text": list(texts)})}, "embed") as files:
            assert Path(files["input"]).is_file()
            return str(files["input"])

    assert path_of("a") == path_of("a") != path_of("b")
    assert list(folder.glob("bertray-tables-*/*")) == []


def test_a_table_that_another_process_reads_stays(folder):
    table = pa.table({"text": ["a"]})
    with as_files({"input": table}, "embed") as files:
        other = multiprocessing.get_context("fork").Process(target=_read_once, args=(str(folder),))
        other.start()
        other.join()
        assert other.exitcode == 0
        assert pq.read_table(files["input"]).equals(table)
    assert list(folder.glob("bertray-tables-*/*")) == []


def _read_once(folder: str) -> None:
    import tempfile

    tempfile.tempdir = folder
    with as_files({"input": pa.table({"text": ["a"]})}, "embed"):
        pass


def test_score_takes_paths_alone():
    with (
        pytest.raises(ConfigError, match="input: expected paths, found a table"),
        as_files({"input": pa.table({"text": ["a"]})}, "score"),
    ):
        pass


def test_other_machines_would_not_see_a_table(monkeypatch):
    monkeypatch.setattr(tables, "has_other_machines", lambda: True)
    with (
        pytest.raises(ConfigError, match=r"data\.train: a table in memory is written"),
        as_files({"data": {"train": pa.table({"text": ["a"]})}}, "train"),
    ):
        pass


def test_a_folder_of_somebody_else_is_refused(folder, monkeypatch):
    root = folder / f"bertray-tables-{os.getuid()}"
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    with (
        pytest.raises(ConfigError, match="expected a folder of this user alone"),
        as_files({"input": pa.table({"text": ["a"]})}, "embed"),
    ):
        pass
