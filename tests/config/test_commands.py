"""Checks of the values of configs."""

from __future__ import annotations

from typing import Any

import pytest

from bertray.config import build_config
from bertray.errors import ConfigError
from tests.config_files import SCORE, TRAIN, load_config


def test_a_config_is_frozen():
    config: Any = build_config("score", {"input": "a", "output": "b"})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("{1.0: neg, 2.0: pos}", {"1": "neg", "2": "pos"}),
        ("{'1.0': neg, ' -2.00 ': ' pos '}", {"1": "neg", "-2": "pos"}),
        ("{a: 1.0, b: 2.0, c: null}", {"a": "1.0", "b": "2.0", "c": None}),
        ("{1.5: a, 10: b, v1.0: c}", {"1.5": "a", "10": "b", "v1.0": "c"}),
        ("{1: neg, '1.0': neg, 2: pos}", {"1": "neg", "2": "pos"}),
        ("[1.0, 2.0]", ("1", "2")),
        ("[' neg ', \"pos\\n\"]", ("neg", "pos")),
    ],
)
def test_label_values_are_taken_as_the_data_has_them(labels, expected):
    assert load_config("train", [], [*TRAIN, f"labels={labels}"]).labels == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("{1: neg, '1.0': pos}", "the value '1' two names: 'neg' and 'pos'"),
        ("[1, 1.0]", "needs at least two class names"),
        ("{1: a, ' ': b}", "an empty label"),
        ("{1: a, 2: ' '}", "an empty label"),
    ],
)
def test_labels_that_become_one_or_none_are_a_config_error(labels, message):
    with pytest.raises(ConfigError, match=message):
        load_config("train", [], [*TRAIN, f"labels={labels}"])


def test_a_column_is_kept_once():
    with pytest.raises(ConfigError, match="keep_columns: names a column twice: 'x'"):
        load_config("score", [], [*SCORE, "keep_columns=[x, y, x]"])


def test_contestants_for_cpus_are_refused_on_a_gpu_by_name():
    words = ["input=in", "beside=[pipeline, onnx_int8, openvino_int8]"]
    load_config("benchmark", [], words)
    with pytest.raises(ConfigError, match="beside: for CPUs are onnx_int8, openvino_int8; leave them out on a GPU"):
        load_config("benchmark", [], [*words, "device=cuda"])


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("pretrain", ["input=in", "output=out"], "columns.aspects: pretrain reads a review once; leave the key out"),
        ("topics", ["input=in", "output=out"], "columns.aspects: topics reads a review once; leave the key out"),
        ("audit", ["data.train=in", "output=out"], "columns.aspects: audit reads a review once; leave the key out"),
        ("benchmark", ["input=in"], "columns.aspects: benchmark reads a review once; leave the key out"),
        (
            "train",
            [*TRAIN, "training.method=distill", "training.teacher=teacher", "data.test=b.parquet"],
            "columns.aspects: training.method=distill reads a review once; leave the key out",
        ),
    ],
)
def test_a_column_of_aspects_is_refused_where_a_review_is_read_once(verb, words, said):
    load_config(verb, [], words)
    with pytest.raises(ConfigError, match=said):
        load_config(verb, [], [*words, "columns.aspects=about"])
