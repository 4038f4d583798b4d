"""Tables in memory as Parquet files for the time of a call, so that every command reads them as it reads files.

A file is named after its content: the same table in a later process is the same input, so that a run resumes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertray.errors import ConfigError, DataRefused
from bertray.execution.session import has_other_machines

NAME = "table"  # ids of rows without an id column are `table:<row>`
FOLDER = "in-memory"  # above it, for titles: `in-memory/table`


def is_table(value: Any) -> bool:
    """A DataFrame of pandas or Polars, an Arrow table or batch, or a `datasets.Dataset`."""
    return hasattr(value, "__arrow_c_stream__") or isinstance(value, pa.Table | pa.RecordBatch) or _is_dataset(value)


def _is_dataset(value: Any) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(value, datasets.Dataset)


def arrow_of(value: Any, key: str) -> pa.Table:
    """The columns of a table as Arrow; categories and class labels as their names, NaN and None as nulls.

    A named index of pandas is a column, too; one without a name only numbers the rows and is left out.

    Args:
        key: of the config, for messages.

    Raises:
        DataRefused: a column holds values of several types.
        ConfigError: two columns have one name.
    """
    if _is_dataset(value):
        table = _of_dataset(value)
    elif "pandas" in sys.modules and isinstance(value, sys.modules["pandas"].DataFrame):
        table = _of_pandas(value, key)
    elif isinstance(value, pa.RecordBatch):
        table = pa.Table.from_batches([value])
    else:
        table = value if isinstance(value, pa.Table) else pa.table(value)
    twice = [name for name in dict.fromkeys(table.column_names) if table.column_names.count(name) > 1]
    if twice:
        raise ConfigError(f"{key}: the table has several columns {twice[0]!r}.", "Rename them.")
    return table.replace_schema_metadata(None)


def _of_pandas(frame: Any, key: str) -> pa.Table:
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]
    columns = {str(name): frame.index.get_level_values(name) for name in levels}
    columns |= {str(name): frame.iloc[:, at] for at, name in enumerate(frame.columns)}
    if len(columns) < len(levels) + len(frame.columns):
        raise ConfigError(f"{key}: the table has several columns of one name.", "Rename them.")
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataRefused(
                f"{key}: column {name!r} of the table holds values of several types ({error}).",
                f"Convert it, for example by `frame[{name!r}].astype(str)`, or drop it.",
            ) from error
    return pa.table(arrays)


def _of_dataset(dataset: Any) -> pa.Table:
    """Rows of a `datasets.Dataset` in their order; a class label as the name of its class, -1 as null."""
    table: pa.Table = dataset.with_format("arrow")[:]
    for at, (name, feature) in enumerate(dataset.features.items()):
        names = getattr(feature, "names", None)
        if type(feature).__name__ == "ClassLabel" and names:
            known = [number if number is not None and number >= 0 else None for number in table[name].to_pylist()]
            table = table.set_column(at, name, pa.array(names, pa.string()).take(pa.array(known, pa.int64())))
    return table


@contextlib.contextmanager
def as_files(values: Mapping[str, Any], verb: str) -> Iterator[dict[str, Any]]:
    """The same mapping with the path of a file in the place of each table, for as long as the block lasts.

    Raises:
        ConfigError: `score` is given a table; or other machines, which do not see the files, would have to read them.
    """
    with contextlib.ExitStack() as stack:
        yield _replaced(values, "", verb, stack)


def _replaced(value: Any, key: str, verb: str, stack: contextlib.ExitStack) -> Any:
    if is_table(value):
        if verb == "score":
            raise ConfigError(
                f"{key}: expected paths, found a table ({type(value).__name__}).",
                "Write it to Parquet, whose path the ledger remembers, or label it by `Classifier`.",
            )
        _refuse_other_machines(key)
        return stack.enter_context(_file_of(arrow_of(value, key)))
    if isinstance(value, Mapping):
        return {name: _replaced(inner, f"{key}.{name}".lstrip("."), verb, stack) for name, inner in value.items()}
    return value


def _refuse_other_machines(key: str) -> None:
    if has_other_machines():
        raise ConfigError(
            f"{key}: a table in memory is written to a file of this machine, which the others of the cluster do not "
            "see.",
            "Write it to storage that every machine sees, and give the path.",
        )


@contextlib.contextmanager
def _file_of(table: pa.Table) -> Iterator[str]:
    """Path of a Parquet file with the table; it goes when no process uses it any more."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content = sink.getbuffer()
    folder = _root() / hashlib.sha256(content).hexdigest()[:16]
    with _shared(folder) as lock:
        path = folder / FOLDER / NAME
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            descriptor, aside = tempfile.mkstemp(dir=path.parent)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(content)
            Path(aside).rename(path)
        del content, sink
        try:
            yield str(path)
        finally:
            with contextlib.suppress(BlockingIOError):  # another process reads the same table
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _root() -> Path:
    """Folder of this user alone."""
    root = Path(tempfile.gettempdir()) / f"bertray-tables-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or root.is_symlink():
        raise ConfigError(f"{root}: expected a folder of this user alone, found another's.", "Set TMPDIR to another.")
    return root


@contextlib.contextmanager
def _shared(folder: Path) -> Iterator[int]:
    """A descriptor of a folder that exists, locked against removal by others."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process has removed it meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_still(folder, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
