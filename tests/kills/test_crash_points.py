"""A run dies at every point where dying is interesting; the same command again makes it whole.

Three kinds of storage: a file system, one without hard links, and an S3 server over HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.outputs.publish import committed_files
from tests.nightly import INFO, check_exact, expected_ids, night_config, run_night, start_night, visible, write_inbox

ROWS = {"a.parquet": 40, "b.parquet": 9, "c.parquet": 5}  # 3 shards, and two small files together

FIRST = {"first.parquet": 20}

EMBED_INFO = replace(INFO, labels=(), label_values={})  # an encoder has no classes

# What a plain reader sees in the data folder after the crash: nothing, everything, or (object stores only) a part
# without `_SUCCESS`.
NOTHING, WHOLE, PART = "nothing", "whole", "part"
CRASHES = {
    "plan.before_put:1": NOTHING,
    "plan.after_put:1": NOTHING,
    "put.half_written:1": NOTHING,  # the claim of the output
    "put.half_written:6": NOTHING,  # a part file
    "part.after_put:1": NOTHING,
    "receipt.after_put:1": NOTHING,
    "receipt.after_put:3": NOTHING,
    "verify.before:1": NOTHING,
    "commit.before_put:1": NOTHING,
    "commit.after_put:1": NOTHING,
    "publish.before:1": NOTHING,
    "publish.half:1": NOTHING,  # of the quarantine
    "publish.half:6": PART,  # of the data
    "publish.after:1": WHOLE,
    "marker.after_put:1": WHOLE,
    "snapshot.before_put:1": WHOLE,
    "snapshot.after_put:1": WHOLE,
}

BEFORE_AND_AFTER = ("put.half_written:6", "receipt.after_put:3", "commit.after_put:1", "publish.half:6")


def nights(quick: Container[str]) -> list[Any]:
    """(place, another run beside it, crash); quick are these points alone on a file system, and four of the rest.

    Beside another run and without hard links all points but these four belong to `make soak`.
    """

    def marks(place: str, beside: bool, crash: str) -> list[pytest.MarkDecorator]:
        if place != "s3" and (crash in BEFORE_AND_AFTER or (crash in quick and place == "local" and not beside)):
            return []
        is_sibling = (beside or place == "no hard links") and crash not in BEFORE_AND_AFTER
        return [pytest.mark.soak if is_sibling else pytest.mark.slow]

    return [
        pytest.param(
            place,
            beside,
            crash,
            id=f"{place}-{'beside another run' if beside else 'alone'}-{crash}",
            marks=marks(place, beside, crash),
        )
        for place in ("local", "no hard links", "s3")
        for beside in (False, True)
        for crash in CRASHES
        # single_writer promises that there is no other run; an object is uploaded in one request: there is no half.
        if not (place == "no hard links" and beside) and not (place == "s3" and crash.startswith("put."))
    ]


@pytest.fixture
def place(request, tmp_path, monkeypatch):
    """(output, keys of the config, environment of the run, whether hard links work)."""
    if request.param == "s3":
        environment = request.getfixturevalue("s3_environment")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return f"s3://bertray/{tmp_path.name}", {}, environment, True
    if request.param == "no hard links":
        return str(tmp_path / "out"), {"single_writer": True}, {}, False
    return str(tmp_path / "out"), {}, {}, True


@pytest.mark.parametrize(("place", "beside", "crash"), nights(quick=CRASHES), indirect=["place"])
def test_the_same_command_makes_a_killed_run_whole(crash, beside, place, tiny_encoder, tmp_path):
    output, keys, environment, hard_links = place
    write_inbox(tmp_path / "in", ROWS)
    config = night_config(tiny_encoder, tmp_path / "in", output, takeover=True, **keys)
    killed = start_night(config, f"{crash}:kill", environment, hard_links=hard_links)
    other = start_night(config, "", environment, hard_links=hard_links) if beside else None
    killed.join(60)
    # Beside another run it may find everything done before it comes to its point.
    assert killed.exitcode == -9 or (beside and killed.exitcode == 0)
    store = open_store(output)
    if not beside:
        seen = sum(visible(store, "data").values(), Counter())
        expected = CRASHES[crash]
        if expected is PART and not output.startswith("s3://"):
            expected = NOTHING  # one rename shows all of it
        whole, _ = expected_ids(ROWS)
        assert seen == {NOTHING: Counter(), WHOLE: whole}.get(expected, seen)
        if expected is PART:
            assert seen < whole
            assert not any(key.endswith("_SUCCESS") for key in store.keys("data"))
    else:
        other.join(60)
        assert other.exitcode == 0

    again = start_night(config, "", environment, hard_links=hard_links)
    again.join(60)
    assert again.exitcode == 0
    check_exact(store, ROWS)


@pytest.mark.parametrize("crash", ["put.half_written:6", "receipt.after_put:3", "commit.after_put:1", "publish.half:6"])
def test_a_killed_embed_is_made_whole_as_score_is(crash, tiny_encoder, tmp_path):
    write_inbox(tmp_path / "in", ROWS)
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), verb="embed", takeover=True)
    killed = start_night(config, f"{crash}:kill", info=EMBED_INFO)
    killed.join(60)
    assert killed.exitcode == -9
    store = open_store(str(tmp_path / "out"))
    assert visible(store, "data") == {}
    assert run_night(config, EMBED_INFO) == 0
    check_exact(store, ROWS)
    rows = pq.read_table(tmp_path / "out" / "data")
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert np.isfinite(rows["embedding"].combine_chunks().flatten().to_numpy()).all()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("part.after_put:2:raise", 7),
        ("receipt.after_put:2:raise", 7),
        ("put.half_written:2:enospc", 7),
        ("put.half_written:8:enospc", 7),
        ("commit.before_put:1:lost_reply", 7),
        ("commit.after_put:1:lost_reply", 0),  # it is read back
        ("publish.half:2:raise", 7),
    ],
)
def test_a_failing_store_ends_with_7_and_the_same_command_finishes(fault, code, tiny_encoder, tmp_path):
    write_inbox(tmp_path / "in", ROWS)
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))
    failing = start_night(config, fault)
    failing.join(60)
    assert failing.exitcode == code
    assert run_night(config) == 0
    check_exact(open_store(str(tmp_path / "out")), ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "beside", "crash"), nights(quick=()), indirect=["place"])
def test_a_killed_second_run_of_a_day_leaves_the_first_as_it_is(crash, beside, place, tiny_encoder, tmp_path):
    output, keys, environment, hard_links = place
    write_inbox(tmp_path / "in", FIRST)
    config = night_config(tiny_encoder, tmp_path / "in", output, takeover=True, **keys)
    first = start_night(config, "", environment, hard_links=hard_links, day="2026-11-29")
    first.join(60)
    store = open_store(output)
    before = {key: store.get(key) for key in store.keys("data")}
    write_inbox(tmp_path / "in", ROWS)
    killed = start_night(config, f"{crash}:kill", environment, hard_links=hard_links, day="2026-11-29")
    rows = FIRST | ROWS
    if beside:  # with the same files, and one of its own
        write_inbox(tmp_path / "more", {"own.parquet": 9})
        rows = rows | {"own.parquet": 9}
        config = config.model_copy(update={"input": (*config.input, str(tmp_path / "more"))})
        other = start_night(config, "", environment, hard_links=hard_links, day="2026-11-29")
    killed.join(60)
    assert killed.exitcode == -9 or (beside and killed.exitcode in (0, 4))
    if beside:
        other.join(60)
        assert other.exitcode in (0, 4)
    elif not output.startswith("s3://"):
        seen = visible(store, "data")["dt=2026-11-29"]
        assert seen in (expected_ids(FIRST)[0], expected_ids(FIRST | ROWS)[0])
    # After midnight the same command finishes yesterday's run, and today's has what is new.
    again = start_night(config, "", environment, hard_links=hard_links, day="2026-11-30")
    again.join(60)
    assert again.exitcode == 0
    check_exact(store, rows, slots=len({key.split("/")[1] for key in store.keys("data")}))
    assert {key: store.get(key) for key in before} == before


@pytest.fixture
def three_runs(tiny_encoder, tmp_path):
    """Config of an output whose slot dt=2026-11-29 has a run for each file."""
    rows: dict[str, int] = {}
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), takeover=True)
    for name, number in ROWS.items():
        rows[name] = number
        write_inbox(tmp_path / "in", {name: number})
        assert run_night(config, day="2026-11-29") == 0
    assert len(visible(open_store(config.output), "data")) == 1
    return config


REPLACEMENTS = {
    "a file of the first run changed": ({"on_changed_file": "replace"}, INFO, {"a.parquet": 44}),
    "a file of the last run changed": ({"on_changed_file": "replace"}, INFO, {"c.parquet": 20}),
    "replace": ({"slot": "dt=2026-11-29", "replace": True}, INFO, {"d.parquet": 10}),
    "another model": ({"rescore": "replace"}, replace(INFO, model_version="stub-2"), {}),
}
WHILE_REPLACING = [
    "plan.after_put:1",
    "receipt.after_put:2",
    "commit.before_put:1",
    "commit.after_put:1",
    "publish.before:1",
    "publish.half:2",
    "publish.half:7",
    "publish.between_renames:1",
    "publish.between_renames:2",
    "publish.after:1",
    "marker.after_put:1",
    "snapshot.before_put:1",
    "snapshot.after_put:1",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("why", "crash"),
    [
        pytest.param(why, crash, marks=[] if (i + j) % len(REPLACEMENTS) == 0 else pytest.mark.slow)
        for i, why in enumerate(REPLACEMENTS)
        for j, crash in enumerate(WHILE_REPLACING)
    ],
)
def test_a_killed_replacement_of_three_runs_shows_the_old_ones_or_the_new_one(why, crash, three_runs, tmp_path):
    keys, info, delivered = REPLACEMENTS[why]
    store = open_store(three_runs.output)
    write_inbox(tmp_path / "in", delivered)
    config = three_runs.model_copy(update=keys)
    killed = start_night(config, f"{crash}:kill", info=info, day="2026-11-30")
    killed.join(60)
    assert killed.exitcode == -9
    old, new = expected_ids(ROWS)[0], expected_ids(ROWS | delivered)[0]
    assert sum(visible(store, "data").values(), Counter()) in (old, new, Counter())
    listed = [pq.read_table(path, columns=["id"])["id"] for path in committed_files(store, ledger.read_ledger(store))]
    assert Counter(i for ids in listed for i in ids.to_pylist()) in (old, new)
    for _ in range(2):  # and then nothing is left to replace
        assert run_night(config, info, day="2026-11-30") == 0
        check_exact(store, ROWS | delivered)
        assert sorted(path.name for path in (tmp_path / "out" / "data" / "dt=2026-11-29").iterdir()) == ["run=1"]
        assert [(e.slot, e.run, e.version) for e in ledger.current(ledger.read_ledger(store))] == [
            ("dt=2026-11-29", 1, 2)
        ]
    # A later file of that day stands beside the one run again.
    write_inbox(tmp_path / "in", {"z.parquet": 8})
    assert run_night(three_runs, info, day="2026-11-29") == 0
    check_exact(store, ROWS | delivered | {"z.parquet": 8})


@pytest.mark.parametrize(
    "crash", ["publish.half:2", "publish.between_renames:1", "publish.between_renames:2", "publish.after:1"]
)
def test_a_killed_rewrite_shows_the_old_slot_or_the_new_one_and_never_a_mix(crash, tiny_encoder, tmp_path):
    write_inbox(tmp_path / "in", ROWS)
    output = str(tmp_path / "out")
    assert run_night(night_config(tiny_encoder, tmp_path / "in", output, slot="dt=1")) == 0
    more = ROWS | {"c.parquet": 20}
    write_inbox(tmp_path / "in", more)
    config = night_config(tiny_encoder, tmp_path / "in", output, slot="dt=1", replace=True, on_changed_file="replace")
    killed = start_night(config, f"{crash}:kill")
    killed.join(60)
    assert killed.exitcode == -9
    store = open_store(output)
    old, new = expected_ids(ROWS)[0], expected_ids(more)[0]
    assert sum(visible(store, "data").values(), Counter()) in (old, new, Counter())
    assert run_night(config) == 0
    check_exact(store, more)
    assert run_night(config) == 0  # nothing is left to replace
    check_exact(store, more)
