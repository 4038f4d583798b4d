"""Garbage: the rule for each folder below `control/`, by age; what nobody knows stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bertray.io.store import LocalStore
from bertray.outputs.garbage import find_garbage, remove
from bertray.outputs.snapshots import SNAPSHOTS, snapshot_key

GRACE = timedelta(days=7)
FOREVER = timedelta(days=1000)
NEVER = None
WORK = "dt=1/0123456789abcdef"
LEAST_AGE = {
    "control/commits/00000001.json": NEVER,
    "control/commits/.00000002.json.0a1b2c3d.tmp": timedelta(days=1),
    "control/published/00000001": NEVER,
    "control/published/00000001.reported": NEVER,
    "control/run.json": NEVER,
    "control/probe": NEVER,
    "control/probe-0a1b2c3d": timedelta(days=1),
    "control/publishing/x/run=1/part-00000.parquet": timedelta(days=1),
    "control/trash/x/run=1/part-00000.parquet": GRACE,
    f"control/runs/{WORK}/attempt/part-00000.parquet": GRACE,
    f"control/plans/{WORK}.json": GRACE,
    snapshot_key(10): timedelta(days=1),
    snapshot_key(20): NEVER,
    snapshot_key(30): NEVER,
    f"{SNAPSHOTS}/notes.txt": NEVER,
    "control/of-somebody-else": NEVER,
}


@pytest.fixture
def store(tmp_path) -> LocalStore:
    store = LocalStore(tmp_path)
    for key in LEAST_AGE:
        store.put(key, b"x")
    return store


@pytest.mark.parametrize("age", [timedelta(hours=23), timedelta(days=2), timedelta(days=8), FOREVER])
def test_a_file_is_garbage_from_the_age_that_its_rule_says(store, age):
    found = {item.file.key for item in find_garbage(store, [], datetime.now(UTC) + age, GRACE)}
    assert found == {key for key, least in LEAST_AGE.items() if least is not None and age >= least}


def test_a_live_attempt_keeps_the_staging_and_the_plan_of_its_work(store):
    store.put(f"control/runs/{WORK}/other/heartbeat.json", b"{}")
    found = {item.file.key for item in find_garbage(store, [], datetime.now(UTC) + timedelta(hours=20), timedelta(0))}
    assert not any(WORK in key for key in found)


def test_a_plan_is_removed_before_what_was_staged_for_it(store, monkeypatch):
    removed: list[str] = []
    monkeypatch.setattr(LocalStore, "delete", lambda _, key: removed.append(key))
    remove(store, find_garbage(store, [], datetime.now(UTC) + FOREVER, GRACE))
    assert removed[0] == f"control/plans/{WORK}.json"
    assert len(removed) == sum(least is not None for least in LEAST_AGE.values())
