"""Checks of the values of configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bertray.config import build_config
from bertray.config import load_config as load_section
from bertray.errors import ConfigError

TRAIN = ["data.train=a.parquet", "output=run"]
SCORE = ["input=in", "output=out"]


def load_config(verb: str, *sources: Any) -> Any:
    """The config with the keys of its verb, whatever class that is."""
    return load_section(verb, *sources)


def file(tmp_path: Path, text: str, name: str = "a.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


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
