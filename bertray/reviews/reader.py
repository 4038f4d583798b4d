"""Input files of every format: checks of their columns, shards over them, and the rows of a shard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.config import Columns
from bertray.errors import ConfigError, InfrastructureError, did_you_mean
from bertray.io.tables import holds_bytes
from bertray.reviews.aspects import expanded
from bertray.reviews.file_access import stamp
from bertray.reviews.formats import acl_imdb, delimited, jsonl, parquet
from bertray.reviews.listing import sidecar_remedy
from bertray.reviews.rows import (
    ROWS_PER_OFFSET,
    Aspects,
    BadFile,
    InputFile,
    RawRows,
    ReadSpec,
    ReviewBatch,
    Shard,
    WorkUnit,
)
from bertray.reviews.screening import kept_type, refused_schema, screen

# Each is opened by the task that reads a work unit; more would leave other workers without work.
MAX_FILES_TOGETHER = 512

_STRINGS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DEFAULT_ID = Columns.model_fields["id"].default
LABELS_OF_ASPECTS = "columns.label (a list beside columns.aspects)"
_ITEM_TYPE = re.compile(r"(?:large_|fixed_size_)?list(?:_view)?<\w+: ([^<>]*(?:<[^<>]*>)?)(?: not null)?>")


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


def label_is_readable(file: InputFile, columns: Columns, aspects: Aspects | None = None) -> bool:
    """Does the file have the label column, once, with a type that can be a label? Scoring goes on without.

    With `aspects`, the column of lists of labels, or the label column of each aspect.
    """
    if aspects is None:
        return _is_readable(file, "columns.label", columns.label)
    if aspects.column is not None:
        return _is_readable(file, LABELS_OF_ASPECTS, columns.label)
    return all(_is_readable(file, "aspects", name) for name in aspects.label_columns.values())


def _is_readable(file: InputFile, key: str, name: str) -> bool:
    stored = file.columns.get(name)
    return stored is not None and stored != "repeated" and (not file.num_rows or column_type_fits(key, stored))


def _column_problem(file: InputFile, spec: ReadSpec) -> tuple[s.Reason, str, str] | None:
    """(reason, problem, remedy) of the first column that is missing or of the wrong type."""
    columns = spec.columns
    wanted = [("columns.text", name, "string") for name in columns.texts]
    if columns.text_pair is not None:
        wanted.append(("columns.text_pair", columns.text_pair, "string"))
    if spec.aspects is not None and spec.aspects.column is not None:
        wanted.append(("columns.aspects", spec.aspects.column, "list of strings"))
    # Data without ids is fine; a name that somebody chose has to exist.
    if columns.id in file.columns or columns.id != _DEFAULT_ID:
        wanted.append(("columns.id", columns.id, "string, integer or UUID"))
    if spec.wants_label:
        wanted += _label_columns(file, spec)
    wanted += [("keep_columns", name, "any type") for name in spec.keep_columns]
    wanted += [("data.time", spec.period.column, "string, date or timestamp")] if spec.period else []
    for key, name, kinds in wanted:
        if name not in file.columns:
            if key == "keep_columns" and file.format == "jsonl":
                continue  # an object may leave a key out: null
            return s.Reason.SCHEMA_MISSING_COLUMN, _missing_problem(name, kinds, file), _missing_remedy(key, file)
        stored = file.columns[name]
        if stored == "repeated":
            problem = f"expected one column {name!r}, found several of that name."
            key = key.partition(" ")[0]
            return s.Reason.SCHEMA_TYPE, problem, f"Rename them in the data, or set `{key}` to another."
        if file.num_rows and not column_type_fits(key, stored):
            reason = s.Reason.SCHEMA_ID_TYPE if key == "columns.id" else s.Reason.SCHEMA_TYPE
            problem = f"expected column {name!r} to be {kinds}, found {stored}."
            key = key.partition(" ")[0]
            return reason, problem, f"Set `{key}` to a column of that type, or write the file again."
    return None


def _label_columns(file: InputFile, spec: ReadSpec) -> list[tuple[str, str, str]]:
    """(key, column, types) of the labels that a spec wants."""
    kinds = "string, number or boolean"
    if spec.aspects is None:
        return [("columns.label", spec.columns.label, kinds)]
    if spec.aspects.column is not None:
        return [(LABELS_OF_ASPECTS, spec.columns.label, f"list of {kinds}")]
    return [("aspects", name, kinds) for name in spec.aspects.label_columns.values()]


def _missing_problem(name: str, kinds: str, file: InputFile) -> str:
    found = ", ".join(f"{column!r}" for column in list(file.columns)[:20]) or "none"
    more = f" and {len(file.columns) - 20} more" if len(file.columns) > 20 else ""
    guess = did_you_mean(name, file.columns)
    return f"expected column {name!r} ({kinds}), found columns {found}{more}.{guess}"


def _missing_remedy(key: str, file: InputFile) -> str:
    remedy = f"Set `{key.partition(' ')[0]}` to the column that holds it"
    if key == "aspects":
        remedy = "Name the column with the labels of each aspect, aspects={ASPECT: COLUMN, …}"
    if key == "keep_columns":
        remedy = "Correct the key that names it (`keep_columns`, `report.slices`, `drift.by` or `data.group`)"
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
    if key in ("columns.aspects", LABELS_OF_ASPECTS):
        item = _ITEM_TYPE.match(stored)
        if item is None:  # text formats hold lists as text
            return stored == "null" or bool({"string", "large_string", "json"} & set(stored.split("|")))
        key, stored = "columns.text" if key == "columns.aspects" else "columns.label", item[1]
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
    return {file.path: _bad(file, s.Reason.SCHEMA_TYPE, problems[file.path]) for file in files if file.path in problems}


def check_slices(files: Sequence[InputFile], spec: ReadSpec, slices: Sequence[str], key: str = "report.slices") -> None:
    """Raises ConfigError where a column to break figures down by, named by a key, holds lists, structs or bytes."""
    schema, _ = _kept_types(files, replace(spec, keep_columns=tuple(slices)))
    for column in schema:
        is_bytes = holds_bytes(column.type)
        if is_bytes or pa.types.is_nested(column.type):
            raise ConfigError(
                f"{key}: expected columns of single values, found {column.name!r} of {column.type}.",
                f"Leave it out of `{key}`{', or write it as strings' if is_bytes else ''}.",
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
    given = {name: pa.null() if value is None else pa.string() for name, value in file.given}
    if file.format == "parquet":
        stored = parquet.schema_of(file)
        return {name: given.get(name) or kept_type(stored.field(name).type) for name in spec.keep_columns}
    is_number = {
        name: file.columns.get(name) == "int32" and file.format == acl_imdb.FORMAT for name in spec.keep_columns
    }
    return {name: pa.int32() if number else pa.string() for name, number in is_number.items()}


def _bad(file: InputFile, reason: s.Reason, problem: str) -> BadFile:
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


def work_units(shards: Iterable[Shard], rows_per_shard: int) -> list[WorkUnit]:
    """Put the shards of small files together, in order, so that a thousand tiny files are not a thousand parts.

    A unit has at most `rows_per_shard` rows unless it is one shard, at most MAX_FILES_TOGETHER files, and no file
    twice.
    """
    units: list[WorkUnit] = []
    waiting: list[Shard] = []
    num_rows = 0
    for shard in shards:
        size = shard.hi - shard.lo
        full = num_rows + size > rows_per_shard or len(waiting) == MAX_FILES_TOGETHER
        if waiting and (full or waiting[-1].file_no == shard.file_no):
            units.append(tuple(waiting))
            waiting, num_rows = [], 0
        waiting.append(shard)
        num_rows += size
    if waiting:
        units.append(tuple(waiting))
    return units


def shard_of(file: InputFile, lo: int, hi: int, *, file_no: int = 0, duplicates: tuple[int, ...] = ()) -> Shard:
    """Rows [lo, hi) of a file, with the place where reading them starts."""
    start_row, start_byte = 0, None
    expansion = file.expansion and file.expansion.cut(lo, hi)
    stored = expansion.lo if expansion else lo
    if file.row_offsets and lo < file.num_rows:
        start_row = stored - stored % ROWS_PER_OFFSET
        start_byte = file.row_offsets[stored // ROWS_PER_OFFSET]
    small = replace(file, row_offsets=(), arrow_schema=b"", expansion=None)
    return Shard(small, file_no, lo, hi, duplicates, start_row, start_byte, expansion)


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
    return read_shard_as(shard, [spec], row_nos_W)[0]


def read_shard_as(shard: Shard, specs: Sequence[ReadSpec], row_nos_W: np.ndarray | None = None) -> list[ReviewBatch]:
    """`read_shard` by several specs: rows are read once, and cleaned once by all specs that are equal.

    Args:
        specs: one at least; they differ in cleaning, period and kept columns at most.
    """
    needed = [_needed_columns(shard.file, spec) for spec in specs]
    columns, text_columns = list(dict.fromkeys(name for names, _ in needed for name in names)), needed[0][1]
    if row_nos_W is not None:
        row_nos_W = row_nos_W[np.searchsorted(row_nos_W, shard.lo) : np.searchsorted(row_nos_W, shard.hi)]
        lo, hi = (int(row_nos_W[0]), int(row_nos_W[-1]) + 1) if len(row_nos_W) else (shard.lo, shard.lo)
        expansion = shard.expansion and shard.expansion.cut(lo, hi)
        shard = replace(shard, lo=lo, hi=hi, expansion=expansion)
    sides = [_Side(shard, spec) for number, spec in enumerate(specs) if spec not in specs[:number]]
    for stored in _rows(shard, specs[0], columns, text_columns) if shard.lo < shard.hi else ():
        for side in sides:
            side.add(stored, row_nos_W)
    _check_as_listed(shard.file)
    batches = [(side.spec, side.batch()) for side in sides]
    return [next(batch for of, batch in batches if of == spec) for spec in specs]


class _Side:
    """Rows of a shard that one spec is about."""

    def __init__(self, shard: Shard, spec: ReadSpec) -> None:
        self._shard, self.spec = shard, spec
        self._kept: list[pa.Table] = []
        self._refused: list[pa.Table] = []
        self._rows_in = shard.hi - shard.lo

    def add(self, stored: RawRows, row_nos_W: np.ndarray | None) -> None:
        raw = stored.of(self.spec.period)
        if row_nos_W is not None:
            raw = raw.only(row_nos_W)
        self._rows_in -= len(stored.row_nos) - len(raw.row_nos) + len(stored.faults) - len(raw.faults)
        for found, part in zip((self._kept, self._refused), screen(raw, self._shard, self.spec), strict=True):
            if part.num_rows:
                found.append(part)

    def batch(self) -> ReviewBatch:
        file, spec, rows_in = self._shard.file, self.spec, self._rows_in
        kept = pa.concat_tables(self._kept) if self._kept else _no_rows(file, spec)
        refused = pa.concat_tables(self._refused) if self._refused else refused_schema(spec).empty_table()
        if kept.num_rows + refused.num_rows != rows_in:
            raise InfrastructureError(
                f"{file.path}: expected {rows_in} rows from row {self._shard.lo}, found "
                f"{kept.num_rows + refused.num_rows}.",
                "The file seems to change while it is read; run the same command again.",
            )
        return ReviewBatch(kept, refused, rows_in)


def _needed_columns(file: InputFile, spec: ReadSpec) -> tuple[list[str], list[str]]:
    """(all columns to read, those that hold text)."""
    texts = [*spec.columns.texts, *([spec.columns.text_pair] if spec.columns.text_pair is not None else [])]
    labels = [spec.columns.label] if spec.wants_label else []
    if spec.aspects is not None:
        labels = spec.aspects.columns(spec.columns.label, wants_label=spec.wants_label)
    names = [*texts, spec.columns.id, *labels, *spec.keep_columns]
    names += [spec.period.column] if spec.period else []
    optional = spec.keep_columns if file.format == "jsonl" else ()
    return [name for name in dict.fromkeys(names) if name in file.columns or name in optional], texts


def read_rows(shard: Shard, spec: ReadSpec, columns: list[str], text_columns: list[str]) -> Iterator[RawRows]:
    """Some columns of a shard as they are stored, before any check; aclImdb folders give all of theirs.

    The file must have the columns. Of a shard whose rows are one for each aspect, the stored rows behind them.
    """
    if shard.expansion is not None:
        shard = replace(shard, lo=shard.expansion.lo, hi=shard.expansion.hi)
    given = [(name, value) for name, value in shard.file.given if name in columns]
    stored = [name for name in columns if name not in dict(given)]
    match shard.file.format:
        case "parquet":
            found = parquet.read(shard, stored, [name for name in text_columns if name in stored])
        case "csv":
            found = delimited.read(shard, stored, spec.reader)
        case "jsonl":
            found = jsonl.read(shard, stored, spec.reader, text_columns)
        case _:
            found = acl_imdb.read(shard, spec.reader)
    if given:
        found = (rows.beside(given) for rows in found)
    together = spec.columns.texts
    if len(together) > 1 and set(together) <= set(columns):
        return (rows.joined(together, spec.columns.text_name) if rows.columns else rows for rows in found)
    return found


def _rows(shard: Shard, spec: ReadSpec, columns: list[str], text_columns: list[str]) -> Iterator[RawRows]:
    """Rows [lo, hi) of a shard, each aspect a row of its own where the spec names aspects."""
    stored = read_rows(shard, spec, columns, text_columns)
    if spec.aspects is None or shard.expansion is None:
        yield from stored
        return
    for rows in stored:
        found = expanded(rows, spec.aspects, shard.expansion, spec.columns.label, wants_label=spec.wants_label)
        yield found.within(shard.lo, shard.hi)


def _check_as_listed(file: InputFile) -> None:
    if file.format == acl_imdb.FORMAT:
        return  # a folder has no stamp of its own; its row count is checked
    size_bytes, modified = stamp(file.path)
    if (size_bytes, modified) != (file.size_bytes, file.modified):
        raise InfrastructureError(
            f"{file.path}: changed since it was listed (then {file.size_bytes} bytes, now {size_bytes}).",
            "Run the same command again when it is complete.",
        )


def _no_rows(file: InputFile, spec: ReadSpec) -> pa.Table:
    fields = [(s.ROW_NO, pa.int64()), (s.ID, pa.string()), (s.TEXT, pa.string())]
    if spec.has_pair:
        fields.append((s.TEXT_PAIR, pa.string()))
    if spec.wants_label:
        fields.append((s.LABEL, pa.string()))
    fields += [(s.CUT, pa.bool_()), (s.SCRIPT, pa.string())]
    fields += [(f"{s.KEEP_PREFIX}{field.name}", field.type) for field in kept_schema([file], spec)]
    fields += [(s.INPUT_ROW, pa.int64())] if spec.aspects else []
    return pa.schema(fields).empty_table()
