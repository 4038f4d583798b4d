"""YAML 1.2, read and written in one place: config files, values of overrides, resolved configs, model cards.

Plain words mean what the core schema of YAML 1.2 says: `no`, `on` and dates are text, 5e-5 is a number. Numbers that
YAML 1.1 and 1.2 read differently (007, 1_000, 1:30) are text. Words that YAML 1.1 would read as something else are
written in quotes, so that older readers see the same.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

MAX_VALUES = 100_000  # of one document; aliases of aliases multiply (a "billion laughs")

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOLEANS = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = (
    (re.compile(r"[-+]?(0|[1-9][0-9]*)"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, 16)),
    (re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), lambda text: WrittenFloat(text)),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", "", 1))),
)
_TAG = "tag:yaml.org,2002:"
# Plain in YAML 1.1 and 1.2 alike, between brackets too; and the words of YAML 1.1 among them that are no text.
_PLAIN = re.compile(r"(?:[^\W\d_]|\.{0,2}/)[\w./-]*")
_WORDS_OF_YAML_1_1 = re.compile(r"y|n|yes|no|on|off|true|false|null", re.IGNORECASE)


class YamlError(ValueError):
    """Text that is no YAML, or YAML that a config cannot hold.

    Attributes:
        problem: the fault, in the words of the parser.
        line: line of the text, from 1; None where the fault has no place.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


class WrittenFloat(float):
    """A number with its spelling, for keys that hold text: the slot `1.10` is not `1.1`."""

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def read_yaml(text: str) -> Any:
    """The value of a document of YAML: dicts, lists, str, int, float, bool, None.

    Raises:
        YamlError: not YAML, several documents, a key that stands twice or is a list or a mapping, an unknown tag, more
            than `MAX_VALUES` values, or values nested too deeply to be read.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    parser: Any = YAML(typ="safe", pure=True)
    parser.composer.warn_double_anchors = False  # an anchor may be set again
    try:
        node = parser.compose(text)
        return None if node is None else _Reader().value(node)
    except RecursionError:
        raise YamlError("values nested too deeply, or within themselves") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (error.problem or "not readable").removeprefix("but ")
        raise YamlError(problem, mark and mark.line + 1) from error
    except YAMLError as error:  # characters that no YAML holds
        raise YamlError(str(error).splitlines()[0]) from error


class _Reader:
    """Nodes of ruamel.yaml to values."""

    def __init__(self) -> None:
        self._num_values = 0

    def value(self, node: Any) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES:,} values")
        kind = str(node.tag).removeprefix(_TAG)
        if node.id == "sequence" and kind == "seq":
            return [self.value(item) for item in node.value]
        if node.id == "mapping" and kind == "map":
            return self._mapping(node)
        if node.id == "scalar" and kind in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value"):
            return node.value if kind == "str" or node.style else _plain(node)
        raise YamlError(f"a tag that no config has, {node.tag}", node.start_mark.line + 1)

    def _mapping(self, node: Any) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.id != "scalar":
                raise YamlError(f"expected a word as key, found a {key_node.id}", line)
            if key_node.value == "<<" and not key_node.style:
                merged |= self._merged(value_node, line)
                continue
            key = self.value(key_node)
            if key in found:
                raise YamlError(f"key {key!r} stands twice", line)
            found[key] = self.value(value_node)
        return merged | found

    def _merged(self, node: Any, line: int) -> dict[Any, Any]:
        """Keys of `<<: *anchor` or `<<: [*first, *second]`; the first that has a key gives its value."""
        values = self.value(node)
        sources = values if isinstance(values, list) else [values]
        if not all(isinstance(source, dict) for source in sources):
            raise YamlError("expected keys and values to merge below '<<'", line)
        merged: dict[Any, Any] = {}
        for source in reversed(sources):
            merged |= source
        return merged


def _plain(node: Any) -> Any:
    """A word without quotes, by the core schema of YAML 1.2."""
    text = node.value
    if _NULL.fullmatch(text):
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    for pattern, number in _NUMBERS:
        if pattern.fullmatch(text):
            try:
                return number(text)
            except ValueError as error:  # thousands of digits
                raise YamlError("a number of too many digits", node.start_mark.line + 1) from error
    return text


def write_yaml(data: Mapping[str, Any]) -> str:
    """A mapping as a block of YAML that `read_yaml` reads back, one key a line, in the order of the mapping."""
    return _written(data, flow=False)


def yaml_word(value: Any) -> str:
    """A value in one line that `read_yaml` reads back, alone, after `key: ` and between brackets."""
    return _written({"k": value}, flow=True).strip().removeprefix("{k: ").removesuffix("}")


def escaped(value: Any) -> Any:
    """A value of a config whose texts mean themselves: `${HOME}` becomes `\\${HOME}`, since `${` begins a reference."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, Mapping):
        return {str(key): escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list | tuple) else value


def _written(value: Any, *, flow: bool) -> str:
    from ruamel.yaml import YAML

    writer: Any = YAML(typ="safe", pure=True)
    writer.Representer = _representer()
    writer.default_flow_style, writer.allow_unicode, writer.width = flow, True, 1 << 30
    writer.sort_base_mapping_type_on_output = False
    out = io.StringIO()
    writer.dump(value, out)
    return out.getvalue()


@lru_cache(maxsize=1)
def _representer() -> Any:
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        """Values without anchors; text in quotes unless YAML 1.1 and 1.2 read the bare word as this text."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

        def text(self, data: str) -> Any:
            is_plain = _PLAIN.fullmatch(data) and not _WORDS_OF_YAML_1_1.fullmatch(data)
            return self.represent_scalar(f"{_TAG}str", data, style=None if is_plain else '"')

        def number(self, data: float) -> Any:
            if not math.isfinite(data):
                return self.represent_float(data)
            digits, e, exponent = repr(float(data)).partition("e")  # YAML 1.1 reads 5e-05 as text, 5.0e-05 as a number
            return self.represent_scalar(f"{_TAG}float", (digits if "." in digits else f"{digits}.0") + e + exponent)

        def sequence(self, data: Any) -> Any:
            return self.represent_sequence(f"{_TAG}seq", data)

    Representer.add_representer(str, Representer.text)
    Representer.add_representer(float, Representer.number)
    Representer.add_representer(WrittenFloat, Representer.number)
    Representer.add_representer(tuple, Representer.sequence)
    return Representer
