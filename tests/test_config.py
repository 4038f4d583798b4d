"""Configs: what files and overrides become, and what a typo is told."""

import json
from pathlib import Path

import pytest
import yaml

from bertray.config import CONFIGS, build_config, guess_verb, json_schema, keys, load_config, to_yaml
from bertray.config.describe import SYNONYMS
from bertray.errors import ConfigError

TRAIN = ["data.train=a.parquet", "output=run"]
SCORE = ["input=in", "output=out"]


def file(tmp_path: Path, text: str, name: str = "a.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_later_sources_win_and_mappings_merge(tmp_path):
    a = file(tmp_path, "training: {epochs: 2, batch_size: 8}\nseed: 1\n")
    b = file(tmp_path, "training: {epochs: 5}\n", "b.yaml")
    config = load_config("train", [a, b], [*TRAIN, "training.batch_size=16"])
    assert (config.training.epochs, config.training.batch_size, config.seed) == (5, 16, 1)


def test_labels_columns_and_lists_replace_and_never_merge(tmp_path):
    a = file(tmp_path, "labels: {0: bad, 1: good}\ncolumns: {id: key, text: body}\ndata: {train: [x, y]}\n")
    b = file(tmp_path, "labels: {n: bad, p: good}\ncolumns: {text: review}\n", "b.yaml")
    config = load_config("train", [a, b], ["data.train=[z]", "output=o"])
    assert config.labels == {"n": "bad", "p": "good"}
    assert (config.columns.id, config.columns.text) == ("id", "review")
    assert config.data.train == ("z",)
    assert load_config("train", [a], ["output=o", "labels=[u, v]"]).labels == ("u", "v")


def test_a_single_column_override_keeps_the_others(tmp_path):
    a = file(tmp_path, "columns: {id: key, text: body}\n")
    config = load_config("train", [a], [*TRAIN, "columns.label=1"])
    assert config.columns.model_dump() == {"id": "key", "text": "body", "text_pair": None, "label": "1"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("slot=dt=2026-11-20", "dt=2026-11-20"),
        ("slot=2026-11-20", "2026-11-20"),
        ("slot=12", "12"),
    ],
)
def test_only_the_first_equals_sign_splits_and_slots_stay_text(word, expected):
    assert load_config("score", [], [*SCORE, word]).slot == expected


def test_paths_and_models_that_look_like_numbers_stay_text():
    config = load_config("score", [], ["input=2026", "output=1e5", "model=007"])
    assert (config.input, config.output, config.model) == (("2026",), "1e5", "007")
    assert load_config("score", [], ["input=[2026, b]", "output=o"]).input == ("2026", "b")


def test_scientific_notation_is_a_number():
    assert load_config("train", [], [*TRAIN, "training.learning_rate=5e-5"]).training.learning_rate == 5e-5


def test_labels_mapping_from_an_override_turns_numbers_into_words():
    config = load_config("train", [], [*TRAIN, "labels={0: negative, 1: positive, 2: null}"])
    assert config.labels == {"0": "negative", "1": "positive", "2": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.epoch=3"], "training.epoch: no such key. Did you mean 'training.epochs'?"),
        (["epochs=3"], "epochs: no such key. Did you mean 'training.epochs'?"),
        (["modle=x"], "modle: no such key. Did you mean 'model'?"),
        (["labels=[no, yes]"], 'write it in quotes, like "no"'),
        (["labels={null: a, b: c}"], 'write it in quotes, like "null"'),
        (["labels=[a, a]"], "needs at least two class names"),
        (["training.epochs=two"], "training.epochs: expected a whole number, found 'two'"),
        (["training.epochs=0"], "training.epochs: expected 1 or more, found 0"),
        (["--epochs"], "expected key=value"),
        (["labels"], "expected key=value"),
        (["seed.x=1", "seed=2", "seed.y=1"], "so it has no key below it"),
        (["labels={a: [}"], "expected YAML"),
    ],
)
def test_a_wrong_override_is_a_config_error_that_says_what_was_expected(words, message):
    with pytest.raises(ConfigError) as caught:
        load_config("train", [], [*TRAIN, *words])
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


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
    assert str(caught.value).startswith("score config: learning_rat: no such key. `bertray config schema score`")


def test_every_synonym_is_of_a_key_that_a_verb_has():
    known = {key for config in CONFIGS.values() for key in keys(config)}
    assert {key for named in SYNONYMS.values() for key in named} <= known


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config("score", [], ["inptu=a", "slot=../x"])
    text = str(caught.value)
    assert "output: missing" in text
    assert "input: missing" in text
    assert "Did you mean 'input'?" in text
    assert "slot: '../x' is not a slot name" in text


@pytest.mark.parametrize(
    "text",
    [
        "- a\n",
        "a: [\n",
        "a: 1\na: 2\n",
        "? [a, b]\n: c\n",
        "? {a: b}\n: c\n",
        "a: 0x_\n",
        "x: !!python/object/apply:os.system [ls]\n",
    ],
)
def test_a_file_that_is_not_a_plain_mapping_is_a_config_error(tmp_path, text):
    with pytest.raises(ConfigError):
        load_config("train", [file(tmp_path, text)], TRAIN)


def test_a_missing_file_is_a_config_error():
    with pytest.raises(ConfigError, match=r"-c nowhere\.yaml: no such file"):
        load_config("train", ["nowhere.yaml"], TRAIN)


def test_environment_references_resolve(tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET", "s3://reviews")
    path = file(tmp_path, "input: ${oc.env:BUCKET}/in\noutput: ${oc.env:BUCKET}/out\n")
    config = load_config("score", [path])
    assert (config.input, config.output) == (("s3://reviews/in",), "s3://reviews/out")
    monkeypatch.delenv("BUCKET")
    with pytest.raises(ConfigError, match="does not resolve"):
        load_config("score", [path])


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
    from bertray.config import key_help

    assert [key for key, _, description in key_help(CONFIGS[verb]) if not description] in ([], ["cleaning.version"])


def test_plan_guesses_the_verb_from_what_is_set(tmp_path):
    assert guess_verb([], TRAIN) == "train"
    assert guess_verb([file(tmp_path, "input: a\n")], ["output=o"]) == "score"
    with pytest.raises(ConfigError, match="found neither"):
        guess_verb([], ["output=o"])
    with pytest.raises(ConfigError, match="found both"):
        guess_verb([], [*TRAIN, "input=a"])


def test_a_config_is_frozen():
    config = build_config("score", yaml.safe_load("{input: a, output: b}"))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    "path",
    [
        "*.parquet",
        "**/*.csv",
        "[ab]*.csv",
        "[ab]*.[ch]sv",
        "{a,b}.csv",
        "@x",
        "data/x #1",
        "a: b",
        "2026-11-20",
        "007",
        "it's",
        "[a",
    ],
)
def test_a_path_is_what_was_written_whatever_yaml_makes_of_it(path):
    assert load_config("score", [], [f"input={path}", "output=o"]).input == (path,)
    data = load_config(
        "train", [], [f"data.{key}={path}" for key in ("train", "validation", "test")] + ["output=o"]
    ).data
    assert (data.train, data.validation, data.test) == ((path,), (path,), (path,))
    assert load_config("init", [], [f"data={path}"]).data == (path,)
    config = load_config("score", [], ["input=i", f"output={path}", f"model={path}"])
    assert (config.output, config.model) == (path, path)


@pytest.mark.parametrize(
    ("written", "paths"),
    [
        ("[a, b]", ("a", "b")),
        ("[*.parquet,[ab]*.csv, {c,d}.csv , @x, e #1,]", ("*.parquet", "[ab]*.csv", "{c,d}.csv", "@x", "e #1")),
        ("[2026-11-20, 007, 1e5, null, it's]", ("2026-11-20", "007", "1e5", "null", "it's")),
        ("""["a, b", 'it''s, c', "d]"]""", ("a, b", "it's, c", "d]")),
        ('"[a, b]"', ("[a, b]",)),
        ("'*.csv'", ("*.csv",)),
    ],
)
def test_a_list_of_paths_is_split_and_its_items_stay_text(written, paths):
    assert load_config("score", [], [f"input={written}", "output=o"]).input == paths


def test_null_takes_a_path_back(tmp_path):
    path = file(tmp_path, "data: {train: a, validation: b}\noutput: o\n")
    assert load_config("train", [path], ["data.validation=null"]).data.validation is None


@pytest.mark.parametrize("written", ["", "[a,,b]", '[a, ""]', '["a" b]', "['a]"])
def test_a_path_that_is_empty_or_half_quoted_is_a_config_error(written):
    with pytest.raises(ConfigError, match="input"):
        load_config("score", [], [f"input={written}", "output=o"])


@pytest.mark.parametrize("slot", ["007", "2026_11", "1e5"])
def test_a_slot_keeps_its_digits(slot):
    assert load_config("score", [], [*SCORE, f"slot={slot}"]).slot == slot


@pytest.mark.parametrize("written", [r"\t", "tab", "\t", r"'\t'"])
def test_a_tab_can_be_written_as_delimiter(tmp_path, written):
    assert load_config("score", [], [*SCORE, f"reader.delimiter={written}"]).reader.delimiter == "\t"


@pytest.mark.parametrize("written", [r"\t", r'"\t"', r"'\t'", "tab"])
def test_a_tab_can_be_written_as_delimiter_in_yaml(tmp_path, written):
    path = file(tmp_path, f"reader: {{delimiter: {written}}}\n")
    assert load_config("score", [path], SCORE).reader.delimiter == "\t"
    with pytest.raises(ConfigError, match="delimiter: expected at most 1 character, found ';;'"):
        load_config("score", [path], [*SCORE, "reader.delimiter=;;"])


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
