"""Cleaning: what is repaired, what is left alone, and that a second cleaning changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertray.reviews.clean import Cleaning, clean_text, clean_texts
from tests.properties import examples

CLEANING = Cleaning()


def cleaned(text: str, **options: Any) -> str:
    cleaning = Cleaning(**options)
    [fast] = clean_texts(pa.array([text], pa.string()), cleaning).to_pylist()
    assert fast == clean_text(text, cleaning)  # the vectorised way and the plain way are one
    return fast


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A film.<br /><br />Good.", "A film. Good."),
        ("one<br>two<BR/>three</p><p>four", "one two three four"),
        ("a <b>bold</b> <a href='x.html'>link</a><div class=\"c\">x</div>", "a bold link x"),
        ("<i>so</i><em>-so</em>", "so-so"),
        ("x<!-- hidden -->y <script>if (a<b) {}</script>z<style>p{}</style>", "x y z"),
        ("<!DOCTYPE html><p>text</p>", "text"),
    ],
)
def test_tags_that_html_knows_are_taken_out(text, expected):
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I <3 it",
        "a < b and c > d",
        "x<y>z",
        "a<b>c",
        ">_<",
        "<(^_^)>",
        "-> <-",
        "<unknown>",
        "5 <6",
        "<<<",
        "T<T",
        "<3<3",
    ],
)
def test_text_that_only_looks_like_markup_stays(text):
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("it&#39;s &quot;good&quot;", 'it\'s "good"'),
        ("&#xE9;t&eacute;", "été"),
        ("a&nbsp;b", "a b"),
        ("&" + "amp;" * 50 + "lt;3", "<3"),
        ("doubly &amp;amp;amp; escaped &amp;quot;", 'doubly & escaped "'),
        ("&lt;br&gt;new line, I &lt;3 it", "new line, I <3 it"),
        ("AT&T, R&B, Q&A; ?a=1&copy=2", "AT&T, R&B, Q&A; ?a=1&copy=2"),
        ("&bogus; &#0; &#1;", "&bogus; \ufffd"),
    ],
)
def test_entities_are_decoded_to_the_end(text, expected):
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it\x92s \x93fine\x94 \x96 really\x85", "it’s “fine” – really…"),  # Windows-1252 read as Latin-1, as in IMDB
        ("It’s fun".encode().decode("cp1252"), "It’s fun"),
        ("un café très bon".encode().decode("latin-1"), "un café très bon"),
        ("dÃ©jÃ  vu", "déjà vu"),
        ("\x1b[31mred\x1b[0m alert", "red alert"),
    ],
)
def test_mojibake_is_repaired(text, expected):
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "“Curly” quotes — and ‘single’ ones…",
        "ＡＢＣ１２３！，（全角）",
        "ﬁne ligature",
        "정말 재밌다ㅋㅋㅋㅠㅠ 최고!!",
        "很好的平板，非常满意。推荐《三体》！",
        "とても良い映画でした。ｶﾀｶﾅ",
        "naïve café, Größe, año, São, Łódź, ça va",
        "Отличный фильм, всем советую",
        "فيلم رائع",
        "👍🏽 👨‍👩‍👧 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "می‌خواهم",  # Persian writes this word with a zero-width non-joiner
        "क्‍ष",
    ],
)
def test_good_text_of_any_language_stays_as_it_is(text):
    assert cleaned(text) == text


def test_nothing_is_lower_cased_stemmed_or_dropped_as_stop_word():
    text = "The Movies were NOT the best of what I have been WATCHING, and it is a pity."
    assert cleaned(text) == text


def test_invisible_characters_are_removed():
    hidden = "\x00\x07\x7f\u200b\u200e\u202e\u2066\ufeff\u00ad\u2060"
    assert cleaned(f"ab{hidden}cd") == "abcd"
    assert cleaned("a\u200db and 1\u200c2") == "ab and 12"  # joiners where nothing joins


def test_white_space_is_collapsed_and_stripped():
    assert cleaned(" \t a\r\n\r\nb\u00a0\u3000c  d \n") == "a b c d"


def test_korean_jamo_are_composed_and_nfkc_is_a_choice():
    decomposed = "\u1112\u1161\u11ab\u1100\u116e\u11a8"
    assert cleaned(decomposed) == "한국"
    assert cleaned("ｅ①", normalize="NFKC") == "e1"
    assert cleaned("e\u0301", normalize="none") == "e\u0301"


def test_each_step_can_be_switched_off():
    assert cleaned("a<br>b &amp;", strip_html=False) == "a<br>b &amp;"
    assert cleaned("It’s".encode().decode("cp1252"), fix_text=False) == "Itâ€™s"


def test_nulls_stay_null_and_order_is_kept():
    texts = pa.array(["a<br>b", None, "plain", "", "Ã©t&eacute;", None], pa.string())
    assert clean_texts(texts, CLEANING).to_pylist() == ["a b", None, "plain", "", "été", None]
    assert clean_texts(pa.array([None, None], pa.string()), CLEANING).to_pylist() == [None, None]
    assert clean_texts(pa.array([], pa.string()), CLEANING).to_pylist() == []


def test_a_text_built_to_need_many_rounds_settles():
    once = cleaned("good &lt" + "&#59" * 40 + ";")  # each round decodes one semicolon
    assert once.startswith("good ")
    assert cleaned(once) == once


TRICKY = st.text(
    st.one_of(
        st.sampled_from(list("<>&;#/ \n\tabpbrisx38'\"=!-_^3")),
        st.sampled_from(
            ["\x92", "Ã", "©", "â", "€", "™", "\u200d", "\u200c", "\ufeff", "\u1112", "\u1161", "ㅋ", "한", "’"]
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)
PIECES = st.lists(
    st.sampled_from(
        [
            "<br>",
            "<b>",
            "</b>",
            "<p",
            ">",
            "&amp;",
            "&lt;",
            "amp;",
            "&#",
            "38;",
            "lt;",
            "br&gt;",
            " ",
            "<",
            "&",
            "Ã©",
            "â€™",
            "\x85",
            "x",
            "<!--",
            "-->",
            "<script>",
            "</script>",
            "é",
            "\x1b[0m",
            "\x1b",
            "[1m",
            "́",
            "＜",
            "br",
            "＞",
        ]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=examples(250))
@given(text=st.one_of(TRICKY, PIECES), normalize=st.sampled_from(["NFC", "NFKC", "none"]))
def test_cleaning_twice_is_cleaning_once(text, normalize):
    once = cleaned(text, normalize=normalize)
    assert cleaned(once, normalize=normalize) == once


@pytest.mark.parametrize(
    "name", ["imdb/train", "naver_movies/test", "online_shopping_10_cats/test", "newsgroups20/test"]
)
def test_real_texts_are_cleaned_alike_by_both_ways_and_once_for_all(real_data: Path, name: str):
    texts = pq.read_table(real_data / f"{name}.parquet", columns=["text"])["text"].slice(0, 3000).combine_chunks()
    fast = clean_texts(texts, CLEANING)
    assert fast.to_pylist() == [clean_text(text, CLEANING) for text in texts.to_pylist()]
    assert clean_texts(fast, CLEANING).equals(fast)


@pytest.mark.slow
def test_local_repair_equals_ftfy_on_whole_real_texts(real_data: Path):
    from ftfy import TextFixerConfig, fix_text

    from bertray.reviews.clean import _repair

    config = TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        normalization=None,
        explain=False,
    )
    texts = pq.read_table(real_data / "imdb/train.parquet", columns=["text"])["text"].to_pylist()
    spoilt = [text for text in texts if any("\x80" <= char <= "\x9f" for char in text)][:40]
    assert len(spoilt) == 40
    assert [_repair(text) for text in spoilt] == [fix_text(text, config) for text in spoilt]
