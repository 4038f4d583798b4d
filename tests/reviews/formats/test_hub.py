"""Data sets of the hub: addresses, the export to Parquet, and what is said when it cannot be had."""

from __future__ import annotations

import sys

import pytest

from bertray.config import TextFormat
from bertray.errors import ConfigError, InfrastructureError
from bertray.reviews.formats import hub
from bertray.reviews.formats.hub import HubDataset, parse
from bertray.reviews.listing import list_inputs


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hub://imdb/train", HubDataset("imdb", None, None, "train")),
        ("hub://stanfordnlp/imdb/train", HubDataset("stanfordnlp/imdb", None, None, "train")),
        ("hub://stanfordnlp/imdb/plain_text/test", HubDataset("stanfordnlp/imdb", None, "plain_text", "test")),
        ("hub://glue@main/cola/train", HubDataset("glue", "main", "cola", "train")),
        ("hub://stanfordnlp/imdb@e6281661/train", HubDataset("stanfordnlp/imdb", "e6281661", None, "train")),
    ],
)
def test_addresses_are_taken_apart(uri, expected):
    assert parse(uri) == expected


@pytest.mark.parametrize(
    "uri", ["hub://imdb", "hub://", "hub://a/b/c/d/e", "hub://imdb@/train", "hub://a@b", "hub://a//b"]
)
def test_addresses_of_another_form_are_config_errors(uri):
    with pytest.raises(ConfigError, match="hub://<name>"):
        parse(uri)


def test_a_split_is_exported_once_and_read_as_parquet(tmp_path, monkeypatch, read_all):
    import datasets

    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_dict({"text": ["good<br>film", "bad"], "label": [1, 0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    kept = read_all("hub://stanfordnlp/imdb@abc/plain_text/train", wants_label=True).kept
    assert asked == [("stanfordnlp/imdb", "plain_text", "train", "abc")]
    assert kept.select(["id", "text", "label"]).to_pylist() == [
        {"id": "stanfordnlp--imdb--plain_text--train.parquet:0", "text": "good film", "label": "1"},
        {"id": "stanfordnlp--imdb--plain_text--train.parquet:1", "text": "bad", "label": "0"},
    ]
    [exported] = (tmp_path / "cache" / "bertray" / "datasets").iterdir()
    before = exported.stat().st_mtime_ns
    [entry] = list_inputs(["hub://stanfordnlp/imdb@abc/plain_text/train"], TextFormat())
    assert (entry.path, entry.modified) == (str(exported), str(before))


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'bertray\[hub\]'"):
        list_inputs(["hub://imdb/train"], TextFormat())


def test_without_network_it_is_an_infrastructure_error(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(InfrastructureError, match="the hub cannot be reached") as caught:
        hub.to_parquet("hub://stanfordnlp/imdb/train")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Unknown split \"trian\". Should be one of ['train', 'test'].",
            r"there are train, test\. Did you mean 'train'\?",
        ),
        ("BuilderConfig 'x' not found. Available: ['plain_text']", "there are plain_text"),
    ],
)
def test_an_unknown_split_or_configuration_lists_what_there_is(monkeypatch, message, expected):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ValueError(message)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=expected):
        hub.to_parquet("hub://stanfordnlp/imdb/x/trian")
