"""Characters, tokens and words of texts, against a walk over each of them in plain Python."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from bertray.model.tokenization import ReviewTokenizer
from bertray.model.units import UnitSums, encode_with_units, input_vectors, unit_sums

TEXTS = [
    "the film was great",
    "The plot, the actor: great!",
    "zq zq  greatly",
    "",
    "电影 good 好",
    "it was very very boring and the story was not good",
]


def expected(folder, texts: list[str], unit: str, max_length: int, vectors_TD: np.ndarray):
    """Unit -> (count, sum), by the character spans that `transformers` gives."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    start = 0
    for text in texts:
        given = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        own = [n for n, (begin, end) in enumerate(given["offset_mapping"]) if begin < end]
        if unit == "token":
            for n in own:
                found[tokenizer.convert_ids_to_tokens(given["input_ids"][n])].append(vectors_TD[start + n])
        else:
            pattern = r"\S" if unit == "character" else r"[一-鿿]|[^\W一-鿿]+"
            for match in re.finditer(pattern, text):
                begin, end = match.span()
                of = [n for n in own if given["offset_mapping"][n][0] < end and given["offset_mapping"][n][1] > begin]
                if of and max(given["offset_mapping"][n][1] for n in of) >= end:
                    found[match.group().lower()].append(vectors_TD[[start + n for n in of]].mean(axis=0))
        start += len(given["input_ids"])
    return {unit: (len(vectors), np.sum(vectors, axis=0)) for unit, vectors in found.items()}


@pytest.mark.parametrize("max_length", [6, 64])
@pytest.mark.parametrize("unit", ["character", "token", "word"])
def test_sums_are_those_of_a_walk_over_the_texts(tiny_encoder, unit, max_length, monkeypatch):
    monkeypatch.setattr("bertray.model.units._TEXTS_PER_CALL", 2)
    monkeypatch.setattr("bertray.model.units._OCCURRENCES_AT_ONCE", 7)
    table = encode_with_units(ReviewTokenizer(tiny_encoder, max_length), pa.array(TEXTS), unit)
    plain = ReviewTokenizer(tiny_encoder, max_length).encode(pa.array(TEXTS))
    assert table.select(plain.column_names).to_pylist() == plain.to_pylist()
    vectors_TD = np.random.default_rng(0).normal(size=(len(pa.concat_arrays(table["input_ids"].chunks).flatten()), 4))
    units, counts_U, sums_UD = unit_sums(table, vectors_TD.astype(np.float32))
    wanted = expected(tiny_encoder, TEXTS, unit, max_length, vectors_TD)
    assert dict(zip(units, counts_U.tolist(), strict=True)) == {unit: count for unit, (count, _) in wanted.items()}
    np.testing.assert_allclose(sums_UD, [wanted[unit][1] for unit in units], atol=1e-5)


def test_words_of_scripts_without_spaces_are_their_letters(tiny_encoder):
    table = encode_with_units(
        ReviewTokenizer(tiny_encoder, 64), pa.array(["电影 film, ロボ x_1 ไทย it's 한국"]), "word"
    )
    assert table["units"][0].as_py() == ["电", "影", "film", "ロ", "ボ", "x_1", "ไ", "ท", "ย", "it", "s", "한국"]


@pytest.mark.parametrize("family", ["roberta", "deberta-v2"])
def test_a_character_of_several_tokens_has_their_mean(tokenizer_folders, family):
    table = encode_with_units(ReviewTokenizer(tokenizer_folders[family], 32), pa.array(["good 好"]), "character")
    assert table["units"][0].as_py() == list("good好")
    starts, lens = table["unit_starts"][0].as_py(), table["unit_lens"][0].as_py()
    # Three bytes are three tokens of byte-level BPE; one unknown token of the other.
    assert lens[-1] == (3 if family == "roberta" else 1)
    assert starts[-1] + lens[-1] == len(table["input_ids"][0]) - 1


def test_case_is_kept_where_the_tokenizer_tells_it_apart(tokenizer_folders, tiny_encoder):
    units = [
        encode_with_units(ReviewTokenizer(folder, 32), pa.array(["The the"]), "word")["units"][0].as_py()
        for folder in (tokenizer_folders["roberta"], tiny_encoder)
    ]
    assert units == [["The", "the"], ["the", "the"]]


def test_sums_of_parts_add_up_and_means_go_by_count():
    total = UnitSums(2)
    total.add(["b", "a"], np.array([1, 2]), np.array([[1.0, 0.0], [4.0, 2.0]]))
    total.add([], np.zeros(0, np.int64), np.zeros((0, 2)))
    total.add(["c", "b", "d"], np.array([3, 1, 1]), np.array([[3.0, 3.0], [0.0, 5.0], [7.0, 7.0]]))
    units, counts_U, means_UD = total.by_count()
    assert (units, counts_U.tolist()) == (["c", "a", "b", "d"], [3, 2, 2, 1])
    assert means_UD.tolist() == [[1.0, 1.0], [2.0, 1.0], [0.5, 2.5], [7.0, 7.0]]
    assert UnitSums(3).by_count()[2].shape == (0, 3)


def test_input_vectors_are_the_mean_over_the_pieces_of_a_unit_alone(tiny_encoder):
    words_VD = load_file(tiny_encoder / "model.safetensors")["embeddings.word_embeddings.weight"]
    number = AutoTokenizer.from_pretrained(tiny_encoder).convert_tokens_to_ids
    found = input_vectors(tiny_encoder, ["film", "zq", "好"], "word")
    assert (found.num_pieces_U.tolist(), found.is_known_U.tolist()) == ([1, 2, 1], [True, True, False])
    np.testing.assert_allclose(found.vectors_UD[0], words_VD[number("film")], atol=1e-6)
    np.testing.assert_allclose(found.vectors_UD[1], words_VD[number(["z", "##q"])].mean(axis=0), atol=1e-6)
    of_tokens = input_vectors(tiny_encoder, ["##q", "[UNK]"], "token")
    assert (of_tokens.num_pieces_U.tolist(), of_tokens.is_known_U.tolist()) == ([1, 1], [True, False])
    np.testing.assert_allclose(of_tokens.vectors_UD[0], words_VD[number("##q")], atol=1e-6)
