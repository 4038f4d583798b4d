"""Texts in memory, cleaned and screened exactly as those of a file: the same code, so that nothing can differ.

Legend: N texts, K kept ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray import schema as s
from bertray.errors import ConfigError, DataRefused
from bertray.reviews.aspects import expanded, rows_of_lists
from bertray.reviews.rows import ROWS_PER_SHARD, Aspects, Expansion, InputFile, RawRows, ReadSpec, Shard
from bertray.reviews.screening import screen
from bertray.wording import counted

ROWS_AT_ONCE = ROWS_PER_SHARD  # as many as a shard of `bertray score`, so that packs hold the same reviews
MAX_NAMED = 5  # refused texts that an error names
OnRefused = Literal["raise", "null"]


@dataclass(frozen=True)
class CleanTexts:
    """Some texts of a call, those that the model reads and those that it cannot.

    Attributes:
        start: number of the first of them in the call.
        rows_K: positions of the kept ones, ascending, counted from `start`.
        texts: string [K].
        pairs: string [K], the second texts, or None.
        refused: (position, reason, detail) of the others, counted from `start`.
    """

    start: int
    num_rows: int
    rows_K: np.ndarray
    texts: pa.Array
    pairs: pa.Array | None
    refused: list[tuple[int, str, str]]

    def refused_of(self, finite_N: np.ndarray) -> list[tuple[int, str, str]]:
        """(position in the call, reason, detail) of the texts that are refused, or for which the model gave no number.

        Args:
            finite_N: bool [N], texts for which it did.
        """
        broken = self.rows_K[~finite_N[self.rows_K]]
        found = [*self.refused, *((int(row), str(s.Reason.MODEL_NAN), "") for row in broken)]
        return [(self.start + row, reason, detail) for row, reason, detail in sorted(found)]


def rows_of_texts(
    texts: Any, pairs: Any, spec: ReadSpec, model: str, width: int, compute: Callable[[CleanTexts], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], list[tuple[int, str, str]]]:
    """(float32 [N, width] with a row of NaN for each refused text, those texts with their reasons).

    Args:
        texts: as for `clean_texts_of`, with its errors; so are pairs, spec and model.
        width: numbers of a row.
        compute: kept texts -> float32 [K, width]; a text for which it gives a number that is not finite is refused.
    """
    parts: list[NDArray[np.float32]] = [np.empty((0, width), np.float32)]
    refused: list[tuple[int, str, str]] = []
    for clean in clean_texts_of(texts, pairs, spec, model):
        found_NW = np.full((clean.num_rows, width), np.nan, np.float32)
        if len(clean.rows_K):
            found_NW[clean.rows_K] = compute(clean)
        finite_N = np.asarray(np.isfinite(found_NW).all(axis=1))
        found_NW[~finite_N] = np.nan
        refused += clean.refused_of(finite_N)
        parts.append(found_NW)
    return np.concatenate(parts), refused


def of_pairs(spec: ReadSpec) -> ReadSpec:
    """Reading of texts that come each with its aspect, in place of reviews that are read for several."""
    name = s.ASPECT if s.ASPECT not in spec.columns.texts else s.TEXT_PAIR
    columns = spec.columns.model_copy(update={"text_pair": name, "aspects": None})
    return replace(spec, columns=columns, aspects=None)


@dataclass(frozen=True)
class RowsOfAspects:
    """Rows of some reviews, one for each aspect.

    Attributes:
        which_M: int64, position of the review of each row.
        texts: string [M].
        aspects: string [M]; null where a review names none.
    """

    which_M: np.ndarray
    texts: pa.Array
    aspects: pa.Array


def rows_of_aspects(texts: Any, lists: pa.Array | None, aspects: Aspects) -> RowsOfAspects:
    """A row for each aspect of each text, as a file with these columns would give.

    Args:
        texts: as for `clean_texts_of`.
        lists: values of `aspects.column`, where it names one.
        aspects: that the texts are read for.
    """
    array = as_texts(texts, "texts")
    columns = {"texts": array}
    expansion = Expansion(0, len(array), width=len(aspects.label_columns))
    if aspects.column is not None and lists is not None:
        columns[aspects.column] = lists
        expansion = Expansion(0, len(array), counts=rows_of_lists(lists).astype("<u2").tobytes())
    rows = expanded(RawRows(np.arange(len(array)), columns), aspects, expansion, "", wants_label=False)
    assert rows.aspects is not None
    return RowsOfAspects(rows.aspects.stored_M, rows.columns["texts"], rows.aspects.names)


def clean_texts_of(texts: Any, pairs: Any, spec: ReadSpec, model: str) -> Iterator[CleanTexts]:
    """Texts of a call, at most ROWS_AT_ONCE at a time.

    Args:
        texts: sequence, Series or Arrow array of texts; a null or what cleaning leaves empty is refused.
        pairs: the second texts, as many, where `spec.columns.text_pair` names a column.
        spec: cleaning and lengths of a bundle.
        model: of the bundle, for messages.

    Raises:
        ConfigError: not texts, or another number of second texts.
    """
    if (pairs is None) != (spec.columns.text_pair is None):
        raise ConfigError(
            f"pairs: {model} was loaded for {'single texts' if pairs is not None else 'pairs of texts'}.",
            "Load it with columns={'text_pair': COLUMN} and give `pairs`, or leave both out.",
        )
    arrays = {spec.columns.text_name: as_texts(texts, "texts", spec.columns.texts)}
    if spec.columns.text_pair is not None:
        arrays[spec.columns.text_pair] = as_texts(pairs, "pairs")
    lengths = [len(array) for array in arrays.values()]
    if len(set(lengths)) > 1:
        raise ConfigError(f"pairs: expected {lengths[0]} texts, as many as in texts, found {lengths[1]}.")
    for start in range(0, lengths[0], ROWS_AT_ONCE):
        yield _screened({name: array.slice(start, ROWS_AT_ONCE) for name, array in arrays.items()}, start, spec)


def _screened(columns: dict[str, pa.Array], start: int, spec: ReadSpec) -> CleanTexts:
    num_rows = len(columns[spec.columns.text_name])
    file = InputFile("texts", "texts", "parquet", 0, "", num_rows, dict.fromkeys(columns, "string"))
    kept, refused = screen(RawRows(np.arange(num_rows), columns), Shard(file, 0, 0, num_rows), spec)
    return CleanTexts(
        start,
        num_rows,
        kept[s.ROW_NO].to_numpy(),
        kept[s.TEXT].combine_chunks(),
        kept[s.TEXT_PAIR].combine_chunks() if s.TEXT_PAIR in kept.column_names else None,
        [(row[s.ROW_NO], row[s.REASON], row[s.DETAIL] or "") for row in refused.to_pylist()],
    )


def as_texts(values: Any, name: str, columns: Sequence[str] = ()) -> pa.Array:
    """Texts in memory as one Arrow array of strings, nulls and NaN as nulls.

    Args:
        values: list, tuple, NumPy array, Series of pandas or Polars, Arrow array, or column of a `datasets` table.
        name: of the argument, for messages.
        columns: that the model reads as one text, for messages.

    Raises:
        ConfigError: a single text, no texts, or values of another type.
    """
    is_iterable = hasattr(values, "__arrow_c_stream__") or isinstance(values, Iterable)
    if isinstance(values, str | bytes | Mapping | Set) or not is_iterable:  # those have no order, or other values
        found = "one text" if isinstance(values, str | bytes) else f"{type(values).__name__}"
        raise ConfigError(f"{name}: expected a list of texts, found {found}.", "Write `[text]` for a single one.")
    try:
        array = _array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError) as error:
        raise ConfigError(f"{name}: expected texts, found other values: {error}.", "Convert them to str.") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_struct(array.type):
        names = ", ".join(field.name for field in array.type)
        raise ConfigError(
            f"{name}: expected texts, found a table of {names}.",
            f"Call the model itself, `classifier(table)`, with an Arrow table of {', '.join(columns)}."
            if len(columns) > 1
            else "Give its column of texts.",
        )
    plain = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_kind(plain) for is_kind in (*kinds, pa.types.is_binary)):
        raise ConfigError(f"{name}: expected texts, found values of type {array.type}.", "Convert them to str.")
    return array.cast(pa.string()) if pa.types.is_string_view(plain) or pa.types.is_null(plain) else array


def _array(values: Any) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if hasattr(values, "__arrow_c_stream__"):  # a Series of Polars or pandas
        return pa.chunked_array(values)
    if not isinstance(values, np.ndarray) and not hasattr(values, "dtype"):
        values = list(values)
    try:
        return pa.array(values, from_pandas=True)
    except UnicodeEncodeError:  # a lone surrogate: refused with its reason, like bytes of a file that are no Unicode
        return pa.array(
            [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None for value in values]
        )


def refuse(refused: list[tuple[int, str, str]], num_rows: int, on_refused: OnRefused) -> None:
    """Raises DataRefused that names the first texts which cannot be scored, if there is one and they are not wanted.

    Args:
        refused: (position, reason, detail), ascending.
        num_rows: texts of the call.

    Raises:
        ConfigError: `on_refused` is another word.
    """
    if on_refused not in get_args(OnRefused):
        raise ConfigError(f"on_refused: expected raise or null, found {on_refused!r}.")
    if refused and on_refused == "raise":
        named = [f"{row} ({reason}{': ' + detail if detail else ''})" for row, reason, detail in refused[:MAX_NAMED]]
        more = f" and {len(refused) - MAX_NAMED} more" if len(refused) > MAX_NAMED else ""
        raise DataRefused(
            f"texts: {len(refused)} of {counted(num_rows, 'text')} cannot be read by the model, "
            f"at position {', '.join(named)}{more}.",
            "Leave these out, or set on_refused='null' to get null in their place.",
        )
