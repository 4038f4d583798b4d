"""Data made fit to show: plain JSON values, text without control characters, contact data masked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bertray.wording import UNSEEN
from bertray.wording import visible as visible

MAX_TEXT_CHARS = 300
MAX_WORD_CHARS = 40
MAX_VALUE_CHARS = 60
_SPACES = re.compile(r"\s+")
# Every repeat is bounded or cannot overlap its neighbour, so that no text makes these slow.
_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}\s?[@＠]\s?[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_NUMBER = re.compile(r"(?:\+|\(\+?|00)?\d(?:[\s().\-‐-―/·]{0,3}\d){6,}")
_YEARS = re.compile(r"(?:19|20)\d\d\s?[\s/\-‐-―]\s?(?:19|20)\d\d")


def plain(value: Any) -> Any:
    """The same data as JSON types; dataclasses and mappings become dicts, NaN and infinity become null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return visible(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    return plain(str(value))


def json_bytes(content: Any) -> bytes:
    """JSON as the files of an output hold it: UTF-8, a value a line."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def short(value: str, max_chars: int = MAX_VALUE_CHARS) -> str:
    """A value of a column in a sentence of a page, log or message: one line, its e-mail addresses masked."""
    return _cut(_EMAIL.sub("[e-mail]", _SPACES.sub(" ", visible(value))).strip(" "), max_chars)


def value_told(value: str | None) -> str:
    """A value of a column in a few words, with a dash for none."""
    return short(value or "") or "–"


def excerpt(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """The start of a review for a page: one line; e-mails, phone, card and account numbers masked."""
    line = text
    for pattern, put in _STEPS:
        line = pattern.sub(put, line)
    return _cut(line.strip(" "), max_chars)


def _cut(line: str, max_chars: int) -> str:
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"


class Mark(NamedTuple):
    """A word of a review that decides.

    Args:
        start, end: characters of the review.
        change: fall of a probability when the word is left out.
        kind: class of the style sheet.
    """

    start: int
    end: int
    change: float
    kind: str


class ShownWord(NamedTuple):
    """A marked word as the page shows it."""

    word: str
    change: float
    kind: str


@dataclass(frozen=True)
class MarkedExcerpt:
    """An excerpt in which words are marked.

    Args:
        parts: (text, kinds of the marks on it), end to end the excerpt; a part without a mark has no kind.
        words: marked ones, also those behind the end of the excerpt; masked ones are left out.
    """

    parts: tuple[tuple[str, str], ...]
    words: tuple[ShownWord, ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


def marked_excerpt(text: str, marks: Sequence[Mark] = (), max_chars: int = MAX_TEXT_CHARS) -> MarkedExcerpt:
    """`excerpt` of a review with marks on some of its words."""
    line, places = text, list(range(len(text)))  # places: of each character of the line in the text; -1: put there
    for pattern, put in _STEPS:
        line, places = _substituted(pattern, put, line, places)
    skipped = len(line) - len(line.lstrip(" "))
    line = line.strip(" ")
    places = places[skipped : skipped + len(line)]
    shown = _cut(line, max_chars)
    kept = len(line) if shown == line else len(shown) - 1
    kinds: list[tuple[str, ...]] = [()] * len(shown)
    words = []
    for mark in marks:
        at = [n for n, place in enumerate(places) if mark.start <= place < mark.end]
        if at:
            word = _cut("".join(line[n] for n in at), MAX_WORD_CHARS)
            words.append(ShownWord(word, mark.change, mark.kind))
        for n in at:
            if n < kept and mark.kind not in kinds[n]:
                kinds[n] = (*kinds[n], mark.kind)
    bounds = [n for n in range(len(shown) + 1) if n in (0, len(shown)) or kinds[n] != kinds[n - 1]]
    return MarkedExcerpt(tuple((shown[lo:hi], " ".join(kinds[lo])) for lo, hi in pairwise(bounds)), tuple(words))


def _substituted(
    pattern: re.Pattern[str], put: str | Callable[[re.Match[str]], str], line: str, places: list[int]
) -> tuple[str, list[int]]:
    """`pattern.sub` that knows where each character came from."""
    pieces, kept, end = [], [], 0
    for match in pattern.finditer(line):
        new = put if isinstance(put, str) else put(match)
        pieces += [line[end : match.start()], new]
        kept += places[end : match.start()]
        kept += places[match.start() : match.end()] if new == match.group() else [-1] * len(new)
        end = match.end()
    return "".join([*pieces, line[end:]]), [*kept, *places[end:]]


def _masked_number(match: re.Match[str]) -> str:
    if _YEARS.fullmatch(match.group()):
        return match.group()
    return "[card]" if 13 <= sum(letter.isdigit() for letter in match.group()) <= 19 else "[phone]"


_STEPS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (UNSEEN, ""),
    (_SPACES, " "),
    (_EMAIL, "[e-mail]"),
    (_IBAN, "[account]"),
    (_NUMBER, _masked_number),
)
