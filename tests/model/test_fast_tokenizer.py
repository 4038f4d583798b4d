"""The fast tokenizer gives the ids of the model's own or is not used."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from bertray.model import fast_tokenizer
from bertray.model.bundle import bundled_model
from bertray.model.fast_tokenizer import FastTokenizer, common, open_fast_tokenizer
from bertray.model.tokenization import ReviewTokenizer

TEXTS = [
    "A wonderful film!",
    "\u0437\u0430\u043c\u0435\u0447\u0430\u0442\u0435\u043b\u044c\u043d\u043e",
    "caf\u00e9 cr\u00e8me \u2013 \u201cna\u00efve\u201d\u2026",
    "\U0001f600 so-so \u06c9\u0629\u062e",  # not common: the model's own tokenizer gets it
    "",
    "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d\uff0c\u63a8\u8350\u3002",
    "x" * 101,
    "e\u0301 \u00ad soft",  # nor is this
    "\uc7ac\ubbf8\uc788\ub294 \uc601\ud654",
]


@pytest.fixture
def own() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_ids_are_those_of_the_models_own_tokenizer_in_order(own):
    tokenizer = ReviewTokenizer(bundled_model(), 128)
    assert tokenizer._fast is not None
    table = tokenizer.encode(pa.array(TEXTS))
    assert table["input_ids"].to_pylist() == [own.encode(text).ids for text in TEXTS]
    assert common(pa.array(TEXTS)).tolist() == [True, True, True, False, True, True, True, False, True]


def test_uncommon_texts_do_not_reach_the_fast_tokenizer(monkeypatch):
    tokenizer = ReviewTokenizer(bundled_model(), 128)
    expected = tokenizer.encode(pa.array(TEXTS))
    tokenizer._left_to_compare = 0  # or the first reviews are tokenized twice
    seen: list[str] = []
    encode = tokenizer._fast.encode

    def noted(texts):
        seen.extend(texts)
        return encode(texts)

    monkeypatch.setattr(tokenizer._fast, "encode", noted)
    assert tokenizer.encode(pa.array(TEXTS)).equals(expected)
    assert seen == [TEXTS[i] for i in (0, 1, 2, 4, 5, 6, 8)]


def test_a_library_that_differs_on_a_single_character_is_not_used(own, monkeypatch):
    file = bundled_model() / "tokenizer.json"
    assert open_fast_tokenizer(file, own) is not None
    encode = FastTokenizer.encode

    def wrong(self, texts):
        return encode(self, [text.replace("\u3042", "\u3044") for text in texts])

    monkeypatch.setattr(FastTokenizer, "encode", wrong)
    assert open_fast_tokenizer(file, own) is None


def test_a_difference_on_the_first_reviews_turns_it_off_and_is_said_once(monkeypatch, caplog):
    tokenizer = ReviewTokenizer(bundled_model(), 128)
    expected = ReviewTokenizer(bundled_model(), 128).encode(pa.array(TEXTS))
    encode = FastTokenizer.encode
    monkeypatch.setattr(FastTokenizer, "encode", lambda self, texts: encode(self, [f"{text} a" for text in texts]))
    with caplog.at_level(logging.WARNING, logger="bertray"):
        for _ in range(2):
            assert tokenizer.encode(pa.array(TEXTS)).equals(expected)
    assert [record.getMessage() for record in caplog.records] == [
        "The fast tokenizer differs from the model's own on these reviews; it is not used."
    ]


def test_reviews_of_rare_characters_leave_the_comparison_to_later_ones(monkeypatch):
    tokenizer = ReviewTokenizer(bundled_model(), 128)
    tokenizer.encode(pa.array(["\U0001f600"]))
    tokenizer.encode(pa.array(["good"]))
    monkeypatch.setattr(
        FastTokenizer, "encode", lambda self, texts: (np.zeros(len(texts), np.int32), np.ones(len(texts), np.int64))
    )
    tokenizer.encode(pa.array(["a film"]))
    assert tokenizer._fast is None


def test_without_the_library_the_models_own_tokenizer_does_all(own, monkeypatch):
    expected = ReviewTokenizer(bundled_model(), 128).encode(pa.array(TEXTS))
    monkeypatch.setitem(sys.modules, "tokie", None)
    tokenizer = ReviewTokenizer(bundled_model(), 128)
    assert tokenizer._fast is None
    assert tokenizer.encode(pa.array(TEXTS)).equals(expected)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_every_family_has_ids_of_its_own_tokenizer_on_texts_of_common_characters(family, tokenizer_folders):
    random = np.random.default_rng(1)
    pool = np.array([chr(code) for lo, hi in fast_tokenizer._TRIED_ALL for code in range(lo, hi + 1)])
    texts = ["".join(pool[random.integers(len(pool), size=length)]) for length in random.integers(1, 80, size=200)]
    with_fast = ReviewTokenizer(tokenizer_folders[family], 64).encode(pa.array(texts))
    without = ReviewTokenizer(tokenizer_folders[family], 64)
    without._fast = None
    assert with_fast.equals(without.encode(pa.array(texts)))
