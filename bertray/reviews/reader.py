"""The reader's front door: list, inspect, check, plan and read input files of every format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from bertray.config import Columns
from bertray.errors import ConfigError, InfrastructureError, did_you_mean
from bertray.reviews.file_access import stamp
from bertray.reviews.formats import acl_imdb, delimited, jsonl, parquet
from bertray.reviews.listing import list_inputs, sidecar_remedy
from bertray.reviews.rows import (
    ROWS_PER_OFFSET,
    BadFile,
    FileEntry,
    InputFile,
    Period,
    RawRows,
    ReadSpec,
    ReviewBatch,
    Shard,
    WorkItem,
)
from bertray.reviews.screening import kept_type, screen
from bertray.schema import CUT, ID, KEEP_PREFIX, LABEL, REFUSED_SCHEMA, ROW_NO, SCRIPT, TEXT, TEXT_PAIR, Reason

__all__ = [
    "BadFile",
    "FileEntry",
    "InputFile",
    "Period",
    "ReadSpec",
    "ReviewBatch",
    "Shard",
    "WorkItem",
    "check_columns",
    "check_slices",
    "column_fault",
    "kept_faults",
    "kept_schema",
    "label_is_readable",
    "list_inputs",
    "plan_shards",
    "read_rows",
    "read_shard",
    "shard_of",
    "work_items",
]

# Each is opened by the task that reads a work item; more would leave other workers without work.
MAX_FILES_TOGETHER = 512

_STRINGS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DEFAULT_ID = Columns.model_fields["id"].default


# --- check -----------------------------------------------------------------------------------------------------------


def check_columns(files: Sequence[InputFile], spec: ReadSpec) -> None:
    """Every file has the columns that the config names, with types that can be read.

    Raises:
        ConfigError: names the file, what was expected and found, and what to set.
    """
    for file in files:
        fault = _column_problem(file, spec)
        if fault is not None:
            _, problem, remedy = fault
            raise ConfigError(
                f"{file.path}: {problem}", sidecar_remedy(file.path, [other.path for other in files]) or remedy
            )
    for name in spec.keep_columns:
        if files and not any(name in file.columns for file in files):
            problem = _missing_problem(name, "any type", files[0])
            raise ConfigError(f"{files[0].path}: {problem}", _missing_remedy("keep_columns", files[0]))
    kept_schema(files, spec)


def column_fault(file: InputFile, spec: ReadSpec) -> BadFile | None:
    """The file as a bad one, when its columns do not fit: for a run that quarantines such files and goes on."""
    fault = _column_problem(file, spec)
    if fault is None:
        return None
    reason, problem, _ = fault
    return _bad(file, reason, problem)


def label_is_readable(file: InputFile, columns: Columns) -> bool:
    """Does the file have the label column, once, with a type that can be a label? Scoring goes on without."""
    stored = file.columns.get(columns.label)
    return (
        stored is not None and stored != "repeated" and (not file.num_rows or column_type_fits("columns.label", stored))
    )


def _column_problem(file: InputFile, spec: ReadSpec) -> tuple[Reason, str, str] | None:
    """(reason, problem, remedy) of the first column that is missing or of the wrong type."""
    columns = spec.columns
    wanted = [("columns.text", columns.text, "string")]
    if columns.text_pair is not None:
        wanted.append(("columns.text_pair", columns.text_pair, "string"))
    # Data without ids is fine; a name that somebody chose has to exist.
    if columns.id in file.columns or columns.id != _DEFAULT_ID:
        wanted.append(("columns.id", columns.id, "string, integer or UUID"))
    if spec.wants_label:
        wanted.append(("columns.label", columns.label, "string, number or boolean"))
    wanted += [("keep_columns", name, "any type") for name in spec.keep_columns]
    wanted += [("data.time", spec.period.column, "string, date or timestamp")] if spec.period else []
    for key, name, kinds in wanted:
        if name not in file.columns:
            if key == "keep_columns" and file.format == "jsonl":
                continue  # an object may leave a key out: null
            return Reason.SCHEMA_MISSING_COLUMN, _missing_problem(name, kinds, file), _missing_remedy(key, file)
        stored = file.columns[name]
        if stored == "repeated":
            problem = f"expected one column {name!r}, found several of that name."
            return Reason.SCHEMA_TYPE, problem, f"Rename them in the data, or set `{key}` to another."
        if file.num_rows and not column_type_fits(key, stored):
            reason = Reason.SCHEMA_ID_TYPE if key == "columns.id" else Reason.SCHEMA_TYPE
            problem = f"expected column {name!r} to be {kinds}, found {stored}."
            return reason, problem, f"Set `{key}` to a column of that type, or write the file again."
    return None


def _missing_problem(name: str, kinds: str, file: InputFile) -> str:
    found = ", ".join(f"{column!r}" for column in list(file.columns)[:20]) or "none"
    more = f" and {len(file.columns) - 20} more" if len(file.columns) > 20 else ""
    guess = did_you_mean(name, file.columns)
    if f"/{name}=" in f"/{file.path}":
        guess = f" Keys in folder names ({name}=…) are not read as columns."
    return f"expected column {name!r} ({kinds}), found columns {found}{more}.{guess}"


def _missing_remedy(key: str, file: InputFile) -> str:
    remedy = f"Set `{key}` to the column that holds it"
    if key == "keep_columns":
        remedy = "Correct the key that names it (`keep_columns`, `report.slices` or `data.group`)"
    if file.format == "csv":
        remedy += "; for a file without a header set `reader.header=false`, its columns are then '0', '1' and so on"
        if len(file.columns) == 1:
            remedy += "; only one column was found: is `reader.delimiter` right"
    remedy += "".join(f"; {note.removesuffix('?')}" for note in file.notes)
    return f"{remedy}{'?' if ' is ' in remedy.rpartition(';')[2] else '.'}"


def column_type_fits(key: str, stored: str) -> bool:
    """Whether a column of this type, as `InputFile.columns` has it, can be what a config key names."""
    if key == "keep_columns":
        return True
    if stored.startswith("dictionary<values="):
        stored = stored.removeprefix("dictionary<values=").partition(",")[0]
    if stored.startswith(("extension<arrow.uuid>", "fixed_size_binary")):
        return key == "columns.id"
    kinds = set(stored.split("|"))  # JSON Lines: every kind that was seen
    text = kinds & {*_STRINGS, "null"}
    if key in ("columns.text", "columns.text_pair"):
        return bool(text)
    if key == "data.time":
        return bool(text) or stored.startswith(("date", "timestamp"))
    if key == "columns.id":
        return bool(text or kinds & {*_INTEGERS, "date32[day]"} or stored.startswith("decimal"))
    numbers = {*_INTEGERS, "bool", "float", "double", "halffloat", "date32[day]"}
    return bool(text or kinds & numbers or stored.startswith("decimal"))


def kept_schema(files: Sequence[InputFile], spec: ReadSpec) -> pa.Schema:
    """Names and Arrow types of the `keep_columns`, the same for every file; text formats keep everything as text.

    A column that is all null in one file (Arrow's null type) has the type of the others; `pa.table(columns,
    schema=...)` casts it.

    Raises:
        ConfigError: a column has another type in another file.
    """
    schema, problems = _kept_types(files, spec)
    for path, problem in problems.items():
        raise ConfigError(f"{path}: {problem}", "Leave it out of `keep_columns`, or write the files with that type.")
    return schema


def kept_faults(files: Sequence[InputFile], spec: ReadSpec) -> dict[str, BadFile]:
    """By path, the files whose kept columns have other types than in most files: bad ones, as `column_fault`."""
    _, problems = _kept_types(files, spec)
    return {file.path: _bad(file, Reason.SCHEMA_TYPE, problems[file.path]) for file in files if file.path in problems}


def check_slices(files: Sequence[InputFile], spec: ReadSpec, slices: Sequence[str]) -> None:
    """Raises ConfigError where a column to break a report down by holds lists or structs."""
    schema, _ = _kept_types(files, replace(spec, keep_columns=tuple(slices)))
    for column in schema:
        if pa.types.is_nested(column.type):
            raise ConfigError(
                f"report.slices: expected columns of single values, found {column.name!r} of {column.type}.",
                "Leave it out of `report.slices`.",
            )


def _kept_types(files: Sequence[InputFile], spec: ReadSpec) -> tuple[pa.Schema, dict[str, str]]:
    """The schema of kept columns, each of the type that most files have, and by path what does not fit it."""
    shapes = [(file.format, *(file.columns.get(name, "null") for name in spec.keep_columns)) for file in files]
    kinds: dict[tuple[str, ...], dict[str, pa.DataType]] = {}  # files of one shape are looked at once
    count: dict[str, Counter[pa.DataType]] = {name: Counter() for name in spec.keep_columns}
    example: dict[tuple[str, pa.DataType], str] = {}
    for file, shape in zip(files, shapes, strict=True) if spec.keep_columns else ():
        if shape not in kinds:
            kinds[shape] = _kinds(file, spec)
        for name, kind in kinds[shape].items():
            count[name][kind] += not pa.types.is_null(kind)
            example.setdefault((name, kind), file.path)
    types = {name: max(found, key=lambda kind: found[kind]) for name, found in count.items() if found}
    problems: dict[str, str] = {}
    for file, shape in zip(files, shapes, strict=True) if spec.keep_columns else ():
        for name, kind in kinds[shape].items():
            if kind != types[name] and not pa.types.is_null(kind):
                problems.setdefault(
                    file.path,
                    f"expected column {name!r} to be {types[name]}, as in {example[name, types[name]]}, found {kind}.",
                )
    return pa.schema([pa.field(name, kind) for name, kind in types.items()]), problems


def _kinds(file: InputFile, spec: ReadSpec) -> dict[str, pa.DataType]:
    """The types of a file's kept columns."""
    if file.format == "parquet":
        stored = parquet.schema_of(file)
        return {name: kept_type(stored.field(name).type) for name in spec.keep_columns}
    is_number = {
        name: file.columns.get(name) == "int32" and file.format == acl_imdb.FORMAT for name in spec.keep_columns
    }
    return {name: pa.int32() if number else pa.string() for name, number in is_number.items()}


def _bad(file: InputFile, reason: Reason, problem: str) -> BadFile:
    return BadFile(file.path, file.relative_path, file.size_bytes, file.modified, reason, problem[:200], file.num_rows)


# --- plan ------------------------------------------------------------------------------------------------------------


def plan_shards(
    files: Sequence[InputFile], rows_per_shard: int, duplicates: Mapping[int, Sequence[int]] | None = None
) -> list[Shard]:
    """Cut every file into shards of `rows_per_shard` rows, in order; the last of a file may be shorter.

    Args:
        files: `file_no` is the position here.
        rows_per_shard: at least 1.
        duplicates: rows that repeat an earlier id, ascending, by file number.
    """
    shards: list[Shard] = []
    for file_no, file in enumerate(files):
        repeated = np.array((duplicates or {}).get(file_no, ()), np.int64)
        for lo in range(0, file.num_rows, rows_per_shard):
            hi = min(lo + rows_per_shard, file.num_rows)
            inside = repeated[np.searchsorted(repeated, lo) : np.searchsorted(repeated, hi)]
            shards.append(shard_of(file, lo, hi, file_no=file_no, duplicates=tuple(inside.tolist())))
    return shards


def work_items(shards: Iterable[Shard], rows_per_shard: int) -> list[WorkItem]:
    """Put the shards of small files together, in order, so that a thousand tiny files are not a thousand parts.

    An item has at most `rows_per_shard` rows unless it is one shard, at most MAX_FILES_TOGETHER files, and no file
    twice.
    """
    items: list[WorkItem] = []
    waiting: list[Shard] = []
    num_rows = 0
    for shard in shards:
        size = shard.hi - shard.lo
        full = num_rows + size > rows_per_shard or len(waiting) == MAX_FILES_TOGETHER
        if waiting and (full or waiting[-1].file_no == shard.file_no):
            items.append(tuple(waiting))
            waiting, num_rows = [], 0
        waiting.append(shard)
        num_rows += size
    if waiting:
        items.append(tuple(waiting))
    return items


def shard_of(file: InputFile, lo: int, hi: int, *, file_no: int = 0, duplicates: tuple[int, ...] = ()) -> Shard:
    """Rows [lo, hi) of a file, with the place where reading them starts."""
    start_row, start_byte = 0, None
    if file.row_offsets and lo < file.num_rows:
        start_row = lo - lo % ROWS_PER_OFFSET
        start_byte = file.row_offsets[lo // ROWS_PER_OFFSET]
    return Shard(replace(file, row_offsets=(), arrow_schema=b""), file_no, lo, hi, duplicates, start_row, start_byte)


# --- read ------------------------------------------------------------------------------------------------------------


def read_shard(shard: Shard, spec: ReadSpec, row_nos_W: np.ndarray | None = None) -> ReviewBatch:
    """Read, check and clean the rows of one shard. Every row is kept or refused.

    Args:
        shard: of a file that has the columns.
        spec: how to read.
        row_nos_W: ascending numbers of the rows that are wanted; others are neither checked nor cleaned. None: all.

    Raises:
        InfrastructureError: the storage failed, or the file is not the one that was planned.
    """
    columns, text_columns = _needed_columns(shard.file, spec)
    kept: list[pa.Table] = []
    refused: list[pa.Table] = []
    if row_nos_W is not None:
        row_nos_W = row_nos_W[np.searchsorted(row_nos_W, shard.lo) : np.searchsorted(row_nos_W, shard.hi)]
        lo, hi = (int(row_nos_W[0]), int(row_nos_W[-1]) + 1) if len(row_nos_W) else (shard.lo, shard.lo)
        shard = replace(shard, lo=lo, hi=hi)
    rows_in = shard.hi - shard.lo
    for stored in read_rows(shard, spec, columns, text_columns) if rows_in else ():
        raw = stored.of(spec.period)
        if row_nos_W is not None:
            raw = raw.only(row_nos_W)
        rows_in -= len(stored.row_nos) - len(raw.row_nos) + len(stored.faults) - len(raw.faults)
        good, bad = screen(raw, shard, spec)
        if good.num_rows:
            kept.append(good)
        if bad.num_rows:
            refused.append(bad)
    _check_unchanged(shard.file)
    batch = ReviewBatch(
        pa.concat_tables(kept) if kept else _no_rows(shard.file, spec),
        pa.concat_tables(refused) if refused else REFUSED_SCHEMA.empty_table(),
        rows_in,
    )
    if batch.kept.num_rows + batch.refused.num_rows != batch.rows_in:
        raise InfrastructureError(
            f"{shard.file.path}: expected {batch.rows_in} rows from row {shard.lo}, found "
            f"{batch.kept.num_rows + batch.refused.num_rows}.",
            "The file seems to change while it is read; run the same command again.",
        )
    return batch


def _needed_columns(file: InputFile, spec: ReadSpec) -> tuple[list[str], list[str]]:
    """(all columns to read, those that hold text)."""
    texts = [spec.columns.text, *([spec.columns.text_pair] if spec.columns.text_pair is not None else [])]
    names = [*texts, spec.columns.id, *([spec.columns.label] if spec.wants_label else []), *spec.keep_columns]
    names += [spec.period.column] if spec.period else []
    optional = spec.keep_columns if file.format == "jsonl" else ()
    return [name for name in dict.fromkeys(names) if name in file.columns or name in optional], texts


def read_rows(shard: Shard, spec: ReadSpec, columns: list[str], text_columns: list[str]) -> Iterator[RawRows]:
    """Some columns of a shard as they are stored, before any check; aclImdb folders give all of theirs.

    The file must have the columns.
    """
    match shard.file.format:
        case "parquet":
            return parquet.read(shard, columns, text_columns)
        case "csv":
            return delimited.read(shard, columns, spec.reader)
        case "jsonl":
            return jsonl.read(shard, columns, spec.reader, text_columns)
    return acl_imdb.read(shard, spec.reader)


def _check_unchanged(file: InputFile) -> None:
    if file.format == acl_imdb.FORMAT:
        return  # a folder has no stamp of its own; its row count is checked
    size_bytes, modified = stamp(file.path)
    if (size_bytes, modified) != (file.size_bytes, file.modified):
        raise InfrastructureError(
            f"{file.path}: changed since it was listed (then {file.size_bytes} bytes, now {size_bytes}).",
            "Run the same command again when it is complete.",
        )


def _no_rows(file: InputFile, spec: ReadSpec) -> pa.Table:
    fields = [(ROW_NO, pa.int64()), (ID, pa.string()), (TEXT, pa.string())]
    if spec.columns.text_pair is not None:
        fields.append((TEXT_PAIR, pa.string()))
    if spec.wants_label:
        fields.append((LABEL, pa.string()))
    fields += [(CUT, pa.bool_()), (SCRIPT, pa.string())]
    fields += [(f"{KEEP_PREFIX}{field.name}", field.type) for field in kept_schema([file], spec)]
    return pa.schema(fields).empty_table()
