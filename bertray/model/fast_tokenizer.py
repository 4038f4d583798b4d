"""A faster tokenizer beside the model's own, for texts on which the two have been seen to agree.

The library tokie (extra `fast`) is some twenty times faster than `tokenizers` and differs from it on rare characters:
on 5 % of strings of random Unicode with an uncased WordPiece vocabulary. So it gets texts of common characters only,
and only where it gave the ids of the model's own tokenizer for each of these characters and for made-up texts of them,
when the process started. Every other text goes to the model's own tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# Common characters, as ranges: every one of the first is tried, every 37th of the second, which only differ in whether
# the vocabulary has them.
_TRIED_ALL = (
    (0x09, 0x0A),
    (0x0D, 0x0D),
    (0x20, 0x7E),  # ASCII
    (0xA1, 0xAC),  # Latin-1 without the soft hyphen, and the letters that follow it
    (0xAE, 0x17F),
    (0x410, 0x44F),  # Russian
    (0x2013, 0x2014),  # dashes, quotes, ellipsis, euro
    (0x2018, 0x2019),
    (0x201C, 0x201D),
    (0x2026, 0x2026),
    (0x20AC, 0x20AC),
    (0x3001, 0x3002),  # punctuation of Chinese and Japanese
    (0x300A, 0x300D),
    (0x3041, 0x3093),  # kana
    (0x30A1, 0x30F3),
    (0xFF01, 0xFF01),
    (0xFF08, 0xFF09),
    (0xFF0C, 0xFF0C),
    (0xFF1A, 0xFF1B),
    (0xFF1F, 0xFF1F),
)
_TRIED_SOME = ((0x4E00, 0x9FA5), (0xAC00, 0xD7A3))  # Han, Hangul
_OTHER = "[^" + "".join(f"\\x{{{lo:X}}}-\\x{{{hi:X}}}" for lo, hi in (*_TRIED_ALL, *_TRIED_SOME)) + "]"

_MADE_UP = (
    "",
    " ",
    "   two   spaces  ",
    "[CLS] [SEP] [MASK] [UNK] [PAD] <s> </s> <unk> <mask> <pad> ##ing",
    "don't can't I'm we've O'Reilly 's",
    "snake_case camelCase e-mail www.example.org/a?b=c&d=e#f user@example.org",
    "1,000.50 $5 50% 3:30 2026-11-21 1st 2nd +1 -1 1/2",
    "!!!??? ... --- *** :-) ;-( <3 </b> & && @@ ##",
    *("a" * length for length in (99, 100, 101, 200, 1000)),
    *("\u00e9" * length for length in (49, 50, 51, 99, 100, 101)),
    "x" * 60 + "\u00fc" * 60,
)


class FastTokenizer:
    """tokie on one tokenizer file; see `open_fast_tokenizer`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids end to end, without special tokens, and how many each text has."""
        ids_T, lens_N = self._backend.encode_batch_flat(texts, add_special_tokens=False)
        return ids_T.astype(np.int32), lens_N.astype(np.int64)


def open_fast_tokenizer(file: Path, reference: Any) -> FastTokenizer | None:
    """The fast tokenizer of a `tokenizer.json`, or None where it is not installed, cannot read it or differs.

    Args:
        file: the `tokenizer.json`.
        reference: the `tokenizers.Tokenizer` of the same model, without truncation and padding.
    """
    try:
        import tokie
    except ImportError:
        return None
    try:
        backend = tokie.Tokenizer.from_json(str(file))
    except (tokie.TokieError, OSError, ValueError) as error:
        _log.debug("tokie cannot read %s: %s", file, error)
        return None
    backend.no_truncation()
    backend.no_padding()
    fast = FastTokenizer(backend)
    differing = first_difference(fast, reference, _probes())
    if differing is not None:
        _log.debug("tokie differs from the tokenizer of %s on %r; it is not used.", file, differing[:40])
        return None
    return fast


def common(texts: pa.Array) -> NDArray[np.bool_]:
    """bool [N]: texts of nothing but common characters."""
    mask: NDArray[np.bool_] = pc.invert(pc.match_substring_regex(texts, _OTHER)).to_numpy(zero_copy_only=False)
    return mask


def first_difference(fast: FastTokenizer, reference: Any, texts: Sequence[str]) -> str | None:
    """The first text for which the two give other ids, or None."""
    listed = list(texts)
    ids_T, lens_N = fast.encode(listed)
    expected = [encoding.ids for encoding in reference.encode_batch_fast(listed, add_special_tokens=False)]
    ends_N = np.cumsum(lens_N)
    for text, ids, start, end in zip(listed, expected, ends_N - lens_N, ends_N, strict=True):
        if ids != ids_T[start:end].tolist():
            return text
    return None


def _probes() -> list[str]:
    """Each common character alone, at the start, inside and at the end of a word; and words made of many."""
    tried = [chr(code) for lo, hi in _TRIED_ALL for code in range(lo, hi + 1)]
    tried += [chr(code) for lo, hi in _TRIED_SOME for code in range(lo, hi + 1, 37)]
    alone = [f"{char} {char}the {char}a a{char}b film{char} {char}{char}" for char in tried]
    random = np.random.default_rng(0)
    characters = np.array(tried)
    ascii_only = np.array([char for char in tried if char.isascii()])
    mixed = [
        "".join(pool[random.integers(len(pool), size=length)])
        for pool in (characters, ascii_only)
        for length in random.integers(1, 60, size=100)
    ]
    return [*_MADE_UP, *alone, *mixed]
