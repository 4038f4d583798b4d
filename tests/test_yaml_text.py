"""YAML 1.2: each form of a word, faults with their line, and that values are read back as they were written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bertray.yaml_text import MAX_VALUES, WrittenFloat, YamlError, read_yaml, write_yaml, yaml_word

WORDS = [
    "", "no", "on", "y", "Yes", "~", "null", "True", ".5", "1e5", "5e-5", "12", "007", "1_000", "0x1", "0o7", "1:30",
    "2020-01-01", ".inf", "-.INF", "nan", "-", "-x", "? a", "#x", "a #b", "a: b", "a,b", "[a", "{x}", "*x", "&y", "!z",
    "%", "@", "`", "|", ">", "=", "<<", " a", "a ", "it's", '"q"', "C:\\x", "./x", "../y", "/a/b-c.d_e", "é", "评论",
    "👍", "\x85", "\u2028", "\ufeff", "\x07", "\t", "a\nb", "\n", "x" * 300, "a " * 100,
]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *((word, word) for word in ("no", "No", "yes", "on", "off", "y", "n")),
        *((word, word) for word in ("2026-11-20", "2026-11-20 12:00:00", "007", "-007", "1_000", "1:30", "0b11", "=")),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("12", 12), ("+5", 5), ("-3", -3), ("0o17", 15), ("0x1F", 31),
        ("5e-5", 5e-5), ("1e5", 1e5), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf),
        ("'12'", "12"), ('"no"', "no"), ("!!str 12", "12"), ("!!str null", "null"),
        ("|\n  a\n  b\n", "a\nb\n"), (">\n  a\n  b\n", "a b\n"),
    ],
)  # fmt: skip
def test_a_word_means_what_yaml_1_2_says(written: str, value: Any):
    found = read_yaml(f"k: {written}")["k"]
    assert found == value
    assert type(found) is type(value) or isinstance(found, WrittenFloat)


def test_a_number_keeps_its_spelling():
    assert read_yaml("1.10").text == "1.10"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff"])
def test_a_document_without_a_value_is_none(text: str):
    assert read_yaml(text) is None


def test_anchors_aliases_and_merged_keys_are_followed():
    text = "a: &a {x: 1, y: 2}\nb: &b {x: 9, z: 3}\none: {x: 0, <<: *a}\ntwo: {<<: [*a, *b]}\nsame: *a\nb2: &a 5\n"
    found = read_yaml(text)
    assert found["one"] == {"x": 0, "y": 2}
    assert found["two"] == {"x": 1, "y": 2, "z": 3}
    assert found["same"] == {"x": 1, "y": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' stands twice"),
        ("{a: 1, 'a': 2}", 1, "key 'a' stands twice"),
        ("x:\n  {1: a,\n   1.0: b}\n", 3, "key 1.0 stands twice"),
        ("? [a, b]\n: c\n", 1, "expected a word as key, found a sequence"),
        ("? {a: b}\n: c\n", 1, "expected a word as key, found a mapping"),
        ("a: 1\n\tb: 2\n", 2, r"found character '\t' that cannot start any token"),
        ("- 1\n---\n- 2\n", 2, "found another document"),
        ("a: 'x", 1, "found unexpected end of stream"),
        ("a: b: c", 1, "mapping values are not allowed here"),
        ("a: *x", 1, "found undefined alias 'x'"),
        ("a: 1\nx: !!python/object/apply:os.system [ls]\n", 2, "a tag that no config has"),
        ("x: !!binary aGk=", 1, "a tag that no config has"),
        ("x: !foo b", 1, "a tag that no config has, !foo"),
        ("x: " + "9" * 5000, 1, "a number of too many digits"),
        ("a: \x07", None, "unacceptable character #x0007"),
        ("a: &x [*x]", None, "values nested too deeply, or within themselves"),
        ("[" * 100_000, None, "values nested too deeply"),
        ("{a: " * 5000, None, "values nested too deeply"),
        ("a: {<<: 3}", 1, "expected keys and values to merge below '<<'"),
    ],
)
def test_a_fault_is_named_with_its_line(text: str, line: int | None, problem: str):
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert problem in caught.value.problem
    assert "\n" not in caught.value.problem
    assert caught.value.line == line


def test_aliases_of_aliases_do_not_fill_the_memory():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(YamlError, match=f"more than {MAX_VALUES:,} values"):
        read_yaml("\n".join(lines))


@pytest.mark.parametrize("word", WORDS)
def test_a_text_is_read_back_wherever_it_stands_by_yaml_1_1_too(word: str):
    for data in ({"k": word}, {word: "v"}, {"k": [word, word]}, {"k": {word: {word: word}}}):
        assert read_yaml(write_yaml(data)) == data
        assert yaml.safe_load(write_yaml(data)) == data
    in_line = yaml_word(word)
    assert "\n" not in in_line
    assert read_yaml(in_line) == word
    assert read_yaml(f"{{k: [{in_line}, 1]}}") == {"k": [word, 1]}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_values_are_read_back_as_a_block_and_in_a_line(value: Any):
    assert read_yaml(write_yaml({"k": value})) == {"k": value}
    assert read_yaml(yaml_word(value)) == value
    assert read_yaml(f"[{yaml_word(value)}]") == [value]
    assert "\n" not in yaml_word(value)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((True, "true"), (None, "null"), (3, "3"), (0.5, "0.5"), (5e-5, "5.0e-05"), (1e17, "1.0e+17")),
        *(("a/b.csv", "a/b.csv"), (["a", "b c"], '[a, "b c"]'), ({"0": "neg"}, '{"0": neg}')),
        *(((), "[]"), ({}, "{}"), ({"a": []}, "{a: []}")),
    ],
)
def test_values_are_written_as_a_person_would(value: Any, written: str):
    assert yaml_word(value) == written
