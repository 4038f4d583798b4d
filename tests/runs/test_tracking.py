"""Runs on an MLflow server, read back through its own client from a database."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertray
from bertray.config import build_config
from bertray.errors import ConfigError
from bertray.runs.tracking import EXPERIMENT, check_tracking, flat
from tests.corpus import sentences
from tests.nightly import without_ray


def frame(num_rows: int, seed: int) -> pd.DataFrame:
    texts, labels = sentences(num_rows, seed)
    return pd.DataFrame({"id": [f"{seed}:{n}" for n in range(num_rows)], "text": texts, "label": labels})


def test_parameters_are_dotted_keys_without_what_is_not_set():
    values = {"model": "m", "mlflow": "http://user:secret@host", "training": {"epochs": 2, "lora": {"rank": None}}}
    values["notify"] = "https://host/hook/secret"
    assert flat(values) == {"model": "m", "training.epochs": "2"}


def test_without_the_package_the_extra_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    config: Any = build_config("evaluate", {"model": "m", "input": "x", "output": "y", "mlflow": "sqlite:///x"})
    with pytest.raises(ConfigError, match="mlflow: the package cannot be imported") as raised:
        check_tracking(config)
    assert "bertray[mlflow]" in str(raised.value.remedy)
    check_tracking(config.model_copy(update={"mlflow": None}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the package and the database under it
def test_each_run_stands_once_with_parameters_metrics_page_and_bundle(tiny_encoder, tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    pytest.importorskip("sqlalchemy", reason="a database for MLflow needs sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts by default
    without_ray(monkeypatch)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    keys: dict[str, Any] = {"mlflow": uri, "report": {"explain": 0}}
    trained = bertray.train(
        frame(120, 1),
        test=frame(60, 2),
        model=tiny_encoder,
        output=tmp_path / "run",
        max_length=24,
        training={"method": "features"},
        **keys,
    )
    bertray.evaluate(trained, frame(60, 3), output=tmp_path / "evaluated", **keys)
    bertray.compare(trained, trained, frame(60, 3), output=tmp_path / "compared", mlflow=uri)
    inbox = tmp_path / "in"
    inbox.mkdir()
    pq.write_table(pa.Table.from_pandas(frame(30, 4)), inbox / "1.parquet")
    night: dict[str, Any] = {"model": trained.model, "input": str(inbox), "output": str(tmp_path / "scored"), **keys}
    with caplog.at_level(logging.WARNING):  # a server that is away at night gets the run by the same command later
        bertray.score(**{**night, "mlflow": f"sqlite:///{inbox}/1.parquet/none.db"}, slot="dt=1")
    assert "mlflow: the run could not be logged" in caplog.text
    for _ in range(2):
        assert bertray.score(**night, slot="dt=1").runs == ()
    again = bertray.evaluate(trained, frame(60, 3), output=tmp_path / "evaluated", **keys)
    assert again.already_done

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["compare compared", "evaluate evaluated", "score dt=1", "train run"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    train, score = runs["train run"].data, runs["score dt=1"].data
    accuracy = trained.metrics["accuracy"]
    assert train.metrics["accuracy"] == accuracy.value
    assert (train.metrics["accuracy_low"], train.metrics["accuracy_high"]) == (accuracy.low, accuracy.high)
    assert train.metrics["rows"] == 60
    assert (train.params["training.method"], train.params["max_length"]) == ("features", "24")
    assert "mlflow" not in train.params
    assert (score.metrics["rows_in"], score.metrics["rows_scored"], score.metrics["drift"]) == (30, 30, 0)
    assert runs["compare compared"].data.metrics["accuracy"] == 0
    files = files_of(client, runs["train run"].info.run_id)
    assert {"report.html", "metrics.json", "model/bertray.json"} <= set(files)
    local = client.download_artifacts(runs["train run"].info.run_id, "model", str(tmp_path))
    assert bertray.Classifier.load(local).labels == trained.labels
    assert "report.json" in files_of(client, runs["score dt=1"].info.run_id)


def files_of(client: Any, run_id: str, path: str | None = None) -> list[str]:
    found = []
    for file in client.list_artifacts(run_id, path):
        found += files_of(client, run_id, file.path) if file.is_dir else [file.path]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_cannot_be_reached_does_not_undo_a_run(tiny_encoder, tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    without_ray(monkeypatch)
    (tmp_path / "file").write_text("")
    result = bertray.train(
        frame(120, 1),
        test=frame(60, 2),
        model=tiny_encoder,
        output=tmp_path / "run",
        max_length=24,
        training={"method": "features"},
        mlflow=f"sqlite:///{tmp_path}/file/none.db",
        report={"baselines": False, "explain": 0},
    )
    assert Path(result.model, "bertray.json").is_file()
    assert "mlflow: the run could not be logged" in caplog.text
