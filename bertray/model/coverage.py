"""Share of a text that a tokenizer can read: letters in words that it knows or cuts into pieces of some length.

Shape letters: R texts, U characters of all texts end to end, T tokens, W words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertray.schema import LATIN_TOKENS, LATIN_WORDS, LETTERS, LETTERS_UNREAD

MAX_CHARS = 256  # of a text that are looked at: the rest is hardly written otherwise
SHORT_PIECE = 1.5  # letters of a token, on average, up to which a word in an alphabet is spelled rather than read
UNREAD = 0.25  # share of letters above which a tokenizer cannot read a language; ordinary English has up to 0.05

_OTHER, _LETTER, _LATIN, _MARK, _WHOLE = range(5)
# Characters that stand for a syllable or a word, so that a token of one is read: Han, Hangul syllables, Yi.
_WHOLE_RANGES = ((0x3400, 0x9FFF), (0xA000, 0xA48F), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_LATIN_RANGES = ((0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A))


@lru_cache(maxsize=65_536)
def _kind(code: int) -> int:
    category = unicodedata.category(chr(code))[0]
    if category == "M":
        return _MARK
    if category != "L":
        return _OTHER
    if any(lo <= code <= hi for lo, hi in _WHOLE_RANGES):
        return _WHOLE
    return _LATIN if any(lo <= code <= hi for lo, hi in _LATIN_RANGES) else _LETTER


def unknown_ids(tokenizer: Any) -> list[int]:
    """Ids of the unknown token of a `tokenizers.Tokenizer`, under whatever name."""
    names = {getattr(tokenizer.model, "unk_token", None), "[UNK]", "<unk>"}
    found = [tokenizer.token_to_id(name) for name in names if name]
    return [number for number in found if number is not None]


def letters_read(tokenizer: Any, texts: Sequence[str]) -> dict[str, NDArray[np.int32]]:
    """Counts by text of what a tokenizer makes of the first MAX_CHARS characters.

    A word is a run of letters. A letter is unread where its token is unknown or there is none; in a script of
    syllables or ideographs where it is cut into several tokens; in an alphabet where its word is cut into tokens of at
    most SHORT_PIECE letters on average. A word of one token counts as read.

    Args:
        tokenizer: a `tokenizers.Tokenizer` without truncation and padding.
        texts: R of them.

    Returns:
        int32 [R] each: `letters`; `letters_unread`; `latin_words`, words in Latin script; `latin_tokens`, the tokens
        of these words.
    """
    texts = [text[:MAX_CHARS] for text in texts]
    starts_R = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])]) if texts else np.zeros(0, np.int64)
    begin_T, end_T, unknown_T = _spans(tokenizer, texts, starts_R)

    # All texts end to end, each closed by a line feed, which no word goes across.
    codes_U = np.frombuffer("".join(f"{text}\n" for text in texts).encode("utf-32-le", "surrogatepass"), "<u4")
    seen, which_U = np.unique(codes_U, return_inverse=True)
    kind_U = np.array([_kind(int(code)) for code in seen], np.int8)[which_U]
    is_letter_U = (kind_U == _LETTER) | (kind_U == _LATIN) | (kind_U == _WHOLE)

    tokens_U = _covering(begin_T, end_T, len(codes_U))
    unread_U = is_letter_U & ((tokens_U == 0) | (_covering(begin_T[unknown_T], end_T[unknown_T], len(codes_U)) > 0))
    unread_U |= (kind_U == _WHOLE) & (tokens_U > 1)

    spelled_U = (kind_U == _LETTER) | (kind_U == _LATIN) | (kind_U == _MARK)
    edges = np.diff(spelled_U.astype(np.int8), prepend=0, append=0)
    begin_W, end_W = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    letters_up_to = np.concatenate([[0], np.cumsum(is_letter_U)])
    letters_W = letters_up_to[end_W] - letters_up_to[begin_W]
    tokens_W = np.searchsorted(begin_T, end_W, "left") - np.searchsorted(end_T, begin_W, "right")
    is_short_W = (tokens_W > 1) & (letters_W <= SHORT_PIECE * tokens_W)
    unread_U |= is_letter_U & (_covering(begin_W[is_short_W], end_W[is_short_W], len(codes_U)) > 0)

    is_latin_W = kind_U[begin_W] == _LATIN
    text_of_W = np.searchsorted(starts_R, begin_W[is_latin_W], "right") - 1
    text_of_U = np.searchsorted(starts_R, np.arange(len(codes_U)), "right") - 1

    def by_text(where: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[np.int32]:
        counts: NDArray[np.int32] = np.bincount(where, weights, minlength=len(texts)).astype(np.int32)
        return counts

    return {
        LETTERS: by_text(text_of_U[is_letter_U]),
        LETTERS_UNREAD: by_text(text_of_U[unread_U]),
        LATIN_WORDS: by_text(text_of_W),
        LATIN_TOKENS: by_text(text_of_W, tokens_W[is_latin_W]),
    }


def _spans(
    tokenizer: Any, texts: Sequence[str], starts_R: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Begin and end of each token among the characters of all texts, and whether it is the unknown one: [T] each."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    lens_R = np.array([len(encoding) for encoding in encodings], np.int64)
    ids_T = np.array([number for encoding in encodings for number in encoding.ids], np.int64)
    spans = [span for encoding in encodings for span in encoding.offsets]
    spans_T2 = np.array(spans, np.int64).reshape(-1, 2) + np.repeat(starts_R, lens_R)[:, None]
    holds_T = spans_T2[:, 1] > spans_T2[:, 0]
    begin_T, end_T = spans_T2[holds_T].T
    return begin_T, end_T, np.isin(ids_T[holds_T], unknown_ids(tokenizer))


def _covering(begin: NDArray[np.int64], end: NDArray[np.int64], num_chars: int) -> NDArray[np.int64]:
    """Ranges [begin, end) that cover each character: int [U]."""
    steps = np.bincount(begin, minlength=num_chars + 1) - np.bincount(end, minlength=num_chars + 1)
    covering: NDArray[np.int64] = np.cumsum(steps)[:num_chars]
    return covering
