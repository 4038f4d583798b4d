"""Canonical text of a label value, as configs and data are compared: 1, 1.0 and "1" are one label."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)\.0+")


def label_text(value: Any) -> str | None:
    """Text of one value of a label column; None where it is no label.

    Args:
        value: text, bytes, number, boolean, date or None.

    Returns:
        Whole numbers without a fraction ("1.0" too: pandas writes a column of whole numbers with gaps so), "true" and
        "false", text without white space around it; None for None, NaN and blank text.
    """
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        is_whole = value == value // 1 and -(2**53) < value < 2**53
        return str(int(value)) if is_whole else str(value)
    text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()
    whole = _WHOLE_NUMBER.fullmatch(text)
    return (whole[1] if whole else text) or None
