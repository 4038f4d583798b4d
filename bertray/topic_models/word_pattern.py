"""Pattern of the words of a review, for tables of words; pairs of characters where words are not separated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bertray.reviews.writing_system import dominant_script

# A letter first, so that numbers (and with them phone numbers) are no words.
WORD = r"(?u)\b[^\W\d_]\w+\b"
UNSPACED = ("han", "kana")
_UNSPACED_LETTERS = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_RUN = re.compile(rf"([{_UNSPACED_LETTERS}]+)|(?![{_UNSPACED_LETTERS}])[^\W\d_](?:(?![{_UNSPACED_LETTERS}])\w)+")
# What WORD leaves of "don't" and "they've"; scikit-learn's list has only the whole.
_HALVES = (
    *("ain", "aren", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn", "ll", "mustn", "shouldn", "ve"),
    *("wasn", "weren", "won", "wouldn"),
)
# About 45 of 100 words of English prose are on the list of stop words, 5 of 100 of French or German.
ENGLISH_SHARE = 0.25
_ROWS_LOOKED_AT = 2000


@dataclass(frozen=True)
class Words:
    """Pattern and stop words by which texts are split.

    Args:
        unspaced: most texts are in a script without spaces between words (Han, Kana): overlapping pieces of two
            characters stand for words.
        stop_words: words that are left out, in lower case.
        described: the same for a page.
    """

    unspaced: bool
    stop_words: tuple[str, ...]
    described: str

    def vectorizer_arguments(self) -> dict[str, Any]:
        """For scikit-learn's vectorizers."""
        if self.unspaced:
            left_out = frozenset(self.stop_words)
            return {"analyzer": lambda text: [piece for piece in pieces(text) if piece not in left_out]}
        return {"token_pattern": WORD, "stop_words": list(self.stop_words) or None}


def pieces(text: str) -> list[str]:
    """Overlapping pairs of characters of unspaced runs, and whole words of other scripts, in order."""
    found: list[str] = []
    for match in _RUN.finditer(text.lower()):
        run = match.group()
        if match[1] and len(run) > 2:
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            found.append(run)
    return found


def words_of(texts: Sequence[str], stop_words: str | Sequence[str]) -> Words:
    """Pattern and stop words for these texts.

    Args:
        texts: cleaned; an even sample of them is read.
        stop_words: `english`, `none`, `auto` (english where the texts are), or the words themselves.
    """
    step = max(1, len(texts) // _ROWS_LOOKED_AT)
    some = list(texts[::step])
    unspaced = _is_unspaced(some)
    units = "pairs of characters, for want of spaces between words" if unspaced else "words"
    if not isinstance(stop_words, str):
        chosen = tuple(sorted({word.lower() for word in stop_words}))
        return Words(unspaced, chosen, f"{units}, without {len(chosen)} given stop words")
    if stop_words == "english" or (stop_words == "auto" and not unspaced and _is_english(some)):
        return Words(unspaced, english_stop_words(), f"{units}, without English stop words")
    return Words(unspaced, (), f"{units}, without a list of stop words")


def english_stop_words() -> tuple[str, ...]:
    """scikit-learn's list, with the halves of contractions."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return tuple(sorted({*ENGLISH_STOP_WORDS, *_HALVES}))


def _is_english(texts: Sequence[str]) -> bool:
    found = [word for text in texts for word in re.findall(WORD, text.lower())]
    known = frozenset(english_stop_words())
    return bool(found) and sum(word in known for word in found) >= ENGLISH_SHARE * len(found)


def _is_unspaced(texts: Sequence[str]) -> bool:
    scripts = pc.is_in(dominant_script(pa.array(texts, pa.string())), pa.array(UNSPACED))
    return bool(texts) and 2 * (pc.sum(scripts).as_py() or 0) > len(texts)
