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
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertray.config import Columns, TrainData
from bertray.errors import BertrayError, ConfigError, DataRefused
from bertray.execution.session import has_other_machines
from bertray.io.local_store import is_still

NAME = "table"  # ids of rows without an id column are `table:<row>`
FOLDER = "in-memory"  # above it, for titles: `in-memory/table`


def is_table(value: Any) -> bool:
    """A DataFrame of pandas or Polars, an Arrow table or batch, or a `datasets.Dataset`."""
    return hasattr(value, "__arrow_c_stream__") or isinstance(value, pa.Table | pa.RecordBatch) or _is_dataset(value)


def _is_dataset(value: Any) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(value, datasets.Dataset)


def arrow_of(value: Any, key: str, named: Collection[str] | None = None) -> pa.Table:
    """The columns of a table as Arrow; categories and class labels as their names, NaN and None as nulls.

    A named index of pandas is a column, too; one without a name only numbers the rows and is left out.

    Args:
        key: of the config, for messages.
        named: columns that may be used, by default all; another whose values are of several types is left out.

    Raises:
        DataRefused: a column that may be used holds values of several types.
        ConfigError: two columns have one name; or one column without a table.
    """
    if _is_dataset(value):
        table = _of_dataset(value)
    elif "pandas" in sys.modules and isinstance(value, sys.modules["pandas"].DataFrame):
        table = _of_pandas(value, key, named)
    elif isinstance(value, pa.RecordBatch):
        table = pa.Table.from_batches([value])
    else:
        try:
            table = value if isinstance(value, pa.Table) else pa.table(value)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:  # a Series of pandas or Polars, or an array of Arrow
            raise _no_table(key, value) from error
    twice = [name for name in dict.fromkeys(table.column_names) if table.column_names.count(name) > 1]
    if twice:
        raise ConfigError(f"{key}: the table has several columns {twice[0]!r}.", "Rename them.")
    return table.replace_schema_metadata(None)


def _of_pandas(frame: Any, key: str, named: Collection[str] | None) -> pa.Table:
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
            if named is not None and name not in named:
                continue
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
def as_files(values: Mapping[str, Any], verb: str, *, is_whole: bool = True) -> Iterator[dict[str, Any]]:
    """The same mapping with the path of a file in the place of each table, for as long as the block lasts.

    An error inside the block names the key of a table in place of its file.

    Args:
        is_whole: no other source of keys may name a column.

    Raises:
        ConfigError: `score` is given a table; or other machines, which do not see the files, would have to read them.
    """
    named = {*_words_of(values), *_words_of(Columns().model_dump())} if is_whole else None
    with contextlib.ExitStack() as stack:
        files = _Files(verb, named, stack)
        given = files.replaced(values)
        try:
            yield given
        except BertrayError as error:
            message, remedy = files.with_keys(error.message), files.with_keys(error.remedy)
            if (message, remedy) == (error.message, error.remedy):
                raise
            raise type(error)(message, remedy) from error


def _words_of(value: Any) -> Iterator[str]:
    """Texts of a config at any depth, among them the names of its columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple) and not is_table(value):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _words_of(inner)


class _Files:
    """Files of the tables of one call.

    Args:
        named: columns that may be used; all where it is None.
        stack: removes the files when it is closed.
    """

    def __init__(self, verb: str, named: set[str] | None, stack: contextlib.ExitStack) -> None:
        self._verb, self._named, self._stack = verb, named, stack
        self._keys: dict[str, str] = {}  # by path

    def with_keys(self, text: str) -> str:
        """A message with the key of a table in place of its path."""
        for path, key in self._keys.items():
            text = text.replace(path, f"table of {key}")
        return text

    def replaced(self, value: Any, key: str = "") -> Any:
        """A value of the config with paths in place of tables."""
        if is_table(value):
            return self._file_of(value, key)
        is_data = key.partition(".")[0] in ("data", "input")
        if isinstance(value, Mapping):
            if is_data and _is_of_columns(value):
                raise _no_table(key, value)
            return {name: self.replaced(inner, f"{key}.{name}".lstrip(".")) for name, inner in value.items()}
        if is_data:
            found = [inner for inner in value if not _is_plain(inner)] if isinstance(value, list | tuple) else [value]
            if found and not _is_plain(found[0]):
                raise _no_table(key, found[0])
        return value

    def _file_of(self, value: Any, key: str) -> str:
        if key.partition(".")[0] not in ("data", "input"):
            raise ConfigError(f"{key}: expected no table, found a {type(value).__name__}.", "Give tables as the data.")
        if self._verb == "score":
            raise ConfigError(
                f"{key}: expected paths, found a table ({type(value).__name__}).",
                "Write it to Parquet, whose path the ledger remembers, or label it by `Classifier`.",
            )
        _refuse_other_machines(key)
        path = self._stack.enter_context(_file_of(arrow_of(value, key, self._named)))
        self._keys[path] = key
        return path


def _is_of_columns(value: Mapping[str, Any]) -> bool:
    """Lists or arrays by the names of columns, none of which is a key of `data`."""
    known = any(name in TrainData.model_fields for name in value)
    return bool(value) and not known and all(isinstance(x, list | tuple) or hasattr(x, "shape") for x in value.values())


def _is_plain(value: Any) -> bool:
    """A path, or another value that a config may hold."""
    return value is None or isinstance(value, str | os.PathLike | int | float)


def _no_table(key: str, value: Any) -> ConfigError:
    names = f" of {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
    return ConfigError(
        f"{key}: expected paths or one table, found {type(value).__name__}{names}.",
        "Make it a DataFrame or an Arrow table, with a column each for texts and labels.",
    )


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
            if is_still(descriptor, folder):
                yield descriptor
                return
        finally:
            os.close(descriptor)
