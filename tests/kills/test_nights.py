"""Runs are killed at random moments, alone and in pairs, while readers look; every night ends exact."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable

import pytest

from bertray.io.store import Store, open_store
from bertray.outputs import ledger
from tests.nightly import check_exact, expected_ids, night_config, run_night, start_night, visible_runs, write_inbox

LIMIT_S = 0.5  # kills fall into the first half second of a run; a whole run takes about as long


NIGHTS_OF_AN_OUTPUT = 25


def plain_reader(store: Store) -> dict[tuple[str, int], Counter[str]]:
    return visible_runs(store, "data")


def kill_nights(
    folder,
    encoder,
    kills: int,
    seed: int,
    look: Callable = plain_reader,
    look_every_s: float = 0.0,
    pairs: float = 0.3,
) -> Counter[str]:
    """Nights, each with new files and a run killed again and again until one ends; returns what happened.

    Args:
        folder: receives input and output.
        encoder: model folder.
        kills: at least so many.
        seed: of the moments.
        look: (slot, run) -> ids, as some reader finds them; asked all the time, or with a pause.
        look_every_s: the pause.
        pairs: chance that two runs begin at once.
    """
    chance = random.Random(seed)
    store = open_store(str(folder / "out"))
    rows: dict[str, int] = {}
    seen: Counter[str] = Counter()
    committed = 0
    while seen["kills"] < kills:
        if committed == NIGHTS_OF_AN_OUTPUT:  # a look at more of them takes longer than a night
            check_exact(store, rows)
            assert len(ledger.read_ledger(store)) == committed
            store, rows, committed = open_store(str(folder / f"out-{seen['nights']}")), {}, 0
            shutil.rmtree(folder / "in")
        seen["nights"] += 1
        committed += 1
        for name in ("a", "b"):
            rows[f"{seen['nights']}{name}.parquet"] = chance.randrange(1, 60)
        write_inbox(folder / "in", {name: n for name, n in rows.items() if name.startswith(str(seen["nights"]))})
        whole = look(store)
        while True:
            config = night_config(encoder, folder / "in", store.root, takeover=True)
            pair = chance.random() < pairs
            runs = [start_night(config, day="2026-11-29", snapshot_every=2) for _ in range(2 if pair else 1)]
            deadline = time.monotonic() + chance.random() * LIMIT_S
            while time.monotonic() < deadline:
                now = look(store)  # all or nothing, whenever a reader looks
                assert {run: now.pop(run) for run in whole} == whole
                scored, _ = expected_ids({n: c for n, c in rows.items() if n.startswith(str(seen["nights"]))})
                assert list(now.values()) in ([], [scored])
                time.sleep(max(0.0, min(look_every_s, deadline - time.monotonic())))
            for run in runs[: 2 if chance.random() < 0.5 else 1]:
                run.kill()
            for run in runs:
                run.join(60)
                assert run.exitcode in (0, -9)
                seen["kills"] += run.exitcode == -9
            seen["pairs"] += pair
            if any(run.exitcode == 0 for run in runs):
                break
    check_exact(store, rows)
    assert len(ledger.read_ledger(store)) == committed  # one commit a night, whatever the pairs did
    return seen


@pytest.mark.slow
def test_forty_kills_lose_and_double_nothing(tmp_path, tiny_encoder):
    seen = kill_nights(tmp_path, tiny_encoder, kills=40, seed=1)
    assert seen["kills"] >= 40


@pytest.mark.slow
def test_kills_and_pairs_while_all_runs_of_a_day_are_replaced_show_the_old_ones_or_the_new(tmp_path, tiny_encoder):
    """Each round changes a file and adds one, so that the runs of the day become one, and then two."""
    chance, kills = random.Random(3), 0
    store = open_store(str(tmp_path / "out"))
    config = night_config(
        tiny_encoder, tmp_path / "in", str(tmp_path / "out"), takeover=True, on_changed_file="replace"
    )
    rows = {"0.parquet": 30, "1.parquet": 9}
    for name in rows:
        write_inbox(tmp_path / "in", {name: rows[name]})
        assert run_night(config, day="2026-11-29") == 0
    for number in itertools.count(2):
        old = expected_ids(rows)[0]
        rows[chance.choice(sorted(rows))] = chance.randrange(1, 60)
        replaced = expected_ids(rows)[0]
        rows[f"{number}.parquet"] = chance.randrange(1, 60)
        write_inbox(tmp_path / "in", rows)
        new = expected_ids(rows)[0]
        while True:
            runs = [start_night(config, day="2026-11-29", snapshot_every=2) for _ in range(chance.choice([1, 2]))]
            deadline = time.monotonic() + chance.random() * LIMIT_S
            while time.monotonic() < deadline:
                assert plain_rows(store) in (old, replaced, new, Counter())
            for run in runs[: chance.choice([1, 2])]:
                run.kill()
            for run in runs:
                run.join(60)
                assert run.exitcode in (0, 4, -9)
                kills += run.exitcode == -9
            if any(run.exitcode == 0 for run in runs):
                break
        assert run_night(config, day="2026-11-29") == 0
        check_exact(store, rows)
        if kills >= 20:
            break


def plain_rows(store: Store) -> Counter[str]:
    """What a reader finds who lists the parts, then reads them; listed again where they went away meanwhile."""
    while True:
        try:
            return sum(visible_runs(store, "data").values(), Counter())
        except FileNotFoundError:
            continue


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_kills_lose_and_double_nothing(tmp_path, tiny_encoder):
    seen = kill_nights(tmp_path, tiny_encoder, kills=200, seed=2)
    assert seen["kills"] >= 200
    assert seen["pairs"] >= 20
