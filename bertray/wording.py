"""Parts of messages: settings and commands as a shell takes them, and counts with their noun."""

from __future__ import annotations

import shlex
from typing import Any

from bertray.yaml_text import escaped, yaml_word


def setting(key: str, value: Any) -> str:
    """`key=value` as it is pasted into a shell: read back as an override, `key` has this very value.

    Args:
        key: dotted key of a config.
        value: text (a path, a column), number, boolean, None, or a list or mapping of these.
    """
    return shlex.quote(f"{key}={_written(value)}")


def config_word(value: Any) -> str:
    """A value in one line, as it stands behind `key: ` in a config file: read back, it is this very value."""
    return yaml_word(escaped(value))


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
        return str(escaped(value if bare else f'"{value}"'))
    return config_word(value)
