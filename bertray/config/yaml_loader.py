"""Config files and values of overrides, read as YAML 1.2 with errors that name the place; `${oc.env:NAME}` in them."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from bertray.errors import ConfigError, did_you_mean
from bertray.paths import local_path
from bertray.yaml_text import YamlError, read_yaml

MAX_CONFIG_BYTES = 1 << 20
_REFERENCE = re.compile(r"(?P<escape>\\?)\$\{(?:oc\.env:(?P<name>\w+)(?:,(?P<default>[^{}]*))?\})?")


def parse_yaml(text: str, where: str) -> Any:
    """The value that a text holds.

    Args:
        where: file or key that the text is from, for the message.

    Raises:
        ConfigError: the text is not YAML.
    """
    try:
        return read_yaml(text)
    except YamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{where}{line}: expected YAML, found: {error.problem}.", "Correct the syntax.") from error


def read_file(path: str) -> dict[str, Any]:
    """Keys and values of a config file; an empty file has none.

    Raises:
        ConfigError: no such file, larger than `MAX_CONFIG_BYTES`, not UTF-8, or no YAML of keys and values.
    """
    file = local_path(path)
    if not file.is_file():
        found, near = "expected a file, found a folder" if file.is_dir() else "no such file", ""
        with contextlib.suppress(OSError):
            near = "" if file.is_dir() else did_you_mean(file.name, [other.name for other in file.parent.iterdir()])
        raise ConfigError(f"-c {path}: {found}.{near}", "`bertray init DATA output=train.yaml` writes a config.")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"-c {path}: larger than {MAX_CONFIG_BYTES} bytes.", "A config is a page of YAML.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"-c {path}: expected UTF-8 text, found other bytes.", "Save it as UTF-8.") from error
    data = parse_yaml(text, path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else "text" if isinstance(data, str) else f"a {type(data).__name__}"
        raise ConfigError(f"-c {path}: expected YAML of keys and values, found {found}.", "Write `key: value`.")
    return data


def with_environment(value: Any) -> Any:
    """Values with `${oc.env:NAME}` and `${oc.env:NAME,default}` replaced in every text; `\\${` stands for `${`.

    Raises:
        ConfigError: the environment has no such variable, or `${` begins another expression.
    """
    if isinstance(value, dict):
        return {key: with_environment(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_environment(item) for item in value]
    return _REFERENCE.sub(_resolved, value) if isinstance(value, str) else value


def _resolved(reference: re.Match[str]) -> str:
    if reference["escape"]:
        return reference[0].removeprefix("\\")
    name = reference["name"]
    if name is None:
        raise ConfigError(
            f"config: expected ${{oc.env:NAME}}, found {reference.string!r}.", "Write `\\${` for a `${` that is text."
        )
    found = os.environ.get(name, reference["default"])
    if found is None:
        raise ConfigError(
            f"config: {reference[0]} does not resolve: the environment has no variable {name}.",
            f"Set it, or give a default: `${{oc.env:{name},default}}`.",
        )
    return found
