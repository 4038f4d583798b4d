"""Cleaning of a text before the tokenizer: repair, mark-up, control characters, Unicode form, white space.

Nothing is lower-cased, stemmed or dropped as a stop word: BERT was trained on whole sentences. Cleaning a cleaned
text changes nothing: each text is taken to a fixed point. Entities are therefore decoded until none is left, so that
doubly escaped text (`&amp;amp;`, common in scraped reviews) ends as the character that was meant.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray.settings import NormalForm


@dataclass(frozen=True)
class Cleaning:
    """Steps of cleaning that a bundle stores, so that scoring repeats what training did.

    Args:
        version: of these steps; another one cleans otherwise.
        fix_text: repair mojibake and terminal escapes (ftfy).
        strip_html: line-break tags to spaces, other tags removed, entities decoded.
        normalize: Unicode normal form.
    """

    version: int = 1
    fix_text: bool = True
    strip_html: bool = True
    normalize: NormalForm = "NFC"

    def __post_init__(self) -> None:
        if self.version != 1 or self.normalize not in get_args(NormalForm):
            raise ValueError(f"cleaning: expected version 1 and one of {get_args(NormalForm)}, found {self}")


# A text that still changes after this many rounds was built to; its `&` and `<` become spaces.
MAX_ROUNDS = 8

_BLOCK_TAGS = (
    "address|article|aside|blockquote|body|br|button|caption|center|dd|details|dialog|div|dl|dt|fieldset|figcaption|"
    "figure|footer|form|frame|frameset|h1|h2|h3|h4|h5|h6|head|header|hr|html|iframe|img|input|li|link|main|menu|meta|"
    "nav|object|ol|optgroup|option|p|pre|section|select|summary|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video"
)
_INLINE_TAGS = (
    "a|abbr|acronym|audio|b|bdi|bdo|big|cite|code|data|del|dfn|em|embed|font|i|ins|kbd|label|mark|marquee|nobr|"
    "noscript|q|rp|rt|ruby|s|samp|script|small|source|span|strike|strong|style|sub|sup|svg|template|time|track|tt|u|"
    "var|wbr"
)
_LETTER_TAGS = frozenset("abiqsu")  # `x<b>y` is mathematics, unless the text has the other half of the pair
_HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>|<!doctype\b[^<>]*>", re.I | re.S)
# Also for `marks`, which counts them; within what Python's and Arrow's expressions have in common.
TAG_PATTERN = rf"<(/?)({_BLOCK_TAGS}|{_INLINE_TAGS})(\s[^<>]*|/\s*)?>"
ENTITY_PATTERN = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
_TAG = re.compile(TAG_PATTERN, re.I)
_BLOCKS = frozenset(_BLOCK_TAGS.split("|"))
_ENTITY = re.compile(ENTITY_PATTERN)
_NESTED_AMP = re.compile(r"&(?:(?:amp|AMP|#0{0,4}38|#[xX]0{0,4}26);)+")

# Arabic, Indic, Tibetan, Myanmar, Khmer and Mongolian spell words with joiners; emoji are sequences of them.
_JOINING = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
_PICTURE = "\u00a9\u00ae\u2190-\u21ff\u2300-\u23ff\u2460-\u27bf\u2900-\u297f\u2b00-\u2bff\U0001f000-\U0001faff"
_JOINER = re.compile(
    rf"(?<![{_JOINING}])\u200c|(?<![{_JOINING}{_PICTURE}\ufe0f])\u200d|(?<=[{_PICTURE}\ufe0f])\u200d(?![{_PICTURE}])"
)
_FLAG_TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0001\U000e0020-\U000e007f]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufdd0-\ufdef\ufff0-\ufffc\ufffe\uffff\U0001fffe\U0001ffff]"
)
_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTEXT = 6  # no pattern of ftfy.badness reaches further from a non-ASCII character
_NON_ASCII_STRETCH = re.compile(rf"[^\x00-\x7f](?:[\x00-\x7f]{{0,{2 * _CONTEXT}}}[^\x00-\x7f]+)*")
_MAY_HIDE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufdd0-\ufdef"
    "\ufeff\ufff0-\uffff\U0001fffe\U0001ffff\U000e0001\U000e0020-\U000e007f]"
)

# Characters that no step touches, for the vectorised test: printable ASCII but `<` and `&`, Hangul syllables, kana,
# the common Han block; where NFKC is off also Korean jamo letters, CJK punctuation and typographic marks.
_PLAIN = r"!-%'-;=-~\x{AC00}-\x{D7A3}\x{3041}-\x{3096}\x{30A1}-\x{30FA}\x{30FC}\x{4E00}-\x{9FFF}"
_PLAIN_NOT_NFKC = (
    _PLAIN + r"\x{3131}-\x{3163}\x{3001}-\x{3003}\x{3008}-\x{3011}\x{FF01}-\x{FF5E}"
    r"\x{2018}\x{2019}\x{201C}\x{201D}\x{2026}"
)
_BREAKS = r"(?i)(?: *(?:[\t\n\r]|<br[ \t\n\r]*/?>))+ *|  +"


def clean_texts(texts: pa.Array, cleaning: Cleaning) -> pa.Array:
    """Cleaned texts, in order; nulls stay null.

    Args:
        texts: string [N], valid UTF-8.
        cleaning: the steps, as stored in the bundle.

    Returns:
        string [N]. `clean_texts(clean_texts(x)) == clean_texts(x)`.
    """
    plain = _plain_pattern(cleaning)
    rest_R = _not_matching(texts, plain)
    if not len(rest_R):
        return texts
    # Most of the rest only has line breaks to be made spaces: Arrow does that without a Python call for each.
    rest = texts.take(pa.array(rest_R))
    if cleaning.strip_html:
        spaced = pc.utf8_trim(pc.replace_substring_regex(rest, _BREAKS, " "), " ")
        hard_H = _not_matching(spaced, plain)
        hard = [clean_text(text, cleaning) for text in rest.take(pa.array(hard_H)).to_pylist()]
        rest = _with_replaced(spaced, hard_H, hard)
    else:
        rest = pa.array([clean_text(text, cleaning) for text in rest.to_pylist()], pa.string())
    return _with_replaced(texts, rest_R, rest)


def _not_matching(texts: pa.Array, pattern: str) -> np.ndarray:
    matches = pc.fill_null(pc.match_substring_regex(texts, pattern), True)
    return np.flatnonzero(~matches.to_numpy(zero_copy_only=False))


def _with_replaced(texts: pa.Array, rows_R: np.ndarray, replacements: Any) -> pa.Array:
    mask_N = np.zeros(len(texts), dtype=bool)
    mask_N[rows_R] = True
    return pc.replace_with_mask(texts, pa.array(mask_N), pa.array(replacements, pa.string()))


@lru_cache(maxsize=8)
def _plain_pattern(cleaning: Cleaning) -> str:
    plain = _PLAIN if cleaning.normalize == "NFKC" else _PLAIN_NOT_NFKC
    return f"^(?:[{plain}]+(?: [{plain}]+)*)?$"


def clean_text(text: str, cleaning: Cleaning) -> str:
    """One text through every step, to a fixed point."""
    for _ in range(MAX_ROUNDS):
        cleaned = _round(text, cleaning)
        if cleaned == text or _is_settled(cleaned):
            return cleaned
        text = cleaned
    text = text.replace("&", " ").replace("<", " ")
    for _ in range(MAX_ROUNDS):
        cleaned = _round(text, cleaning)
        if cleaned == text:
            break
        text = cleaned
    return text


def _is_settled(cleaned: str) -> bool:
    """True when another round would surely change nothing."""
    return cleaned.isascii() and "<" not in cleaned and "&" not in cleaned


def _round(text: str, cleaning: Cleaning) -> str:
    if "\x1b" in text:
        text = _TERMINAL_ESCAPE.sub("", text)
    if cleaning.fix_text and not text.isascii():
        text = _repair(text)
    if cleaning.strip_html:
        text = _without_html(text)
    if _MAY_HIDE.search(text):
        text = _INVISIBLE.sub("", text)
        text = _FLAG_TAGS.sub(r"\1", text)
        text = _JOINER.sub("", text)
    if cleaning.normalize != "none" and not text.isascii():
        text = unicodedata.normalize(cleaning.normalize, text)
    return " ".join(text.split())


def _repair(text: str) -> str:
    """Mojibake undone, and C1 controls read as the Windows-1252 punctuation they were.

    Only the surroundings of non-ASCII characters are shown to ftfy: all its patterns are that local, it takes time
    by the character, and one spoilt quotation mark is no reason to re-read a page.
    """
    fix_text, is_bad, config = _ftfy()
    out, end = [], 0
    for match in _NON_ASCII_STRETCH.finditer(text):
        start, stop = max(end, match.start() - _CONTEXT), min(len(text), match.end() + _CONTEXT)
        piece = text[start:stop]
        if is_bad(piece):
            out += [text[end:start], fix_text(piece, config)]
            end = stop
    return "".join([*out, text[end:]]) if out else text


@lru_cache(maxsize=1)
def _ftfy() -> tuple[Any, Any, Any]:
    from ftfy import TextFixerConfig, fix_text
    from ftfy.badness import is_bad

    # Quotes, ligatures and the width of CJK characters are the writer's own; line ends and HTML are ours to do.
    config = TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        normalization=None,
        explain=False,
    )
    return fix_text, is_bad, config


def _without_html(text: str) -> str:
    """Tags that HTML knows are taken out, entities decoded; `<3`, `a < b` and `>_<` are text."""
    if "<" in text:
        text = _HIDDEN.sub(" ", text)
        text = _TAG.sub(_replacement(text), text)
    if "&" in text:
        text = _NESTED_AMP.sub("&", text)
        text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    return text


def _replacement(text: str) -> Any:
    lowered = text.lower()

    def replace(match: re.Match[str]) -> str:
        slash, name, rest = match.group(1), match.group(2).lower(), match.group(3)
        if name in _LETTER_TAGS and not (rest or "").strip(" /"):
            other_half = f"<{name}" if slash else f"</{name}>"
            if other_half not in lowered:
                return match.group()
        return " " if name in _BLOCKS else ""

    return replace
