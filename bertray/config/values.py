"""Types of the values in a config, and the base of its sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from bertray.label_text import label_text
from bertray.settings import Auto
from bertray.yaml_text import WrittenFloat

SLOT_PATTERN = re.compile(r"^(?!\.+$)[A-Za-z0-9_.=-]{1,128}$")
MOMENT_PATTERN = re.compile(r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?)?$")


def _as_text(value: Any) -> Any:
    """Keep numbers and dates that a person wrote for a name (`columns.label=1`) as the text they wrote."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, WrittenFloat):
        return value.text
    return str(value) if isinstance(value, int | float | date) else value


def _path_list(value: Any) -> Any:
    """One path is a list of one. An empty one is refused: it would name the working directory."""
    paths = (value,) if isinstance(value, str | int | float) else value
    if isinstance(paths, list | tuple) and any(path == "" for path in paths):
        raise ValueError("an empty path; is a variable unset?")
    return paths


Text = Annotated[str, BeforeValidator(_as_text)]
PATH_LIST = BeforeValidator(_path_list)  # marks a key of paths
COLUMN_LIST = BeforeValidator(lambda names: names)  # marks a key of one column or several
Paths = Annotated[tuple[Text, ...], PATH_LIST]
Delimiter = Annotated[
    str, Field(min_length=1, max_length=1), BeforeValidator(lambda v: "\t" if v in ("\\t", "tab") else v)
]

Escape = Annotated[str, Field(max_length=1)]


ONE_COLUMN, SEVERAL_COLUMNS = "one column", "several columns"  # tags of the two forms of columns.text
TextColumns = Annotated[
    Annotated[Text, Tag(ONE_COLUMN)]
    | Annotated[tuple[Text, ...], COLUMN_LIST, Field(min_length=2), Tag(SEVERAL_COLUMNS)],
    Discriminator(lambda value: SEVERAL_COLUMNS if isinstance(value, list | tuple) else ONE_COLUMN),
]


class Section(BaseModel):
    """Base of every part of a config: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _auto_or_number(value: Any) -> str:
    return "auto" if value == "auto" else A_NUMBER


A_NUMBER = "a number"  # tag of the kind of a value that is not `auto`
_AutoTag = Annotated[Auto, Tag("auto")]
_IS_AUTO = Discriminator(_auto_or_number)
AutoCount = Annotated[_AutoTag | Annotated[int, Field(ge=1), Tag(A_NUMBER)], _IS_AUTO]
AutoRate = Annotated[_AutoTag | Annotated[float, Field(gt=0), Tag(A_NUMBER)], _IS_AUTO]
AutoShare = Annotated[_AutoTag | Annotated[float, Field(ge=0, lt=1), Tag(A_NUMBER)], _IS_AUTO]


def _labels(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(
            "expected a list of class names, or value: name pairs, such as 'labels=[negative, positive]' or "
            "'labels={0: negative, 1: positive}', in quotes on a command line"
        )
    if isinstance(value, Mapping):
        names: dict[Any, Any] = {}
        for written, name in value.items():
            key, name = _label_value(written), None if name is None else _class_name(name)
            if names.setdefault(key, name) != name:
                raise ValueError(f"gives the value {key!r} two names: {names[key]!r} and {name!r}")
        return names
    return tuple(_label_value(v) for v in value)


def _label_value(value: Any) -> Any:
    """A value of the data in the form in which labels are compared."""
    _label_word(value)
    return _not_empty(label_text(value))


def _class_name(value: Any) -> Any:
    name = _label_word(value)
    return _not_empty(name.strip()) if isinstance(name, str) else name


def _not_empty(text: str | None) -> str:
    if not text:
        raise ValueError("an empty label; rows without a label are left out anyway")
    return text


def _label_word(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        word = "null" if value is None else str(value).lower()
        found = "null, ~ or nothing" if value is None else word
        raise ValueError(f'YAML reads a class name as {value!r} ({found}); write it in quotes, like "{word}"')
    return _as_text(value)


Labels = Annotated[tuple[str, ...] | dict[str, str | None] | None, BeforeValidator(_labels)]


def _aspects(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError("expected a list of aspects, or aspect: label column pairs, such as [food, service]")
    names = [_aspect(name) for name in value]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or not names:
        raise ValueError(f"names an aspect twice: {twice[0]!r}" if twice else "an empty list of aspects")
    return dict(zip(names, map(_aspect, value.values()), strict=True)) if isinstance(value, Mapping) else tuple(names)


def _aspect(value: Any) -> Any:
    name = _label_word(value)
    name = name.strip() if isinstance(name, str) else name
    if not name:
        raise ValueError("an empty aspect")
    return name


AspectNames = Annotated[tuple[str, ...] | dict[str, str] | None, BeforeValidator(_aspects)]
