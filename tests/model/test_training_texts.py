"""Hashes of training texts: which rows were seen, whatever the size of the training set."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bertray.errors import ConfigError
from bertray.model.training_texts import FILE, TrainingTexts, joined, read_training_texts, with_earlier
from bertray.reviews.split import group_hash, input_hash


def hashes(*numbers: int) -> np.ndarray:
    return group_hash(pa.array([f"text {number}" for number in numbers]))


def test_all_of_few_are_held_and_come_back_from_their_file(tmp_path):
    texts = TrainingTexts.of(hashes(1, 2, 3, 2))
    (tmp_path / FILE).write_bytes(texts.to_bytes())
    found = read_training_texts(tmp_path)
    assert found.hashes_T.tolist() == sorted(hashes(1, 2, 3).tolist())
    assert found.seen(hashes(3, 4, 1)).tolist() == [True, False, True]
    assert found.covers(hashes(3, 4, 1)).all()
    assert read_training_texts(tmp_path / "nowhere") is None
    (tmp_path / FILE).write_bytes(b"ARROW1")
    with pytest.raises(ConfigError, match="Copy the bundle again"):
        read_training_texts(tmp_path)


def test_of_many_a_uniform_sample_is_held_that_estimates_without_bias():
    texts = TrainingTexts.of(hashes(*range(20_000)), most=2_000)
    assert len(texts.hashes_T) == 2_000
    rows = hashes(*range(15_000, 25_000))  # half of them were seen
    known = texts.covers(rows)
    assert known.mean() == pytest.approx(0.1, rel=0.15)
    assert texts.seen(rows)[known].mean() == pytest.approx(0.5, abs=0.05)
    assert not texts.seen(rows)[~known].any()


def test_texts_of_a_model_that_was_trained_on_are_kept(tmp_path):
    (tmp_path / FILE).write_bytes(TrainingTexts.of(hashes(1, 2)).to_bytes())
    both = with_earlier(TrainingTexts.of(hashes(2, 3)), tmp_path, tmp_path / "a model of the hub")
    assert both.seen(hashes(1, 2, 3, 4)).tolist() == [True, True, True, False]
    part, whole = TrainingTexts.of(hashes(*range(100)), most=20), TrainingTexts.of(hashes(*range(100, 110)))
    for result in (joined(part, whole), joined(whole, part)):
        assert result.below == part.below
        assert set(result.hashes_T) == {h for h in hashes(*range(110)).tolist() if h < part.below}


def test_the_hash_of_a_pair_is_of_both_texts():
    texts, pairs = pa.array(["good", "good", "good", "bad"]), pa.array(["food", "staff", None, None])
    alone = group_hash(texts)
    found = input_hash(alone, texts, pairs)
    assert len(set(found.tolist())) == 4
    assert found[2:].tolist() == alone[2:].tolist(), "a row without a second text is as if it were alone"
    assert input_hash(alone, texts, None).tolist() == alone.tolist()
    moved = input_hash(group_hash(pa.array(["goodf"])), pa.array(["goodf"]), pa.array(["ood"]))
    assert moved[0] != found[0]
