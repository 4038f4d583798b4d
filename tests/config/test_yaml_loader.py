"""Config files: what is read as YAML 1.2, what is refused, and references to the environment."""

from __future__ import annotations

import pytest
import yaml

from bertray.cli import run
from bertray.config import to_yaml
from bertray.errors import ConfigError
from tests.config_files import SCORE, TRAIN, file, load_config


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


@pytest.mark.parametrize("written", [r"\t", r'"\t"', r"'\t'", "tab"])
def test_a_tab_can_be_written_as_delimiter_in_yaml(tmp_path, written):
    path = file(tmp_path, f"reader: {{delimiter: {written}}}\n")
    assert load_config("score", [path], SCORE).reader.delimiter == "\t"
    with pytest.raises(ConfigError, match="delimiter: expected at most 1 character, found ';;'"):
        load_config("score", [path], [*SCORE, "reader.delimiter=;;"])


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    assert load_config("score", [file(tmp_path, "\ufeffinput: a\noutput: b\n")]).input == ("a",)


def test_names_in_a_file_keep_their_spelling(tmp_path):
    text = "input: [2026-11-20, 007, 1e5]\noutput: 1_000\nslot: 1.10\nmodel: 0x1F_\nkeep_columns: [no, 1.0, 12, on]\n"
    config = load_config("score", [file(tmp_path, text)])
    assert (config.input, config.output) == (("2026-11-20", "007", "1e5"), "1_000")
    assert (config.slot, config.model, config.keep_columns) == ("1.10", "0x1F_", ("no", "1.0", "12", "on"))


def test_numbers_with_underscores_and_exponents_are_numbers_where_numbers_belong(tmp_path):
    text = (
        "training: {learning_rate: 5e-5, max_feature_rows: 100_000, method: features}\nreport: {baseline_rows: 010}\n"
    )
    config = load_config("train", [file(tmp_path, text)], TRAIN)
    assert (config.training.learning_rate, config.training.max_feature_rows) == (5e-5, 100_000)
    assert config.report.baseline_rows == 10


@pytest.mark.parametrize("key", ["1", "null", "true", "1.5"])
def test_a_key_that_is_no_word_is_a_config_error(tmp_path, key):
    for text in (f"{key}: x\n", f"columns: {{{key}: x}}\n"):
        with pytest.raises(ConfigError) as caught:
            load_config("score", [file(tmp_path, text)], SCORE)
        assert key.capitalize() in str(caught.value).replace("None", "Null")


def test_a_config_that_pyyaml_wrote_is_read_to_the_same(tmp_path):
    """Outputs of earlier versions hold a config.yaml by PyYAML, which follows YAML 1.1."""
    words = [
        "labels={0: no, 1: 'on', 2: null}",
        "keep_columns=[y, 1_0, 012, 1e3, 2026-11-20]",
        "slot=1.10",
        "model=1:30",
    ]
    config = load_config("score", [], [*SCORE, *words, "max_quarantine_ratio=1e-07"])
    written = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    assert load_config("score", [file(tmp_path, written)]) == config
    assert load_config("score", [file(tmp_path, to_yaml(config))]) == config


def test_a_default_stands_in_for_a_variable_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET", "s3://reviews")
    text = "input: ['${oc.env:BUCKET}/a', '${oc.env:OTHER_BUCKET,/data}/b', '\\${oc.env:BUCKET}']\noutput: o\n"
    config = load_config("score", [file(tmp_path, text)])
    assert config.input == ("s3://reviews/a", "/data/b", "${oc.env:BUCKET}")
    assert load_config("score", [file(tmp_path, to_yaml(config))]) == config


@pytest.mark.parametrize("text", ["${output}", "${HOME}", "${oc.env:}", "${", "a${b"])
def test_a_reference_to_anything_but_the_environment_is_a_config_error(text):
    with pytest.raises(ConfigError, match=r"expected \$\{oc\.env:NAME\}, found"):
        load_config("score", [], [f"input={text}", "output=o"])


@pytest.mark.slow
def test_a_file_of_brackets_fails_in_one_screen(tmp_path, capsys):
    assert run(["score", "-c", file(tmp_path, "input: " + "[" * 50_000), "output=o"]) == 2
    err = capsys.readouterr().err
    assert "values nested too deeply" in err
    assert len(err) < 500
