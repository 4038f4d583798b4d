"""Letters that a tokenizer can read, for the kinds of tokenizer and of script."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.model.coverage import letters_read
from bertray.model.profile import Reading, add_readings

NAMES = ("letters", "letters_unread", "latin_words", "latin_tokens")


def wordpiece(*pieces: str, strip_accents: bool = False):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {piece: number for number, piece in enumerate(["[UNK]", *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def bytes_alone():
    """A byte-level BPE that has learned to merge `good` and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("g", "o"), ("go", "o"), ("goo", "d")]
    vocabulary = alphabet | {"".join(pair): len(alphabet) + n for n, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def unigram(*pieces: str):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


JAMO = [part for jamo in "\u1100\u1161\u11a8\u11ab\u1112\u1106\u1105" for part in (jamo, f"##{jamo}")]


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        pytest.param(wordpiece("the", "film", "!"), "The film!!!", (7, 0, 2, 2), id="known words"),
        pytest.param(wordpiece("i", "a"), "I a", (2, 0, 2, 2), id="words of one letter"),
        pytest.param(wordpiece("film"), "film qzx", (7, 3, 2, 2), id="an unknown word"),
        pytest.param(wordpiece("f", "##i", "##l", "##m"), "film", (4, 4, 1, 4), id="spelled"),
        pytest.param(wordpiece("fi", "##lm"), "film", (4, 0, 1, 2), id="cut in halves"),
        pytest.param(wordpiece("fi", "##l", "##m"), "film", (4, 4, 1, 3), id="cut into pieces of 1.3 letters"),
        pytest.param(wordpiece("don", "'", "t"), "don't 100 !!", (4, 0, 2, 2), id="an apostrophe, a number"),
        pytest.param(wordpiece("\U0001f602"), "\U0001f602 123 ...", (0, 0, 0, 0), id="no letters"),
        pytest.param(wordpiece("电", "影"), "电影好", (3, 1, 0, 0), id="Han: known characters and an unknown one"),
        pytest.param(wordpiece(*JAMO, strip_accents=True), "각한", (2, 2, 0, 0), id="Hangul as jamo"),
        pytest.param(wordpiece("각", "##한"), "각한", (2, 0, 0, 0), id="Hangul as syllables"),
        pytest.param(bytes_alone(), "good 电影 한", (7, 3, 1, 1), id="bytes"),
        pytest.param(unigram("▁film", "▁фильм", "▁电影"), "film фильм 电影", (11, 0, 1, 1), id="Unigram"),
        pytest.param(unigram("▁film"), "film фильм", (9, 5, 1, 1), id="Unigram, unknown"),
        pytest.param(
            wordpiece(*"हनद", *(f"##{c}" for c in "हनद\u093f\u094d\u0940")), "हिन्दी", (3, 3, 0, 0), id="marks in words"
        ),
    ],
)
def test_letters_read(tokenizer, text, expected):
    counts = letters_read(tokenizer, ["", text, "x " * 1000, text])
    assert tuple(int(counts[name][1]) for name in NAMES) == expected
    assert tuple(int(counts[name][3]) for name in NAMES) == expected, "a text does not depend on its neighbours"
    assert [int(counts[name][0]) for name in NAMES] == [0, 0, 0, 0]


def test_no_texts():
    counts = letters_read(wordpiece("a"), [])
    assert [counts[name].tolist() for name in NAMES] == [[], [], [], []]


def test_readings_add_up():
    one = Reading.of_rows(*(np.array(counts) for counts in ([10, 0, 4], [6, 0, 1], [2, 0, 1], [4, 0, 1])))
    assert one == Reading(rows=2, rows_unread=1, letters=14, letters_unread=7, latin_words=3, latin_tokens=5)
    both = add_readings([one, Reading(), one])
    assert (both.letters, both.unread, both.mostly_unread, both.tokens_per_word) == (28, 0.5, 0.5, 5 / 3)
    assert (Reading().unread, Reading().mostly_unread, Reading().tokens_per_word) == (0, 0, 0)


def test_sampled_rows_are_spread_evenly(tiny_encoder):
    import pyarrow as pa

    from bertray.model.tokenization import ReviewTokenizer

    tokenizer = ReviewTokenizer(tiny_encoder, 16)
    few = tokenizer.coverage(pa.array(["the film", "영화"]))
    assert {name: few[name].to_pylist() for name in NAMES} == {
        "letters": [7, 2],
        "letters_unread": [0, 2],
        "latin_words": [2, 0],
        "latin_tokens": [2, 0],
    }
    many = tokenizer.coverage(pa.array(["the film"] * 1000))["letters"]
    sampled = np.flatnonzero(many.is_valid().to_numpy(zero_copy_only=False))
    assert len(sampled) == 100
    assert (sampled[0], sampled[-1]) == (0, 999)
    assert np.diff(sampled).max() <= 11
    assert len(tokenizer.coverage(pa.array([], pa.string()))["letters"]) == 0
