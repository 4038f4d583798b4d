"""Configs: what files and overrides become, and what a typo is told."""

import pytest

from bertray.config import guess_verb
from bertray.errors import ConfigError
from tests.config_files import SCORE, TRAIN, file, load_config


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


def test_words_that_were_booleans_in_yaml_1_1_are_class_names():
    assert load_config("train", [], [*TRAIN, "labels=[no, yes]"]).labels == ("no", "yes")
    assert load_config("train", [], [*TRAIN, "labels={0: off, 1: on}"]).labels == {"0": "off", "1": "on"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.epoch=3"], "training.epoch: no such key. Did you mean 'training.epochs'?"),
        (["epochs=3"], "epochs: no such key. Did you mean 'training.epochs'?"),
        (["modle=x"], "modle: no such key. Did you mean 'model'?"),
        (["labels=[true, false]"], 'write it in quotes, like "true"'),
        (["labels={a: b, c: False}"], 'write it in quotes, like "false"'),
        (["labels={null: a, b: c}"], 'write it in quotes, like "null"'),
        (["labels=[~, b]"], 'write it in quotes, like "null"'),
        (["labels={a: b, a: c}"], "key 'a' stands twice"),
        (["labels={a: b, c: d}\n---\n{}"], "found another document"),
        (["seed=" + "[" * 5000], "values nested too deeply"),
        (["labels=[a, a]"], "needs at least two class names"),
        (["training.epochs=two"], "training.epochs: expected a whole number, or auto, found 'two'"),
        (["training.epochs=0"], "training.epochs: expected 1 or more, or auto, found 0"),
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


def test_plan_guesses_the_verb_from_what_is_set(tmp_path):
    assert guess_verb([], TRAIN) == "train"
    assert guess_verb([file(tmp_path, "input: a\n")], ["output=o"]) == "score"
    with pytest.raises(ConfigError, match="found neither"):
        guess_verb([], ["output=o"])
    with pytest.raises(ConfigError, match="found both"):
        guess_verb([], [*TRAIN, "input=a"])


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
