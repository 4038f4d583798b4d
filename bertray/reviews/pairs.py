"""A review and its second text as one text, for whatever counts words."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

SEPARATOR = " · "


def as_one_text(texts: Any, pairs: Any = None) -> list[str]:
    """Each text with its second text behind it, where there is one.

    Args:
        texts: string [N], `pa.Array` or `pa.ChunkedArray`, without nulls.
        pairs: the second texts, or None; a null stands for a review without one.
    """
    whole: list[str] = (
        texts if pairs is None else pc.binary_join_element_wise(texts, pairs, SEPARATOR, null_handling="skip")
    ).to_pylist()
    return whole
