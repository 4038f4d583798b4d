"""Several seeds as one training: the best is kept, the spread is told, and two of them are compared beyond luck."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

import bertray
from bertray.cli import run
from bertray.config import TrainConfig, load_config
from bertray.runs import forecast
from bertray.runs.fit import seeds as layer
from tests.corpus import train_argv
from tests.nightly import without_ray

SHORT = ["training.epochs=1", "training.seeds=[3, 1]"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    without_ray(monkeypatch)


def metrics(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def seeded(tmp_path_factory, tiny_encoder, corpus):
    folder = tmp_path_factory.mktemp("seeded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert run([*train_argv(tiny_encoder, corpus, folder), *SHORT]) == 0
    return folder


def test_the_best_seed_on_validation_rows_is_kept(seeded, tiny_encoder, corpus, capsys):
    found, of_seed = metrics(seeded), {seed: metrics(seeded / "seeds" / str(seed)) for seed in (3, 1)}
    losses = {seed: of["calibration"]["validation"]["loss"] for seed, of in of_seed.items()}
    assert losses[3] != losses[1]
    best = min(losses, key=losses.__getitem__)
    assert found["seeds"]["best"] == best
    assert found["seeds"]["by"] == "loss"
    assert {run_["seed"]: run_["validation"] for run_ in found["seeds"]["runs"]} == losses
    accuracies = [of_seed[seed]["metrics"]["accuracy"]["value"] for seed in (3, 1)]
    assert found["seeds"]["spread"]["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert found["metrics"] == of_seed[best]["metrics"]
    for name in ("model/bertray.json", "model/model.safetensors", "predictions.parquet", "history.parquet"):
        assert (seeded / name).read_bytes() == (seeded / "seeds" / str(best) / name).read_bytes()
    page = (seeded / "report.html").read_text().replace("\u00a0", " ")
    assert "Over 2 seeds the accuracy on 90 test rows is" in page
    assert f'href="seeds/{best}/report.html"' in page
    assert run([*train_argv(tiny_encoder, corpus, seeded), *SHORT]) == 0
    assert "already trained" in capsys.readouterr().out
    assert run([*train_argv(tiny_encoder, corpus, seeded), "training.epochs=1", "training.seeds=[3, 2]"]) == 4


def test_seeds_share_their_splits_and_one_seed_is_a_plain_run(seeded, tiny_encoder, corpus, tmp_path):
    """Learned with seed 3 on the splits of seed 0, which no `seed=3` does."""
    one = tmp_path / "one"
    assert run([*train_argv(tiny_encoder, corpus, one), "training.epochs=1", "training.seeds=[3]"]) == 0
    assert not (one / "seeds").exists()
    of_three = seeded / "seeds" / "3"
    assert metrics(one)["metrics"] == metrics(of_three)["metrics"]
    assert metrics(one)["calibration"] == metrics(of_three)["calibration"]
    rows = {seed: metrics(seeded / "seeds" / str(seed))["calibration"]["rows"] for seed in (3, 1)}
    assert rows[3] == rows[1]


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_seed_that_it_had_begun(tiny_encoder, corpus, tmp_path, monkeypatch):
    words = [*train_argv(tiny_encoder, corpus, tmp_path / "run"), *SHORT]
    trained: list[int] = []
    row = layer._row

    def die_after_the_first(store, seed, best_metric):
        trained.append(seed)
        if len(trained) == 1:
            raise OSError("the machine is gone")
        return row(store, seed, best_metric)

    monkeypatch.setattr(layer, "_row", die_after_the_first)
    assert run(words) != 0
    assert not (tmp_path / "run" / "metrics.json").exists()
    first = (tmp_path / "run" / "seeds" / "3" / "metrics.json").stat().st_mtime_ns
    assert run(words) == 0
    assert (tmp_path / "run" / "seeds" / "3" / "metrics.json").stat().st_mtime_ns == first
    assert metrics(tmp_path / "run")["seeds"]["runs"][1]["seed"] == 1


@pytest.mark.slow
def test_two_trainings_are_compared_beyond_the_luck_of_seeds(seeded, tiny_encoder, corpus, tmp_path, capsys):
    better = tmp_path / "better"
    words = [*train_argv(tiny_encoder, corpus, better), "training.epochs=5", "training.seeds=[0, 1]"]
    assert run(words) == 0
    capsys.readouterr()
    assert run(["compare", f"a={seeded}", f"b={better}", f"output={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "Over 2 seeds of A and 2 of B" in said
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["seeds"]
    given = {name: metrics(folder)["seeds"]["spread"]["accuracy"] for name, folder in (("a", seeded), ("b", better))}
    assert {name: sorted(found[name]["values"]) for name in "ab"} == {
        name: pytest.approx(sorted(of["values"])) for name, of in given.items()
    }
    assert found["difference"]["value"] == pytest.approx(given["b"]["mean"] - given["a"]["mean"])
    assert "over other rows and other seeds" in (tmp_path / "out" / "report.html").read_text()
    single = better / "seeds" / "0"
    assert run(["compare", f"a={seeded}", f"b={single}", f"output={tmp_path / 'single'}"]) == 0
    assert "seeds" not in json.loads((tmp_path / "single" / "comparison.json").read_text())


@pytest.mark.slow
def test_plan_counts_a_training_for_each_seed_also_of_a_run_that_has_begun(
    seeded, tiny_encoder, corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(forecast, "_training_rate", lambda *given: 100.0)
    monkeypatch.setattr(forecast, "_forward_rate", lambda *given: 1000.0)
    monkeypatch.setattr(forecast, "LOADING_S", 0.0)
    monkeypatch.setattr(forecast, "START_UP_S", 0.0)

    def work_s(output, *words: str) -> float:
        config = load_config("train", [], [*train_argv(tiny_encoder, corpus, output)[1:], *words])
        assert isinstance(config, TrainConfig)
        seconds = forecast.plan(config).seconds
        assert seconds is not None
        return seconds

    one = work_s(tmp_path / "out", "training.epochs=1")
    assert work_s(tmp_path / "out", "training.epochs=1", "training.seeds=[0, 1, 2]") == pytest.approx(3 * one)
    assert run(["plan", *train_argv(tiny_encoder, corpus, seeded)[1:], *SHORT]) == 0
    assert "2 seeds, one after the other" in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_in_python(tiny_encoder, corpus):
    result = bertray.train(
        str(corpus / "train.parquet"),
        test=str(corpus / "test.parquet"),
        model=str(tiny_encoder),
        max_length=24,
        training={"epochs": 1, "seeds": [0, 1]},
    )
    assert result.notes[0].startswith("Over 2 seeds the accuracy on 90 test rows is")
    assert len(result.classifier.predict(["the film was great"])) == 1
    assert pq.read_table(result.predictions).num_rows == 90


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.seeds=[1, 1]"], "names a seed twice"),
        (["training.seeds=[-1, 1]"], "a seed is from 0"),
        (["training.method=features", "training.seeds=[0, 1]"], "has one solution"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(words, said, tiny_encoder, corpus, tmp_path, capsys):
    assert run([*train_argv(tiny_encoder, corpus, tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_of_contrast_learn_different_models(tiny_encoder, corpus, tmp_path):
    splits = [f"data.{split}={corpus / f'{split}.parquet'}" for split in ("train", "test")]
    words = ["training.method=contrast", "training.steps=3", "training.seeds=[3, 1]", "report.baselines=false"]
    output = tmp_path / "run"
    assert run(["train", f"model={tiny_encoder}", *splits, f"output={output}", "max_length=24", *words]) == 0
    first, second = (output / "seeds" / seed / "model" / "model.safetensors" for seed in ("3", "1"))
    assert first.read_bytes() != second.read_bytes()
