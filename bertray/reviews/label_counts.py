"""Counts before any cluster work, from a column or two: label values, and rows without a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bertray.reviews.formats import acl_imdb
from bertray.reviews.labels import canonical, value_counts
from bertray.reviews.reader import plan_shards, read_rows
from bertray.reviews.rows import InputFile, Period, ReadSpec


def count_labels(files: Sequence[InputFile], spec: ReadSpec) -> dict[str, int]:
    """Rows by canonical label value over all files, without nulls."""
    counts: Counter[str] = Counter()
    column = spec.columns.label
    columns = [column, *([spec.period.column] if spec.period else [])]
    for file in files:
        if file.format == acl_imdb.FORMAT:  # the folder's name is the label of every file in it
            counts[file.path.rstrip("/").rpartition("/")[2]] += file.num_rows
            continue
        for shard in plan_shards([file], max(1, file.num_rows)):
            for rows in read_rows(shard, spec, columns, []):
                if column in rows.columns:
                    counts.update(value_counts(canonical(rows.of(spec.period).columns[column])))
    return dict(counts)


def count_without_time(files: Sequence[InputFile], spec: ReadSpec, period: Period) -> int:
    """Rows that a period puts before its moment because they have no time."""
    shards = [shard for file in files for shard in plan_shards([file], max(1, file.num_rows))]
    return sum(
        period.times(rows.columns[period.column]).null_count
        for shard in shards
        for rows in read_rows(shard, spec, [period.column], [])
    )
