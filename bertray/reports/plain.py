"""Data made fit to show: plain JSON values, text without control characters, contact data masked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

MAX_TEXT_CHARS = 300
# Control characters, marks that turn the direction of text or hide in it, and lone surrogates that no encoder takes.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
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
        return _UNSEEN.sub("", value)
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


def visible(text: str) -> str:
    """`text` without control characters and lone surrogates."""
    return _UNSEEN.sub("", text)


def excerpt(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """The start of a review for a page: one line; e-mails, phone, card and account numbers masked."""
    line = _SPACES.sub(" ", visible(text)).strip()
    line = _EMAIL.sub("[e-mail]", line)
    line = _IBAN.sub("[account]", line)
    line = _NUMBER.sub(_masked_number, line)
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"


def _masked_number(match: re.Match[str]) -> str:
    if _YEARS.fullmatch(match.group()):
        return match.group()
    return "[card]" if 13 <= sum(letter.isdigit() for letter in match.group()) <= 19 else "[phone]"
