"""Descriptions of configs for people: help of keys, wrong keys explained, JSON schema, YAML of a resolved config."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bertray.config.commands import CONFIGS
from bertray.config.values import A_NUMBER, ONE_COLUMN, SEVERAL_COLUMNS, Section
from bertray.wording import counted
from bertray.yaml_text import escaped, write_yaml, yaml_word

MAX_CHARS = 200  # of a wrong value, in a message


def field_of(config: type[Section], dotted: str) -> FieldInfo | None:
    """Field of a dotted key, such as `training.epochs`; None where the config has no such key."""
    model: Any = config
    field: FieldInfo | None = None
    for part in dotted.split("."):
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Section) else None
        if field is None:
            return None
        model = field.annotation
    return field


def flag_as_key(verb: str, flag: str) -> str:
    """` Did you mean 'training.epochs'?` for `--epochs`, or an empty string."""
    where = flag.lstrip("-").partition("=")[0].replace("-", "_").split(".")
    config = CONFIGS[verb]
    full = ".".join(where)
    return f" Did you mean {full!r}?" if full in keys(config) else _suggest(config, where)


def explained(config: type[Section], item: Any) -> str:
    """Sentence on one error of pydantic: the key, what was expected and what was found."""
    kinds = ("tuple[str, ...]", "dict[str,nullable[str]]", A_NUMBER, ONE_COLUMN, SEVERAL_COLUMNS)
    where = [str(part) for part in item["loc"] if part not in kinds]
    key = ".".join(where)
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        if "." in where[-1]:
            return f"{key}: no such key. Write it as a key below {where[-1].partition('.')[0]!r}."
        return f"{key}: no such key.{_suggest(config, where)}"
    if item["type"] == "missing":
        return f"{key}: missing, and it has no default ({_description(config, where)})."
    message = _expected(item, f"{key}.{next(iter(fields_at(config, where)), 'key')}")
    if not where:
        return f"{message}."
    message += ", or auto" if A_NUMBER in item["loc"] else ""
    text = repr(value)
    found = {"None": "nothing", "''": "nothing"}.get(text, text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…")
    return f"{key}: {message}." if isinstance(value, Mapping) else f"{key}: {message}, found {found}."


def _expected(item: Any, key_below: str) -> str:
    """`expected a whole number`, of what pydantic says of a value."""
    limits = item.get("ctx", {})
    words = {
        "int_parsing": "a whole number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "model_type": f"keys below it, such as {key_below}",
        "dict_type": "keys and values",
        "string_too_short": "a value",
        "too_short": f"{limits.get('min_length')} or more",
        "literal_error": str(limits.get("expected")),
        "greater_than_equal": f"{limits.get('ge')} or more",
        "greater_than": f"more than {limits.get('gt')}",
        "less_than_equal": f"{limits.get('le')} or less",
        "less_than": f"less than {limits.get('lt')}",
        "string_too_long": f"at most {counted(limits.get('max_length', 0), 'character')}",
    }.get(item["type"])
    return f"expected {words}" if words else str(item["msg"]).removeprefix("Value error, ")


def fields_at(config: type[Section], path: Sequence[str]) -> dict[str, FieldInfo]:
    """Keys of a section of a config with their fields; none where there is no such section."""
    section: Any = config
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        section = field and field.annotation
    return dict(getattr(section, "model_fields", {}))


# Names that other tools give to our keys, and usual short forms; the first key that the verb has is suggested.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("training.learning_rate",),
    "bs": ("training.batch_size",),
    "train_batch_size": ("training.batch_size",),
    "num_train_epochs": ("training.epochs",),
    "per_device_train_batch_size": ("training.batch_size",),
    "dropout": ("training.attention_dropout",),
    "patience": ("training.early_stopping_patience",),
    "warmup": ("training.warmup_ratio",),
    "warmup_steps": ("training.warmup_ratio",),
    "wd": ("training.weight_decay",),
    "max_len": ("max_length",),
    "max_seq_length": ("max_length",),
    "model_name_or_path": ("model",),
    "train_file": ("data.train",),
    "val": ("data.validation",),
    "dev": ("data.validation",),
    "eval": ("data.validation",),
    "eval_file": ("data.validation",),
    "validation_file": ("data.validation",),
    "test_file": ("data.test",),
    "data": ("input",),
    "input": ("data.train",),
    "input_path": ("input", "data.train"),
    "out": ("output",),
    "text_column": ("columns.text",),
    "label_column": ("columns.label",),
    "id_column": ("columns.id",),
    "gpu": ("workers.use_gpu",),
    "gpus": ("workers.use_gpu",),
    "num_gpus": ("workers.use_gpu",),
    "device": ("workers.use_gpu",),
    "fp16": ("precision", "training.precision"),
    "bf16": ("precision", "training.precision"),
    "int8": ("precision",),
    "quantize": ("precision",),
    "sep": ("reader.delimiter",),
    "threshold": ("needs_review_below",),
    "keep": ("keep_columns",),
}
_ALIKE, _ALIKE_ELSEWHERE = 0.6, 0.75  # ratios of difflib, in the section of the key and in others


def _suggest(config: type[Section], where: list[str]) -> str:
    """` Did you mean 'training.learning_rate'?` for a key that is not there, or an empty string.

    The key that other tools call so, else the likest one, of this section sooner than of another.
    """
    *section, word = where
    full, prefix = keys(config), ".".join([*section, ""])
    known = [key for key in SYNONYMS.get(word.lower(), ()) if key in full]
    if not known:
        here = {f"{prefix if section else ''}{name}" for name in fields_at(config, section)}
        likeness = {}
        for key in dict.fromkeys([*here, *full]):
            ratio = difflib.SequenceMatcher(None, word, key.split(".")[-1]).ratio()
            if ratio >= (_ALIKE if key in here else _ALIKE_ELSEWHERE):
                likeness[key] = ratio + (0.1 if section else 0.05) * (key in here)
        known = sorted(likeness, key=lambda key: (-likeness[key], key))
    return f" Did you mean {known[0]!r}?" if known else ""


def _description(config: type[Section], where: list[str]) -> str:
    field = fields_at(config, where[:-1]).get(where[-1])
    return (field and field.description) or "required"


def keys(config: type[Section], prefix: str = "") -> list[str]:
    """Every dotted key of a config, in the order of its definition."""
    found: list[str] = []
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += keys(field.annotation, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def choices(config: type[Section], key: str) -> list[str]:
    """Values that a key may have, where these are few words: `auto`, `finetune`; `true`, `false`. Else none."""
    field = field_of(config, key)
    return [] if field is None else list(dict.fromkeys(_words_of(field.annotation)))


def _words_of(kind: Any) -> list[str]:
    """Words of the literals and truth values in a type."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [yaml_word(word) for word in get_args(kind)]
    return [word for inner in get_args(kind) for word in _words_of(inner)]


def key_help(config: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, description) of every key, for `--help`."""
    rows: list[tuple[str, str, str]] = []
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += key_help(field.annotation, f"{prefix}{name}.")
            continue
        shown = "required" if field.is_required() else _shown(field.get_default())
        rows.append((f"{prefix}{name}", shown, field.description or ""))
    return rows


def _shown(value: Any) -> str:
    """A default as people write it: 5e-5, [a, b], {low: 1, high: 2}."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, float) and value and not math.isinf(value) and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return value if isinstance(value, str) else yaml_word(value)


def to_yaml(config: Section, exclude: Collection[str] = ()) -> str:
    """The fully resolved config as YAML that `-c` reads back to an equal config.

    `columns.text` that nobody stated is left out beside a `model`, which says then which columns it reads; what learns
    from `data` makes that model.

    Args:
        exclude: keys at the top that are left out.
    """
    values = config.model_dump(mode="json", exclude=set(exclude))
    columns = getattr(config, "columns", None)
    of_model = "model" in values and "data" not in values
    if of_model and columns is not None and "columns" in values and "text" not in columns.model_fields_set:
        del values["columns"]["text"]
    return write_yaml(escaped(values))


def identity_of(config: Section, leave_out: Iterable[str] = (), new: Iterable[str] = ()) -> dict[str, Any]:
    """The part of a config that decides the result of a run; where and how fast is left out.

    Args:
        leave_out: further dotted keys that do not.
        new: dotted keys that came later: left out at their default, so that runs of before are what they were.
    """
    identity = config.model_dump(mode="json", exclude={"mlflow", "output", "price_per_hour", "registry", "workers"})
    for key in (*leave_out, *(key for key in new if _is_default(config, key))):
        *path, name = key.split(".")
        reduce(getitem, path, identity).pop(name, None)
    return identity


def _is_default(config: Section, key: str) -> bool:
    field = field_of(type(config), key)
    return field is not None and reduce(getattr, key.split("."), config) == field.get_default()


def json_schema(verb: str) -> dict[str, Any]:
    """JSON schema of one command's config, for editors."""
    return CONFIGS[verb].model_json_schema()
