"""A few reviews on one machine are worked on in the command's own process: no Ray, and the same outcome."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.config import Workers
from bertray.execution.session import without_ray
from bertray.runtime import THREADS_ENV
from tests.corpus import train_argv, write
from tests.processes import environment_beside_the_cluster

pytestmark = pytest.mark.ray

PROBE = """
import json, os, sys
from bertray.cli import run
codes = [run(words) for words in json.loads(sys.argv[1])]
print("codes", codes, "ray", "ray" in sys.modules, "spins", os.environ["GOMP_SPINCOUNT"])
sys.exit(max(codes))
"""


@pytest.mark.slow
def test_small_work_needs_no_ray_and_gives_what_it_gives_on_ray(trained, tiny_encoder, corpus, tmp_path, ray_cluster):
    write(tmp_path / "in" / "a.parquet", 40, 5, "n")

    def words(verb: str, out: str, limit: int) -> list[str]:
        given = [f"model={trained / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / out}"]
        return [verb, *given, f"workers.in_process_rows={limit}"]

    def night(out: str, limit: int) -> list[str]:
        return [*words("score", out, limit), "rows_per_shard=16"]

    training = [*train_argv(tiny_encoder, corpus, tmp_path / "run"), "workers.in_process_rows=330"]
    commands = [night("alone", 40), words("evaluate", "evaluated", 40), training]
    env = {name: value for name, value in environment_beside_the_cluster().items() if name not in THREADS_ENV}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands)],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # It has not so much as imported Ray.
    assert done.stdout.rstrip().endswith("codes [0, 0, 0] ray False spins 4000")
    learned, on_worker = (
        [row["loss"] for row in pq.read_table(output / "history.parquet").to_pylist()]
        for output in (tmp_path / "run", trained)
    )
    assert learned == pytest.approx(on_worker, abs=1e-3)
    assert run(night("ray", 39)) == 0
    alone, on_ray = (
        pq.read_table(tmp_path / out / "data").sort_by("id").drop_columns(["run_id", "scored_at"])
        for out in ("alone", "ray")
    )
    probabilities = [name for name in on_ray.column_names if name == "score" or name.startswith("prob_")]
    assert alone.drop_columns(probabilities) == on_ray.drop_columns(probabilities)
    for name in probabilities:  # summed by another number of threads
        assert alone[name].to_pylist() == pytest.approx(on_ray[name].to_pylist(), abs=1e-5)
    predictions = pq.read_table(tmp_path / "evaluated" / "predictions.parquet").sort_by("id")
    assert predictions.select(["id", "prediction"]).to_pydict() == {
        "id": on_ray["id"].to_pylist(),
        "prediction": on_ray["label"].to_pylist(),
    }


@pytest.mark.parametrize(
    ("workers", "address", "alone"),
    [
        (Workers(), "", True),
        (Workers(in_process_rows=9), "", False),
        (Workers(use_gpu=True), "", False),
        (Workers(), "ray://head:10001", False),
    ],
)
def test_ray_is_started_for_many_rows_a_gpu_or_a_cluster(monkeypatch, workers, address, alone):
    monkeypatch.setitem(sys.modules, "ray", type("ray", (), {"is_initialized": staticmethod(lambda: False)}))
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = without_ray(workers, 10)
    assert (found is not None) == alone
    assert found is None or (found.device, found.in_process_rows) == ("cpu", 2500)


def test_several_workers_that_would_share_the_steps_of_a_training_are_not_replaced_by_one_process(monkeypatch):
    monkeypatch.setattr("bertray.execution.session.on_these_cpus", lambda _: True)
    assert without_ray(Workers(num_workers=2), 10) is not None
    assert without_ray(Workers(num_workers=2), 10, ranks=True) is None
    assert without_ray(Workers(), 10, ranks=True) is not None


def test_a_cluster_that_runs_already_is_used(ray_cluster, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert without_ray(Workers(), 1) is None


def test_plan_says_that_so_few_reviews_need_no_ray(trained, tiny_encoder, corpus, tmp_path, monkeypatch, capsys):
    write(tmp_path / "in" / "a.parquet", 40, 5, "n")
    monkeypatch.setattr("bertray.execution.session.on_these_cpus", lambda _: True)
    scoring = ["plan", f"model={trained / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    training = ["plan", *train_argv(tiny_encoder, corpus, tmp_path / "run")[1:]]
    for words, num_rows in ((scoring, 40), (training, 330)):
        assert run([*words, "workers.threads=2", f"workers.in_process_rows={num_rows}"]) == 0
        told = capsys.readouterr().out
        assert "in one process of 2 threads: so few reviews need no Ray" in told
        assert "6 s of it to start" in told
        assert run([*words, f"workers.in_process_rows={num_rows - 1}"]) == 0
        assert "need no Ray" not in capsys.readouterr().out
