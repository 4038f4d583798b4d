"""`bertray tune`: Ray Tune over the training loop, with Optuna; what a search writes, and what it goes on from."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from bertray.cli import run
from bertray.config import TuneConfig, build_config
from bertray.errors import ConfigError
from bertray.pipelines import tune as tuning
from bertray.pipelines.runs import FINISHED_FILE
from bertray.pipelines.tune import TRIALS, stored_trials
from bertray.reports.search import SearchReport
from bertray.storage.store import LocalStore
from bertray.training import search as searching
from bertray.training.search import Sampler, Tried

SPACE = "search.space={training.learning_rate: [1e-6, 3e-3, 4e-3]}"


def tune_argv(encoder: Path, corpus: Path, output: Path, *words: str) -> list[str]:
    files = [f"data.train={corpus / 'train.parquet'}", f"data.test={corpus / 'test.parquet'}"]
    rest = [f"output={output}", "max_length=24", "training.batch_size=16", "training.best_metric=accuracy"]
    return ["tune", f"model={encoder}", *files, *rest, *words]


def tune_config(**search: object) -> TuneConfig:
    found = build_config("tune", {"output": "out", "data": {"train": ["a.parquet"]}, "search": search})
    assert isinstance(found, TuneConfig)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_ends_with_a_table_and_a_config_that_train_takes(
    tiny_encoder, corpus, tmp_path, ray_cluster, capsys, monkeypatch
):
    output = tmp_path / "search"
    argv = tune_argv(tiny_encoder, corpus, output, SPACE, "search.sampler=grid", "training.epochs=5")
    tokenized: list[int] = []
    remove = tuning.remove_folder

    def count_and_remove(store, folder):
        manifests = (output / folder).rglob("manifest.json")
        tokenized.extend(json.loads(path.read_text())["rows"] for path in manifests)
        remove(store, folder)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "remove_folder", count_and_remove)
        assert run(argv) == 0
    assert tokenized == [240]  # the train file alone: no test row was ever tokenized
    assert not (output / "control" / "tokens").exists()
    trials = pq.read_table(output / "trials.parquet").to_pylist()
    assert [(row["trial"], row["training.learning_rate"]) for row in trials] == [(1, 1e-6), (2, 3e-3), (3, 4e-3)]
    assert all(row["status"] in ("finished", "stopped") for row in trials)
    best = max(trials, key=lambda row: row["accuracy"])
    assert best["training.learning_rate"] > 1e-6
    assert best["accuracy"] > 0.8
    written = yaml.safe_load((output / "best.yaml").read_text())
    assert written["training"]["learning_rate"] == best["training.learning_rate"]
    assert "output" not in written
    assert build_config("train", written | {"output": "elsewhere"})
    page = (output / "report.html").read_text()
    assert "3 trials" in page
    assert "The test rows took no part" in page
    assert not (output / "control" / "ray_tune").exists()
    capsys.readouterr()
    assert run(argv) == 0
    assert "already searched" in capsys.readouterr().out

    # A search that was killed: one trial is known, one was at work, and the third had not begun.
    before = {trial.number: trial for trial in stored_trials(LocalStore(output))}
    (output / FINISHED_FILE).unlink()
    (output / TRIALS / f"{before[3].name}.json").unlink()
    at_work = output / TRIALS / f"{before[2].name}.json"
    at_work.write_text(json.dumps(json.loads(at_work.read_text()) | {"status": "running", "epochs": []}))
    known = output / TRIALS / f"{before[1].name}.json"
    stamp = known.stat().st_mtime_ns
    assert run(argv) == 0
    after = {trial.number: trial for trial in stored_trials(LocalStore(output))}
    assert known.stat().st_mtime_ns == stamp
    assert {n: trial.point for n, trial in after.items()} == {n: trial.point for n, trial in before.items()}
    assert after[2].epochs[0]["loss"] == before[2].epochs[0]["loss"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_store_ends_the_search_and_the_same_command_goes_on(
    tiny_encoder, corpus, tmp_path, ray_cluster, monkeypatch
):
    output = tmp_path / "search"
    space = "search.space={training.learning_rate: [1e-3, 2e-3]}"
    argv = tune_argv(tiny_encoder, corpus, output, space, "search.sampler=grid", "training.epochs=1")
    target = output / TRIALS / searching.name_of({"training.learning_rate": 2e-3})
    claim = tuning.claimed_output

    @contextmanager
    def claim_and_block(*args):
        with claim(*args):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("a file where the checkpoints of a trial belong")
            yield

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "claimed_output", claim_and_block)
        assert run(argv) == 2  # "expected a folder, found a file": the code of what went wrong
    assert not (output / "best.yaml").exists()
    assert {trial.status for trial in stored_trials(LocalStore(output))} == {"finished", "running"}
    target.unlink()
    assert run(argv) == 0
    assert {trial.status for trial in stored_trials(LocalStore(output))} == {"finished"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_fails_costs_no_other(tiny_encoder, corpus, tmp_path, ray_cluster):
    output = tmp_path / "search"
    space = "search.space={training.learning_rate: [1e-3, 1e30]}"
    assert run(tune_argv(tiny_encoder, corpus, output, space, "search.sampler=grid", "training.epochs=1")) == 0
    trials = {row["training.learning_rate"]: row for row in pq.read_table(output / "trials.parquet").to_pylist()}
    assert trials[1e-3]["status"] == "finished"
    assert trials[1e30]["status"] == "failed"
    assert "not finite" in trials[1e30]["why"] or "is nan" in trials[1e30]["why"]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"training.learning_rat": [1e-4]}, "Did you mean 'training.learning_rate'"),
        ({"max_length": [64, 128]}, "'max_length' cannot be searched"),
        ({"training.learning_rate": [1e-4, -1]}, "training.learning_rate=-1"),
        ({"training.epochs": [1, 2.5]}, "training.epochs=2.5"),
        ({"training.class_weights": ["none", "balancd"]}, "training.class_weights='balancd'"),
        ({"training.batch_size": {"low": 1e1, "high": 1e2}}, "training.batch_size takes whole numbers"),
        ({"training.learning_rate": {"low": 0, "high": 1}}, "numbers with a point"),
        ({"training": {"learning_rat": [1e-4]}}, "Did you mean 'training.learning_rate'"),
    ],
)
def test_a_space_with_a_mistake_is_told_before_anything_runs(space, said):
    with pytest.raises(ConfigError) as caught:
        searching.check_space(tune_config(space=space))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"space": {"seed": {"low": 5, "high": 1}}}, "low must be below high"),
        ({"space": {"training.learning_rate": {"low": 0, "high": 1, "log": True}}}, "log=true needs numbers above 0"),
        ({"space": {"training.learning_rate": 1e-4}}, "expected a list of values or"),
        ({"space": {"seed": []}}, "an empty list"),
        ({"space": {}}, "search.space"),
        ({"space": {"seed": {"lo": 1, "high": 2}}}, "lo"),
        ({"sampler": "optuna"}, "search.sampler"),
    ],
)
def test_choices_of_another_form_are_refused(search, said):
    with pytest.raises(ConfigError) as caught:
        tune_config(**search)
    assert said in str(caught.value)


def test_a_setting_without_a_value_is_no_starting_point():
    config = tune_config(space={"training.early_stopping_patience": {"low": 1, "high": 3}})
    searching.check_space(config)
    assert searching.start_of(config) == {}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("killed_after", [0, 2, 4])
def test_a_search_that_goes_on_repeats_no_point_and_ends_where_the_space_ends(sampler, killed_after):
    config = tune_config(sampler=sampler, trials=99, space={"seed": [0, 1, 2], "training.batch_size": [8, 16]})
    assert searching.num_trials(config.search) == 6
    first = Sampler(config.search, 3, [], [])
    points = [first.next(f"a{number}") for number in range(killed_after + 1)]
    for number in range(killed_after):
        first.tell(f"a{number}", number / 10)
    tried = [Tried(point, number / 10) for number, point in enumerate(points[:killed_after])]
    second = Sampler(config.search, 3, tried, points[killed_after:])
    rest = []
    while (point := second.next(f"b{len(rest)}")) is not None:
        rest.append(point)
        second.tell(f"b{len(rest) - 1}", 0.5)
    assert rest[0] == points[killed_after]
    found = [tuple(point.items()) for point in [*points[:killed_after], *rest]]
    assert len(found) == len(set(found)) == 6


def test_the_table_is_best_first_also_at_zero_and_below(capsys):
    trials = [
        tuning.Trial(number, {"seed": number}, "finished", [{"epoch": 1, "seconds": 1, "loss": 1, "mcc": value}])
        for number, value in enumerate([-0.05, 0.0, -0.02])
    ]
    tuning._print(SearchReport("", "mcc", tuning._rows(trials, "mcc"), keys=("seed",), best=1))
    printed = capsys.readouterr().out
    assert [printed.index(f"{value:.4f}") for value in (0.0, -0.02)] == sorted(
        printed.index(f"{value:.4f}") for value in (0.0, -0.02)
    )
    assert "-0.0500" in printed


def test_a_grid_of_ranges_is_refused():
    with pytest.raises(ConfigError, match="is a range"):
        searching.check_space(tune_config(sampler="grid", space={"seed": {"low": 1, "high": 9}}))


def test_a_range_of_whole_numbers_gives_whole_numbers_and_the_same_seed_the_same_points():
    config = tune_config(space={"training.batch_size": {"low": 8, "high": 64}, "training.warmup_ratio": [0.0, 0.1]})
    runs = []
    for _ in range(2):
        sampler = Sampler(config.search, 7, [], [])
        points = [sampler.next(str(number)) for number in range(6)]
        runs.append(points)
    assert runs[0] == runs[1]
    for point in runs[0]:
        assert isinstance(point["training.batch_size"], int)
        assert 8 <= point["training.batch_size"] <= 64
        assert searching.at(config, point).training.batch_size == point["training.batch_size"]


def test_what_was_tried_before_teaches_the_sampler():
    """With ten bad points at the low end and ten good ones at the high end, most of what comes next is high."""
    space = {"training.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}
    config = tune_config(space=space)
    low = [Tried({"training.learning_rate": 1e-6 * 1.2**n}, 0.1) for n in range(10)]
    high = [Tried({"training.learning_rate": 1e-3 * 1.2**n}, 0.9) for n in range(10)]
    sampler = Sampler(config.search, 0, [*low, *high], [])
    rates = []
    for number in range(20):
        rates.append(sampler.next(str(number))["training.learning_rate"])
        sampler.tell(str(number), 0.9 if rates[-1] > 1e-4 else 0.1)
    assert sum(rate > 1e-4 for rate in rates) >= 16


def test_the_config_itself_is_tried_first_where_it_lies_in_the_space():
    inside = tune_config(space={"training.learning_rate": {"low": 1e-5, "high": 1e-4}, "seed": [0, 1]})
    assert searching.start_of(inside) == {"training.learning_rate": 5e-5, "seed": 0}
    assert searching.start_of(tune_config(space={"seed": [1, 2]})) == {}
    sampler = Sampler(inside.search, 0, [], [searching.start_of(inside)])
    assert sampler.next("a") == {"training.learning_rate": 5e-5, "seed": 0}


def test_a_missing_extra_names_the_install_command(tiny_encoder, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert run(tune_argv(tiny_encoder, corpus, tmp_path / "out")) == 2
    assert "pip install 'bertray[tune]'" in capsys.readouterr().err


def test_features_have_nothing_to_tune(tiny_encoder, corpus, tmp_path, capsys):
    assert run(tune_argv(tiny_encoder, corpus, tmp_path / "out", "training.method=features")) == 2
    assert "tune searches over fine-tuning" in capsys.readouterr().err
