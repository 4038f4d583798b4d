"""Guesses of `bertray init` on whole files, and that the config it prints is accepted as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from bertray.autoconfig import inspect_data, render_config
from bertray.config import TextFormat, build_config
from bertray.errors import ConfigError, DataRefused

AUTO = TextFormat()


def config_for(path: Path | str, reader: TextFormat = AUTO) -> tuple[dict[str, Any], str]:
    """The printed config as the train command sees it, and its text."""
    text = render_config(inspect_data([str(path)], reader), "train", "train.yaml")
    data = yaml.safe_load(text)
    return build_config("train", {**data, "output": "out"}).model_dump(), text


@pytest.mark.parametrize(
    ("name", "text", "label", "max_length"),
    [
        ("imdb/train.parquet", "text", "label", 256),
        ("cola/train.parquet", "text", "label", 32),
        ("emotion/train.parquet", "text", "label", 64),
        ("newsgroups20/train.parquet", "text", "label", 256),
        ("airline_tweets/all.parquet", "text", "label", 64),
        ("amazon_multidomain/books.parquet", "text", "label", 256),
        ("naver_movies/train.parquet", "text", "label", 64),
        ("online_shopping_10_cats/train.parquet", "text", "label", 256),
        ("mams_absa/term_train.parquet", "text", "label", 64),
        ("airline_tweets/sample/Tweets.head20.csv", "text", "airline_sentiment", 64),
        ("cola/sample/in_domain_train.head20.tsv", "3", "1", 32),
        ("emotion/sample/train.head20.txt", "0", "1", 32),
        ("online_shopping_10_cats/sample/head20.csv", "review", "label", 128),
        ("imdb/sample/aclImdb", "text", "label", 128),
    ],
)
def test_real_data_is_recognised(real_data: Path, name: str, text: str, label: str, max_length: int):
    config, _ = config_for(real_data / name)
    assert (config["columns"]["text"], config["columns"]["label"]) == (text, label)
    assert config["max_length"] == max_length
    assert config["data"]["train"] == (str(real_data / name),)


def test_original_formats_get_their_reader(real_data: Path):
    config, _ = config_for(real_data / "cola/sample/in_domain_train.head20.tsv")
    assert config["reader"] == {**TextFormat().model_dump(), "header": False, "quoting": False}
    config, _ = config_for(real_data / "emotion/sample/train.head20.txt")
    assert config["reader"] == {**TextFormat().model_dump(), "format": "csv", "delimiter": ";", "header": False}


def test_what_a_left_out_csv_needs_is_not_set_for_parquet(real_data: Path):
    config, text = config_for(real_data / "cola")
    assert re.search(r"left out, other columns: 1 csv file .*: sample/in_domain_train.head20.tsv", text)
    assert config["reader"] == TextFormat().model_dump()


def test_splits_and_pairs_are_found_by_name(real_data: Path):
    config, _ = config_for(real_data / "emotion")
    assert {split: [Path(p).name for p in config["data"][split]] for split in ("train", "validation", "test")} == {
        "train": ["train.parquet"],
        "validation": ["validation.parquet"],
        "test": ["test.parquet"],
    }
    config, text = config_for(real_data / "mams_absa")
    assert config["columns"]["text_pair"] == "aspect"
    assert re.search(r"left out, other columns: .*: category_test.parquet", text)


def test_binary_labels_get_names_and_others_are_listed(real_data: Path):
    config, text = config_for(real_data / "imdb/train.parquet")
    assert config["labels"] == {"0": "negative", "1": "positive"}
    assert "# label values: 0 12,500, 1 12,500" in text
    config, text = config_for(real_data / "airline_tweets/all.parquet")
    assert config["labels"] is None
    assert "# label values: negative 9,178, neutral 3,099, positive 2,363" in text


def test_texts_in_another_script_come_with_a_word_about_the_encoder(real_data: Path):
    assert (
        "mostly hangul, and the bundled encoder is English" in config_for(real_data / "naver_movies/train.parquet")[1]
    )
    assert "bert-base-chinese" in config_for(real_data / "online_shopping_10_cats/test.parquet")[1]
    assert "encoder is English" not in config_for(real_data / "cola/dev.parquet")[1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('id|review|stars\n1|"a; b, c"|5\n2|fine, really|1\n3|so, so|3\n', {"delimiter": "|"}),
        ("review;label\nvery good, yes;pos\nbad, no;neg\nmeh, well, hm;pos\n", {"delimiter": ";"}),
        ('text\tlabel\nsaid "no\tpos\nfine\tneg\nok then\tneg\n', {"delimiter": "\t", "quoting": False}),
        ("good film,1\nbad film,0\nfine film,1\n", {"header": False}),
        ("id,text\n1,Report\n".join(["Made by hand\n\n", "2,good film\n3,bad film\n"]), {"skip_lines": 2}),
        ("id,text\n1,good film,\n2,bad film,\n3,fine film,\n", {}),
        ("id,text\n1,good film\nID, Text\n2,bad film\nid,text\n3,fine film\n", {}),
        ("id,text,,\n1,good film\n2,bad film\n3,fine film\n", {}),
        ("sep=;\nid;text\n1;good, really\n2;bad\n", {}),
        (
            "id\ttext\n1\t좋은 영화\n2\tbad\n".encode("utf-16"),
            {"encoding": "utf-16", "delimiter": "\t", "quoting": False},
        ),
        (
            "id;text;score\n1;good, yes;4,5\n2;bad;1,0\n".encode("utf-16-le"),
            {"encoding": "utf-16-le", "delimiter": ";"},
        ),
        ('id,text\n1,"he said \\"no, no\\""\n2,"fine, \\"ok\\""\n3,bad\n', {"escape": "\\"}),
        ('id,text\n1,"Great but no\n2,fine\n3,never again"\n4,ok\n', {"quoting": False}),
        ("texte,note\ntrès bien,1\npas bien,0\n".encode("cp1252"), {"encoding": "cp1252"}),
    ],
)
def test_delimiter_header_quoting_and_encoding_are_guessed(tmp_path, content, expected):
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    config, _ = config_for(tmp_path / "a.csv")
    default = TextFormat().model_dump()
    assert {key: value for key, value in config["reader"].items() if value != default[key]} == expected


def test_what_is_set_explicitly_is_not_guessed_again(tmp_path):
    (tmp_path / "a.csv").write_text("good film,1\nbad film,0\nfine film,1\n")
    config, _ = config_for(tmp_path / "a.csv", TextFormat(header=True))
    assert config["reader"]["header"] is True
    assert config["columns"]["text"] == "good film"


def test_json_lines_with_unusual_names(tmp_path):
    lines = [
        f'{{"review_id": {i}, "body": "some words about film {i}", "sentiment": "{"yes" if i % 2 else "no"}"}}'
        for i in range(40)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    config, text = config_for(tmp_path / "data.jsonl")
    assert config["columns"] == {"id": "review_id", "text": "body", "text_pair": None, "label": "sentiment"}
    assert "label values: no 20, yes 20" in text


def test_names_that_yaml_would_misread_are_quoted(tmp_path):
    table = pa.table({"no": [f"long words of review {i}" for i in range(20)], "on": ["a", "b"] * 10})
    pq.write_table(table, tmp_path / "2024: #1.parquet")
    config, _ = config_for(tmp_path / "2024: #1.parquet")
    assert (config["columns"]["text"], config["columns"]["label"]) == ("no", "on")
    assert config["data"]["train"] == (str(tmp_path / "2024: #1.parquet"),)


def test_data_without_text_or_files_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefused, match="found no file"):
        inspect_data([str(tmp_path / "empty")], AUTO)
    pq.write_table(pa.table({"a": [1, 2], "b": [0.5, 1.5]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="expected a column of texts, found 'a', 'b'"):
        inspect_data([str(tmp_path / "a.parquet")], AUTO)
    (tmp_path / "a.review").write_text("<data><review>x</review></data>")
    with pytest.raises(ConfigError, match="looks like XML"):
        inspect_data([str(tmp_path / "a.review")], AUTO)
    (tmp_path / "a.json").write_text('[\n {"text": "x"}\n]')
    with pytest.raises(DataRefused, match="a JSON array; write one JSON object a line"):
        inspect_data([str(tmp_path / "a.json")], AUTO)


def test_of_files_with_as_many_rows_those_with_the_texts_are_chosen(tmp_path):
    (tmp_path / "train.csv").write_text(
        "id,text,target\n" + "".join(f"{n},a film of words,{n % 2}\n" for n in range(40))
    )
    (tmp_path / "test.csv").write_text("id,text\n" + "".join(f"{n},another film of words\n" for n in range(40)))
    (tmp_path / "sample_submission.csv").write_text("id,target\n" + "".join(f"{n},0\n" for n in range(40)))
    config, text = config_for(tmp_path)
    assert (config["columns"]["text"], config["columns"]["label"]) == ("text", "target")
    assert config["data"]["train"] == (str(tmp_path / "train.csv"),)
    assert "left out, other columns: 1 csv file (40 rows) with 'id', 'target': sample_submission.csv" in text
    assert "left out, other columns: 1 csv file (40 rows) with 'id', 'text': test.csv" in text


def test_no_encoder_is_named_whose_tokenizer_needs_a_package(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"とてもいいえいがでした{n},{n % 2}\n" for n in range(40)))
    text = config_for(tmp_path / "a.csv")[1]
    assert "mostly kana" in text
    assert "bert-base-multilingual-cased" in text
    assert "tohoku" not in text


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_keys_of_folder_names_are_proposed_as_columns(tmp_path, kind):
    for country in ("de", "fr"):
        for label in ("neg", "pos"):
            folder = tmp_path / "in" / f"country={country}" / f"label={label}"
            folder.mkdir(parents=True)
            table = pa.table({"text": [f"the film number {n} of {country} was long" for n in range(30)]})
            if kind == "parquet":
                pq.write_table(table, folder / "a.parquet")
            elif kind == "csv":
                table.to_pandas().to_csv(folder / "a.csv", index=False)
            else:
                table.to_pandas().to_json(folder / "a.jsonl", orient="records", lines=True)
    found = inspect_data([str(tmp_path / "in")], AUTO)
    assert (found.label_counts, found.other_columns) == ({"neg": 60, "pos": 60}, ("country",))
    config, _ = config_for(tmp_path / "in")
    assert (config["columns"]["text"], config["columns"]["label"]) == ("text", "label")


def test_columns_that_may_hold_aspects_are_named_in_a_comment(tmp_path):
    moods = ["good", "bad", None, "good", "so so"] * 6
    wide = {
        "text": [f"some review {n}" for n in range(30)],
        "food": moods,
        "price": ["good", "bad"] * 15,
        "shop": list("ab") * 15,
    }
    pq.write_table(pa.table(wide), tmp_path / "wide.parquet")
    text = config_for(tmp_path / "wide.parquet")[1]
    assert "columns food, price have the same values" in text
    assert "aspects: [food, price] in place of columns.label" in text
    listed = {"text": wide["text"], "label": ["a", "b"] * 15, "topics": [["food"]] * 30}
    pq.write_table(pa.table(listed), tmp_path / "listed.parquet")
    assert "with columns.aspects=topics each of them is a row" in config_for(tmp_path / "listed.parquet")[1]
