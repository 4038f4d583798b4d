"""What the reader's tests share: one call from a path to kept and refused rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bertray.config import TextFormat
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import check_columns, plan_shards, read_shard
from bertray.reviews.rows import ReadSpec, ReviewBatch
from tests.scanning import scanned

ReadAll = Callable[..., ReviewBatch]


@pytest.fixture
def read_all() -> ReadAll:
    """Read everything below a path in shards of some rows, through the same steps as a run; counts are checked."""

    def read(
        path: Path | str, rows_per_shard: int = 4096, reader: TextFormat | None = None, **spec: Any
    ) -> ReviewBatch:
        options = ReadSpec(reader=reader or TextFormat(), **spec)
        scans = [scanned(entry, options) for entry in list_inputs([str(path)], options.reader)]
        files = [scan.file for scan in scans]
        check_columns(files, options)
        duplicates = {number: scan.repeated_ids for number, scan in enumerate(scans)}
        batches = [read_shard(shard, options) for shard in plan_shards(files, rows_per_shard, duplicates)]
        for batch in batches:
            assert batch.rows_in == batch.kept.num_rows + batch.refused.num_rows
        assert sum(batch.rows_in for batch in batches) == sum(file.num_rows for file in files)
        return ReviewBatch(
            pa.concat_tables([batch.kept for batch in batches]),
            pa.concat_tables([batch.refused for batch in batches]),
            sum(batch.rows_in for batch in batches),
        )

    return read
