"""Which tokens are hidden: how many, which, by what they are replaced, and that all of it can be repeated."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BertTokenizerFast, GPT2TokenizerFast

from bertray.errors import ConfigError
from bertray.training.masking import Masker, Vocabulary, places_to_score

MASK, CLS, SEP = 4, 2, 3
WORDS = 50
VOCABULARY = Vocabulary(MASK, np.arange(WORDS) < 5, np.arange(WORDS) >= 40)  # 40 and above go on with a word


def masker(ratio: float = 0.15, *, whole_words: bool = False, seed: int = 0) -> Masker:
    return Masker(VOCABULARY, ratio=ratio, whole_words=whole_words, seed=seed)


def text(*words: int) -> np.ndarray:
    return np.array([CLS, *words, SEP], np.uint16)


def test_fifteen_percent_are_hidden_and_the_targets_are_what_stood_there():
    ids = text(*range(5, 45))
    masked = masker().mask(ids, epoch=0, example=0)
    assert len(masked.places_M) == 6
    assert (np.diff(masked.places_M) > 0).all()
    np.testing.assert_array_equal(masked.targets_M, ids[masked.places_M])
    untouched = np.setdiff1d(np.arange(len(ids)), masked.places_M)
    np.testing.assert_array_equal(masked.ids_T[untouched], ids[untouched])
    assert ids.tolist() == [CLS, *range(5, 45), SEP]  # the shard is not written to


def test_the_shares_of_masked_random_and_unchanged_tokens():
    ids = text(*([7] * 400))
    counts = np.zeros(3, int)
    for example in range(50):
        masked = masker(0.5).mask(ids, epoch=0, example=example)
        found = masked.ids_T[masked.places_M]
        assert not (found < 4).any()  # no other special token is ever put in
        counts += [(found == MASK).sum(), ((found != MASK) & (found != 7)).sum(), (found == 7).sum()]
    # 45 ordinary words: one in 45 of the random ones is the word itself.
    np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.1 * 44 / 45, 0.1 + 0.1 / 45], atol=0.01)


def test_gaps_are_a_function_of_seed_epoch_and_example():
    ids = text(*range(5, 45))
    first = masker().mask(ids, epoch=1, example=2)
    again = masker().mask(ids, epoch=1, example=2)
    np.testing.assert_array_equal(first.ids_T, again.ids_T)
    others = [
        masker().mask(ids, epoch=2, example=2),
        masker().mask(ids, epoch=1, example=3),
        masker(seed=1).mask(ids, epoch=1, example=2),
    ]
    assert all(not np.array_equal(first.places_M, other.places_M) for other in others)


def test_special_tokens_are_never_hidden_and_a_text_of_nothing_else_has_no_gap():
    masked = masker(0.99).mask(text(5, 1, 6), epoch=0, example=0)  # 1 is the unknown token
    assert masked.places_M.tolist() == [1, 3]
    empty = masker().mask(text(), epoch=0, example=0)
    assert len(empty.places_M) == 0
    assert len(masker().mask(text(9), epoch=0, example=0).places_M) == 1


def test_whole_words_are_hidden_in_all_their_pieces():
    ids = text(5, 40, 41, 6, 7, 42, 8, 9, 43, 44, 45)
    words = [{1, 2, 3}, {4}, {5, 6}, {7}, {8, 9, 10, 11}]
    for example in range(30):
        places = set(masker(0.3, whole_words=True).mask(ids, epoch=0, example=example).places_M.tolist())
        assert 1 <= len(places) <= 3
        assert all(word <= places or not word & places for word in words)


def test_a_text_that_is_one_long_word_is_not_hidden_altogether():
    """As one in Chinese or Japanese is to a SentencePiece vocabulary."""
    masked = masker(0.15, whole_words=True).mask(text(*([41] * 40)), epoch=0, example=0)
    assert len(masked.places_M) == 6


def test_places_to_score_are_drawn_from_all_ordinary_tokens_alike():
    texts = [text(5, 6, 7), text(), text(8), text(1, 9)]
    texts_V, places_V = places_to_score(texts, VOCABULARY, most=100, seed=0)
    assert list(zip(texts_V.tolist(), places_V.tolist(), strict=True)) == [(0, 1), (0, 2), (0, 3), (2, 1), (3, 2)]
    few = places_to_score(texts, VOCABULARY, most=2, seed=0)
    assert len(few[0]) == 2
    drawn = [places_to_score(texts, VOCABULARY, most=1, seed=seed)[0][0] for seed in range(200)]
    assert 0.5 < np.mean(np.array(drawn) == 0) < 0.7  # three of five


def test_pieces_of_a_word_piece_vocabulary_and_of_a_byte_pair_one(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "##ly"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    vocabulary = Vocabulary.of(tmp_path / "bert")
    assert vocabulary.mask_id == 4
    assert vocabulary.special_W.tolist() == [True] * 5 + [False] * 2
    assert vocabulary.continues_W.tolist() == [False] * 6 + [True]

    from tokenizers import Tokenizer, models

    bytes_pairs = Tokenizer(models.BPE({"<mask>": 0, "Ġgood": 1, "ly": 2, "##": 3}, []))
    GPT2TokenizerFast(tokenizer_object=bytes_pairs, mask_token="<mask>").save_pretrained(tmp_path / "bpe")
    continues = Vocabulary.of(tmp_path / "bpe").continues_W
    assert continues[1:4].tolist() == [False, True, True]  # `##` is a token like another there


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    GPT2TokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no mask token"):
        Vocabulary.of(tmp_path)
