"""Class names: from the values that stand in the data to label ids, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.errors import ConfigError, DataRefused, did_you_mean
from bertray.io.tables import decoded
from bertray.label_text import label_text
from bertray.wording import counted, setting

UNKNOWN, LEFT_OUT, NO_LABEL = -1, -2, -3  # label ids of values that are not classes
_SHOWN = 12
MOST_CLASSES = 1000
_MANY_VALUES = 50  # from which one row for most of them means that they are no classes
_FEW_ROWS, _MUCH_LARGER = 5, 20
_NOT_FINITE = ("inf", "-inf")  # as `label_text` writes them; NaN is no label


def canonical(values: pa.Array) -> pa.Array:
    """Label values as `label_text` has them: 1, 1.0 and "1" are "1", true is "true", blank text is null.

    Args:
        values: strings (any Arrow encoding), binary, integers, floats, booleans, dates or decimals [N].

    Returns:
        string [N]; NaN, "" and null are null. Bytes that are no UTF-8 become U+FFFD.

    Raises:
        pa.ArrowNotImplementedError: the values are lists, structs or the like.
    """
    values = decoded(values)
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(pa.string())
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind)):
        values = values.cast(pa.large_binary())
    distinct = values.dictionary_encode()  # classes are few
    texts = pa.array([label_text(value) for value in distinct.dictionary.to_pylist()], pa.string())
    return texts.take(distinct.indices)


def value_counts(labels: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Rows by value, without nulls."""
    pairs = pc.value_counts(labels).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs if pair["values"] is not None}


def sorted_values(values: Iterable[str]) -> list[str]:
    """Numbers by size when all are integers ("10" after "2"), else by text."""
    distinct = set(values)
    if all(value.removeprefix("-").isdecimal() and value.isascii() for value in distinct):
        return sorted(distinct, key=lambda value: (int(value), value))
    return sorted(distinct)


@dataclass(frozen=True)
class LabelMap:
    """Classes by the values of a label column.

    Attributes:
        names: class names in order of their label id.
        values: class name by canonical value; None leaves the value out.
    """

    names: tuple[str, ...]
    values: dict[str, str | None]

    @classmethod
    def from_config(
        cls, labels: Sequence[str] | Mapping[str, str | None] | None, seen_values: Iterable[str] = ()
    ) -> LabelMap:
        """From the config's `labels`, or without any from the canonical values seen in the data.

        Raises:
            DataRefused: no `labels`, and fewer than two values were seen, or an infinite number.
        """
        if labels is None:
            names = sorted_values(seen_values)
            endless = [name for name in names if name in _NOT_FINITE]
            if endless:
                raise DataRefused(
                    f"labels: expected finite numbers, found {_listed(endless)}.",
                    "Repair the data, or give `labels` with null for these values.",
                )
            if len(names) < 2:
                raise DataRefused(
                    f"labels: expected at least two classes, found {len(names)} ({_listed(names)}).",
                    "Give data with rows of every class, or set `columns.label` to the column that holds them.",
                )
            return cls(tuple(names), {name: name for name in names})
        if isinstance(labels, Mapping):
            names = list(dict.fromkeys(name for name in labels.values() if name is not None))
            return cls(tuple(names), dict(labels))
        return cls(tuple(labels), {name: name for name in labels})

    def ids(self, labels: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int32 [N]: the label id, or UNKNOWN, LEFT_OUT, NO_LABEL (all negative).

        Args:
            labels: canonical values, string [N].
        """
        id_of = {name: number for number, name in enumerate(self.names)}
        ids_V = np.array([LEFT_OUT if name is None else id_of[name] for name in self.values.values()], np.int32)
        known = pa.array(list(self.values), pa.string())
        where_N = pc.fill_null(pc.index_in(labels, value_set=known), -1).to_numpy(zero_copy_only=False)
        ids_N: np.ndarray = np.append(ids_V, np.int32(UNKNOWN))[where_N].astype(np.int32)
        ids_N[pc.is_null(labels).to_numpy(zero_copy_only=False)] = NO_LABEL
        return ids_N

    def unknown_values(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Rows by canonical value, of the values that are neither a class nor left out; sorted."""
        return {value: counts[value] for value in sorted_values(counts) if value not in self.values}

    def check(self, counts: Mapping[str, int], where: str, *, needs_all_classes: bool = True) -> None:
        """Refuse data with values that are no class, with fewer than two classes, or with more than MOST_CLASSES.

        Args:
            counts: rows by canonical value, as `value_counts` gives them.
            where: what the data is, for the message (`data.train`).
            needs_all_classes: also refuse when a class has no row, as training does; else two classes are enough.

        Raises:
            DataRefused: names the values, their counts and the remedy.
        """
        self.check_known(counts, where)
        if len(self.names) > MOST_CLASSES:
            raise DataRefused(
                f"{where}: expected at most {MOST_CLASSES:,} classes, found {len(self.names):,}.",
                "Is `columns.label` the column of the classes? If so, put rare ones together by `labels`.",
            )
        per_class = dict.fromkeys(self.names, 0)
        for value, count in counts.items():
            name = self.values[value]
            if name is not None:
                per_class[name] += count
        present = [name for name, count in per_class.items() if count]
        if len(present) < 2 or (needs_all_classes and len(present) < len(self.names)):
            wanted = f"rows of all of {_listed(self.names)}" if needs_all_classes else "rows of two classes at least"
            raise DataRefused(
                f"{where}: expected {wanted}, found {_counted(per_class)}.",
                "Give data that has them, or correct `labels` and `columns.label`.",
            )

    def check_known(self, counts: Mapping[str, int], where: str) -> None:
        """Refuse data with values that are no class, as `check` does, whatever the number of classes.

        Raises:
            DataRefused: as `check`.
        """
        unknown = self.unknown_values(counts)
        if unknown:
            raise DataRefused(
                f"{where}: expected label values {_listed(self.values)}, found "
                f"{counted(sum(unknown.values()), 'row')} with "
                f"others: {_counted(unknown)}.",
                f"Give every value a class name (null leaves it out): `{self._remedy(unknown)}`.",
            )

    def _remedy(self, unknown: Iterable[str]) -> str:
        """A `labels` setting that would do: the classes there are, given to the new values in their order."""
        fresh = sorted_values(unknown)
        if list(self.values) == list(self.names) and len(fresh) == len(self.names):
            meant: dict[str, str | None] = dict(zip(fresh, self.names, strict=True))
        else:
            meant = {**self.values, **{value: f"class_{value}" if value.isdecimal() else value for value in fresh}}
        return setting("labels", meant)

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "values": dict(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelMap:
        return cls(tuple(data["names"]), dict(data["values"]))


def check_values(counts: Mapping[str, int], column: str, where: str) -> list[str]:
    """Values that become classes because no `labels` name them, seen for those that are none.

    Args:
        counts: rows by canonical value.
        column: that holds them.
        where: what the data is, for the messages.

    Returns:
        A sentence for each value of fewer than five rows beside one of twenty times as many: maybe a slip of the pen.

    Raises:
        DataRefused: a value is the name of the column, as the header of a file put together with others is, or most of
            many values stand in one row alone.
    """
    named = [value for value in counts if value.strip().casefold() == column.strip().casefold()]
    if named:
        others = [value for value in sorted_values(counts) if value not in named]
        raise DataRefused(
            f"{where}: expected classes in column {column!r}, found its own name as a value in "
            f"{counted(sum(counts[value] for value in named), 'row')}.",
            "Take these rows out (a header that stands again?), or leave them out: "
            f"`{setting('labels', {**{value: value for value in others}, **dict.fromkeys(named)})}`."
            if len(others) > 1
            else "Set `columns.label` to the column that holds the classes.",
        )
    once = sum(count == 1 for count in counts.values())
    if len(counts) > _MANY_VALUES and 2 * once > len(counts):
        raise DataRefused(
            f"{where}: expected classes in column {column!r}, found {len(counts):,} values, {once:,} of them in one "
            "row alone, as ids and texts are.",
            "Set `columns.label` to the column that holds the classes, or name them as `labels`.",
        )
    most = max(counts.values(), default=0)
    rare = [
        value for value in sorted_values(counts) if counts[value] < _FEW_ROWS and _MUCH_LARGER * counts[value] <= most
    ]
    common = [value for value in counts if value not in rare]
    return [
        f"{where}: the class {value!r} has {counted(counts[value], 'row')}."
        f"{did_you_mean(value, common)} `labels` names the classes, and null leaves a value out."
        for value in rare
    ]


def _listed(values: Iterable[str]) -> str:
    shown = [value[:40] for value in values]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "") or "none"


def _counted(counts: Mapping[str, int]) -> str:
    return _listed([f"{value[:40]} ({count:,})" for value, count in counts.items()])


def label_map(labels: Sequence[str] | Mapping[str, str | None] | None, of_model: LabelMap) -> LabelMap:
    """Label map of an input: that of the config, else that of the model's training.

    Raises:
        ConfigError: the config names a class that the model does not have.
    """
    if labels is None:
        return of_model
    found = LabelMap.from_config(labels)
    strangers = [name for name in found.names if name not in of_model.names]
    if strangers:
        raise ConfigError(
            f"labels: expected classes of the model ({', '.join(of_model.names)}), found {', '.join(strangers)}.",
            "Map the values of the input to the model's classes.",
        )
    return found
