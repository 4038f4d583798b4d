"""Each example config, run as its comments say, on a small sample of the data it is written for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bertray.cli import run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CONFIGS = Path(__file__).resolve().parent.parent / "jobs" / "configs"

# config -> (train file, test file, rows of each)
TRAINED = {
    "imdb": ("imdb/train.parquet", "imdb/test.parquet"),
    "cola": ("cola/train.parquet", "cola/dev.parquet"),
    "emotion": ("emotion/train.parquet", "emotion/test.parquet"),
    "chinese": ("online_shopping_10_cats/train.parquet", "online_shopping_10_cats/test.parquet"),
    "korean": ("naver_movies/train.parquet", "naver_movies/test.parquet"),
}


def sample(source: Path, target: Path, num_rows: int) -> Path:
    """Every n-th row of a file: the originals are ordered by label."""
    table = pq.read_table(source)
    step = table.num_rows // num_rows
    pq.write_table(table.take(list(range(0, step * num_rows, step))), target)
    return target


def train(name: str, real_data: Path, encoder: Path, tmp_path: Path) -> Path:
    train_file, test_file = TRAINED[name]
    words = [
        f"model={encoder}",
        f"data.train={sample(real_data / train_file, tmp_path / 'train.parquet', 200)}",
        f"data.test={sample(real_data / test_file, tmp_path / 'test.parquet', 60)}",
        f"output={tmp_path / 'run'}",
        "max_length=32",
        "training.epochs=1",
    ]
    assert run(["train", "-c", str(CONFIGS / f"{name}.yaml"), *words]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("name", TRAINED)
def test_example_config_trains_on_a_sample_of_its_data(name, real_data, tiny_encoder, tmp_path, ray_cluster):
    metrics = json.loads((train(name, real_data, tiny_encoder, tmp_path) / "metrics.json").read_text())
    assert metrics["rows"] == 60
    assert len(metrics["labels"]) == {"imdb": 2, "cola": 2, "emotion": 6, "chinese": 2, "korean": 3}[name]


def test_nightly_config_scores_daily_files(real_data, tiny_encoder, tmp_path, ray_cluster):
    model = train("korean", real_data, tiny_encoder, tmp_path) / "model"
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for day in sorted((real_data / "naver_movies" / "incoming").iterdir())[:2]:
        shutil.copy(day, incoming)
    words = [f"model={model}", f"input={incoming}/*.parquet", f"output={tmp_path / 'scored'}"]
    assert run(["score", "-c", str(CONFIGS / "nightly.yaml"), *words]) == 0
    entry = json.loads((tmp_path / "scored" / "control" / "commits" / "00000001.json").read_text())
    assert len(entry["files"]) == 2
    assert all(file["rows_in"] == file["rows_scored"] + file["rows_quarantined"] for file in entry["files"])
