"""What others read the output with, without a word about bertray: a folder of Parquet, hive-partitioned by slot."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if TYPE_CHECKING:
    import pandas as pd

from tests.nightly import expected_ids, night_config, run_night, start_night, write_inbox

NIGHTS = {"dt=2026-11-28": {"a.parquet": 40, "b.parquet": 9}, "dt=2026-11-29": {"c.parquet": 20}}


def with_pandas(data: Path) -> list[tuple[str, int, str]]:
    import pandas as pd

    return rows_of(pd.read_parquet(data))


def with_pyarrow(data: Path) -> list[tuple[str, int, str]]:
    import pyarrow.parquet as pq

    return rows_of(pq.read_table(data).to_pandas())


def with_duckdb(data: Path) -> list[tuple[str, int, str]]:
    return [(str(row["dt"]), row["run"], row["id"]) for row in rows_in_duckdb(data)]


def rows_in_duckdb(data: Path) -> list[dict[str, Any]]:
    import duckdb

    rows = duckdb.sql(f"select * exclude scored_at from read_parquet('{data}/**/*.parquet')")
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]


def with_polars(data: Path) -> list[tuple[str, int, str]]:
    import polars as pl

    return rows_of(pl.read_parquet(data, hive_partitioning=True).to_pandas())


def with_ray(data: Path) -> list[tuple[str, int, str]]:
    import ray.data

    return rows_of(ray.data.read_parquet(str(data)).to_pandas())


def rows_of(rows: pd.DataFrame) -> list[tuple[str, int, str]]:
    """(day, run, id) of what a reader found."""
    days = [str(day)[:10] for day in rows["dt"]]  # a date, a timestamp at midnight or a text
    return list(zip(days, map(int, rows["run"]), rows["id"], strict=True))


READERS = [
    with_pandas,
    with_pyarrow,
    with_duckdb,
    with_polars,
    pytest.param(with_ray, marks=[pytest.mark.ray, pytest.mark.soak]),
]


def expected_rows(day: str, run: int, files: dict[str, int]) -> Counter[tuple[str, int, str]]:
    return Counter((day.removeprefix("dt="), run, i) for i in expected_ids(files)[0])


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
def test_every_reader_sees_committed_nights_and_nothing_of_one_that_died(read, tiny_encoder, tmp_path, request):
    if read is with_ray:
        request.getfixturevalue("ray_cluster")
    expected: Counter[tuple[str, int, str]] = Counter()
    for slot, files in NIGHTS.items():
        write_inbox(tmp_path / "in", files)
        assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), slot=slot)) == 0
        expected += expected_rows(slot, 1, files)
        # The next night dies while its rows are about to be shown.
        late = {f"late-{slot}.parquet": 40}
        write_inbox(tmp_path / "in", late)
        day = slot.removeprefix("dt=")
        died = start_night(
            night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out")), "publish.half:5:kill", day=day
        )
        died.join(60)
        assert died.exitcode == -9
        assert Counter(read(tmp_path / "out" / "data")) == expected
        assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))) == 0
        expected += expected_rows(slot, 2, late)
        assert Counter(read(tmp_path / "out" / "data")) == expected


# --- by day ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def days(tiny_encoder, tmp_path):
    """`data/` of an output with three runs of a day, one of the day before it, and the ids of the day."""
    day = {"c.parquet": 20, "d.parquet": 5, "e.parquet": 9}
    write_inbox(tmp_path / "in", {"a.parquet": 12})
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))
    assert run_night(config, day="2026-11-28") == 0
    for name, rows in day.items():
        write_inbox(tmp_path / "in", {name: rows})
        assert run_night(config, day="2026-11-29") == 0
    return tmp_path / "out" / "data", expected_ids(day)[0]


def test_duckdb_filters_a_day_by_its_date(days):
    import duckdb

    data, expected = days
    rows = duckdb.sql(f"select * from read_parquet('{data}/*/*/*.parquet', hive_partitioning = true)")
    types = dict(zip(rows.columns, map(str, rows.types), strict=True))
    assert (types["dt"], types["run"]) == ("DATE", "BIGINT")
    found = rows.filter("dt = '2026-11-29'")
    assert Counter(i for (i,) in found.select("id").fetchall()) == expected
    assert sorted(found.select("run").distinct().fetchall()) == [(1,), (2,), (3,)]
    between = rows.filter("dt between date '2026-11-29' and date '2026-12-01'")
    assert between.count("*").fetchall() == [(expected.total(),)]


def test_polars_filters_a_day_by_its_date(days):
    import polars as pl

    data, expected = days
    rows = pl.scan_parquet(data, hive_partitioning=True)
    assert (rows.collect_schema()["dt"], rows.collect_schema()["run"]) == (pl.Date, pl.Int64)
    found = rows.filter(pl.col("dt") == date(2026, 11, 29)).collect()
    assert Counter(found["id"]) == expected
    assert sorted(found["run"].unique()) == [1, 2, 3]


def test_pandas_and_pyarrow_filter_a_day(days):
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds

    data, expected = days
    found = pd.read_parquet(data, filters=[("dt", "=", "2026-11-29")])
    assert Counter(found["id"]) == expected
    assert sorted(found["run"].astype(int).unique()) == [1, 2, 3]
    assert (
        Counter(pd.read_parquet(data, filters=[("dt", "=", "2026-11-29"), ("run", "=", 2)])["id"])
        == (expected_ids({"d.parquet": 5})[0])
    )
    keys = pa.schema([("dt", pa.date32()), ("run", pa.int32())])
    dated = ds.dataset(data, partitioning=ds.partitioning(keys, flavor="hive"))
    assert Counter(dated.to_table(filter=ds.field("dt") == date(2026, 11, 29))["id"].to_pylist()) == expected


@pytest.mark.ray
@pytest.mark.slow
def test_ray_filters_a_day(days, ray_cluster):
    import ray.data

    data, expected = days
    rows = ray.data.read_parquet(str(data)).to_pandas()
    day = rows[rows["dt"].astype(str) == "2026-11-29"]
    assert Counter(day["id"]) == expected
    assert sorted(day["run"].astype(int).unique()) == [1, 2, 3]


@pytest.mark.parametrize("slot", ["region=eu", "batch-7", "year=2026"])
def test_slots_of_other_names_have_runs_too(slot, tiny_encoder, tmp_path):
    import polars as pl

    write_inbox(tmp_path / "in", {"a.parquet": 9})
    assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), slot=slot)) == 0
    data, (key, _, value) = tmp_path / "out" / "data", slot.partition("=")
    for rows in (rows_in_duckdb(data), pl.read_parquet(data, hive_partitioning=True).to_dicts()):
        assert Counter(row["id"] for row in rows) == expected_ids({"a.parquet": 9})[0]
        assert {row["run"] for row in rows} == {1}
        assert not value or {str(row[key]) for row in rows} == {value}


def test_kept_columns_of_the_names_of_folders_are_kept_under_another(tiny_encoder, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    columns = {"id": ["1"], "text": ["good"], "run": ["a"], "DT": ["b"], "Score": ["c"]}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    keep = ["run", "DT", "Score"]
    assert (
        run_night(night_config(tiny_encoder, folder, str(tmp_path / "out"), keep_columns=keep), day="2026-11-29") == 0
    )
    data = tmp_path / "out" / "data"
    (row,) = rows_in_duckdb(data)
    assert (row["input_run"], row["input_DT"], row["input_Score"]) == ("a", "b", "c")
    assert (row["run"], str(row["dt"])[:10]) == (1, "2026-11-29")
    assert len({name.casefold() for name in row}) == len(row)


@pytest.mark.parametrize("slot", ["run=1", "RUN=x", "label=pos", "Prob_neg=1", "run_id=1", "embedding=e"])
def test_a_slot_named_like_a_column_is_refused(slot, tiny_encoder, tmp_path, capsys):
    write_inbox(tmp_path / "in", {"a.parquet": 9})
    assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), slot=slot)) == 2
    assert "readers would see two columns" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
