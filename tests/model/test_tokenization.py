"""Tokenization: ids against transformers' own call, cutting strategies against slices made by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.errors import ConfigError
from bertray.model.tokenization import ReviewTokenizer, sequences

FAMILIES = ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert"]
TEXTS = [
    "the film was not good, a bad film!",
    "",
    "bad",
    "  The FILM was\tgood\n\n and [SEP] <pad> [PAD] caf\u00e9 \u00e9\u0301 \u4e2d\u6587 \U0001f468\u200d\U0001f469",
    "the film " * 30,
]
PAIRS = ["good", "film", "the bad film", "", "a"]


def hf_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def words(tokenizer_folders: dict[str, Path]) -> Path:
    """WordPiece: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, the 5, film 6, was 7, good 8, bad 9."""
    return tokenizer_folders["bert"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [3, 8, 17, 512])
def test_head_equals_transformers_own_call(tokenizer_folders, family, max_length):
    expected = hf_tokenizer(tokenizer_folders[family])(TEXTS, truncation=True, max_length=max_length)
    table = ReviewTokenizer(tokenizer_folders[family], max_length, "head").encode(pa.array(TEXTS))
    assert table["input_ids"].to_pylist() == expected["input_ids"]
    assert table["seq_lens"].to_pylist() == [[len(ids)] for ids in expected["input_ids"]]
    assert table["second_len"].to_pylist() == [0] * len(TEXTS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [40, 512])
def test_pairs_equal_transformers_own_call_with_their_token_types(tokenizer_folders, family, max_length):
    expected = hf_tokenizer(tokenizer_folders[family])(
        TEXTS, PAIRS, truncation="only_first", max_length=max_length, return_token_type_ids=True
    )
    table = ReviewTokenizer(tokenizer_folders[family], max_length).encode(pa.array(TEXTS), pa.array(PAIRS))
    assert table["input_ids"].to_pylist() == expected["input_ids"]
    types = [
        [0] * (len(ids) - second) + [1] * second
        for ids, second in zip(table["input_ids"].to_pylist(), table["second_len"].to_pylist(), strict=True)
    ]
    assert types == expected["token_type_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_number_of_tokens_is_counted_before_truncation_with_special_tokens(tokenizer_folders, family):
    whole = hf_tokenizer(tokenizer_folders[family])(TEXTS)["input_ids"]
    table = ReviewTokenizer(tokenizer_folders[family], 8).encode(pa.array(TEXTS))
    assert table["n_tokens"].to_pylist() == [len(ids) for ids in whole]
    assert table["truncated"].to_pylist() == [len(ids) > 8 for ids in whole]
    assert set(table["truncated"].to_pylist()) == {True, False}


@pytest.mark.parametrize("vocab", ["bert-base-uncased", "bert-base-cased", "bert-base-chinese"])
def test_real_vocabularies_and_reviews_give_transformers_ids(real_data, tmp_path, vocab):
    from transformers import BertTokenizer

    BertTokenizer(str(real_data / "vocab" / vocab / "vocab.txt"), do_lower_case="uncased" in vocab).save_pretrained(
        tmp_path
    )
    texts = [
        text
        for path in ("imdb/test.parquet", "online_shopping_10_cats/test.parquet", "airline_tweets/all.parquet")
        for text in pq.read_table(real_data / path, columns=["text"])["text"].slice(0, 60).to_pylist()
    ]
    expected = hf_tokenizer(tmp_path)(texts, truncation=True, max_length=128)["input_ids"]
    table = ReviewTokenizer(tmp_path, 128).encode(pa.array(texts))
    assert table["input_ids"].to_pylist() == expected
    assert table.schema.field("input_ids").type == pa.list_(pa.uint16())


@pytest.mark.parametrize(
    ("long_text", "expected"),
    [
        # Ten tokens of text, room for five between [CLS] 2 and [SEP] 3.
        ("head", [[2, 5, 6, 7, 8, 9, 3]]),
        ("tail", [[2, 9, 8, 5, 7, 6, 3]]),
        ("head_tail", [[2, 5, 6, 7, 7, 6, 3]]),
        # Five tokens of text each, two of them shared with the one before; the last ends where the text ends.
        ("windows", [[2, 5, 6, 7, 8, 9, 3], [2, 8, 9, 9, 8, 5, 3], [2, 9, 8, 5, 7, 6, 3]]),
    ],
)
def test_long_text_is_cut_by_the_named_strategy(words, long_text, expected):
    text = "the film was good bad bad good the was film"
    table = ReviewTokenizer(words, 7, long_text).encode(pa.array([text, "bad"]))
    assert table.to_pylist() == [
        {
            "input_ids": list(chain(*expected)),
            "seq_lens": [len(ids) for ids in expected],
            "second_len": 0,
            "n_tokens": 12,
            "truncated": long_text != "windows",
        },
        {"input_ids": [2, 9, 3], "seq_lens": [3], "second_len": 0, "n_tokens": 3, "truncated": False},
    ]


@pytest.mark.parametrize("long_text", ["tail", "head_tail", "windows"])
def test_text_that_fits_is_kept_whole_by_every_strategy(words, long_text):
    texts = pa.array(["the film was good bad", "the film was good", "the", ""])
    table = ReviewTokenizer(words, 7, long_text).encode(texts)
    assert table["input_ids"].to_pylist() == [[2, 5, 6, 7, 8, 9, 3], [2, 5, 6, 7, 8, 3], [2, 5, 3], [2, 3]]
    assert table["seq_lens"].to_pylist() == [[7], [6], [3], [2]]


@pytest.mark.slow
@pytest.mark.parametrize("room", [1, 2, 8])
def test_windows_cover_every_token_of_the_text(words, room):
    for num_words in range(1, 30):
        # Ids 5 to 9 in turn: position in the text is known from neighbours.
        ids = [5 + i % 5 for i in range(num_words)]
        text = " ".join(["the", "film", "was", "good", "bad"][i % 5] for i in range(num_words))
        seqs = sequences(ReviewTokenizer(words, room + 2, "windows").encode(pa.array([text])))
        step, covered = room - room // 2, []
        for number, (start, length) in enumerate(zip(np.cumsum(seqs.lens_S) - seqs.lens_S, seqs.lens_S, strict=True)):
            begin = min(number * step, num_words - (length - 2))
            assert seqs.ids_T[start : start + length].tolist() == [2, *ids[begin : begin + length - 2], 3]
            covered += range(begin, begin + length - 2)
        assert sorted(set(covered)) == list(range(num_words))
        assert seqs.lens_S[0] == min(num_words, room) + 2
        assert seqs.rows_S.tolist() == [0] * len(seqs.lens_S)


def test_long_second_text_is_kept_up_to_half_of_the_room(words):
    tokenizer = ReviewTokenizer(words, 9)  # room for six between three special tokens
    table = tokenizer.encode(
        pa.array(["the film was good", "the", "the film was good"]), pa.array(["bad bad bad bad bad"] * 2 + ["bad"])
    )
    assert table["input_ids"].to_pylist() == [
        [2, 5, 6, 7, 3, 9, 9, 9, 3],  # both too long: half and half
        [2, 5, 3, 9, 9, 9, 9, 9, 3],  # the text leaves room for more
        [2, 5, 6, 7, 8, 3, 9, 3],  # all fits
    ]
    assert table["second_len"].to_pylist() == [4, 6, 2]
    assert table["n_tokens"].to_pylist() == [12, 9, 8]
    assert table["truncated"].to_pylist() == [True, False, False]


def test_windows_repeat_the_second_text(words):
    table = ReviewTokenizer(words, 8, "windows").encode(pa.array(["the film was good the film"]), pa.array(["bad"]))
    seqs = sequences(table)
    assert seqs.ids_T.tolist() == [2, 5, 6, 7, 8, 3, 9, 3, 2, 7, 8, 5, 6, 3, 9, 3]
    assert seqs.lens_S.tolist() == [8, 8]
    assert seqs.second_lens_S.tolist() == [2, 2]


def test_null_second_text_is_a_single_text(words):
    table = ReviewTokenizer(words, 12).encode(pa.array(["the film", "the film"]), pa.array([None, "bad"]))
    assert table["input_ids"].to_pylist() == [[2, 5, 6, 3], [2, 5, 6, 3, 9, 3]]
    assert table["second_len"].to_pylist() == [0, 2]
    assert table["n_tokens"].to_pylist() == [4, 6]


def test_sequences_of_chunked_and_sliced_tables_are_those_of_their_rows(words):
    tokenizer = ReviewTokenizer(words, 5, "windows")
    texts = ["the film was good bad", "bad", "good was the film", ""]
    table = tokenizer.encode(pa.array(texts))
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 3)])
    for slice_, rows in ((pieces, [0, 0, 1, 2, 2, 3]), (pieces.slice(1, 2), [0, 1, 1]), (pieces.slice(4), [])):
        seqs = sequences(slice_)
        assert seqs.rows_S.tolist() == rows
        assert seqs.num_rows == slice_.num_rows
        assert seqs.ids_T.tolist() == list(chain(*slice_["input_ids"].to_pylist()))
        assert seqs.lens_S.tolist() == list(chain(*slice_["seq_lens"].to_pylist()))
        assert len(seqs.second_lens_S) == len(rows)


def test_more_reviews_than_one_call_takes_keep_their_order(words):
    names = ["the", "film", "was", "good", "bad"]
    texts = [names[i % 5] + " " + names[(i // 5) % 5] for i in range(1100)]
    table = ReviewTokenizer(words, 8).encode(pa.chunked_array([texts[:700], texts[700:]]))
    assert table["input_ids"].to_pylist() == [[2, 5 + i % 5, 5 + (i // 5) % 5, 3] for i in range(1100)]


def test_empty_input_gives_an_empty_table_of_the_same_schema(words):
    tokenizer = ReviewTokenizer(words, 8)
    table = tokenizer.encode(pa.array([], pa.string()))
    assert table.num_rows == 0
    assert table.schema == tokenizer.encode(pa.array(["bad"])).schema
    assert sequences(table).lens_S.tolist() == []


@pytest.mark.slow
def test_ids_of_a_large_vocabulary_are_int32(tmp_path):
    from transformers import BertTokenizer

    vocab = {f"w{i}": i + 5 for i in range(1 << 16)} | {
        name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    }
    BertTokenizer(vocab=vocab).save_pretrained(tmp_path)
    tokenizer = ReviewTokenizer(tmp_path, 8)
    table = tokenizer.encode(pa.array(["w65535 w0"]))
    assert tokenizer.vocab_size == (1 << 16) + 5
    assert table.schema.field("input_ids").type == pa.list_(pa.int32())
    assert table["input_ids"].to_pylist() == [[2, 65540, 5, 3]]


def test_settings_of_the_file_for_truncation_and_padding_are_ignored(words, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(words / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = ReviewTokenizer(tmp_path, 7).encode(pa.array(["the film was good bad the", "bad"]))
    assert table["input_ids"].to_pylist() == [[2, 5, 6, 7, 8, 9, 3], [2, 9, 3]]
    assert table["n_tokens"].to_pylist() == [8, 3]


def test_folder_with_only_a_vocabulary_is_read_by_transformers(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nbad\nfilm\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    table = ReviewTokenizer(tmp_path, 8).encode(pa.array(["bad film"]))
    assert table["input_ids"].to_pylist() == [[2, 5, 6, 3]]


def test_file_without_special_tokens_gets_those_that_transformers_adds(words, tmp_path):
    shutil.copytree(words, tmp_path, dirs_exist_ok=True)
    bare = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare), encoding="utf-8")
    expected = hf_tokenizer(tmp_path)(["bad film"], ["good"])["input_ids"]
    assert (
        ReviewTokenizer(tmp_path, 8).encode(pa.array(["bad film"]), pa.array(["good"]))["input_ids"].to_pylist()
        == expected
    )
    assert expected == [[2, 9, 6, 3, 8, 3]]


@pytest.mark.parametrize(("family", "pad_id"), [("bert", 0), ("roberta", 1), ("albert", 0)])
def test_pad_id_is_the_one_of_transformers(tokenizer_folders, family, pad_id):
    assert ReviewTokenizer(tokenizer_folders[family], 8).pad_id == pad_id


def test_tokenizing_imports_neither_torch_nor_transformers(words):
    program = (
        "import sys, pathlib, pyarrow as pa\n"
        "from bertray.model.tokenization import ReviewTokenizer, sequences\n"
        "sequences(ReviewTokenizer(pathlib.Path(sys.argv[1]), 8).encode(pa.array(['bad'])))\n"
        "print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(words)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mistakes_are_named(words, tmp_path):
    with pytest.raises(ConfigError, match=r"long_text: expected one of .*'windows'.*, found 'middle'"):
        ReviewTokenizer(words, 8, "middle")
    with pytest.raises(ConfigError, match="max_length: expected more than the 2 special tokens"):
        ReviewTokenizer(words, 2)
    with pytest.raises(ConfigError, match="expected room for two texts beside 3 special tokens, found 4"):
        ReviewTokenizer(words, 4).encode(pa.array(["a"]), pa.array(["bad"]))
    with pytest.raises(ValueError, match="expected no nulls, found 1"):
        ReviewTokenizer(words, 8).encode(pa.array(["a", None]))
    with pytest.raises(ValueError, match="pairs: expected 2 rows, as in texts, found 1"):
        ReviewTokenizer(words, 8).encode(pa.array(["a", "b"]), pa.array(["a"]))
    with pytest.raises(ConfigError, match="expected a tokenizer, found none that can be read"):
        ReviewTokenizer(tmp_path, 8)
    shutil.copy(words / "tokenizer.json", tmp_path)
    bare = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    bare["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare), encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a tokenizer that frames a text with special tokens, found none"):
        ReviewTokenizer(tmp_path, 8)
