"""Marks of damage or mark-up in stored texts (control characters, tags, links), before cleaning removes them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.reviews.clean import ENTITY_PATTERN, TAG_PATTERN

# Each stands in a bit of `marks_of`, in this order. RE2 syntax.
MARKS = {
    "control_characters": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]",
    "replacement_character": "\ufffd",
    "html_tags": f"(?i){TAG_PATTERN}",
    "html_entities": ENTITY_PATTERN,
    "links": r"(?i)\bhttps?\b|\bwww\.|\bhref\b",
    "e_mail_addresses": r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+\.[A-Za-z]",
    "line_breaks": "[\r\n]",
}
DAMAGE = ("control_characters", "replacement_character")  # the marks that no text should have


def marks_of(texts: pa.Array) -> np.ndarray:
    """Marks that stand in each text, as bits.

    Args:
        texts: string [N] as stored, before cleaning.

    Returns:
        uint16 [N]; bit k is the k-th of MARKS. A null has none.
    """
    found_N = np.zeros(len(texts), np.uint16)
    for bit, pattern in enumerate(MARKS.values()):
        has_N = pc.fill_null(pc.match_substring_regex(texts, pattern), False).to_numpy(zero_copy_only=False)
        found_N |= has_N.astype(np.uint16) << np.uint16(bit)
    return found_N


def bits(marks: Iterable[str]) -> np.uint16:
    """The bits of some of MARKS, set."""
    return np.uint16(sum(1 << list(MARKS).index(mark) for mark in marks))
