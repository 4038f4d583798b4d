"""The model card holds the figures of metrics.json, what the base model states, and what transformers leaves out."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from bertray.runs.fit.model_card import _front_matter, _is_hub_id, _languages, _licence


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_of_a_run_has_figures_data_language_licence_and_temperature(trained_alone):
    card = (trained_alone / "model" / "README.md").read_text("utf-8")
    metrics = json.loads((trained_alone / "metrics.json").read_text())
    info = json.loads((trained_alone / "model" / "bertray.json").read_text())
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["bertray"],
        "metrics": ["accuracy", "f1", "matthews_correlation"],
    }
    assert f"model version `{info['model_version']}`" in card
    assert "On 90 rows of the test split, with 95 % confidence intervals:" in card
    rows = {"the model": metrics["metrics"], "the majority baseline": metrics["baselines"]["majority"]}
    rows |= {"the TF-IDF baseline": metrics["baselines"]["tfidf_logreg"]}
    for name, figures in rows.items():
        cells = [figures[figure] for figure in ("accuracy", "macro_f1", "mcc")]
        told = " | ".join(f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in cells)
        assert f"| {name} | {told} |" in card
    assert f"divide them by the temperature, {info['temperature']:.4g} (`bertray.json`)" in card
    assert re.search(r"- data: [\d,]+ rows of `.*/train", card)
    assert "- language: reviews evaluated are written in latin (100.0 %)" in card
    assert "- licence: not stated by the base model" in card


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# x\n", {"license": "apache-2.0", "language": "en"}),
        ("# no front matter\n", {}),
        ("---\nlicense: [broken\n---\n", {}),
        (b"---\nlicense: \xff\n---\n", {}),
        (None, {}),
    ],
)
def test_a_base_model_states_what_its_own_card_states(tmp_path, text, stated):
    if text is not None:
        (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert _front_matter(tmp_path) == stated


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"license": "mit"}, "`mit`, that of the base model `a/b`; terms of the training data apply as well"),
        (
            {"license": "other", "license_name": "shop"},
            "`shop`, that of the base model `a/b`; terms of the training data apply as well",
        ),
        ({}, "not stated by the base model `a/b`; terms of the training data apply as well"),
    ],
)
def test_a_licence_that_nobody_states_is_said_so(stated, said):
    assert _licence(stated, "a/b") == said


def test_languages_of_the_base_are_those_that_it_states():
    assert _languages("en", None) == "the base model states en"
    assert _languages(["en", "ko"], None) == "the base model states en, ko"
    assert _languages(None, None) == "not stated by the base model"


@pytest.mark.parametrize(
    ("model", "is_id"),
    [
        ("google/bert_uncased_L-4", True),
        ("bert-base-uncased", True),
        ("/models/minilm", False),
        ("./minilm", False),
        ("a/b/c", False),
        ("s3://bucket/run/model", False),
    ],
)
def test_only_a_hub_id_is_linked_as_the_base_model(model, is_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _is_hub_id(model) == is_id
    (tmp_path / "bert-base-uncased").mkdir()
    assert not _is_hub_id("bert-base-uncased")
