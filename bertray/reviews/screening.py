"""From rows as they were read to kept rows and refused rows, each refused one with a single reason."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.io.tables import decoded
from bertray.reviews.aspects import PROBLEMS, expanded_ids
from bertray.reviews.clean import clean_texts
from bertray.reviews.labels import canonical
from bertray.reviews.rows import RawRows, ReadSpec, RowFault, Shard
from bertray.reviews.writing_system import dominant_script

# Cleaning sees at most this many times `max_chars` characters: mark-up and white space shrink, megabytes do not matter.
_CLEANED_PER_KEPT = 5


@dataclass(frozen=True)
class _Texts:
    """One text column, worked on by distinct value: a text that stands a thousand times is cleaned once."""

    raw: pa.Array  # binary [U], as stored
    which: np.ndarray  # int64 [N]: index into the distinct values; -1: null
    cleaned: pa.Array  # string [U], cut to max_chars
    lengths: np.ndarray  # int64 [U] characters, before cleaning
    invalid: np.ndarray  # bool [U]: not UTF-8
    cut: np.ndarray  # bool [U]

    def rows(self, mask_U: np.ndarray) -> np.ndarray:
        """bool [N]: rows whose value is in the mask; never a null."""
        mask_N: np.ndarray = np.append(mask_U, False)[self.which]
        return mask_N

    def null_rows(self) -> np.ndarray:
        return self.which < 0

    def take(self, rows_K: np.ndarray) -> pa.Array:
        return self.cleaned.take(pa.array(self.which[rows_K]))


def screen(raw: RawRows, shard: Shard, spec: ReadSpec) -> tuple[pa.Table, pa.Table]:
    """Split rows into kept (cleaned) and refused ones; every row lands in exactly one.

    Returns:
        (kept, refused) as in `ReviewBatch`, for these rows only.
    """
    if not len(raw.row_nos):
        # Without a readable row there is no column to take a type from: the caller has other batches for that.
        return pa.table({}), _refused_table(shard, spec, raw.faults)
    texts = _texts(raw.columns[spec.columns.text_name], spec)
    pair_name, pairs = _pairs(raw, spec)
    ids, id_is_invalid_N = row_ids(raw, shard.file.relative_path, spec.columns.id)

    verdicts = _Verdicts(len(raw.row_nos))
    if raw.aspects is not None:
        for problem, (reason, detail) in PROBLEMS.items():
            verdicts.add(raw.aspects.problem_M == problem, reason, detail)
    for name, column in ((spec.columns.text_name, texts), (pair_name, pairs)):
        if column is None:
            continue
        about = "" if column is texts else f"column {name!r}"
        too_long_U = column.lengths > spec.max_text_chars
        verdicts.add(column.rows(column.invalid), s.Reason.TEXT_ENCODING, about or "not valid Unicode")
        verdicts.add(column.null_rows(), s.Reason.TEXT_NULL, about)
        verdicts.add(column.rows(too_long_U), s.Reason.TEXT_TOO_LONG, about or f"over {spec.max_text_chars} characters")
    verdicts.add(id_is_invalid_N, s.Reason.TEXT_ENCODING, "the id is not valid Unicode")
    verdicts.add(_null_or_empty(ids), s.Reason.ID_NULL, "")
    duplicate_N = np.isin(raw.row_nos, np.array(shard.duplicates, np.int64))
    verdicts.add(duplicate_N, s.Reason.ID_DUPLICATE, "the id stands earlier in this file")
    for column in (texts, pairs):
        if column is not None:
            verdicts.add(column.rows(_is_empty(column.cleaned)), s.Reason.TEXT_EMPTY, "nothing is left after cleaning")

    faults = [*raw.faults, *_as_faults(verdicts, raw, texts)]
    refused_ids = {int(raw.row_nos[row]): _id_or_none(ids, row) for row in verdicts.refused_rows()}
    kept = _kept_table(raw, shard, spec, verdicts.kept_rows(), texts, pairs, ids)
    return kept, _refused_table(shard, spec, sorted(faults, key=lambda fault: fault.row_no), refused_ids)


def _pairs(raw: RawRows, spec: ReadSpec) -> tuple[str, _Texts | None]:
    """Second texts with the name of their column: aspects, or a column of texts; None without."""
    if raw.aspects is not None:
        assert spec.aspects is not None
        return spec.aspects.column or "aspects", _texts(raw.aspects.names, spec)
    column = spec.columns.text_pair
    return column or "", None if column is None else _texts(raw.columns[column], spec)


class _Verdicts:
    """The first reason given to each row stays."""

    def __init__(self, num_rows: int) -> None:
        self._codes = np.zeros(num_rows, dtype=np.int16)
        self._named: list[tuple[s.Reason, str]] = []

    def add(self, mask_N: np.ndarray, reason: s.Reason, detail: str) -> None:
        if mask_N.any():
            self._named.append((reason, detail))
            self._codes[mask_N & (self._codes == 0)] = len(self._named)

    def of(self, row: int) -> tuple[s.Reason, str]:
        return self._named[int(self._codes[row]) - 1]

    def refused_rows(self) -> np.ndarray:
        return np.flatnonzero(self._codes)

    def kept_rows(self) -> np.ndarray:
        return np.flatnonzero(self._codes == 0)


def _texts(values: pa.Array, spec: ReadSpec) -> _Texts:
    """Distinct values, which of them are valid, and what cleaning leaves of those."""
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    which_N = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    # A slice of a dictionary-encoded column still carries the values of its neighbours.
    used_U = np.unique(which_N[which_N >= 0])
    which_N = np.where(which_N < 0, -1, np.searchsorted(used_U, which_N))
    raw_U = _as_binary(encoded.dictionary).take(pa.array(used_U))
    valid_U, invalid_U = utf8_or_empty(raw_U)
    lengths_U = pc.utf8_length(valid_U).to_numpy(zero_copy_only=False).astype(np.int64)
    readable_U = valid_U
    if len(lengths_U) and lengths_U.max() > _CLEANED_PER_KEPT * spec.max_chars:
        readable_U = pc.utf8_slice_codeunits(valid_U, 0, _CLEANED_PER_KEPT * spec.max_chars)
    cleaned_U = clean_texts(readable_U, spec.cleaning)
    cleaned_lengths_U = pc.utf8_length(cleaned_U).to_numpy(zero_copy_only=False)
    cut_U = (cleaned_lengths_U > spec.max_chars) | (lengths_U > _CLEANED_PER_KEPT * spec.max_chars)
    if cut_U.any():
        cleaned_U = pc.utf8_rtrim_whitespace(pc.utf8_slice_codeunits(cleaned_U, 0, spec.max_chars))
    return _Texts(raw_U, which_N, cleaned_U, lengths_U, invalid_U, cut_U)


def _as_binary(values: pa.Array) -> pa.Array:
    if pa.types.is_binary(values.type):
        return values
    if pa.types.is_string(values.type):
        return values.view(pa.binary())
    return (
        values.cast(pa.large_binary()).cast(pa.binary())
        if not pa.types.is_null(values.type)
        else values.cast(pa.binary())
    )


def utf8_or_empty(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """binary [U] as string [U], with an empty string where the bytes are no UTF-8, and a mask of those."""
    invalid_U = np.zeros(len(values), dtype=bool)
    try:
        return values.cast(pa.string()), invalid_U
    except pa.ArrowInvalid:
        found: list[str | None] = []
        for row, value in enumerate(values.to_pylist()):
            try:
                found.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError:
                found.append("")
                invalid_U[row] = True
        return pa.array(found, pa.string()), invalid_U


def id_text(values: pa.Array) -> pa.Array:
    """Ids as binary text: strings as they are, numbers in decimal, fixed-size bytes (UUIDs) in hexadecimal."""
    values = decoded(values)
    if pa.types.is_fixed_size_binary(values.type):
        return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string()).view(
            pa.binary()
        )
    if pa.types.is_integer(values.type) or pa.types.is_decimal(values.type) or pa.types.is_date(values.type):
        values = values.cast(pa.string())
    return _as_binary(values)


def generated_ids(relative_path: str, row_nos_N: np.ndarray) -> pa.Array:
    """`<relative path>:<row>` for data without ids."""
    return pa.array([f"{relative_path}:{row}" for row in row_nos_N.tolist()], pa.string())


def row_ids(raw: RawRows, relative_path: str, column: str) -> tuple[pa.Array, np.ndarray]:
    """(ids string [N], bool [N] where one is no valid Unicode); a row of an aspect has `<id>#<aspect>`.

    Args:
        relative_path: of the file, for rows without ids.
        column: of the ids.
    """
    aspects = raw.aspects
    if column in raw.columns:
        ids, invalid_N = utf8_or_empty(id_text(raw.columns[column]))
    else:
        stored_N = raw.row_nos if aspects is None else aspects.stored_M
        ids, invalid_N = generated_ids(relative_path, stored_N), np.zeros(len(raw.row_nos), dtype=bool)
    if aspects is None:
        return ids, invalid_N
    return expanded_ids(ids, utf8_or_empty(_as_binary(aspects.names))[0]), invalid_N


def _null_or_empty(values: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.equal(values, ""), True), dtype=bool)


def _is_empty(values: pa.Array) -> np.ndarray:
    return np.asarray(pc.equal(values, ""), dtype=bool)


def _id_or_none(ids: pa.Array, row: int) -> str | None:
    return ids[int(row)].as_py() or None


def _as_faults(verdicts: _Verdicts, raw: RawRows, texts: _Texts) -> list[RowFault]:
    faults = []
    traces: dict[int, tuple[str | None, int | None]] = {-1: (None, None)}
    for row in verdicts.refused_rows().tolist():
        reason, detail = verdicts.of(row)
        which = int(texts.which[row])
        if which not in traces:
            traces[which] = _digest_and_length(texts, which)
        input_row = None if raw.aspects is None else int(raw.aspects.stored_M[row])
        faults.append(RowFault(int(raw.row_nos[row]), reason, detail, *traces[which], input_row))
    return faults


def _digest_and_length(texts: _Texts, which: int) -> tuple[str, int]:
    raw = texts.raw[which].as_buffer()
    is_invalid = bool(texts.invalid[which])
    length = len(raw.to_pybytes().decode("utf-8", "replace")) if is_invalid else int(texts.lengths[which])
    return hashlib.sha256(raw).hexdigest(), length


def refused_schema(spec: ReadSpec) -> pa.Schema:
    """Columns of refused rows."""
    return s.REFUSED_SCHEMA.append(pa.field(s.INPUT_ROW, pa.int64())) if spec.aspects else s.REFUSED_SCHEMA


def _refused_table(
    shard: Shard, spec: ReadSpec, faults: Sequence[RowFault], ids: dict[int, str | None] | None = None
) -> pa.Table:
    known = ids or {}
    columns = [
        [shard.file.path] * len(faults),
        [fault.row_no for fault in faults],
        [known.get(fault.row_no) for fault in faults],
        [fault.reason.value for fault in faults],
        [fault.detail[:200] or None for fault in faults],
        [fault.text_sha256 for fault in faults],
        [fault.text_len for fault in faults],
        *([[fault.input_row for fault in faults]] if spec.aspects else []),
    ]
    schema = refused_schema(spec)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _kept_table(
    raw: RawRows, shard: Shard, spec: ReadSpec, rows_K: np.ndarray, texts: _Texts, pairs: _Texts | None, ids: pa.Array
) -> pa.Table:
    take = pa.array(rows_K)
    columns: dict[str, pa.Array] = {
        s.ROW_NO: pa.array(raw.row_nos[rows_K]),
        s.ID: ids.take(take),
        s.TEXT: texts.take(rows_K),
    }
    if pairs is not None:
        columns[s.TEXT_PAIR] = pairs.take(rows_K)
    if spec.wants_label:
        of_aspects = None if raw.aspects is None else raw.aspects.labels
        labels = raw.columns[spec.columns.label] if of_aspects is None else of_aspects
        columns[s.LABEL] = canonical(labels.take(take))
    columns[s.CUT] = pa.array(texts.rows(texts.cut)[rows_K])
    script_U = dominant_script(texts.cleaned)
    columns[s.SCRIPT] = script_U.take(pa.array(texts.which[rows_K]))
    for name in spec.keep_columns:
        columns[f"{s.KEEP_PREFIX}{name}"] = _kept_values(raw.columns[name].take(take), shard.file.format)
    if raw.aspects is not None:
        columns[s.INPUT_ROW] = pa.array(raw.aspects.stored_M[rows_K])
    return pa.table(columns)


def kept_type(stored: pa.DataType) -> pa.DataType:
    """Type of a kept column: its own, but for encodings of strings, which all become plain strings."""
    kept = plain_type(stored)
    return pa.string() if _is_text(kept) else kept


def plain_type(stored: pa.DataType) -> pa.DataType:
    """A type without dictionaries, views, run-end encoding and extensions, at any depth: kernels take its rows."""
    types = pa.types
    if isinstance(stored, pa.BaseExtensionType):
        return plain_type(stored.storage_type)
    if types.is_dictionary(stored) or types.is_run_end_encoded(stored):
        return plain_type(stored.value_type)
    if types.is_string_view(stored):
        return pa.string()
    if types.is_binary_view(stored):
        return pa.binary()
    if types.is_struct(stored):
        return pa.struct([field.with_type(plain_type(field.type)) for field in stored])
    if types.is_map(stored):
        key, item = stored.key_field, stored.item_field
        return pa.map_(key.with_type(plain_type(key.type)), item.with_type(plain_type(item.type)))
    if not types.is_nested(stored) or types.is_union(stored):
        return stored
    value = stored.value_field.with_type(plain_type(stored.value_type))
    if types.is_fixed_size_list(stored):
        return pa.list_(value, stored.list_size)
    return pa.large_list(value) if types.is_large_list(stored) or types.is_large_list_view(stored) else pa.list_(value)


def as_plain(values: pa.Array) -> pa.Array:
    """Values in their `plain_type`.

    Raises:
        pa.ArrowInvalid: an index of a dictionary leads out of it.
    """
    kept = plain_type(values.type)
    if kept == values.type:
        return values
    if pa.types.is_nested(values.type) and "dictionary<" in str(values.type):
        values.validate(full=True)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if "list_view<" in str(values.type):  # pyarrow 26 casts some of them to lists without their last offset
        return pa.array(values.to_pylist(), kept)
    return values.cast(kept)


def _is_text(stored: pa.DataType) -> bool:
    return bool(pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored))


def _kept_values(values: pa.Array, file_format: str) -> pa.Array:
    """Kept values in their kept type; bytes that are no UTF-8 in a string become U+FFFD.

    Text formats hold no bytes but strings, and give them as bytes where one of them is no valid Unicode.
    """
    values = as_plain(values)
    if not _is_text(values.type) and (file_format == "parquet" or not pa.types.is_binary(values.type)):
        return values
    stored = _as_binary(values)
    text, invalid_N = utf8_or_empty(stored)
    if not invalid_N.any():
        return text
    repaired = [None if value is None else value.decode("utf-8", "replace") for value in stored.to_pylist()]
    return pa.array(repaired, pa.string())
