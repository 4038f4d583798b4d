"""Files and `key.sub=value` overrides, merged into one checked config.

Sources are applied in order: `-c a.yaml`, `-c b.yaml`, then the overrides. Mappings merge key by key, except
`labels` and `columns` as a whole: those, and every list, replace what an earlier source said.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bertray.config.commands import CONFIGS, TrainConfig
from bertray.config.describe import explained, field_of
from bertray.config.values import COLUMN_LIST, PATH_LIST, Section
from bertray.config.yaml_loader import parse_yaml, read_file, with_environment
from bertray.errors import ConfigError
from bertray.paths import local_path
from bertray.wording import setting

MAX_ERRORS = 20  # of a config, told in one message


def _keeps_raw_text(field_type: Any) -> bool:
    """True for keys whose override is always text (paths, slots, models)."""
    members = get_args(field_type) if get_origin(field_type) in (Union, UnionType) else (field_type,)
    members = tuple(get_args(m)[0] if get_origin(m) is Annotated else m for m in members)
    return any(m is str for m in members) and not any(m in (int, float, bool) for m in members)


def _is_paths(field: FieldInfo) -> bool:
    """True for keys of one text or a list of them: paths, columns."""
    members = get_args(field.annotation)  # of `Paths | None`
    marks = [mark for metadata in (field.metadata, *(get_args(member) for member in members)) for mark in metadata]
    return PATH_LIST in marks or COLUMN_LIST in marks


def _override(config: type[Section], word: str) -> tuple[list[str], Any]:
    key, equals, raw = word.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"{word!r}: expected key=value, found no {'key' if equals else '='}.", _as_key(config, word))
    field = field_of(config, key)
    if field is None:
        return key.split("."), parse_yaml(raw, key)
    if _is_paths(field) and (items := _list_items(raw)) is not None:
        return key.split("."), [_list_item(item, key) for item in items]
    # `*.csv`, `@x`, `[ab]*.csv` and a folder called 2026 are paths, not what YAML makes of them.
    if _is_paths(field) or _keeps_raw_text(field.annotation):
        return key.split("."), None if raw in ("null", "~") else _unquote(raw)
    return key.split("."), parse_yaml(raw, key)


def _check_in_one_piece(config: type[Section], words: Sequence[str]) -> None:
    """Refuse `labels={0: no, 1: yes}` that a shell has split at its spaces, since there were no quotes.

    Args:
        words: the rest of a command line.

    Raises:
        ConfigError: shows the setting as it has to be typed.
    """
    key, _, raw = words[0].partition("=")
    closing = {"{": "}", "[": "]"}.get(raw[:1])
    if closing is None or raw.count(raw[0]) <= raw.count(closing):
        return
    together = [raw]
    for word in words[1:]:
        if "=" in word and field_of(config, word.partition("=")[0]) is not None:
            return
        together.append(word)
        if " ".join(together).count(closing) >= " ".join(together).count(raw[0]):
            whole = shlex.quote(f"{key}={' '.join(together)}")
            raise ConfigError(
                f"{words[0]!r}: expected a value that ends in {closing}, found one that the shell split at its spaces.",
                f"Put it in quotes: `{whole}`.",
            )


def _as_key(config: type[Section], word: str) -> str:
    """The remedy for a word of a command line that is no `key=value`."""
    if field_of(config, word) is not None:
        return f"Write `{word}=VALUE`, without spaces around the equals sign."
    if word.endswith((".yaml", ".yml")) and local_path(word).is_file():
        return f"Name a config by its flag: `-c {shlex.quote(word)}`."
    key = next((key for key in ("data.train", "input", "data") if field_of(config, key) is not None), None)
    if key is not None and local_path(word).exists():
        return f"Name the data by its key: `{setting(key, word)}`."
    return "Settings are keys, for example `output=FOLDER`; the only flags are -c, -v, --help and --version."


def _unquote(raw: str) -> str:
    return raw[1:-1] if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "\"'" else raw


_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'""")


def _list_items(raw: str) -> list[str] | None:
    """Items of `[a, b]`, as they were written; None where the brackets belong to a path (`[ab]*.[ch]`).

    A comma inside quotes, brackets or braces separates nothing.
    """
    if not (raw.startswith("[") and raw.endswith("]")):
        return None
    inside, at, depth, items = raw[1:-1], 0, 0, [""]
    while at < len(inside):
        quoted = None if items[-1].strip() else _QUOTED.match(inside, at)
        piece = quoted.group() if quoted else inside[at]
        at += len(piece)
        if piece == "," and depth == 0:
            items.append("")
            continue
        items[-1] += piece
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece, 0)
        if depth < 0:
            return None
    if not items[-1].strip():  # `[]` and `[a, ]`
        items.pop()
    return [item.strip() for item in items] if depth == 0 else None


def _list_item(item: str, key: str) -> str:
    if not item.startswith(('"', "'")):
        return item
    value = parse_yaml(item, key)
    if not isinstance(value, str):
        raise ConfigError(f"{key}: expected a quoted path, found {item}.", "Put quotes around the whole of it.")
    return value


def _merge(base: dict[str, Any], new: Mapping[str, Any], top: bool = True) -> dict[str, Any]:
    merged = dict(base)
    for key, value in new.items():
        replaces = top and key in ("labels", "columns")
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and not replaces:
            merged[key] = _merge(merged[key], value, top=False)
        else:
            merged[key] = value
    return merged


def _set_key(data: dict[str, Any], path: list[str], value: Any, word: str) -> None:
    for part in path[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{word!r}: {part!r} already has the value {inner!r}, so it has no key below it.")
        data[part] = inner = dict(inner)
        data = inner
    data[path[-1]] = value


def load_config(verb: str, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Section:
    """Resolve one command's config.

    Args:
        verb: a key of `CONFIGS`.
        files: YAML files in order; later ones win.
        overrides: `key.sub=value` words in order, after the files.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has another type.
    """
    return build_config(verb, load_values(verb, files, overrides))


def load_values(
    verb: str, files: Sequence[str] = (), overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The mapping that `build_config` checks: files, then overrides, then values of Python as they are.

    Raises:
        ConfigError: a file is missing or not YAML, or an override is not `key=value`.
    """
    config = CONFIGS[verb]
    data: dict[str, Any] = {}
    for path in files:
        data = _merge(data, read_file(path))
    for at, word in enumerate(overrides):
        _check_in_one_piece(config, overrides[at:])
        path_parts, value = _override(config, word)
        if len(path_parts) == 1 and isinstance(value, Mapping):
            data = _merge(data, {path_parts[0]: value})
        else:
            _set_key(data, path_parts, value, word)
    return _merge(with_environment(data), values or {})


def build_config(verb: str, data: Mapping[str, Any]) -> Section:
    """Check a plain mapping against the command's config.

    Raises:
        ConfigError: names the wrong keys, one a line, each with what was expected.
    """
    config = CONFIGS[verb]
    try:
        return config.model_validate(data)
    except ValidationError as error:
        lines = [explained(config, item) for item in error.errors()[:MAX_ERRORS]]
        if error.error_count() > MAX_ERRORS:
            lines.append(f"{error.error_count() - MAX_ERRORS} more.")
        raise ConfigError(
            f"{verb} config: " + "\n  ".join(lines),
            f"`bertray {verb} --help` lists every key.",
        ) from error


def guess_verb(files: Sequence[str], overrides: Sequence[str]) -> str:
    """Verb that `plan` forecasts: train where data.* is set, score where input is.

    Raises:
        ConfigError: neither is set, or both are.
    """
    for at, word in enumerate(overrides):
        _check_in_one_piece(TrainConfig, overrides[at:])
        if "=" not in word:
            _override(TrainConfig, word)  # which refuses it
    named = {key for path in files for key in read_file(path)} | {re.split(r"[.=]", word)[0] for word in overrides}
    if ("data" in named or "training" in named) == ("input" in named):
        raise ConfigError(
            "plan: expected a train config (data.train) or a score config (input), found "
            + ("both." if "input" in named else "neither."),
            "Give the config of the command that you want to plan, such as `data.train=reviews.csv output=runs/first`.",
        )
    return "score" if "input" in named else "train"
