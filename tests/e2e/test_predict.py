"""`bertray predict`: texts on the command line come back with labels and probabilities."""

from __future__ import annotations

import pytest

from bertray.api.classifier import Classifier
from bertray.cli import run


def table_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    out = capsys.readouterr().out
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_each_text_has_a_row_with_the_numbers_of_the_classifier(trained_alone, capsys):
    model = str(trained_alone / "model")
    texts = ["the film was great", "-v", "model=awful and boring"]
    assert run(["predict", model, texts[0], "--", *texts[1:]]) == 0
    probs_NC = Classifier.load(model).predict_proba(texts)
    labels = Classifier.load(model).predict(texts)
    assert table_of(capsys) == [
        [text, label, *(f"{p:.3f}" for p in probs_C)]
        for text, label, probs_C in zip(texts, labels, probs_NC.tolist(), strict=True)
    ]


def test_a_model_without_texts_and_a_wrong_one_are_told(tmp_path, capsys):
    assert run(["predict", str(tmp_path)]) == 2
    assert "texts" in capsys.readouterr().err
    assert run(["predict", str(tmp_path / "nowhere"), "a text"]) == 2
    assert "no such folder" in capsys.readouterr().err
