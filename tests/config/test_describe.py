"""Help, explanations of wrong keys, JSON schema and the YAML of a resolved config."""

from __future__ import annotations

import json
import re

import pytest

from bertray.cli import run
from bertray.config import CONFIGS, json_schema, key_help, keys, to_yaml
from bertray.config.describe import SYNONYMS
from bertray.errors import ConfigError
from tests.config_files import SCORE, TRAIN, file, load_config


@pytest.mark.parametrize(
    ("verb", "key", "meant"),
    [
        ("train", "lr", "training.learning_rate"),
        ("train", "training.lr", "training.learning_rate"),
        ("train", "bs", "training.batch_size"),
        ("train", "epochs", "training.epochs"),
        ("train", "num_train_epochs", "training.epochs"),
        ("train", "learning_rat", "training.learning_rate"),
        ("train", "max_len", "max_length"),
        ("train", "training.max_len", "max_length"),
        ("train", "label", "columns.label"),
        ("train", "lables", "labels"),
        ("train", "columns.labels", "columns.label"),
        ("train", "data.dev", "data.validation"),
        ("train", "fp16", "training.precision"),
        ("score", "fp16", "precision"),
        ("score", "sep", "reader.delimiter"),
        ("score", "header", "reader.header"),
        ("score", "num_workers", "workers.num_workers"),
        ("score", "data.train", "input"),
    ],
)
def test_a_key_that_people_type_is_told_what_it_is_called_here(verb, key, meant):
    with pytest.raises(ConfigError) as caught:
        load_config(verb, [], ["output=o", f"{key}=1"])
    assert f"no such key. Did you mean {meant!r}?" in str(caught.value)


def test_a_key_that_is_like_no_other_is_not_told_another():
    with pytest.raises(ConfigError) as caught:
        load_config("score", [], ["model=m", "input=i", "output=o", "learning_rat=1"])
    assert str(caught.value).startswith("score config: learning_rat: no such key. `bertray score --help`")


def test_every_synonym_is_of_a_key_that_a_verb_has():
    known = {key for config in CONFIGS.values() for key in keys(config)}
    assert {key for named in SYNONYMS.values() for key in named} <= known


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config("embed", [], ["inptu=a", "slot=../x"])
    text = str(caught.value)
    assert "output: missing" in text
    assert "input: missing" in text
    assert "Did you mean 'input'?" in text
    assert "slot: '../x' is not a slot name" in text


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", TRAIN),
        ("score", SCORE),
        ("evaluate", SCORE),
        ("demo", []),
        ("pretrain", SCORE),
        ("pretrain", [*SCORE, "from_scratch=true", "vocabulary.size=500"]),
        ("topics", SCORE),
        ("train", [*TRAIN, "data.test=t", "training.method=distill", "training.teacher=t"]),
    ],
)
def test_the_resolved_config_reads_back_to_an_equal_config(tmp_path, verb, words):
    config = load_config(verb, [], words)
    assert load_config(verb, [file(tmp_path, to_yaml(config))]) == config


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_key_has_a_description_and_stands_in_the_schema(verb):
    text = json.dumps(json_schema(verb))
    for key in keys(CONFIGS[verb]):
        assert f'"{key.split(".")[-1]}"' in text

    assert [key for key, _, description in key_help(CONFIGS[verb]) if not description] == []


@pytest.mark.parametrize("verb", CONFIGS)
def test_help_shows_each_key_on_a_line_of_its_own_within_the_width_of_a_page(verb, capsys):
    assert run([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.strip().partition(" = ")[0] for line in lines if re.match(r" {4}[a-z]\S* = ", line)]
    assert shown == keys(CONFIGS[verb])
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("verb", CONFIGS)
def test_descriptions_name_the_thing(verb):
    """None begins as half a sentence that only its key would complete."""
    half = re.compile(r"(of|what|which|whose|how|where|who|that|by|each|every|also|even)\b", re.IGNORECASE)
    assert {key: text for key, _, text in key_help(CONFIGS[verb]) if half.match(text)} == {}
