"""Verbs as functions: the commands' keys, tables in memory, results that say what the files say."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run
from tests.corpus import sentences, write
from tests.nightly import without_ray

KEYS: dict[str, Any] = {
    "max_length": 24,
    "training": {"epochs": 6, "learning_rate": 3e-3, "batch_size": 16},
    "report": {"baselines": False},
}


def frame(num_rows: int, seed: int) -> pd.DataFrame:
    texts, labels = sentences(num_rows, seed)
    return pd.DataFrame({"text": texts, "label": pd.Categorical(labels)})


@pytest.fixture(scope="module")
def result(tiny_encoder, tmp_path_factory):
    output = tmp_path_factory.mktemp("train") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        return bertray.train(frame(120, 1), test=frame(60, 2), model=tiny_encoder, output=output, **KEYS)


def test_a_result_says_what_the_files_say(result):
    metrics = json.loads(Path(result.output, "metrics.json").read_text())
    assert result.metrics["accuracy"].to_json() == metrics["metrics"]["accuracy"]
    assert (result.rows, result.split, result.labels) == (60, "test", ("neg", "pos"))
    assert [list(row) for row in result.figures.confusion_matrix] == metrics["confusion_matrix"]
    assert result.per_class["neg"]["support"] == metrics["per_class"]["neg"]["support"]
    for path in (result.predictions, result.history, str(result.report), f"{result.model}/config.json"):
        assert Path(path).is_file()


@pytest.mark.slow
def test_rows_without_an_id_column_are_numbered(result):
    assert pq.read_table(result.predictions)["id"].to_pylist()[:2] == ["table:0", "table:1"]


def test_a_result_is_short_in_a_console_and_a_table_in_a_notebook(result):
    accuracy = result.metrics["accuracy"]
    assert repr(result) == f"TrainResult(accuracy {accuracy}, 60 rows of test, {result.output})"
    page = result._repr_html_()
    assert f'<td style="text-align: left">{accuracy}</td>' in page
    assert "<iframe srcdoc=" in result.report._repr_html_()


def test_results_are_frozen(result):
    with pytest.raises(AttributeError):
        result.output = "elsewhere"


def test_the_same_call_gives_the_same_result_and_computes_nothing(result, tiny_encoder, monkeypatch):
    monkeypatch.setattr("bertray.execution.on_demand.OnDemand.session", None)  # whoever computes would need one
    again = bertray.train(frame(120, 1), test=frame(60, 2), model=tiny_encoder, output=result.output, **KEYS)
    assert again.already_done
    assert (again.figures, again.notes, again.summary) == (result.figures, result.notes, result.summary)


def test_another_table_is_another_run(result, tiny_encoder):
    with pytest.raises(bertray.ConflictError, match="holds a train run with other data or settings"):
        bertray.train(frame(121, 1), test=frame(60, 2), model=tiny_encoder, output=result.output, **KEYS)


def test_three_lines_train_and_three_label(result):
    classifier = bertray.Classifier.load(result.model)
    assert classifier.predict(["the film was great", "the film was awful"]) == ["pos", "neg"]
    assert result.classifier.predict(["the film was great"]) == ["pos"]


@pytest.mark.slow
def test_evaluate_takes_a_result_a_classifier_or_a_path_for_a_model(result, tmp_path):
    test = frame(60, 2)
    figures = [
        bertray.evaluate(model, test, report={"num_mistakes": 0}).figures.confusion_matrix
        for model in (result, result.classifier, result.model, Path(result.model))
    ]
    assert figures == [result.figures.confusion_matrix] * 4


@pytest.mark.slow
def test_the_result_of_a_call_stands_for_its_model_and_its_output(result, tmp_path):
    write(tmp_path / "in" / "a.parquet", 30, 3, "a")
    scored = bertray.score(model=result, input=tmp_path / "in", output=tmp_path / "scored", keep_columns=["text"])
    assert bertray.files(scored) == bertray.files(tmp_path / "scored")
    assert bertray.compare(scored, scored).output
    assert bertray.Classifier.load(result).model == result.model
    found = bertray.train(
        frame(60, 5), test=frame(40, 6), training={"method": "distill", "teacher": result}, max_length=24, model=result
    )
    assert found.split == "test"


def test_a_temporary_output_lives_as_long_as_its_result(result):
    found = bertray.evaluate(result, frame(60, 2))
    output = Path(found.output)
    assert (output / "report.html").is_file()
    del found
    assert not output.exists()


def test_a_model_of_a_temporary_output_lives_as_long_as_its_classifier(tiny_encoder):
    keys = {**KEYS, "training": {"method": "features"}}
    classifier = bertray.train(frame(120, 1), model=tiny_encoder, **keys).classifier
    assert Path(classifier.model).is_dir()
    assert classifier.save
    folder = Path(classifier.model)
    del classifier
    assert not folder.exists()


def test_score_embed_files_and_gc_work_on_one_output(result, tmp_path):
    write(tmp_path / "in" / "a.parquet", 30, 3, "a")
    scored = bertray.score(model=result, input=tmp_path / "in", output=tmp_path / "out", keep_columns=["shop"])
    assert (scored.rows_in, scored.rows_scored, scored.rows_quarantined) == (30, 30, 0)
    assert scored.runs[0].figures.rows == 30
    assert Path(str(scored.report)).is_file()
    (part,) = bertray.files(scored)
    assert pq.read_table(part).num_rows == 30
    again = bertray.score(model=result, input=[tmp_path / "in"], output=tmp_path / "out", keep_columns=["shop"])
    assert repr(again) == f"ScoreResult(nothing new: 1 file listed, all in slots already, {tmp_path / 'out'})"
    assert not bertray.gc(scored, grace_days=0).removed
    found = bertray.gc(tmp_path / "out", grace_days=0, delete=True)
    assert found.removed
    assert bertray.gc(tmp_path / "out", grace_days=0).num_files == 0
    vectors = bertray.embed(frame(20, 4), model=result, output=tmp_path / "vectors")
    assert vectors.rows_embedded == 20
    assert vectors.vectors is None
    words = bertray.embed(frame(20, 4), model=result, pooling="vocabulary", unit="word", output=tmp_path / "words")
    counts = Counter(word for text in frame(20, 4)["text"] for word in text.split())
    found = pq.read_table(words.vectors)
    assert dict(zip(found["unit"].to_pylist(), found["count"].to_pylist(), strict=True)) == counts


def test_score_refuses_a_table(result, tmp_path):
    with pytest.raises(bertray.ConfigError, match="input: expected paths, found a table"):
        bertray.score(model=result, input=frame(3, 1), output=tmp_path / "out")


def test_plan_gives_figures_beside_its_lines(result, tiny_encoder, tmp_path):
    write(tmp_path / "in" / "a.parquet", 30, 3, "a")
    plan = bertray.plan(model=result, input=tmp_path / "in", output=tmp_path / "out", price_per_hour=3.6)
    assert [(Path(file.path).name, file.goes_in, file.num_rows) for file in plan.files] == [("a.parquet", True, 30)]
    assert plan.num_rows == 30
    assert plan.price == pytest.approx(plan.seconds / 1000)
    assert not (tmp_path / "out").exists()
    assert bertray.plan(data=frame(40, 1), model=tiny_encoder, max_length=24, output=tmp_path / "out").num_rows == 40


def test_a_config_file_gives_keys_that_keywords_overrule(result, tiny_encoder, corpus, tmp_path):
    (tmp_path / "a.yaml").write_text(f"model: {result.model}\ninput: nowhere\noutput: {tmp_path / 'a'}\n")
    found = bertray.evaluate(data=corpus / "test.parquet", config=tmp_path / "a.yaml")
    assert found.output == str(tmp_path / "a")
    assert found.rows == 90


def wrong(value: Any) -> Any:
    """A value of a type that no caller should give."""
    return value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bertray.train(epochs=2), "epochs: no such key. Did you mean 'training.epochs'?"),
        (lambda: bertray.train(output="out"), "data.train is missing"),
        (lambda: bertray.train("nowhere.csv", output="out"), "nowhere.csv: expected a file, folder or glob"),
        (lambda: bertray.train("a.csv", config="nowhere.yaml"), "-c nowhere.yaml: no such file"),
        (lambda: bertray.evaluate("bundled", "a.csv", input="b.csv"), "input: given twice"),
        (lambda: bertray.train({"train": "a.csv", "test": "b.csv"}, test="c.csv"), "data.test: given twice"),
        (lambda: bertray.plan(), "plan: expected a train config"),
        (lambda: bertray.gc(), "output: missing"),
        (lambda: bertray.evaluate(frame(3, 1), "bundled"), "model: expected no table, found a DataFrame"),
        (lambda: bertray.train(frame(3, 1), model=frame(3, 1)), "model: expected no table, found a DataFrame"),
        (lambda: bertray.train(frame(3, 1), config=wrong(5)), "config: expected a path or a list of paths, found int"),
        (lambda: bertray.plan(config=wrong([5])), "config: expected a path or a list of paths, found list"),
        (lambda: bertray.train(frame(3, 1)["text"]), "data.train: expected paths or one table, found Series"),
        (lambda: bertray.train(frame(3, 1).to_numpy()), "data.train: expected paths or one table, found ndarray"),
        (
            lambda: bertray.train(frame(3, 1).to_dict("records")),
            "data.train: expected paths or one table, found dict",
        ),
        (
            lambda: bertray.audit([frame(3, 1), frame(3, 1)]),
            "data.train: expected paths or one table, found DataFrame",
        ),
        (lambda: bertray.topics(iter(["good"])), "input: expected paths or one table, found list_iterator"),
        (lambda: bertray.train("a.csv", **wrong({"training.epochs": 2})), "Write it as a key below 'training'."),
        (lambda: bertray.train("a.csv", training=wrong(np.zeros(3))), "training: expected keys below it"),
    ],
)
def test_a_wrong_call_is_an_error_of_the_package(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bertray.ConfigError) as caught:
        call()
    assert message in str(caught.value)


def test_nothing_is_printed_unless_asked_for(result, capfd):
    root = logging.getLogger()
    before = [root.level, *root.handlers]
    bertray.evaluate(result, frame(60, 2))
    assert capfd.readouterr() == ("", "")
    bertray.evaluate(result, frame(60, 2), verbose=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [root.level, *root.handlers] == before


def test_audit_of_tables_finds_rows_of_both(tiny_encoder):
    pytest.importorskip("rensa")
    both = frame(40, 1)
    found = bertray.audit(both, test=both.head(5), model=tiny_encoder, max_length=24, label_errors={"find": False})
    (leaks,) = [finding for finding in found.findings if finding.title == "Leakage of test rows into train"]
    assert leaks.sentences[0].startswith("5 ")
    assert Path(leaks.rows).is_file()


def test_commands_print_what_they_printed(result, corpus, tmp_path, capsys):
    """The lines of `bertray evaluate`, from its result."""
    argv = ["evaluate", f"model={result.model}", f"input={corpus / 'test.parquet'}", f"output={tmp_path / 'out'}"]
    assert run(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    found = bertray.evaluate(result, corpus / "test.parquet", output=tmp_path / "out")
    assert found.already_done
    assert lines == [*found.summary, f"report   {tmp_path / 'out' / 'report.html'}"]
    assert run(argv) == 0
    assert capsys.readouterr().out == f"already evaluated: {tmp_path / 'out' / 'report.html'}\n"


SCRIPT = """
import pandas as pd, sys
import bertray
texts = ["good film", "bad film", "lovely plot", "awful plot"] * 10
df = pd.DataFrame({"text": [f"{text} {n}" for n, text in enumerate(texts)], "label": ["pos", "neg"] * 20})
result = bertray.train(df, test=df.assign(text=df["text"] + " again"), model=sys.argv[1], max_length=24,
                       training={"epochs": 1}, workers={"in_process_rows": 0}, report={"baselines": False})
print(len(result.classifier.predict(["good", "bad"])))
import ray
print(ray.is_initialized())
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_script_without_a_guard_runs_on_ray_and_leaves_none(tiny_encoder, tmp_path):
    """As in a fresh interpreter: no `if __name__ == "__main__"`, Ray started and ended by the call, nothing printed."""
    (tmp_path / "script.py").write_text(SCRIPT)
    found = subprocess.run(
        [sys.executable, tmp_path / "script.py", tiny_encoder], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.split(), found.stderr) == (0, ["2", "False"], "")


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_of_the_user_is_used_and_left_running(result, corpus, ray_cluster):
    import ray

    assert bertray.evaluate(result, corpus / "test.parquet").rows == 90
    assert ray.is_initialized()
