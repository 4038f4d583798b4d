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


@pytest.mark.parametrize(("words", "named"), [([], "runs/first/model"), (["my model"], "'my model'")])
def test_a_text_that_is_missing_is_asked_for_with_an_example(capsys, words, named):
    assert run(["predict", *words]) == 2
    assert capsys.readouterr().err == (
        "bertray predict: expected a text to label, found none.\n"
        f'bertray: exit 2 (configuration): Add it: `bertray predict {named} "Great tent!"`.\n'
    )


@pytest.mark.parametrize("model", ["runs/nomodel", "./nomodel", "a/b/c", "/no/model", "nowhere/", "runs/frist"])
def test_a_path_that_leads_nowhere_is_a_wrong_config_that_no_retry_mends(tmp_path, monkeypatch, capsys, model):
    (tmp_path / "runs/first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run(["predict", model, "a text"]) == 2
    error = capsys.readouterr().err
    assert f"model={model}: no such folder." in error
    assert ("Did you mean 'first'?" in error) == (model == "runs/frist")


def test_a_wrong_model_is_told(tmp_path, capsys):
    assert run(["predict", str(tmp_path / "nowhere"), "a text"]) == 2
    assert "no such folder" in capsys.readouterr().err
