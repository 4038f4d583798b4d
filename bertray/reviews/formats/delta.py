"""Delta tables: the files that hold the present rows of a table, as its log says (extra `delta`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from bertray.errors import DataRefused, InfrastructureError
from bertray.io.connections import table_options
from bertray.io.pool import in_pool
from bertray.reviews.file_access import is_file, is_remote, stamp, threads_for
from bertray.reviews.rows import FileEntry

_ADDRESS = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:/")  # a path that does not begin at the folder of the table
# Reader features whose use, where there is any, is checked by itself, or that leave rows in their files as they are.
_KNOWN_FEATURES = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "columnMapping"}
# deltalake states `variantType` beside deletion vectors, for tables without such a column, too.
_VARIANT_FEATURES = {"variantType", "variantType-preview", "variantShredding-preview"}
_VARIANT_COLUMN = re.compile(r'"(?:type|elementType|valueType)":\s*"variant"')  # in a schema as JSON
_GAP = re.compile(r'found gap:.*?filename: "(\d+)\.json".*?filename: "(\d+)\.json"', re.DOTALL)


def is_installed() -> bool:
    """Whether the package that reads logs is there; nothing is imported."""
    return find_spec("deltalake") is not None


def live_files(root: str, key: str) -> list[FileEntry]:
    """Files of the newest version of a table, with its partition values and columns.

    Args:
        root: folder of the table, absolute, or an address.
        key: of the config, for messages.

    Raises:
        DataRefused: the log cannot be read or names files that are gone; the table uses a feature by which the rows
            of a file are not those of the table: deletion vectors, renamed columns, files of another table.
        InfrastructureError: the storage does not answer.
    """
    from deltalake import DeltaTable

    with _reading_log(root, key):
        table = DeltaTable(root, storage_options=table_options(root) if is_remote(root) else None)
        _check_features(root, key, table)
        _check_deletion_vectors(root, key, table)
        actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
        fields = table.schema().fields
    columns = tuple(field.name for field in fields)
    in_utc = tuple(field.name for field in fields if getattr(field.type, "type", None) == "timestamp")
    relative = [unquote(action["path"]) for action in actions]
    if elsewhere := list(filter(_ADDRESS.match, relative)):
        raise _refused(root, key, f"files outside of its folder (a shallow clone), such as {elsewhere[0]}")
    paths = [f"{root.rstrip('/')}/{name}" for name in relative]
    stamps = list(in_pool(_stamp_if_there, paths, threads_for(root)))
    if lost := [path for path, found in zip(paths, stamps, strict=True) if found is None]:
        raise DataRefused(
            f"{key}: expected the files that the log of a Delta table names, found {len(lost)} of {len(paths)} gone, "
            f"such as {lost[0]}.",
            "Restore them, or take them from the log: `FSCK REPAIR TABLE` in Spark, `DeltaTable.repair` in deltalake.",
        )
    return [
        FileEntry(
            path,
            name,
            "parquet",
            *found,
            given=_partition(action),
            table=root,
            table_columns=columns,
            utc_columns=in_utc,
        )
        for path, name, found, action in zip(paths, relative, stamps, actions, strict=True)
        if found is not None
    ]


@contextmanager
def _reading_log(root: str, key: str) -> Iterator[None]:
    """Tell a log that is broken from storage that does not answer."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except DeltaError as error:
        gap = _GAP.search(str(error))
        why = f"versions between {int(gap[1])} and {int(gap[2])} are missing" if gap else _one_line(error)
        raise DataRefused(
            f"{key}: expected a Delta table, found a log that cannot be read: {root} ({why}).",
            f"{'Restore their files in _delta_log' if gap else 'Repair the table'}, or write its rows as Parquet.",
        ) from error
    except OSError as error:
        raise InfrastructureError(
            f"{root}: the log of the table cannot be read now ({_one_line(error)}).", "Run the same command again."
        ) from error


def _stamp_if_there(path: str) -> tuple[int, str] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        return stamp(path)
    except InfrastructureError:
        if is_file(path):
            raise
        return None


def _partition(action: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
    """Partition values of a file, as the log writes them; times with their zone, which is UTC."""
    prefix = "partition."
    values = {name.removeprefix(prefix): value for name, value in action.items() if name.startswith(prefix)}
    return tuple((name, None if value is None else _as_text(value)) for name, value in values.items())


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value.isoformat(sep=" ") if isinstance(value, datetime) else str(value)


def _check_features(root: str, key: str, table: Any) -> None:
    """Refuse tables whose files have other columns than the table, and those of a protocol that is not known."""
    unknown = set(table.protocol().reader_features or ()) - _KNOWN_FEATURES
    if unknown & _VARIANT_FEATURES and not _VARIANT_COLUMN.search(table.schema().to_json()):
        unknown -= _VARIANT_FEATURES
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if unknown or mapping != "none":
        what = f"delta.columnMapping.mode={mapping}" if mapping != "none" else ", ".join(sorted(unknown))
        raise _refused(root, key, what)


def _check_deletion_vectors(root: str, key: str, table: Any) -> None:
    """Refuse tables with rows that are deleted by a vector beside their file."""
    from deltalake.exceptions import DeltaError

    try:
        with_vector = next((path for batch in table.deletion_vectors() for path in pa.record_batch(batch)[0]), None)
    except DeltaError as error:
        raise _refused(root, key, f"deletion vectors that cannot be read ({_one_line(error)})") from error
    if with_vector is not None:
        raise _refused(root, key, f"deletion vectors, of {with_vector}")


def _refused(root: str, key: str, feature: str) -> DataRefused:
    return DataRefused(
        f"{key}: expected a Delta table whose files hold its rows as they are, found {feature}: {root}.",
        f"Write the live rows as Parquet, with DuckDB: COPY (FROM delta_scan('{root}')) TO 'rows.parquet', and name "
        "that file.",
    )


def _one_line(error: BaseException) -> str:
    """Message of the library without its colours and arrows."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error)).split())[:200] or type(error).__name__
