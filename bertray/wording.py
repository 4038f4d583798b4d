"""Parts of messages: settings and commands as a shell takes them, and counts with their noun."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml


def setting(key: str, value: Any) -> str:
    """`key=value` as it is pasted into a shell: read back as an override, `key` has this very value.

    Args:
        key: dotted key of a config.
        value: text (a path, a column), number, boolean, None, or a list or mapping of these.
    """
    return shlex.quote(f"{key}={_written(value)}")


def command(verb: str, *words: str, **values: Any) -> str:
    """`bertray VERB ...` in backticks, for a remedy.

    Args:
        words: files, and settings by `setting`, as they stand.
        values: keys at the top of the config with their values.
    """
    return f"`{' '.join(['bertray', verb, *words, *(setting(key, value) for key, value in values.items())])}`"


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 file`, `2 files`, `1,000 files`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def _written(value: Any) -> str:
    if isinstance(value, str):
        # A text key takes what stands there; null, quotes and brackets around it mean something else.
        bare = value not in ("", "null", "~") and value[0] not in "\"'[{"
        return (value if bare else f'"{value}"').replace("${", "\\${")
    return _in_yaml(value)


def _in_yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(str(key))}: {_in_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_in_yaml, value)) + "]"
    if isinstance(value, str):
        return _scalar(value.replace("${", "\\${"))
    return yaml.safe_dump(value).removesuffix("\n...\n").strip()


def _scalar(text: str) -> str:
    """A word as YAML reads it back: in double quotes unless it stands for itself, also between braces."""
    plain = yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
    if plain == text and re.fullmatch(r"[^\W\d]\w*", text):
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).strip()
