"""`training.method=auto`, as `init` prints it: figures of few rows are of models that have not seen them."""

from __future__ import annotations

import json
from types import SimpleNamespace as Namespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.errors import InfrastructureError
from bertray.runs.fit import automatic, finetuning, methods, training_workers
from bertray.training import choice
from tests.corpus import sentences


def argv(encoder, train, output, *words: str) -> list[str]:
    return ["train", f"model={encoder}", f"data.train={train}", f"output={output}", "max_length=24", *words]


@pytest.mark.slow
def test_few_rows_are_cross_validated_and_all_are_learned_from(tiny_encoder, tmp_path, capsys):
    texts, labels = sentences(60, 0)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "train.parquet")
    command = argv(tiny_encoder, tmp_path / "train.parquet", tmp_path / "run")
    assert run(command) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["split"], metrics["rows"]) == ("cross-validation", 60)
    assert set(metrics["baselines"]) == {"majority", "tfidf_logreg"}
    predictions = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pandas()
    assert sorted(predictions["id"]) == sorted(f"train.parquet:{row}" for row in range(60))
    assert metrics["metrics"]["accuracy"]["value"] == np.mean(predictions["label"] == predictions["prediction"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "training.method=auto chose" in page
    assert "The model that is kept learned from all 60 rows" in page
    out = capsys.readouterr().out
    assert "60 rows of cross-validation: accuracy" in out
    assert run(command) == 0
    assert "already trained" in capsys.readouterr().out


@pytest.mark.slow
def test_no_row_is_judged_by_a_model_that_has_seen_it(tiny_encoder, tmp_path):
    """Each text has a word of its own and a label by chance: whoever has seen a row knows it, nobody else can."""
    labels = np.random.default_rng(3).permutation(["a", "b"] * 60).tolist()
    pq.write_table(pa.table({"text": [f"word{n} " * 3 for n in range(120)], "label": labels}), tmp_path / "t.parquet")
    assert run(argv(tiny_encoder, tmp_path / "t.parquet", tmp_path / "run")) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for found in (figures["metrics"], figures["baselines"]["tfidf_logreg"]):
        assert abs(found["accuracy"]["value"] - 0.5) < 0.15
    assert figures["metrics"]["log_loss"]["value"] < 0.8  # a temperature of rows it had seen would make it sure


def test_with_a_test_what_is_fitted_in_seconds_learns_from_all_rows_too(tiny_encoder, tmp_path):
    for name, rows, seed in (("train", 60, 0), ("test", 40, 1)):
        texts, labels = sentences(rows, seed)
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / f"{name}.parquet")
    # Most are cut, so that the stack is chosen.
    words = (f"data.test={tmp_path / 'test.parquet'}", "report.baselines=false", "max_length=8")
    assert run(argv(tiny_encoder, tmp_path / "train.parquet", tmp_path / "run", *words)) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (figures["split"], figures["rows"]) == ("test", 40)
    assert figures["metrics"]["accuracy"]["value"] > 0.8
    told = json.loads((tmp_path / "run" / "model" / "bertray.json").read_text())
    assert told["profile"]["rows"] == 60  # calibrated by the folds


@pytest.mark.slow
def test_numbers_of_a_schedule_mean_fine_tuning_as_before(tiny_encoder, corpus, tmp_path):
    words = ("training.epochs=1", "training.learning_rate=1e-3", "report.baselines=false")
    told = {}
    for method in ("auto", "finetune"):
        output = tmp_path / method
        assert run(argv(tiny_encoder, corpus / "train.parquet", output, f"training.method={method}", *words)) == 0
        told[method] = json.loads((output / "metrics.json").read_text())
    assert told["auto"] == told["finetune"]
    assert told["auto"]["split"] == "validation"
    assert "training.method=auto chose" not in (tmp_path / "auto" / "report.html").read_text()


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        (["the same"] * 40, ["a", "b"] * 20, "identical texts stay in one split"),
        (["one", "two"], ["a", "b"], "of each class one is learned from"),
        (["one", "two", "three"], ["a"] * 3, "expected at least two classes, found 1 (a)"),
    ],
)
def test_data_that_nothing_can_be_judged_by_are_refused(tiny_encoder, tmp_path, capsys, texts, labels, said):
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "t.parquet")
    assert run(argv(tiny_encoder, tmp_path / "t.parquet", tmp_path / "run")) == 6
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_class_with_one_text_is_learned_from_and_not_judged(tiny_encoder, tmp_path):
    texts, labels = sentences(41, 0)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    pq.write_table(pa.table({"text": texts, "label": [*labels[:40], "rare"]}), tmp_path / "t.parquet")
    assert run(argv(tiny_encoder, tmp_path / "t.parquet", tmp_path / "run")) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (figures["rows"], figures["per_class"]["rare"]["support"]) == (40, 0)
    assert "1 row of classes with a single text could not be judged" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_fine_tuning_stands_beside_the_stack_and_folds_are_learned_once(tiny_encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choice, "FEW_ROWS", 40)
    monkeypatch.setattr(automatic, "ROWS_TO_CHOOSE_BY", 40)
    texts, labels = sentences(60, 0)
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "t.parquet")
    command = argv(tiny_encoder, tmp_path / "t.parquet", tmp_path / "run")
    ran: list[tuple[int, int, bool]] = []
    train = training_workers.run_workers

    def counted(job, examples, store, executor):
        ran.append((len(examples.train), len(examples.validation), job.loop.in_one_go))
        return train(job, examples, store, executor)

    def end(*_, **__):
        raise InfrastructureError("the machine went away.")

    monkeypatch.setattr(methods, "run_workers", counted)
    with monkeypatch.context() as patch:
        patch.setattr(automatic, "confusion_matrix", end)
        assert run(command) == 7
    assert len(ran) == 5
    assert all(in_one_go and trained + judged == 60 for trained, judged, in_one_go in ran)
    assert sum(judged for _, judged, _ in ran) == 60
    ran.clear()
    assert run(command) == 0
    assert ran in ([], [(60, 0, False)])  # where the stack is better there is nothing left to train
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Reached by cross-validation: fine-tuning accuracy 0." in page or "fine-tuning accuracy 1." in page
    assert "TF-IDF and encoder in one logistic regression accuracy" in page


@pytest.mark.parametrize("is_tested", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_fold_with_rows_enough_to_choose_an_epoch_by_keeps_the_last_as_the_whole_does(
    tiny_encoder, tmp_path, monkeypatch, is_tested
):
    """As of 500 rows or more."""
    monkeypatch.setattr(choice, "FEW_ROWS", 40)
    monkeypatch.setattr(finetuning, "ROWS_TO_CHOOSE_BY", 10)
    kept: list[tuple[int, str, bool]] = []
    train = training_workers.run_workers

    def noted(job, examples, store, executor):
        kept.append((len(examples.validation), job.loop.kept_epoch, job.loop.in_one_go))
        return train(job, examples, store, executor)

    monkeypatch.setattr(methods, "run_workers", noted)
    for name, rows, seed in (("t", 60, 0), ("test", 40, 1)):
        texts, labels = sentences(rows, seed)
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / f"{name}.parquet")
    words = [f"data.test={tmp_path / 'test.parquet'}"] if is_tested else []
    assert run(argv(tiny_encoder, tmp_path / "t.parquet", tmp_path / "run", "report.baselines=false", *words)) == 0
    assert kept[0] == (12, "last", True)
    assert {(epoch, rows > 0 and not in_one_go) for rows, epoch, in_one_go in kept} == {("last", False)}


def test_the_better_of_two_is_kept_and_both_are_told():
    labels_N = np.array([0, 1] * 50)
    right = np.where(labels_N[:, None] == np.arange(2), 1.0, -1.0)
    wrong = right.copy()
    wrong[:30] *= -1
    examples: Any = Namespace(label_ids_N=labels_N, validation=np.arange(100))
    run_of_auto: Any = Namespace(config=Namespace(training=Namespace(best_metric="loss")))
    for rival_is_better in (False, True):
        made = automatic.Automatic(run_of_auto)
        made._plan = automatic.Plan(choice.Choice("finetune", "it is so"), ("stack",), 0)
        tried: dict[choice.Recipe, methods.Learned] = {
            "finetune": methods.Learned(None, np.arange(100), wrong if rival_is_better else right),
            "stack": methods.Learned(None, np.arange(100), right if rival_is_better else wrong),
        }
        name, said = made._chosen(tried, examples)
        assert name == ("stack" if rival_is_better else "finetune")
        assert ("which is better here than fine-tuning" in said) == rival_is_better
        assert "accuracy 1.000, macro F1 1.000" in said
        assert "accuracy 0.700, macro F1 0.700" in said
