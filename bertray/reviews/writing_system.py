"""Dominant writing system of a text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OTHER = "other"
UNSPACED_SCRIPTS = ("han", "kana", "hangul")  # words are not separated, or change their endings: characters say more
# Letters, as a character class, of scripts whose words no space separates: Thai and Lao, Burmese, Khmer, kana, Han.
UNSPACED_LETTERS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_CLASSES = {
    "latin": r"\p{Latin}",
    "hangul": r"\p{Hangul}",
    "han": r"\p{Han}",
    "kana": r"[\p{Hiragana}\p{Katakana}]",
    "cyrillic": r"\p{Cyrillic}",
    "arabic": r"\p{Arabic}",
    "hebrew": r"\p{Hebrew}",
    "greek": r"\p{Greek}",
    "thai": r"\p{Thai}",
    "devanagari": r"\p{Devanagari}",
}


def dominant_script(texts: pa.Array) -> pa.Array:
    """The script with most letters in each text; a tie goes to the first of latin, hangul, han, kana, ...

    Args:
        texts: string [N].

    Returns:
        string [N]; `other` without a letter of a known script; null where the text is null.
    """
    names = np.array([*_CLASSES, OTHER])
    found_N = np.full(len(texts), len(_CLASSES), dtype=np.int8)
    valid_N = texts.is_valid().to_numpy(zero_copy_only=False)
    ascii_N = pc.fill_null(pc.string_is_ascii(texts), True).to_numpy(zero_copy_only=False)
    has_letter_N = pc.fill_null(pc.match_substring_regex(texts, "[A-Za-z]"), False).to_numpy(zero_copy_only=False)
    found_N[ascii_N & has_letter_N] = 0
    rest = np.flatnonzero(~ascii_N)
    if len(rest):
        some = texts.take(pa.array(rest))
        counts_CR = np.stack([pc.count_substring_regex(some, pattern).to_numpy() for pattern in _CLASSES.values()])
        found_N[rest] = np.where(counts_CR.max(axis=0) > 0, counts_CR.argmax(axis=0), len(_CLASSES))
    return pa.array(names[found_N], pa.string(), mask=~valid_N)
