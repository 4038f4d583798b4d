"""Texts are fit to show: masked, cut, without what cannot be seen."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from bertray.evaluation.intervals import Estimate
from bertray.reports.plain import Mark, excerpt, marked_excerpt, plain, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("write jane.doe+film@example.co.uk now", "write [e-mail] now"),
        ("邮箱是zhang@example.cn谢谢", None),
        ("메일 hong@example.kr 로", "메일 [e-mail] 로"),
        ("o'neil@sub.example.org, bye", "[e-mail], bye"),
        ("call +1 (415) 555-0134!", "call [phone]!"),
        ("call 555-0134 or 010-1234-5678", "call [phone] or [phone]"),
        ("电话13800138000谢谢", "电话[phone]谢谢"),
        ("tel. 0049 30 901820", "tel. [phone]"),
        ("+82 10 1234 5678 연락", "[phone] 연락"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("4111-1111-1111-1111", "[card]"),
        ("378282246310005", "[card]"),
        ("IBAN DE89 3704 0044 0532 0130 00 ok", "IBAN [account] ok"),
        ("GB29NWBK60161331926819", "[account]"),
    ],
)
def test_contact_and_account_data_are_masked(text, shown):
    found = excerpt(text)
    if shown is None:  # letters of the script may belong to the address or not; the address itself is gone
        assert "example" not in found
        assert "[e-mail]" in found
    else:
        assert found == shown


@pytest.mark.parametrize(
    "text",
    ["rated 9/10 in 2015", "the 1999-2003 seasons", "1,234,567 people", "12.5 % of 300", "100 000 dollars", "a@b"],
)
def test_ordinary_numbers_stay(text):
    assert excerpt(text) == text


def test_a_long_text_is_cut_after_masking():
    shown = excerpt("word " * 57 + "jane.doe@example.com " + "tail " * 50)
    assert len(shown) <= 300
    assert shown.endswith("…")
    assert "jane" not in shown
    assert "example" not in shown


def test_a_text_is_one_line_without_control_or_direction_characters():
    assert excerpt(" a\x00\x1b[31mb\u202ec\n\n d\te\u200f ") == "a[31mbc d e"
    assert visible("ok \ud800 👩\u200d🚀") == "ok  👩\u200d🚀"  # the joiner inside an emoji stays


@pytest.mark.parametrize("unit", ["a.", "1 ", "a@", "1-(", "DE89 ", "AB12CD34 ", "@", "+"])
def test_masking_a_hostile_text_takes_no_time(unit):
    start = time.process_time()
    excerpt(unit * 20_000)
    assert time.process_time() - start < 2


def test_plain_data_is_strict_json():
    value = {
        1: np.float32(0.5),
        "nan": float("nan"),
        "inf": [np.inf, np.int64(3), np.bool_(True)],
        "estimate": Estimate(0.5, 0.25, 0.75),
        "array": np.arange(2),
        "text": "a\x00b\ud800",
        "none": None,
    }
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "1": 0.5,
        "nan": None,
        "inf": [None, 3, True],
        "estimate": {"value": 0.5, "low": 0.25, "high": 0.75},
        "array": [0, 1],
        "text": "ab",
        "none": None,
    }


ODD = [
    "  two  spaces\n and\ttabs ",
    "write jane.doe@example.org or 555-0134, 2019-2020",
    "\u202ehidden\u200b " + "word " * 80,
    "",
    "a" * 400,
]


@pytest.mark.parametrize("text", ODD)
def test_marks_change_nothing_of_an_excerpt(text):
    marks = [Mark(start, start + 3, 0.1, "for") for start in range(0, len(text), 7)]
    assert marked_excerpt(text, marks).text == marked_excerpt(text).text == excerpt(text)


def test_marks_stand_on_their_words_whatever_was_taken_out_before_them():
    text = "  so \u200b good,\n call +1 (415) 555-0134: really good film"
    first, number, second = text.index("good"), text.index("415"), text.rindex("good")
    marks = [Mark(first, first + 4, 0.3, "a"), Mark(number, number + 3, 0.2, "a"), Mark(second, second + 4, -0.1, "b")]
    found = marked_excerpt(text, marks)
    assert found.parts == (("so ", ""), ("good", "a"), (", call [phone]: really ", ""), ("good", "b"), (" film", ""))
    assert found.words == (("good", 0.3, "a"), ("good", -0.1, "b"))  # the number stays masked


def test_a_word_behind_the_end_of_an_excerpt_is_named_and_two_marks_share_a_word():
    text = "x" * 20 + " far away"
    marks = [Mark(21, 24, 0.5, "a"), Mark(0, 2, 0.1, "a"), Mark(1, 3, 0.1, "b")]
    found = marked_excerpt(text, marks, max_chars=12)
    assert found.parts == (("x", "a"), ("x", "a b"), ("x", "b"), ("x" * 8 + "…", ""))
    assert [word.word for word in found.words] == ["far", "xx", "xx"]
