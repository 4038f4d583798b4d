"""Runs on executors that their caller gave: nothing else is opened."""

from __future__ import annotations

import pytest

from bertray.config import EvaluateConfig, ScoreConfig, TrainConfig
from bertray.execution.executor import THIS_PROCESS
from bertray.execution.on_demand import Always
from bertray.runs.fit.training import train
from bertray.runs.model_evaluation import evaluate
from bertray.runs.night import score

GIVEN = Always(THIS_PROCESS)


@pytest.mark.slow
def test_a_run_opens_no_executor_where_it_is_given_one(tmp_path, tiny_encoder, corpus, no_work):
    training = {"epochs": 1, "learning_rate": 3e-3}
    keys = {"data": {"train": str(corpus / "train.parquet")}, "max_length": 24, "training": training}
    trained = train(
        TrainConfig.model_validate({"model": str(tiny_encoder), "output": str(tmp_path / "train"), **keys}), GIVEN
    )
    of_model = {"model": f"{trained.output}/model", "input": [str(corpus / "test.parquet")]}
    evaluated = evaluate(EvaluateConfig.model_validate({**of_model, "output": str(tmp_path / "evaluate")}), GIVEN)
    scored = score(ScoreConfig.model_validate({**of_model, "output": str(tmp_path / "score")}), executors=GIVEN)
    assert (evaluated.rows, scored.rows_scored) == (90, 90)
