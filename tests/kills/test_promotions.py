"""`bertray promote` killed at each of its fault points, and twice at once, on a file system and on an S3 server."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.io import faults
from bertray.model.bundle import INFO_FILE, content_version, read_info
from bertray.trust.registry import Registry, current
from tests.processes import FORKSERVER

pytestmark = pytest.mark.slow

OLD, NEW = "old", "new"
CRASHES = {
    "registry.version_half:1": OLD,
    "registry.version_half:4": OLD,
    "registry.before_put:1": OLD,
    "registry.after_put:1": NEW,
}


@pytest.fixture(params=["local", "s3"])
def registry(request, tmp_path, monkeypatch) -> Registry:
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_environment").items():
            monkeypatch.setenv(name, value)
        return Registry(f"s3://bertray/{tmp_path.name}-registry", create=True)
    return Registry(str(tmp_path / "registry"), create=True)


@pytest.fixture
def models(trained_alone, tmp_path) -> dict[str, Path]:
    """The same model at two temperatures: two versions."""
    found = {OLD: trained_alone / "model", NEW: tmp_path / "new"}
    shutil.copytree(found[OLD], found[NEW])
    info = read_info(found[NEW])
    cooler = replace(info, temperature=info.temperature / 2)
    cooler = replace(cooler, model_version=content_version(found[NEW], cooler))
    (found[NEW] / INFO_FILE).write_text(json.dumps(cooler.to_json(), ensure_ascii=False))
    return found


@pytest.fixture
def judge(corpus, tmp_path) -> Path:
    """Labelled reviews that stand in no training data."""
    seen = pq.read_table(corpus / "train.parquet")["text"]
    table = pq.read_table(corpus / "test.parquet")
    pq.write_table(table.filter(pc.invert(pc.is_in(table["text"], seen))), tmp_path / "judge.parquet")
    return tmp_path / "judge.parquet"


def words(registry: Registry, model: Path, judge: Path) -> list[str]:
    forced = ["force=true", "reason=a test"]
    return [
        "promote",
        "reviews",
        f"model={model}",
        f"input={judge}",
        f"registry={registry.root}",
        *forced,
    ]


def _promote(argv: list[str], armed: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end
    faults.arm(armed)
    sys.exit(run(argv))


def start(argv: list[str], armed: str = ""):
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = FORKSERVER.Process(target=_promote, args=(argv, armed, environment))
    process.start()
    return process


@pytest.mark.parametrize("crash", CRASHES)
def test_a_promotion_killed_anywhere_leaves_the_old_pointer_or_the_new_one(crash, registry, models, judge, tmp_path):
    versions = {name: read_info(path).model_version for name, path in models.items()}
    assert run(words(registry, models[OLD], judge)) == 0
    killed = start(words(registry, models[NEW], judge), f"{crash}:kill")
    killed.join(120)
    assert killed.exitcode == -9
    history = registry.history("reviews")
    assert current(history).version == versions[CRASHES[crash]]
    assert len(history) == (1 if CRASHES[crash] == OLD else 2)
    inbox = tmp_path / "in.parquet"
    pq.write_table(pq.read_table(judge, columns=["id", "text"]).slice(0, 20), inbox)
    score = [
        "score",
        "model=registry:reviews",
        f"registry={registry.root}",
        f"input={inbox}",
        f"output={tmp_path / 'out'}",
    ]
    assert run([*score, "slot=night=1"]) == 0  # what it points to is whole
    rows = pq.read_table(tmp_path / "out" / "data" / "night=1" / "run=1")
    assert set(rows["model_version"].to_pylist()) == {versions[CRASHES[crash]]}
    assert run(words(registry, models[NEW], judge)) == 0
    history = registry.history("reviews")
    assert [entry.version for entry in history] == [versions[OLD], versions[NEW]]
    assert read_version(registry, versions[NEW], tmp_path) == versions[NEW]


def read_version(registry: Registry, version: str, folder: Path) -> str:
    """Version by the bytes of the files that lie in the registry."""
    copy = folder / "copy"
    copy.mkdir()
    below = f"reviews/versions/{version}"
    for key in registry.store.keys(below):
        if "/" not in key.removeprefix(f"{below}/"):
            (copy / Path(key).name).write_bytes(registry.store.get(key))
    return content_version(copy, read_info(copy))


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(registry, models, judge):
    assert run(words(registry, models[OLD], judge)) == 0
    first = start(words(registry, models[NEW], judge), "registry.before_put:1:sleep")
    second = start(words(registry, models[NEW], judge), "registry.before_put:1:sleep")
    for process in (first, second):
        process.join(120)
    assert sorted([first.exitcode, second.exitcode]) == [0, 4]
    assert [entry.kind for entry in registry.history("reviews")] == ["promote", "promote"]
