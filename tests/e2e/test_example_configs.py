"""Every example config, run as its comments say on a tiny sample in the form of its data: so few rows need no Ray.

One is run on workers of Ray Train in `make test-slow`.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from tests.conftest import WORDS
from tests.e2e.test_topics import write_reviews

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"

# config -> values of its label column
LABELS: dict[str, list[object]] = {
    "imdb": [0, 1],
    "cola": [0, 1],
    "emotion": ["sadness", "joy", "love", "anger", "fear", "surprise"],
    "tweets": ["negative", "neutral", "positive"],
    "aspects": ["negative", "neutral", "positive"],
    "features": ["anger", "joy"],
    "chinese": [0, 1],
    "korean": ["negative", "neutral", "positive"],
}
# Input columns that the config names besides id, text and label, with the values of a row.
COLUMNS: dict[str, dict[str, list[object]]] = {
    "cola": {"source": ["gj04", "bc01"]},
    "tweets": {"airline": ["north", "south"], "date": ["2015-02-21", "2015-02-22", "2015-02-23", "2015-02-24"]},
    "aspects": {"aspect": ["plot", "actor", "story"]},
    "chinese": {"category_en": ["books", "hotel"]},
}


def write_sample(name: str, path: Path, num_rows: int, seed: int) -> Path:
    """Random words; each label and each value of a column in turn."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, size=int(random.integers(4, 20)))) for _ in range(num_rows)]
    rows: dict[str, list[object]] = {"id": [f"{path.stem}-{i}" for i in range(num_rows)], "text": list(texts)}
    rows["label"] = [LABELS[name][i % len(LABELS[name])] for i in range(num_rows)]
    for column, values in COLUMNS.get(name, {}).items():
        rows[column] = [values[(i // 5) % len(values)] for i in range(num_rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path)
    return path


def train(name: str, encoder: Path, folder: Path) -> Path:
    words = [f"model={encoder}", f"output={folder / 'run'}", "max_length=24", "training.epochs=1"]
    sample = write_sample(name, folder / "train.parquet", 96, 1)
    words.append(f"data.train={sample}")
    if name == "tweets":  # which takes its test from the last days; some rows of the first have none
        table = pq.read_table(sample)
        dates = [None] * 7 + table["date"].to_pylist()[7:]
        pq.write_table(table.set_column(table.column_names.index("date"), "date", pa.array(dates)), sample)
    else:
        words.append(f"data.test={write_sample(name, folder / 'test.parquet', 36, 2)}")
    assert run(["train", "-c", str(CONFIGS / f"{name}.yaml"), *words]) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELS)
def test_a_config_trains_on_a_sample_in_the_form_of_its_data(name, tiny_encoder, tmp_path):
    check(name, tiny_encoder, tmp_path)


@pytest.mark.soak
@pytest.mark.ray
def test_a_config_trains_on_workers(tiny_encoder, tmp_path, ray_cluster):
    check("aspects", tiny_encoder, tmp_path)


def check(name: str, tiny_encoder: Path, tmp_path: Path) -> None:
    output = train(name, tiny_encoder, tmp_path)
    metrics = json.loads((output / "metrics.json").read_text())
    info = json.loads((output / "model" / "bertray.json").read_text())
    names: dict[Any, str] = {0: "negative", 1: "positive"} if name != "cola" else {0: "unacceptable", 1: "acceptable"}
    assert set(metrics["labels"]) == {names.get(value, value) for value in LABELS[name]}
    assert sum(map(sum, metrics["confusion_matrix"])) == metrics["rows"] == (46 if name == "tweets" else 36)
    assert info["text_pair"] == (name == "aspects")
    assert info["head"] == ("linear_on_normalized_mean" if name == "features" else "sequence_classification")
    slices = {"cola": {"source"}, "tweets": {"airline", "date"}, "chinese": {"category_en"}}.get(name, set())
    assert slices <= set(metrics["slices"])
    if name == "tweets":
        assert set(metrics["slices"]["date"]) == {"2015-02-23", "2015-02-24"}
        assert "7 rows without <code>date</code> count as before 2015-02-23" in html.unescape(
            (output / "report.html").read_text()
        )
        predicted = pq.read_table(output / "predictions.parquet")["id"].to_pylist()
        dates = pq.read_table(tmp_path / "train.parquet")
        late = dates.filter(pa.compute.greater_equal(dates["date"], "2015-02-23"))
        assert sorted(predicted) == sorted(late["id"].to_pylist())
    if name == "korean":  # the model of the nightly config
        incoming = tmp_path / "incoming"
        for day in ("01", "02"):
            table = pq.read_table(write_sample(name, incoming / f"{day}.parquet", 12, int(day)))
            pq.write_table(table.append_column("date", pa.array([f"2015-08-{day}"] * 12)), incoming / f"{day}.parquet")
        words = [f"model={output / 'model'}", f"input={incoming}", f"output={tmp_path / 'scored'}"]
        assert run(["score", "-c", str(CONFIGS / "nightly.yaml"), *words]) == 0
        entry = json.loads((tmp_path / "scored" / "control" / "commits" / "00000001.json").read_text())
        assert [(file["rows_in"], file["rows_scored"]) for file in entry["files"]] == [(12, 12), (12, 12)]


def test_the_config_of_embed(tiny_encoder, tmp_path):
    write_sample("imdb", tmp_path / "in" / "a.parquet", 20, 3)
    words = [f"model={tiny_encoder}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "max_length=24"]
    assert run(["embed", "-c", str(CONFIGS / "embed.yaml"), *words]) == 0
    assert pq.read_table(tmp_path / "out" / "data").schema.field("embedding").type == pa.list_(pa.float16(), 32)


def test_the_config_of_audit(tiny_encoder, tmp_path):
    files = [
        f"data.{split}={write_sample('imdb', tmp_path / f'{split}.parquet', 60, 4)}" for split in ("train", "test")
    ]
    words = [f"model={tiny_encoder}", f"output={tmp_path / 'out'}", "max_length=24"]
    assert run(["audit", "-c", str(CONFIGS / "audit.yaml"), *files, *words]) == 0
    assert pq.read_table(tmp_path / "out" / "leakage.parquet")["kind"].to_pylist() == ["exact"] * 60


@pytest.mark.ray
@pytest.mark.soak
def test_the_config_of_tune_after_that_of_a_run(tiny_encoder, tmp_path, ray_cluster):
    files = [f"data.train={write_sample('emotion', tmp_path / 'train.parquet', 96, 1)}"]
    words = [f"model={tiny_encoder}", f"output={tmp_path / 'out'}", "max_length=24", "training.epochs=1"]
    configs = [word for name in ("emotion", "tune") for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    assert run(["tune", *configs, *files, *words, "search.trials=2"]) == 0
    trials = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert len(trials) == 2
    assert trials[0]["training.learning_rate"] == 1e-4  # where the config stands


@pytest.mark.parametrize("name", ["pretrain", "scratch"])
def test_the_configs_of_pretrain(name, tiny_encoder, tmp_path):
    write_sample("korean" if name == "scratch" else "imdb", tmp_path / "texts.parquet", 96, 3)
    words = [f"input={tmp_path / 'texts.parquet'}", f"output={tmp_path / 'out'}", "max_length=24", "training.epochs=1"]
    small = {
        "pretrain": [f"model={tiny_encoder}"],
        "scratch": ["vocabulary.size=30", "encoder={num_layers: 1, hidden_size: 16, num_heads: 2}"],
    }
    assert run(["pretrain", "-c", str(CONFIGS / f"{name}.yaml"), *words, *small[name]]) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_the_config_of_distill(trained_alone, corpus, tmp_path):
    model, output = trained_alone / "model", tmp_path / "student"
    words = [f"training.teacher={model}", f"model={model}", "training.keep_layers=1", "training.epochs=1"]
    data = [f"data.{split}={corpus / split}.parquet" for split in ("train", "test")]
    assert run(["train", "-c", str(CONFIGS / "distill.yaml"), *words, *data, f"output={output}", "max_length=24"]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["rows"] == 90
    assert set(metrics["baselines"]) == {"majority", "tfidf_logreg", "teacher"}


@pytest.mark.slow
def test_the_config_of_topics(tiny_encoder, tmp_path):
    words = [f"model={tiny_encoder}", f"input={write_reviews(tmp_path / 'in')}", f"output={tmp_path / 'out'}"]
    assert run(["topics", "-c", str(CONFIGS / "topics.yaml"), *words, "max_length=24", "topics.map_rows=0"]) == 0
    assert pq.read_table(tmp_path / "out" / "assignments.parquet").num_rows == 147
    assert "Label distribution by topic" in (tmp_path / "out" / "report.html").read_text()
