"""`data.test_from`: which rows stand on which side of a moment, whatever form their times have."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from bertray.config import TextFormat
from bertray.errors import DataRefused
from bertray.execution.on_demand import in_this_process
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard, read_shard_as
from bertray.reviews.rows import Period, ReadSpec
from bertray.reviews.scan import FileScan, ScanSettings, scan_files

DAYS = [date(2015, 2, 21), date(2015, 2, 22), date(2015, 2, 23), None]
MOMENTS = [datetime(2015, 2, day, 9, 30, tzinfo=UTC) for day in (21, 22, 23)] + [None]
AFTER = [False, True, True, False]  # a row without a time stands before


@pytest.mark.parametrize(
    "times",
    [
        pa.array(["2015-02-21", "2015-02-22", "2015-02-23", None]),
        pa.array(["2015-02-21 23:59:59", "2015-02-22 00:00", "2015-02-22T00:00:01", ""]),
        pa.array(["2015-02-21", " 2015-02-22", "2015-02-23 ", "  "]),
        pa.array(DAYS, pa.date32()),
        pa.array(DAYS, pa.date64()),
        pa.array(MOMENTS, pa.timestamp("us", "UTC")),
        pa.array(MOMENTS, pa.timestamp("s")),
        pa.array(["2015-02-21", "2015-02-22", "2015-02-23", None]).dictionary_encode(),
        pa.chunked_array([["2015-02-21"], ["2015-02-22", "2015-02-23"], pa.array([None], pa.string())]),
    ],
    ids=["dates", "moments", "padded", "date32", "date64", "zone", "timestamp", "dictionary", "chunks"],
)
def test_a_row_stands_on_one_side_of_a_moment(times):
    assert Period("day", "2015-02-22", after=True).mask(times).to_pylist() == AFTER
    assert Period("day", "2015-02-22", after=False).mask(times).to_pylist() == [not after for after in AFTER]


def test_a_moment_may_have_a_time_of_day():
    times = pa.array(["2015-02-22T09:29:59", "2015-02-22 09:30:00", "2015-02-22"])
    assert Period("day", "2015-02-22T09:30", after=True).mask(times).to_pylist() == [False, True, False]


def test_a_time_that_is_no_unicode_is_refused_as_any_other_that_is_none():
    with pytest.raises(DataRefused, match="found 'h\ufffdte'"):
        Period("day", "2015-02-22", after=True).mask(pa.array([b"2015-02-21", b"h\xe9te", None]))


@pytest.mark.parametrize("odd", ["yesterday", "22.02.2015", "2015-2-22"])
def test_what_is_no_time_is_refused(odd):
    with pytest.raises(DataRefused, match=f"'day' to hold times in ISO form.*{odd}"):
        Period("day", "2015-02-22", after=True).mask(pa.array(["2015-02-21", odd]))


def test_two_periods_in_one_pass_are_what_each_is_alone(tmp_path):
    rows = [f"{row},text {row},{'ab'[row % 2]},2026-11-{1 + row % 28:02d},s{row % 3}" for row in range(100)]
    lines = ["id,text,label,day,shop", *rows, "x,no record", "y,,a,2026-11-25,s1", ""]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    before = Period("day", "2026-11-20", after=False)
    entries = list_inputs((str(tmp_path / "a.csv"),), TextFormat(), output=str(tmp_path / "out"))
    [scan] = scan_files(entries, ScanSettings(TextFormat(), labels=True, period=before), in_this_process)
    assert isinstance(scan, FileScan)
    early = ReadSpec(wants_label=True, period=before)
    late = ReadSpec(wants_label=True, period=replace(before, after=True), keep_columns=("shop",))
    sizes = []
    for shard in plan_shards([scan.file], 40):
        found = read_shard_as(shard, [early, late])
        for batch, spec in zip(found, (early, late), strict=True):
            alone = read_shard(shard, spec)
            assert (batch.kept, batch.refused, batch.rows_in) == (alone.kept, alone.refused, alone.rows_in)
        sizes.append([(batch.kept.num_rows, batch.refused.num_rows) for batch in found])
    # Days 1 to 19 of 28, three times and the first 16 of a fourth; no record has no time, so both periods refuse it.
    assert [sum(column) for column in zip(*(early for early, _ in sizes), strict=True)] == [3 * 19 + 16, 1]
    assert [sum(column) for column in zip(*(late for _, late in sizes), strict=True)] == [3 * 9, 2]
