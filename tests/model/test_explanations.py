"""Words that decide: beside texts from which the word was taken by hand, for each way of reading a long review."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray.model.explanations import MAX_WORDS, explain
from bertray.model.predictor import Predictor
from bertray.model.tokenization import ReviewTokenizer, Sequences, sequences

TEXT = "the film was good, not bad. A real good film!"
WORDS = ["the", "film", "was", "good", "not", "bad", "A", "real", "good", "film", "!"]


@pytest.fixture(scope="module")
def predictor(make_classifier):
    return Predictor(make_classifier("bert", 3), precision="fp32")


def by_hand(predictor, tokenizer, text: str, words: list[str], label: int, pair: str | None = None) -> dict:
    """(first character, word) -> fall of the probability of a text without it."""

    def prob(of: str) -> float:
        pairs = None if pair is None else pa.array([pair])
        return float(predictor.probs(tokenizer.encode(pa.array([of]), pairs))[0, label])

    changes, at = {}, 0
    for word in words:
        at = text.index(word, at)
        changes[at, word] = prob(text) - prob(text[:at] + text[at + len(word) :])
        at += len(word)
    return changes


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_words_are_those_whose_absence_moves_the_probability_most(family, make_classifier, tokenizer_folders):
    predictor = Predictor(make_classifier(family, 3, vocab_size=400), precision="fp32")
    tokenizer = ReviewTokenizer(tokenizer_folders[family], 40)
    (found,) = explain(predictor, tokenizer, [TEXT], None, np.array([1]))
    assert [TEXT[word.start : word.end] for word in found] == [word.text for word in found]
    assert {word.text for word in found} <= set(WORDS)
    moved = [abs(word.change) for word in found]
    assert moved == sorted(moved, reverse=True)
    if family == "bert":  # whose tokens are the same without the word beside them; spaces are tokens elsewhere
        expected = by_hand(predictor, tokenizer, TEXT, WORDS, 1)
        assert len(found) == MAX_WORDS
        for word in found:
            assert word.change == pytest.approx(expected[word.start, word.text], abs=1e-5)  # float32
        left = set(expected) - {(word.start, word.text) for word in found}
        assert max(abs(expected[key]) for key in left) <= moved[-1] + 1e-5


@pytest.mark.parametrize(("long_text", "read"), [("head", TEXT[:17]), ("tail", TEXT[28:])])
def test_only_words_that_the_model_reads_count_and_no_other_moves_in(long_text, read, predictor, tokenizer_folders):
    whole = ReviewTokenizer(tokenizer_folders["bert"], 40)
    length = whole.encode(pa.array([read]))["n_tokens"][0].as_py()
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], length, long_text)
    (found,) = explain(predictor, tokenizer, [TEXT], None, np.array([0]))
    words = [word for word in WORDS if word in read]
    offset = TEXT.index(read)
    expected = by_hand(predictor, whole, read, ["the", "film", "was", "good"] if long_text == "head" else words[-5:], 0)
    for word in found:
        assert word.change == pytest.approx(expected[word.start - offset, word.text], abs=1e-5)
    assert found


def test_a_word_is_taken_out_of_every_window_that_holds_it(predictor, tokenizer_folders, monkeypatch):
    monkeypatch.setattr("bertray.model.explanations.MAX_WORDS", 20)
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], 8, "windows")
    text = "the film was bad good not a real film"
    (found,) = explain(predictor, tokenizer, [text], None, np.array([2]))
    seqs = sequences(tokenizer.encode(pa.array([text])))
    windows = np.split(seqs.ids_T, np.cumsum(seqs.lens_S)[:-1])
    (word,) = (word for word in found if word.text == "good")
    good = ReviewTokenizer(tokenizer_folders["bert"], 8).encode(pa.array(["good"]))["input_ids"][0].as_py()[1]
    assert sum(good in window for window in windows) == 2  # they overlap

    def prob(windows: list) -> float:
        ids = [np.asarray(window) for window in windows]
        lens = np.array([len(window) for window in ids])
        zeros = np.zeros(len(ids), np.int32)
        logits_SC = predictor.engine.logits(Sequences(np.concatenate(ids), lens, zeros, zeros.astype(np.int64), 1))
        probs_SC = np.exp(logits_SC) / np.exp(logits_SC).sum(axis=1, keepdims=True)
        return float(probs_SC.mean(axis=0)[2])

    without = [window[window != good] for window in windows]
    assert word.change == pytest.approx(prob(windows) - prob(without), abs=1e-5)


def test_words_of_a_second_text_are_found_in_it(predictor, tokenizer_folders):
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], 40)
    pair = "not a real film"
    (found,) = explain(predictor, tokenizer, ["good bad"], [pair], np.array([0]))

    def prob(second: str) -> float:
        return float(predictor.probs(tokenizer.encode(pa.array(["good bad"]), pa.array([second])))[0, 0])

    first = by_hand(predictor, tokenizer, "good bad", ["good", "bad"], 0, pair)
    expected = {(False, *key): change for key, change in first.items()}
    for at, left_out in ((0, "not"), (4, "a"), (6, "real"), (11, "film")):
        expected[True, at, left_out] = prob(pair) - prob(pair[:at] + pair[at + len(left_out) :])
    assert {word.second for word in found} == {False, True}
    for word in found:
        assert word.change == pytest.approx(expected[word.second, word.start, word.text], abs=1e-5)
    (alone, _) = explain(predictor, tokenizer, ["good bad", "bad"], [None, pair], np.array([0, 0]))
    assert {word.second for word in alone} == {False}


def test_a_script_without_spaces_is_cut_by_the_tokens_of_the_model(predictor, tokenizer_folders):
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], 40)
    (found,) = explain(predictor, tokenizer, ["电影好看 good"], None, np.array([0]))
    assert {word.text for word in found} <= {"电", "影", "好", "看", "good"}
    assert len({word.start for word in found}) == len(found) > 1
    (thai,) = explain(predictor, tokenizer, ["ดีมาก good"], None, np.array([0]))  # one unknown token
    assert {word.text for word in thai} <= {"ดีมาก", "good"}


def test_marks_of_a_letter_are_a_part_of_its_word(predictor, tokenizer_folders):
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], 40)
    (found,) = explain(predictor, tokenizer, ["अच्छी फिल्म good"], None, np.array([0]))
    assert {word.text for word in found} <= {"अच्छी", "फिल्म", "good"}


def test_a_text_without_words_has_no_reason_and_no_text_costs_nothing(predictor, tokenizer_folders):
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], 40)
    assert explain(predictor, tokenizer, ["...", " - "], None, np.array([0, 1])) == [(), ()]
    assert explain(predictor, tokenizer, [], None, np.array([], np.int64)) == []


def test_a_long_text_costs_no_more_than_a_few_dozen_sequences(predictor, tokenizer_folders, monkeypatch):
    tokenizer = ReviewTokenizer(tokenizer_folders["bert"], 40, "windows")
    text = "the film was a " * 2000 + "good " + "not bad " * 2000
    rows = []
    probs = predictor.probs
    monkeypatch.setattr(predictor, "probs", lambda table: rows.append(table.num_rows) or probs(table))
    explain(predictor, tokenizer, [text], None, np.array([0]))
    assert 24 < sum(rows) <= 1 + 24 + 5 * 3 * 8  # 12,001 words: 501 in a group, 63, 8, one
    assert len(rows) <= 6


def test_a_word_hidden_in_a_group_is_found():
    """A model of which one word decides: the group that holds it moves, and is looked into."""

    class OneWord:
        term_scorer = None

        def probs(self, table):
            has_N = [marker in ids for ids in table["input_ids"].to_pylist()]
            return np.array([[0.9, 0.1] if has else [0.2, 0.8] for has in has_N], np.float32)

    class Letters(ReviewTokenizer):
        def __init__(self) -> None:
            pass

        id_type = pa.int32()

        def encode_with_places(self, texts, pairs=None):
            from bertray.model.tokenization import TokenPlaces

            spans = [(at, at + 3) for at in range(0, len(texts[0]), 4)]
            ids = [int(texts[0][lo:hi]) for lo, hi in spans]
            table = pa.table(
                {
                    "input_ids": pa.array([ids], pa.list_(pa.int32())),
                    "seq_lens": pa.array([[len(ids)]], pa.list_(pa.int32())),
                    "second_len": pa.array([0], pa.int32()),
                }
            )
            return table, TokenPlaces(np.zeros(len(ids), np.int64), np.array(spans, np.int64))

    marker = 777
    text = " ".join(str(number) for number in range(100, 900))
    (found,) = explain(OneWord(), Letters(), [text], None, np.array([0]))  # type: ignore[arg-type]  # stand-ins
    assert [(word.text, round(word.change, 6)) for word in found] == [("777", 0.7)]
