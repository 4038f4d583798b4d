"""From reviews on an object store to a model and scored rows there, as a cluster does it; the server is moto's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.io.store import open_store
from tests.corpus import train_argv, write
from tests.processes import environment_beside_the_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def root(s3_environment, corpus, tmp_path, monkeypatch) -> str:
    """An address on the server, with reviews to train on below `in/`."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://bertray/{tmp_path.name}"
    store = open_store(root)
    for name in ("train.parquet", "test.parquet"):
        store.put(f"in/{name}", (corpus / name).read_bytes())
    return root


@pytest.fixture
def bertray(s3_environment, tmp_path):
    """Runs a command with a Ray of its own; it may leave nothing of what it fetched."""
    scratch = tempfile.mkdtemp(prefix="to-", dir="/tmp")
    cache = tmp_path / "cache"
    env = environment_beside_the_cluster(
        **s3_environment, RAY_TMPDIR=scratch, TMPDIR=str(tmp_path), XDG_CACHE_HOME=str(cache)
    )

    def command(*words: str) -> None:
        before = {*tmp_path.iterdir(), cache}
        argv = [sys.executable, "-m", "bertray.cli", *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        assert set(tmp_path.iterdir()) <= before

    yield command
    Path(scratch).rmdir()


def test_train_score_and_embed_with_everything_on_an_object_store(root, bertray, tiny_encoder, corpus, tmp_path):
    store = open_store(root)
    store.put("new/reviews.parquet", write(tmp_path / "new.parquet", 50, 4, "n").read_bytes())
    data = [f"output={root}/run", f"data.train={root}/in/train.parquet"]
    words = train_argv(tiny_encoder, corpus, tmp_path, *data, "workers.in_process_rows=0")
    bertray(*words, f"data.test={root}/in/test.parquet", "training.epochs=2")
    assert json.loads(store.get("run/metrics.json"))["rows"] == 90
    assert b"<html" in store.get("run/report.html")
    assert not list(store.keys("run/checkpoints"))
    bertray(
        "score", f"model={root}/run/model", f"input={root}/new", f"output={root}/scored", "workers.in_process_rows=0"
    )
    parts = [key for key in store.keys("scored/data") if key.endswith(".parquet")]
    ids = pa.concat_tables([pq.read_table(pa.BufferReader(store.get(key))) for key in parts])["id"].to_pylist()
    assert Counter(ids) == Counter(f"n{row}" for row in range(50))
    bertray("embed", f"model={root}/run/model", f"input={root}/new", f"output={root}/vectors")
    parts = [key for key in store.keys("vectors/data") if key.endswith(".parquet")]
    assert sum(pq.read_metadata(pa.BufferReader(store.get(key))).num_rows for key in parts) == 50


@pytest.mark.soak
def test_a_search_with_everything_on_an_object_store(root, bertray, tiny_encoder):
    """By tpe over two points it ends after two trials, however many it may make."""
    store = open_store(root)
    space = "search.space={seed: [0, 1], training.learning_rate: [1e-3]}"
    words = [f"model={tiny_encoder}", f"data.train={root}/in/train.parquet", "max_length=24", "training.epochs=1"]
    bertray("tune", *words, f"output={root}/search", space, "search.trials=9")
    trials = pq.read_table(pa.BufferReader(store.get("search/trials.parquet"))).to_pylist()
    assert sorted((row["seed"], row["status"]) for row in trials) == [(0, "finished"), (1, "finished")]
    assert store.exists("search/best.yaml")
    assert not [key for key in store.keys("search/control/trials") if not key.endswith(".json")]
