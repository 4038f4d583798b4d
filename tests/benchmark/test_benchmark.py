"""`bertray benchmark` measures every way and tells what it found."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from bertray.cli import run
from tests.corpus import write

pytestmark = pytest.mark.ray
ROUNDS = 2


@pytest.fixture
def argv(tiny_encoder, tmp_path):
    write(tmp_path / "in" / "reviews.parquet", 300, 5, "r")
    keys = {"model": tiny_encoder, "input": tmp_path / "in", "output": tmp_path / "bench", "max_length": 16}
    return [
        "benchmark",
        *(f"{key}={value}" for key, value in keys.items()),
        "rows=64",
        "rival_rows=24",
        f"rounds={ROUNDS}",
    ]


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(["pipeline", "padded"], marks=pytest.mark.slow),
        pytest.param(
            ["pipeline", "ray", "ray_spread", "padded"], marks=[pytest.mark.soak, pytest.mark.timeout(900)], id="all"
        ),
    ],
)
def test_every_way_is_measured_and_told(beside, argv, tmp_path, ray_cluster, capsys):
    assert run([*argv, f"beside={beside}", "training=true", "price_per_hour=3"]) == 0
    found = json.loads((tmp_path / "bench" / "benchmark.json").read_text())
    ways = found["ways"]
    assert list(ways) == ["bertray", "engine", *beside, "train_bertray", "train_tutorial"]
    assert {name: way["rows"] for name, way in ways.items()} == {
        **dict.fromkeys(ways, 24),
        "bertray": 64,
        "engine": 64,
    }
    for way in ways.values():
        assert len(way["seconds"]) == ROUNDS
        assert min(way["seconds"]) > 0
        assert way["rows_per_s"] * way["tokens"] == pytest.approx(way["tokens_per_s"] * way["rows"])
    assert ways["bertray"]["bertray_is_faster_by"] == 1.0
    rates = (ways[name]["tokens"] / np.array(ways[name]["seconds"]) for name in ("bertray", "pipeline"))
    expected = np.median(np.divide(*rates))
    assert ways["pipeline"]["bertray_is_faster_by"] == pytest.approx(expected)
    assert found["minutes_per_million_reviews"] == pytest.approx(1e6 / ways["bertray"]["rows_per_s"] / 60)
    assert found["price_per_million_reviews"] == pytest.approx(found["minutes_per_million_reviews"] / 20)
    printed = capsys.readouterr().out
    assert "HF pipeline" in printed
    assert "slot dt=" not in printed
    assert "1 million reviews like these take" in printed


@pytest.mark.soak
def test_without_ray_the_engine_is_measured_beside_its_rivals(trained, tmp_path):
    reviews = write(tmp_path / "reviews.parquet", 60, 5, "r")
    keys = {"model": trained / "model", "max_length": 16, "rows": 40, "rival_rows": 20, "rounds": 1, "training": "true"}
    words = [f"{key}={value}" for key, value in {**keys, "output": tmp_path / "found.json"}.items()]
    argv = [sys.executable, "-m", "bertray.benchmark", str(reviews), *words]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["ways"]) == ["engine", "pipeline", "padded", "train_bertray", "train_tutorial"]
    assert found["ways"]["engine"]["bertray_is_faster_by"] == 1.0
    agreement = found["ways"]["engine"]["agreement"]
    assert (agreement["rows"], agreement["same_label"]) == (20, 20)
    assert agreement["largest_difference"] < 1e-4
    assert found["ways"]["padded"]["agreement"] is None
    assert "its engine alone: 20 of 20 labels as of the pipeline, scores of these within" in printed


def test_a_folder_with_something_else_is_left_alone(argv, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "mine.txt").write_text("x")
    assert run(argv) == 4
    assert (tmp_path / "bench" / "mine.txt").read_text() == "x"
