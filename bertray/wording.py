"""Parts of messages: settings and commands as a shell takes them, counts with their noun, and numbers, one way each."""

from __future__ import annotations

import re
import shlex
from typing import Any

from bertray.yaml_text import escaped, yaml_word

# Control characters, marks that turn the direction of text or hide in it, and lone surrogates that no encoder takes.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` without control characters and lone surrogates."""
    return UNSEEN.sub("", text)


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


def count(value: float) -> str:
    """`12,345`."""
    return f"{value:,.0f}"


def decimal(value: float) -> str:
    """`0.869`, with a true minus sign."""
    return f"{value + 0.0:.3f}".replace("-", "−")


def signed(difference: float) -> str:
    """`+0.012`, `−0.210`."""
    return f"{difference + 0.0:+.3f}".replace("-", "−")


def points(difference: float) -> str:
    """A difference of two shares in percentage points: `+1.6`."""
    return f"{100 * difference + 0.0:+.1f}".replace("-", "−")


def percent(share: float) -> str:
    """`86.9 %`; never rounded to 0 or 100 when it is neither."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """`6 s`, `8.2 s`, `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _written(value: Any) -> str:
    if isinstance(value, str):
        # A text key takes what stands there; null, quotes and brackets around it mean something else.
        bare = value not in ("", "null", "~") and value[0] not in "\"'[{"
        return str(escaped(value if bare else f'"{value}"'))
    return config_word(value)
