"""`bertray tune`: Ray Tune over the training loop, with Optuna; what a search writes, and what it goes on from."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from bertray.cli import run
from bertray.commands.tune import show_trials
from bertray.config import TuneConfig, build_config, to_yaml
from bertray.console import Ticker
from bertray.errors import ConfigError, InfrastructureError
from bertray.evaluation.metrics import all_metrics, confusion_matrix
from bertray.execution import ray_tune
from bertray.io.store import LocalStore
from bertray.outputs import claims
from bertray.outputs.claims import FINISHED_FILE
from bertray.reports.search import SearchReport
from bertray.runs.fit import searched_config as searched
from bertray.runs.fit import tuning
from bertray.runs.fit.scheduled import Task
from bertray.runs.fit.tuning import TRIALS, stored_trials
from bertray.runs.results import TuneResult
from bertray.training.examples import TrainingSettings
from bertray.training.search_space import Sampler, Tried, every_point, name_of, num_trials

TASK = Task(num_rows=800, num_classes=2, hidden_size=384)  # 3 epochs
SPACE = "search.space={training.learning_rate: [1e-6, 3e-3, 4e-3]}"


def tune_argv(encoder: Path, corpus: Path, output: Path, *words: str) -> list[str]:
    files = [f"data.train={corpus / 'train.parquet'}", f"data.test={corpus / 'test.parquet'}"]
    rest = [f"output={output}", "max_length=24", "training.batch_size=16", "training.best_metric=accuracy"]
    return ["tune", f"model={encoder}", *files, *rest, *words]


def tune_config(keys: dict[str, object] | None = None, **search: object) -> TuneConfig:
    found = build_config("tune", {"output": "out", "data": {"train": ["a.parquet"]}, "search": search, **(keys or {})})
    assert isinstance(found, TuneConfig)
    return found


def epoch_row(epoch: int, **figures: float) -> dict[str, float]:
    """Of a trial: each figure 0.1 above the lower end of its interval and 0.2 below the upper one."""
    given = dict.fromkeys(tuning.METRICS, 0.5) | figures
    ends = {f"{name}{end}": value + by for name, value in given.items() for end, by in (("_low", -0.1), ("_high", 0.2))}
    return {"epoch": epoch, "train_loss": 0.4, "seconds": 2.0 * epoch, **given, **ends}


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_ends_with_a_table_and_a_config_that_train_takes(
    tiny_encoder, corpus, tmp_path, ray_cluster, capsys, monkeypatch
):
    output = tmp_path / "search"
    argv = tune_argv(tiny_encoder, corpus, output, SPACE, "search.sampler=grid", "training.epochs=5")
    tokenized: list[int] = []
    remove = claims.remove_folder

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
    for row in trials:
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in tuning.METRICS)
    best = max(trials, key=lambda row: row["accuracy"])
    assert best["training.learning_rate"] > 1e-6
    assert best["accuracy"] > 0.8
    written = yaml.safe_load((output / "best.yaml").read_text())
    assert written["training"]["learning_rate"] == best["training.learning_rate"]
    assert "output" not in written
    assert build_config("train", written | {"output": "elsewhere"})
    page = (output / "report.html").read_text()
    assert "3 trials" in page
    assert "95 % interval" in page
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
@pytest.mark.soak
def test_a_failing_store_ends_the_search_and_the_same_command_goes_on(
    tiny_encoder, corpus, tmp_path, ray_cluster, monkeypatch
):
    output = tmp_path / "search"
    space = "search.space={training.learning_rate: [1e-3, 2e-3]}"
    argv = tune_argv(tiny_encoder, corpus, output, space, "search.sampler=grid", "training.epochs=1")
    target = output / TRIALS / name_of({"training.learning_rate": 2e-3})
    claim = claims.claimed_output

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
        ({"training.attention_dropout": {"low": 0.0, "high": 1.0}}, "{training.attention_dropout: [false, true]}"),
        ({"training.attention_dropout": {"low": 0, "high": 1}}, "training.attention_dropout takes no numbers"),
        ({"training.class_weights": {"low": 0.0, "high": 1.0}}, "{training.class_weights: [none, balanced]}"),
        ({"training.early_stopping_patience": {"low": 1.0, "high": 3.0}}, "takes whole numbers"),
        ({"training.epochs": ["1.5", 2]}, "training.epochs='1.5'"),
    ],
)
def test_a_space_with_a_mistake_is_told_before_anything_runs(space, said):
    with pytest.raises(ConfigError) as caught:
        searched.check_space(tune_config(space=space))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["teacher", "keep_layers", "softness", "pooling", "best_metric"])
def test_what_fine_tuning_does_not_read_is_neither_searched_nor_offered(name):
    with pytest.raises(ConfigError, match=f"'training.{name}' cannot be searched") as caught:
        searched.check_space(tune_config(space={f"training.{name}": [2, 3]}))
    assert "Did you mean" not in caught.value.message  # it is a key, only not one to search over
    assert "training.epochs" in caught.value.remedy
    assert name not in caught.value.remedy


def test_a_wrong_space_ends_with_code_2_and_leaves_nothing(tiny_encoder, corpus, tmp_path, capsys):
    space = "search.space={training.attention_dropout: {low: 0.0, high: 1.0}}"
    assert run(tune_argv(tiny_encoder, corpus, tmp_path / "out", space)) == 2
    assert "List the values" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "written", "held"),
    [
        ("training.epochs", [1.0, 2.0], (1, 2)),
        ("training.epochs", ["1", 3, 3.0], (1, 3)),  # what is the same is there once
        ("training.learning_rate", ["1e-4", 2e-4], (1e-4, 2e-4)),
        ("training.max_grad_norm", [1, 5], (1.0, 5.0)),
        ("training.attention_dropout", [0.0, "yes"], (False, True)),
        ("training.early_stopping_patience", [None, 2.0], (None, 2)),
        ("training.class_weights", ["none", "balanced"], ("none", "balanced")),
        ("seed", ["0", 1], (0, 1)),
    ],
)
def test_listed_values_are_searched_as_train_has_them(key, written, held):
    config = searched.check_space(tune_config(space={key: written}, sampler="grid"))
    choices = config.search.space[key]
    assert choices == held
    assert [type(value) for value in choices] == [type(value) for value in held]
    assert searched.most_epochs(config, TASK) == (max(held) if key == "training.epochs" else 3)
    assert build_config("tune", yaml.safe_load(to_yaml(config))) == config  # as the output keeps it
    points = every_point(searched.space_of(config))
    assert [point[key] for point in points] == list(held)
    trials = [tuning.Trial(n, point, "finished", [epoch_row(1)]) for n, point in enumerate(points)]
    rows = tuning._rows(trials, "loss")
    pa.table({name: [row[name] for row in rows] for name in rows[0]})  # trials.parquet: one type a column


def test_most_epochs_of_a_range_is_its_upper_end():
    assert searched.most_epochs(tune_config(space={"training.epochs": {"low": 2, "high": 7}}), TASK) == 7
    by_size = tune_config(space={"training.batch_size": [8, 32]})  # 150 steps of 32 in epochs of 25
    assert searched.most_epochs(by_size, TASK) == 6


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
    searched.check_space(config)
    assert searched.start_of(config) == {}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("killed_after", [0, 2, 4])
def test_a_search_that_goes_on_repeats_no_point_and_ends_where_the_space_ends(sampler, killed_after):
    config = tune_config(sampler=sampler, trials=99, space={"seed": [0, 1, 2], "training.batch_size": [8, 16]})
    assert num_trials(searched.space_of(config)) == 6
    first = Sampler(searched.space_of(config), 3, [], [])
    points = [first.next(f"a{number}") for number in range(killed_after + 1)]
    for number in range(killed_after):
        first.tell(f"a{number}", number / 10)
    tried = [Tried(point, number / 10) for number, point in enumerate(points[:killed_after])]
    second = Sampler(searched.space_of(config), 3, tried, points[killed_after:])
    rest = []
    while (point := second.next(f"b{len(rest)}")) is not None:
        rest.append(point)
        second.tell(f"b{len(rest) - 1}", 0.5)
    assert rest[0] == points[killed_after]
    found = [tuple(point.items()) for point in [*points[:killed_after], *rest]]
    assert len(found) == len(set(found)) == 6


def test_the_table_is_best_first_also_at_zero_and_below(capsys):
    trials = [
        tuning.Trial(number, {"seed": number}, "finished", [epoch_row(1, mcc=value)])
        for number, value in enumerate([-0.05, 0.0, -0.02])
    ]
    trials.append(tuning.Trial(3, {"seed": 3}, "failed", [], "too high"))
    report = SearchReport("", "mcc", tuning._rows(trials, "mcc"), keys=("seed",), best=1)
    show_trials(TuneResult("", sentence="", trials=tuple(report.ranked), metric="mcc", keys=("seed",)))
    printed = capsys.readouterr().out
    told = ["0.000 [-0.100, 0.200]", "-0.020 [-0.120, 0.180]", "-0.050 [-0.150, 0.150]", "failed"]
    places = [printed.index(words) for words in told]
    assert places == sorted(places)
    assert printed.endswith("best: seed 1; mcc 0.000 [-0.100, 0.200] on validation rows, which chose it\n")


def test_a_grid_of_ranges_is_refused():
    with pytest.raises(ConfigError, match="is a range"):
        searched.check_space(tune_config(sampler="grid", space={"seed": {"low": 1, "high": 9}}))


def test_a_range_of_whole_numbers_gives_whole_numbers_and_the_same_seed_the_same_points():
    config = tune_config(space={"training.batch_size": {"low": 8, "high": 64}, "training.warmup_ratio": [0.0, 0.1]})
    runs = []
    for _ in range(2):
        sampler = Sampler(searched.space_of(config), 7, [], [])
        points = [sampler.next(str(number)) for number in range(6)]
        runs.append(points)
    assert runs[0] == runs[1]
    for point in runs[0]:
        assert isinstance(point["training.batch_size"], int)
        assert 8 <= point["training.batch_size"] <= 64
        assert searched.at(config, point).training.batch_size == point["training.batch_size"]


def test_what_was_tried_before_teaches_the_sampler():
    """With ten bad points at the low end and ten good ones at the high end, most of what comes next is high."""
    space = {"training.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}
    config = tune_config(space=space)
    low = [Tried({"training.learning_rate": 1e-6 * 1.2**n}, 0.1) for n in range(10)]
    high = [Tried({"training.learning_rate": 1e-3 * 1.2**n}, 0.9) for n in range(10)]
    sampler = Sampler(searched.space_of(config), 0, [*low, *high], [])
    rates = []
    for number in range(20):
        rates.append(sampler.next(str(number))["training.learning_rate"])
        sampler.tell(str(number), 0.9 if rates[-1] > 1e-4 else 0.1)
    assert sum(rate > 1e-4 for rate in rates) >= 16


def test_the_config_itself_is_tried_first_where_it_lies_in_the_space():
    inside = tune_config(space={"training.learning_rate": {"low": 1e-5, "high": 1e-4}, "seed": [0, 1]})
    assert searched.start_of(inside) == {}  # `auto` is no point of it, but the number that it comes to is
    inside = TASK.numbers(inside)
    assert searched.start_of(inside) == {"training.learning_rate": 1e-4, "seed": 0}
    assert searched.start_of(tune_config(space={"seed": [1, 2]})) == {}
    sampler = Sampler(searched.space_of(inside), 0, [], [searched.start_of(inside)])
    assert sampler.next("a") == {"training.learning_rate": 1e-4, "seed": 0}


def test_a_missing_extra_names_the_install_command(tiny_encoder, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert run(tune_argv(tiny_encoder, corpus, tmp_path / "out")) == 2
    assert "pip install 'bertray[tune]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["training.method=features"], "tries its regularisation by itself"),
        (["training.method=distill", "training.teacher=runs/t/model"], "then distill that"),
    ],
)
def test_other_methods_are_not_tuned_and_each_is_told_what_to_do(words, remedy, tiny_encoder, corpus, tmp_path, capsys):
    assert run(tune_argv(tiny_encoder, corpus, tmp_path / "out", *words)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "tune searches over fine-tuning" in said
    assert remedy in said
    assert ("regularisation" in said) == (words[0] == "training.method=features")


@pytest.mark.parametrize(
    ("data", "command"),
    [
        ({}, "bertray train -c best.yaml data.test=<labelled reviews> output=runs/best"),
        ({"test": ["b.parquet"]}, "bertray train -c best.yaml output=runs/best"),
        ({"time": "day", "test_from": "2026-11-01"}, "bertray train -c best.yaml output=runs/best"),
    ],
)
def test_the_best_config_says_how_to_test_it_on_rows_that_did_not_choose_it(data, command):
    config = tune_config({"data": {"train": ["a.parquet"], **data}}, space={"training.learning_rate": [1e-4]})
    best = tuning.Trial(3, {"training.learning_rate": 1e-4}, "finished", [epoch_row(1, loss=0.7), epoch_row(2)])
    text = tuning._best_yaml(config, best, "loss")
    assert text.startswith("# The best of a search: trial 3, loss 0.500 [0.400, 0.700] on validation after epoch 2.\n")
    assert f"#   {command}\n" in text
    assert ("the very rows that chose it" in text) == (not data)
    assert build_config("train", yaml.safe_load(text) | {"output": "runs/best"})


# --- one trial, in this process: ray.tune is imported, no cluster runs ------------------------------------------------


@pytest.fixture
def trial_job(tiny_encoder, tmp_path):
    """What a trial needs, on 53 reviews of which 11 are validation rows."""
    from tests.training.test_loop import examples

    keys = {"model": str(tiny_encoder), "training": {"epochs": 2, "batch_size": 8}, "seed": 3}
    config = tune_config(keys, space={"training.learning_rate": [1e-3, 1e30]})
    found = examples(tmp_path)
    data: Any = SimpleNamespace(examples=lambda: found, classes=("bad", "good"), output=str(tmp_path / "out"))
    return tuning._TrialJob(config, TASK, data, "run", "cpu", 1)


@pytest.mark.parametrize(("match_shares", "accuracy", "mcc"), [(False, 0.6, 0.0), (True, 1.0, 1.0)])
def test_a_trial_is_judged_by_the_decision_that_its_model_would_make(match_shares, accuracy, mcc):
    training = TrainingSettings(1, 1e-3, 8, 0.1, match_shares=match_shares)
    label_ids_V = np.array([0, 0, 1, 1, 1])
    judged: Any = object.__new__(tuning._Judged)
    judged.examples = SimpleNamespace(label_ids_N=label_ids_V, validation=np.arange(5))
    judged.settings, judged.width = SimpleNamespace(training=training, seed=0), 2
    logits_VC = np.array([[0, 1.0], [0, 1.5], [0, 2.0], [0, 3.0], [0, 4.0]])  # in the right order, but all say 1
    figures = judged.figures(logits_VC)
    assert (figures["accuracy"], figures["mcc"]) == (accuracy, mcc)


def test_every_epoch_of_a_trial_tells_its_figures_with_intervals_over_the_validation_rows(
    trial_job, tmp_path, monkeypatch
):
    told: list[dict[str, Any]] = []
    logits = []
    figures = tuning._Judged.figures

    def noted(self, rows_VK):
        logits.append(rows_VK)
        return figures(self, rows_VK)

    monkeypatch.setattr(tuning._Judged, "figures", noted)
    point = {"training.learning_rate": 1e-3}
    tuning._train_trial(trial_job, point, told.append)
    assert [row["epoch"] for row in told] == [1, 2]
    found = trial_job.data.examples()
    label_ids_V = found.label_ids_N[found.validation]
    for row, logits_VC in zip(told, logits, strict=True):
        probs_VC = np.exp(logits_VC) / np.exp(logits_VC).sum(axis=1, keepdims=True)
        expected = all_metrics(confusion_matrix(label_ids_V, probs_VC.argmax(axis=1), 2), label_ids_V, probs_VC, seed=3)
        for name in tuning.METRICS:
            estimate = expected["log_loss" if name == "loss" else name]
            ends = [row[f"{name}_low"], row[name], row[f"{name}_high"]]
            assert ends == pytest.approx([estimate.low, estimate.value, estimate.high], abs=1e-12)
            assert ends[0] <= ends[1] <= ends[2]
        assert row["loss_low"] < row["loss"] < row["loss_high"]
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]

    # As Ray Tune would hand it on: into the trial's file, the table and the page.
    with Ticker("searching", 1, "trials") as ticker:
        sampler = Sampler(searched.space_of(trial_job.config), 0, [], [])
        book = tuning._Book(LocalStore(tmp_path / "book"), [], ticker, trial_job.config, TASK, sampler)
        book.begin(point)
        for row in told:
            book.epoch(point, row)
        book.end(point)
    (trial,) = stored_trials(LocalStore(tmp_path / "book"))
    assert trial.status == "finished"
    (row,) = tuning._rows([trial], "loss")
    best = min(told, key=lambda row: row["loss"])
    assert {name: row[name] for name in tuning.FIGURES} == {name: best[name] for name in tuning.FIGURES}


def test_a_trial_that_leaves_the_numbers_is_told_as_that(trial_job):
    told: list[dict[str, Any]] = []
    tuning._train_trial(trial_job, {"training.learning_rate": 1e30}, told.append)
    assert told[-1]["value"] == tuning.WORST
    assert "diverged" in told[-1]


def test_a_trial_whose_process_dies_ends_the_search_and_is_taken_up_again(tmp_path):
    config = tune_config(space={"seed": [5, 6, 7]}, sampler="grid")
    store = LocalStore(tmp_path)
    with Ticker("searching", 3, "trials") as ticker:
        book = tuning._Book(store, [], ticker, config, TASK, Sampler(searched.space_of(config), 0, [], []))
        searcher, stopper = ray_tune._searcher(book), ray_tune._stopper(book)
        points = {name: searcher.suggest(name)["point"] for name in ("a", "b", "c")}
        for epoch in (1, 2, 3):
            book.epoch(points["a"], epoch_row(epoch))
        searcher.on_trial_complete("a", {"value": -0.5})
        assert not stopper.stop_all()
        book.epoch(points["b"], epoch_row(1))
        searcher.on_trial_complete("b", error=True)
        assert stopper.stop_all()
        searcher.on_trial_complete("c", {})  # ended with the search: that says nothing of it
    assert isinstance(book.fatal, InfrastructureError)
    assert f"seed {points['b']['seed']}" in book.fatal.message
    assert "run the same command again" in book.fatal.remedy
    stored = stored_trials(store)
    assert [(trial.point, trial.status) for trial in stored] == [
        (points["a"], "finished"),
        (points["b"], "running"),
        (points["c"], "running"),
    ]
    again = Sampler(searched.space_of(config), 0, [Tried(points["a"], -0.5)], [points["b"], points["c"]])
    assert [again.next(name) for name in ("d", "e", "f")] == [points["b"], points["c"], None]
