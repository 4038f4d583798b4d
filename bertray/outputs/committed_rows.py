"""Columns of committed rows: of one run, read part by part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from bertray.io.pool import in_pool
from bertray.io.store import Store
from bertray.outputs.control_files import LedgerRun
from bertray.outputs.publish import part_names


def part_keys(run: LedgerRun) -> list[str]:
    """Keys of a published run's parts."""
    return [f"data/{run.folder}/{name}" for name in part_names(run, "data")]


def read_part(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a part that it has; None: all of them."""
    content = pa.BufferReader(store.get(key))
    file = pq.ParquetFile(content, page_checksum_verification=True)
    held = file.schema_arrow.names
    return file.read(held if columns is None else [name for name in columns if name in held])


def schema_of_part(store: Store, key: str) -> pa.Schema:
    """Columns of a part."""
    return pq.read_schema(pa.BufferReader(store.get(key)))


def read_rows(store: Store, run: LedgerRun, columns: Sequence[str], *, max_parts: int | None = None) -> pa.Table:
    """Columns of the rows of a published run, in the order of its parts.

    Args:
        max_parts: read only so many, evenly spread.
    """
    keys = part_keys(run)
    if max_parts is not None and len(keys) > max_parts:
        keys = keys[:: -(-len(keys) // max_parts)]
    tables = list(in_pool(partial(read_part, store, columns=columns), keys, store.num_threads))
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
