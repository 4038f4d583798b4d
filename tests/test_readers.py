"""What others read the output with, without a word about bertray: a folder of Parquet, hive-partitioned by slot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.nightly import expected_ids, night_config, run_night, start_night, write_inbox

NIGHTS = {"dt=2026-11-19": {"a.parquet": 40, "b.parquet": 9}, "dt=2026-11-20": {"c.parquet": 20}}


def with_pandas(data: Path) -> list[tuple[str, str]]:
    import pandas as pd

    rows = pd.read_parquet(data)
    return list(zip(rows["dt"].astype(str), rows["id"], strict=True))


def with_duckdb(data: Path) -> list[tuple[str, str]]:
    import duckdb

    return duckdb.sql(f"select cast(dt as varchar), id from read_parquet('{data}/*/*.parquet')").fetchall()


def with_polars(data: Path) -> list[tuple[str, str]]:
    import polars as pl

    rows = pl.read_parquet(data / "**" / "*.parquet", hive_partitioning=True)
    return list(zip(rows["dt"].cast(pl.String), rows["id"], strict=True))


def with_ray(data: Path) -> list[tuple[str, str]]:
    import ray.data

    return [(row["dt"], row["id"]) for row in ray.data.read_parquet(str(data)).take_all()]


READERS = [with_pandas, with_duckdb, with_polars, pytest.param(with_ray, marks=[pytest.mark.ray, pytest.mark.slow])]


@pytest.mark.parametrize("read", READERS)
def test_every_reader_sees_committed_nights_and_nothing_of_one_that_died(read, tiny_encoder, tmp_path, request):
    if read is with_ray:
        request.getfixturevalue("ray_cluster")
    expected: Counter[tuple[str, str]] = Counter()
    for slot, files in NIGHTS.items():
        write_inbox(tmp_path / "in", files)
        assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), slot=slot)) == 0
        expected.update((slot.removeprefix("dt="), i) for i in expected_ids(files)[0])
        # The next night dies while its rows are about to be shown.
        write_inbox(tmp_path / "in", {f"late-{slot}.parquet": 40})
        died = start_night(
            night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), slot=f"{slot}.2"), "publish.half:5:kill"
        )
        died.join(60)
        assert died.exitcode == -9
        assert Counter(read(tmp_path / "out" / "data")) == expected
        assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), slot=f"{slot}.2")) == 0
        expected.update((f"{slot.removeprefix('dt=')}.2", i) for i in expected_ids({f"late-{slot}.parquet": 40})[0])
        assert Counter(read(tmp_path / "out" / "data")) == expected
