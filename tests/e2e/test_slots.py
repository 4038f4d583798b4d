"""What a night does to the slots of an output: new and changed files, another model, rewriting, clearing up."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.cli import run
from bertray.execution.on_demand import in_this_process
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.outputs.garbage import find_garbage, remove
from bertray.outputs.heartbeat import Heartbeat
from bertray.outputs.publish import publish, read_markers
from bertray.outputs.receipts import staging_folder
from bertray.reviews import file_identity
from bertray.scoring.decide import decide
from bertray.scoring.next_plan import next_plan
from bertray.scoring.plan import open_plans
from bertray.scoring.scanned_input import scan_input
from tests.nightly import INFO, check_exact, expected_ids, night_config, run_night, start_night, visible, write_inbox
from tests.processes import wait_for

ROWS = {"a.parquet": 20, "b.parquet": 9}


@pytest.fixture
def night(tmp_path, tiny_encoder):
    """(output, config of a run with some keys); one slot, dt=1, is committed."""
    write_inbox(tmp_path / "in", ROWS)

    def config(**keys):
        return night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), **keys)

    assert run_night(config(slot="dt=1")) == 0
    return open_store(str(tmp_path / "out")), config


def write_later(folder, rows):
    """Files with a later modification time, as a second delivery has it."""
    write_inbox(folder, rows)
    for name in rows:
        later = time.time() + 10
        os.utime(folder / name, (later, later))


def slots(store) -> list[tuple[str, int]]:
    return [(entry.slot, entry.version) for entry in ledger.current(ledger.read_ledger(store))]


def test_a_changed_file_is_refused_and_rewrites_its_slot_on_request(night, tmp_path):
    store, config = night
    before = visible(store, "data")
    write_later(tmp_path / "in", {"b.parquet": 12})
    assert run_night(config()) == 4
    assert visible(store, "data") == before
    assert run_night(config(on_changed_file="replace")) == 0
    assert slots(store) == [("dt=1", 2)]
    check_exact(store, ROWS | {"b.parquet": 12})
    assert run_night(config(on_changed_file="replace")) == 0
    assert slots(store) == [("dt=1", 2)]


@pytest.mark.parametrize("name", ["long.csv", "short.parquet"])
def test_a_file_of_equal_size_is_changed_by_its_content_and_not_by_its_time(night, tmp_path, name):
    """The middle of a long text file; Parquet that is short enough to be read for its fingerprint."""
    _, config = night
    path = tmp_path / "in" / name

    def deliver(word: str) -> None:
        times = 5000 if path.suffix == ".csv" else 2000
        texts = ["the film was good " * times, word, "the plot was fine " * times]
        if path.suffix == ".csv":
            path.write_text("text\n" + "\n".join(texts))
        else:
            write_plain(path, texts)
        later = time.time() + 10
        os.utime(path, (later, later))

    deliver("lovely")
    assert run_night(config()) == 0
    deliver("lovely")
    assert run_night(config()) == 0
    size = path.stat().st_size
    deliver("boring")
    assert path.stat().st_size == size
    assert run_night(config()) == 4
    # And under another name it is another file, while the first content is not.
    path.rename(path.with_stem("corrected"))
    deliver("lovely")
    path.rename(path.with_stem("again"))
    deliver("lovely")
    assert run_night(config()) == 0
    names = [file.relative_path for entry in ledger.read_ledger(night[0])[2:] for file in entry.files]
    assert names == [f"corrected{path.suffix}"]


def write_plain(path: Path, texts: list[str]) -> None:
    """Parquet whose footer knows nothing of the values."""
    table = pa.table({"id": [f"p{i}" for i in range(len(texts))], "text": texts})
    pq.write_table(table, path, compression="none", write_statistics=False, use_dictionary=False)


def large(word: str) -> list[str]:
    return ["the film was good " * 5000, word, "the plot was fine " * 5000]


def test_contents_are_compared_where_size_beginning_and_end_are_equal(night, tmp_path, monkeypatch, caplog):
    store, config = night
    read: list[str] = []
    digest_file = file_identity.digest_file
    monkeypatch.setattr(
        file_identity, "digest_file", lambda file: read.append(Path(file.path).name) or digest_file(file)
    )
    write_plain(tmp_path / "in" / "first.parquet", large("lovely"))
    assert run_night(config()) == 0
    assert read == []  # nothing looks like it
    write_plain(tmp_path / "in" / "other.parquet", large("boring"))
    write_plain(tmp_path / "in" / "same.parquet", large("lovely"))
    assert run_night(config()) == 0
    assert sorted(read) == ["first.parquet", "other.parquet", "same.parquet"]
    new = ledger.read_ledger(store)[-1].files
    assert [file.relative_path for file in new] == ["other.parquet"]
    # The first one is gone: nobody can tell whether a file that looks like it is the same.
    (tmp_path / "in" / "first.parquet").unlink()
    (tmp_path / "in" / "same.parquet").rename(tmp_path / "in" / "moved.parquet")
    (tmp_path / "in" / "other.parquet").unlink()
    assert run_night(config()) == 0
    assert [file.relative_path for file in ledger.read_ledger(store)[-1].files] == ["moved.parquet"]
    assert "taken for another file" in caplog.text
    page = store.get(f"reports/{ledger.read_ledger(store)[-1].folder}/report.html").decode()
    assert "taken for another file" in page


def test_a_large_parquet_file_that_is_written_again_is_refused_as_nobody_can_tell_what_changed(night, tmp_path, capsys):
    _, config = night
    path = tmp_path / "in" / "large.parquet"
    write_plain(path, large("lovely"))
    assert run_night(config()) == 0
    later = time.time() + 10
    os.utime(path, (later, later))
    assert run_night(config()) == 4
    assert "whether the middle changed cannot be told" in capsys.readouterr().err
    assert run_night(config(on_changed_file="replace")) == 0


def test_known_files_are_not_opened_again(night, monkeypatch):
    store, config = night
    monkeypatch.setattr("bertray.reviews.scan.scan_file", lambda *_, **__: pytest.fail("opened"))
    assert run_night(config()) == 0
    assert slots(store) == [("dt=1", 1)]


def test_a_changed_file_and_a_new_one_rewrite_one_slot_and_add_another(night, tmp_path):
    store, config = night
    write_later(tmp_path / "in", {"b.parquet": 12})
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    assert run_night(config(on_changed_file="replace", slot="dt=2")) == 0
    assert slots(store) == [("dt=1", 2), ("dt=2", 1)]
    check_exact(store, {"a.parquet": 20, "b.parquet": 12, "c.parquet": 5}, slots=2)


def test_a_slot_whose_other_files_are_gone_cannot_be_rewritten(night, tmp_path, capsys):
    store, config = night
    write_later(tmp_path / "in", {"b.parquet": 12})
    (tmp_path / "in" / "a.parquet").unlink()
    assert run_night(config(on_changed_file="replace")) == 4
    assert "also needs" in capsys.readouterr().err
    assert slots(store) == [("dt=1", 1)]


def test_another_model_scores_new_files_only_and_rewrites_slots_on_request(night, tmp_path):
    store, config = night
    newer = replace(INFO, model_version="stub-2")
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    assert run_night(config(slot="dt=2"), newer) == 0
    assert slots(store) == [("dt=1", 1), ("dt=2", 1)]
    assert run_night(config(rescore="replace"), newer) == 0
    assert slots(store) == [("dt=1", 2), ("dt=2", 1)]
    assert {entry.model_version for entry in ledger.current(ledger.read_ledger(store))} == {"stub-2"}
    check_exact(store, ROWS | {"c.parquet": 5}, slots=2)
    assert run_night(config(rescore="replace"), newer) == 0
    assert len(ledger.read_ledger(store)) == 3


def test_a_slot_whose_files_are_gone_keeps_its_model(night, tmp_path, caplog):
    store, config = night
    (tmp_path / "in" / "a.parquet").unlink()
    assert run_night(config(rescore="replace"), replace(INFO, model_version="stub-2")) == 0
    assert slots(store) == [("dt=1", 1)]
    assert "slot dt=1 keeps its model: 1 of its 2 files are not in the input" in caplog.text


def test_replace_makes_a_slot_exactly_the_listed_files_and_never_takes_those_of_another(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    assert run_night(config(slot="dt=2")) == 0
    write_inbox(tmp_path / "in", {"d.parquet": 6})
    (tmp_path / "in" / "b.parquet").unlink()
    assert run_night(config(slot="dt=1")) == 4
    assert run_night(config(slot="dt=1", replace=True)) == 0
    assert slots(store) == [("dt=1", 2), ("dt=2", 1)]
    check_exact(store, {"a.parquet": 20, "c.parquet": 5, "d.parquet": 6}, slots=2)
    assert run_night(config(slot="dt=1", replace=True)) == 0
    assert slots(store) == [("dt=1", 2), ("dt=2", 1)]


@pytest.mark.parametrize("rewrite", ["rescore", "changed", "replace"])
def test_a_repaired_file_belongs_to_the_slot_that_scored_it(rewrite, night, tmp_path):
    store, config = night
    (tmp_path / "in" / "x.parquet").write_bytes(b"no Parquet")
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    assert run_night(config(slot="dt=2", on_bad_file="quarantine")) == 0
    write_later(tmp_path / "in", {"x.parquet": 6})
    assert run_night(config(slot="dt=3")) == 0
    rows = ROWS | {"c.parquet": 5, "x.parquet": 6}
    assert sum(visible(store, "data").values(), Counter()) == expected_ids(rows)[0]
    if rewrite == "rescore":
        assert run_night(config(rescore="replace"), replace(INFO, model_version="stub-2")) == 0
        versions = [("dt=1", 2), ("dt=2", 2), ("dt=3", 2)]
    elif rewrite == "changed":
        write_later(tmp_path / "in", {"c.parquet": 8})
        rows["c.parquet"] = 8
        assert run_night(config(on_changed_file="replace")) == 0
        versions = [("dt=1", 1), ("dt=2", 2), ("dt=3", 1)]
    else:
        assert run_night(config(slot="dt=2", replace=True)) == 0
        versions = [("dt=1", 1), ("dt=2", 2), ("dt=3", 1)]
    assert sorted(slots(store)) == versions
    check_exact(store, rows, slots=3)


@pytest.mark.parametrize("later", [{}, {"rescore": "replace"}, {"on_changed_file": "replace"}], ids=str)
def test_a_repaired_file_that_replaces_into_an_older_slot_stays_there(later, night, tmp_path):
    store, config = night
    (tmp_path / "in" / "x.parquet").write_bytes(b"no Parquet")
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    assert run_night(config(slot="dt=2", on_bad_file="quarantine")) == 0
    write_later(tmp_path / "in", {"x.parquet": 6})
    assert run_night(config(slot="dt=1", replace=True)) == 0
    rows = ROWS | {"c.parquet": 5, "x.parquet": 6}
    assert slots(store) == [("dt=1", 2), ("dt=2", 1)]
    assert sum(visible(store, "data").values(), Counter()) == expected_ids(rows)[0]
    write_inbox(tmp_path / "in", {"d.parquet": 4})
    rows["d.parquet"] = 4
    info = replace(INFO, model_version="stub-2") if "rescore" in later else INFO
    assert run_night(config(slot="dt=3", **later), info) == 0
    rewritten = int("rescore" in later)
    assert slots(store) == [("dt=1", 2 + rewritten), ("dt=2", 1 + rewritten), ("dt=3", 1)]
    assert sum(visible(store, "data").values(), Counter()) == expected_ids(rows)[0]


def test_a_slice_of_lists_is_refused_before_anything_is_planned(night, tmp_path, capsys):
    store, config = night
    pq.write_table(pa.table({"id": ["1"], "text": ["good"], "tags": [["a", "b"]]}), tmp_path / "in" / "c.parquet")
    only = str(tmp_path / "in" / "c.parquet")
    assert run_night(config(slot="dt=2", input=[only], report={"slices": ["tags"]})) == 2
    assert "'tags' of list" in capsys.readouterr().err
    assert not [key for key in store.keys("control/plans") if "dt=2" in key]


def test_replace_without_a_slot_is_a_config_error(night, capsys):
    _, config = night
    assert run_night(config(replace=True)) == 2
    assert "expected a slot to replace" in capsys.readouterr().err


def test_what_a_killed_run_committed_is_published_whatever_comes_in_next(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    killed = start_night(config(slot="dt=2"), "publish.before:1:kill")
    killed.join(60)
    assert set(visible(store, "data")) == {"dt=1"}
    (tmp_path / "empty").mkdir()
    assert run_night(config(slot="dt=3", input=[str(tmp_path / "empty")])) == 6
    assert sum(visible(store, "data").values(), Counter()) == expected_ids(ROWS | {"c.parquet": 40})[0]


def test_an_old_version_published_late_does_not_come_back(night, tmp_path):
    store, config = night
    first = ledger.read_ledger(store)[0]
    write_later(tmp_path / "in", {"b.parquet": 12})
    assert run_night(config(on_changed_file="replace")) == 0
    store.delete("control/published/00000001")
    known = ledger.read_ledger(store)
    publish(store, known, first.slot, read_markers(store, known))
    check_exact(store, ROWS | {"b.parquet": 12})


def test_a_quarantine_that_a_new_version_no_longer_has_goes_away(night, tmp_path):
    store, config = night
    (tmp_path / "in" / "a.parquet").unlink()
    write_later(tmp_path / "in", {"b.parquet": 5})  # no seventh row
    assert run_night(config(slot="dt=1", replace=True, on_changed_file="replace")) == 0
    assert store.keys("quarantine") == []
    check_exact(store, {"b.parquet": 5})


def test_a_run_killed_before_midnight_is_resumed_under_its_own_slot(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    killed = start_night(config(slot="dt=yesterday"), "receipt.after_put:2:kill")
    killed.join(60)
    assert killed.exitcode == -9
    write_inbox(tmp_path / "in", {"d.parquet": 6})
    assert run_night(config()) == 0
    today = f"dt={datetime.now(UTC):%Y-%m-%d}"
    assert slots(store) == [("dt=1", 1), ("dt=yesterday", 1), (today, 1)]
    assert [entry.adopted_receipts for entry in ledger.read_ledger(store)] == [0, 2, 0]
    check_exact(store, ROWS | {"c.parquet": 40, "d.parquet": 6}, slots=3)


def test_a_staged_part_that_was_damaged_is_scored_again(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    killed = start_night(config(), "receipt.after_put:2:kill")
    killed.join(60)
    part = sorted(key for key in store.keys("control/runs") if "part-" in key and "/dt=1/" not in key)[0]
    content = bytearray(store.get(part))
    content[len(content) // 2] ^= 1
    store.put(part, bytes(content))
    assert run_night(config()) == 0
    assert ledger.read_ledger(store)[-1].adopted_receipts == 1
    check_exact(store, ROWS | {"c.parquet": 40}, slots=2)


def test_a_resumed_run_does_not_scan_again(night, tmp_path, monkeypatch):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    monkeypatch.setattr("bertray.reviews.kept_scans.KEPT_ABOVE_BYTES", 0)
    with monkeypatch.context() as patch:
        patch.setattr("bertray.runs.night._run_plan", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_night(config())
    with monkeypatch.context() as patch:
        patch.setattr("bertray.reviews.scan.scan_file", lambda *_, **__: pytest.fail("scanned again"))
        assert run_night(config()) == 0
    check_exact(store, ROWS | {"c.parquet": 40}, slots=2)


@pytest.mark.slow
def test_two_runs_with_different_slots_and_the_same_files_commit_them_once(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    racers = [start_night(config(slot=slot, takeover=True)) for slot in ("dt=x", "dt=y")]
    for racer in racers:
        racer.join(60)
    assert sorted(racer.exitcode for racer in racers) in ([0, 4], [0, 0])
    check_exact(store, ROWS | {"c.parquet": 40}, slots=2)


@pytest.mark.slow
def test_the_same_content_under_two_names_is_committed_once_by_two_runs_at_once(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    running = start_night(config(slot="dt=x"), "verify.before:1:sleep")
    wait_for(lambda: any(key.endswith("receipt.json") for key in store.keys("control/runs/dt=x")), seconds=30)
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "copy.parquet").write_bytes((tmp_path / "in" / "c.parquet").read_bytes())
    assert run_night(config(slot="dt=y", input=[str(tmp_path / "copies")])) == 0
    running.join(60)
    assert running.exitcode == 4
    assert slots(store) == [("dt=1", 1), ("dt=y", 1)]
    assert run_night(config()) == 0
    assert sum(visible(store, "data").values(), Counter()) == expected_ids(ROWS | {"c.parquet": 40})[0]


@pytest.mark.slow
def test_an_input_that_changes_while_it_is_read_is_not_committed(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    running = start_night(config(), "verify.before:1:sleep")
    deadline = time.monotonic() + 30
    while len([key for key in store.keys("control/runs") if key.endswith("receipt.json")]) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    write_later(tmp_path / "in", {"c.parquet": 44})
    running.join(60)
    assert running.exitcode == 7
    assert slots(store) == [("dt=1", 1)]
    assert run_night(config()) == 0
    check_exact(store, ROWS | {"c.parquet": 44}, slots=2)


@pytest.mark.slow
def test_a_live_run_is_left_to_its_work_unless_it_is_taken_over(night, tmp_path, capsys):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    running = start_night(config(), "verify.before:1:sleep")
    deadline = time.monotonic() + 30
    while not any(key.endswith("heartbeat.json") for key in store.keys("control/runs")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run_night(config()) == 4
    assert f"another run is at work on it (process {running.pid} on" in capsys.readouterr().err
    assert run_night(config(takeover=True)) == 0
    running.join(60)
    assert running.exitcode == 0  # the same plan: it finds it committed
    check_exact(store, ROWS | {"c.parquet": 40}, slots=2)
    assert not any(key.endswith("heartbeat.json") for key in store.keys("control/runs"))


def test_a_killed_run_of_this_machine_holds_nothing(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    killed = start_night(config(), "receipt.after_put:1:kill")
    killed.join(60)
    assert any(key.endswith("heartbeat.json") for key in store.keys("control/runs"))
    assert run_night(config()) == 0
    check_exact(store, ROWS | {"c.parquet": 40}, slots=2)


# --- runs of a slot --------------------------------------------------------------------------------------------------


def runs(store) -> list[tuple[str, int, int, list[str]]]:
    """(slot, run, version, names of the files) of what is current."""
    return [
        (entry.slot, entry.run, entry.version, [file.relative_path for file in entry.files])
        for entry in ledger.current(ledger.read_ledger(store))
    ]


@pytest.fixture
def day(night, tmp_path):
    """The output and config with two more runs on the 29th, of c and d."""
    store, config = night
    for name in ("c", "d"):
        write_inbox(tmp_path / "in", {f"{name}.parquet": 5})
        assert run_night(config(), day="2026-11-29") == 0
    return store, config, ROWS | {"c.parquet": 5, "d.parquet": 5}


def test_a_further_run_of_a_day_rewrites_nothing(day, tmp_path):
    store, config, rows = day
    assert runs(store) == [
        ("dt=1", 1, 1, ["a.parquet", "b.parquet"]),
        ("dt=2026-11-29", 1, 1, ["c.parquet"]),
        ("dt=2026-11-29", 2, 1, ["d.parquet"]),
    ]
    check_exact(store, rows, slots=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").rglob("*")}
    assert run_night(config(), day="2026-11-29") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").rglob("*")} == before


@pytest.mark.slow
def test_two_runs_at_once_on_a_day_with_files_of_their_own_become_two_runs(day, tmp_path):
    store, config, rows = day
    racers = []
    for name in ("x", "y"):
        write_inbox(tmp_path / name, {f"{name}.parquet": 40})
        racers.append(start_night(config(input=[str(tmp_path / name)]), "commit.before_put:1:sleep", day="2026-11-29"))
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert [run for slot, run, _, _ in runs(store) if slot != "dt=1"] == [1, 2, 3, 4]
    check_exact(store, rows | {"x.parquet": 40, "y.parquet": 40}, slots=2)


@pytest.mark.slow
def test_a_run_beside_a_replacement_of_its_day_commits_nothing_and_the_next_is_exact(day, tmp_path):
    store, config, rows = day
    write_inbox(tmp_path / "in", {"e.parquet": 40})
    late = start_night(config(), "verify.before:1:sleep", day="2026-11-29")
    wait_for(
        lambda: len([k for k in store.keys("control/runs/dt=2026-11-29") if k.endswith("receipt.json")]) == 5,
        seconds=30,
    )
    write_later(tmp_path / "in", {"c.parquet": 7})
    only = [str(tmp_path / "in" / f"{name}.parquet") for name in "cd"]
    assert run_night(config(input=only, on_changed_file="replace"), day="2026-11-29") == 0
    late.join(60)
    assert late.exitcode in (4, 7)
    assert runs(store)[1:] == [("dt=2026-11-29", 1, 2, ["c.parquet", "d.parquet"])]
    assert run_night(config(), day="2026-11-29") == 0
    assert [(run, version) for slot, run, version, _ in runs(store) if slot != "dt=1"] == [(1, 2), (2, 2)]
    check_exact(store, rows | {"c.parquet": 7, "e.parquet": 40}, slots=2)


@pytest.fixture
def killed_second_run(day, tmp_path):
    """A day whose second run died when two parts had their receipts."""
    write_inbox(tmp_path / "in", {"e.parquet": 40})
    killed = start_night(day[1](), "receipt.after_put:2:kill", day="2026-11-29")
    killed.join(60)
    return day


def test_a_killed_second_run_is_resumed_after_midnight_under_its_own_day(killed_second_run, tmp_path):
    store, config, rows = killed_second_run
    write_inbox(tmp_path / "in", {"f.parquet": 6})
    assert run_night(config(), day="2026-11-30") == 0
    assert runs(store)[3:] == [
        ("dt=2026-11-29", 3, 1, ["e.parquet"]),
        ("dt=2026-11-30", 1, 1, ["f.parquet"]),
    ]
    assert ledger.read_ledger(store)[3].adopted_receipts == 2
    check_exact(store, rows | {"e.parquet": 40, "f.parquet": 6}, slots=3)


def test_a_killed_run_of_a_day_that_was_replaced_meanwhile_is_planned_anew(killed_second_run, tmp_path):
    store, config, rows = killed_second_run
    write_later(tmp_path / "in", {"c.parquet": 7})
    only = [str(tmp_path / "in" / f"{name}.parquet") for name in "cd"]
    assert run_night(config(input=only, on_changed_file="replace"), day="2026-11-29") == 0
    assert run_night(config(), day="2026-11-29") == 0
    assert runs(store)[1:] == [
        ("dt=2026-11-29", 1, 2, ["c.parquet", "d.parquet"]),
        ("dt=2026-11-29", 2, 2, ["e.parquet"]),
    ]
    check_exact(store, rows | {"c.parquet": 7, "e.parquet": 40}, slots=2)


def test_replacing_a_slot_without_any_new_file_joins_its_runs_once(day):
    store, config, rows = day
    for _ in range(2):
        assert run_night(config(slot="dt=2026-11-29", replace=True)) == 0
        assert runs(store)[1:] == [("dt=2026-11-29", 1, 2, ["c.parquet", "d.parquet"])]
        check_exact(store, rows, slots=2)


def test_another_model_joins_the_runs_of_each_slot(day):
    store, config, rows = day
    assert run_night(config(rescore="replace"), replace(INFO, model_version="stub-2")) == 0
    assert [(slot, run, version) for slot, run, version, _ in runs(store)] == [("dt=1", 1, 2), ("dt=2026-11-29", 1, 2)]
    check_exact(store, rows, slots=2)
    assert len(ledger.read_ledger(store)) == 5


def test_a_slot_that_is_given_takes_no_second_run(day, tmp_path, capsys):
    store, config, _ = day
    assert run_night(config(slot="dt=2026-11-29")) == 0  # nothing is new
    write_inbox(tmp_path / "in", {"e.parquet": 5})
    before = runs(store)
    assert run_night(config(slot="dt=2026-11-29")) == 4
    assert "slot=dt=2026-11-29: committed from other inputs" in capsys.readouterr().err
    assert runs(store) == before
    assert run_night(config(), day="2026-11-29") == 0  # what it advises
    assert runs(store)[:-1] == before


def test_the_report_of_a_replaced_run_goes_with_it(day, tmp_path):
    store, config, _ = day
    store.put("reports/dt=2026-11-29/run=1/metrics.json", b"{}")  # the file had labels then
    assert len(store.keys("reports/dt=2026-11-29")) == 5
    assert run_night(config(slot="dt=2026-11-29", replace=True)) == 0
    assert store.keys("reports/dt=2026-11-29") == [
        f"reports/dt=2026-11-29/run=1/{name}" for name in ("report.html", "report.json")
    ]
    assert b'"run": 1' in store.get("reports/dt=2026-11-29/run=1/report.json")


def test_parts_that_somebody_put_into_a_slot_are_told(day, tmp_path, capsys):
    store, config, rows = day
    odd = tmp_path / "out" / "data" / "dt=2026-11-29" / "run=7" / "part-x.parquet"
    odd.parent.mkdir()
    odd.write_bytes(b"")
    write_inbox(tmp_path / "in", {"e.parquet": 5})
    assert run_night(config(), day="2026-11-29") == 4
    assert "expected parts that the ledger names, found others" in capsys.readouterr().err
    odd.rename(tmp_path / "x")
    odd.parent.rmdir()
    assert run_night(config(), day="2026-11-29") == 0
    check_exact(store, rows | {"e.parquet": 5}, slots=2)


def test_a_part_of_an_earlier_run_that_was_removed_does_not_stop_the_next(day, tmp_path):
    store, config, _ = day
    for key in [*store.keys("data/dt=2026-11-29/run=1"), *store.keys("control/runs")]:
        store.delete(key)
    write_inbox(tmp_path / "in", {"e.parquet": 5})
    assert run_night(config(), day="2026-11-29") == 0
    assert sorted(path.name for path in (tmp_path / "out" / "data" / "dt=2026-11-29").iterdir()) == ["run=2", "run=3"]


@pytest.mark.parametrize("root", ["data", "quarantine", "data/dt=1"])
def test_a_folder_that_was_moved_to_another_disk_is_told_before_the_commit(root, night, tmp_path, capsys, monkeypatch):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 9})
    before = store.keys("control/commits")
    moved = tmp_path / "disk"
    (tmp_path / "out" / root).rename(moved)
    (tmp_path / "out" / root).symlink_to(moved)
    rename = os.rename

    def crossing(source, target, **keys) -> None:
        if Path(target).parent.resolve().is_relative_to(moved):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **keys)

    monkeypatch.setattr(os, "rename", crossing)
    slot = {"slot": "dt=1", "replace": True} if root == "data/dt=1" else {}
    assert run_night(config(**slot)) == 2
    assert "expected the same file system as control/, found another" in capsys.readouterr().err
    assert store.keys("control/commits") == before
    # As it advises: all of the output on that disk.
    (tmp_path / "out" / root).unlink()
    moved.rename(tmp_path / "out" / root)
    (tmp_path / "out").rename(moved)
    (tmp_path / "out").symlink_to(moved)
    monkeypatch.undo()
    assert run_night(config(**slot)) == 0
    check_exact(store, ROWS | {"c.parquet": 9}, slots=1 if slot else 2)


@pytest.mark.parametrize("root", ["data", "quarantine", "reports"])
def test_a_folder_that_is_a_link_to_a_disk_that_is_not_mounted_is_told_before_the_commit(root, night, tmp_path, capsys):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 9})
    before = store.keys("control/commits")
    (tmp_path / "out" / root).rename(tmp_path / "moved")
    (tmp_path / "out" / root).symlink_to("/nowhere/at/all")
    assert run_night(config()) == 2
    assert f"/out/{root}" in (error := capsys.readouterr().err)
    assert "expected a folder, found" in error
    assert store.keys("control/commits") == before


VERBS_OF_AN_OUTPUT = {
    "score": ["model={encoder}", "input={input}", "output={out}"],
    "embed": ["model={encoder}", "max_length=24", "input={input}", "output={out}"],
    "plan": ["model={encoder}", "input={input}", "output={out}"],
    "files": ["output={out}"],
    "gc": ["output={out}"],
    "topics": ["model={encoder}", "scored={out}", "output={out}-topics"],
}


@pytest.mark.parametrize("form", ["ledger", "parts"])
@pytest.mark.parametrize("verb", VERBS_OF_AN_OUTPUT)
def test_an_output_of_the_form_without_runs_is_refused_with_one_sentence(
    verb, form, night, tiny_encoder, tmp_path, capsys, monkeypatch
):
    store, _ = night
    if form == "ledger":
        key = ledger.entry_key(1)
        entry = ledger.read_ledger(store)[0]
        fields = {name: value for name, value in entry.model_dump(mode="json").items() if name != "run"}
        fields["schema_version"] = 1
        store.put(key, json.dumps(fields).encode())
        said = "expected schema_version 2, found 1"
    else:
        shutil.rmtree(tmp_path / "out" / "control")
        (tmp_path / "out" / "data" / "dt=1" / "part-0.parquet").touch()
        said = "expected parts below data/<slot>/run=<n>/, found one without a run"
    for module in ("runs.night", "runs.forecast"):
        monkeypatch.setattr(f"bertray.{module}.open_model", lambda _: INFO)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    places = {"encoder": tiny_encoder, "input": tmp_path / "in", "out": tmp_path / "out"}
    assert run([verb, *(word.format(**places) for word in VERBS_OF_AN_OUTPUT[verb])]) == 4
    error = capsys.readouterr().err
    assert said in error
    assert "Choose a new `output`, or use the bertray version that wrote this one." in error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


# --- files and gc ----------------------------------------------------------------------------------------------------


def test_files_prints_the_committed_parts_of_an_output_or_a_slot(night, tmp_path, capsys):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    assert run_night(config(slot="dt=2")) == 0
    capsys.readouterr()
    assert run(["files", f"output={store.root}"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [store.uri(key) for key in store.keys("data") if not key.endswith("_SUCCESS")]
    assert run(["files", f"output={store.root}", "slot=dt=2"]) == 0
    assert capsys.readouterr().out.split() == [path for path in printed if "/dt=2/" in path]
    assert run(["files", f"output={store.root}", "slot=dt=3"]) == 2
    write_inbox(tmp_path / "in", {"d.parquet": 5})
    assert run_night(config(), day="2026-11-29") == 0
    write_inbox(tmp_path / "in", {"e.parquet": 5})
    assert run_night(config(), day="2026-11-29") == 0
    capsys.readouterr()
    assert run(["files", f"output={store.root}", "slot=dt=2026-11-29"]) == 0
    folders = [path.rpartition("/")[0] for path in capsys.readouterr().out.split()]
    assert folders == [store.uri(f"data/dt=2026-11-29/run={n}") for n in (1, 2)]


@pytest.mark.slow
def test_files_names_staged_parts_while_a_committed_slot_is_not_published(night, tmp_path, capsys):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 5})
    killed = start_night(config(slot="dt=2"), "publish.before:1:kill")
    killed.join(60)
    assert run(["files", f"output={store.root}", "slot=dt=2"]) == 0
    import pyarrow.parquet as pq

    ids = Counter(pq.read_table(capsys.readouterr().out.split()[-1], columns=["id"])["id"].to_pylist())
    assert ids == expected_ids({"c.parquet": 5})[0]


def test_gc_shows_and_removes_what_nothing_needs_and_nothing_else(night, tmp_path, capsys):
    store, config = night
    write_later(tmp_path / "in", {"b.parquet": 12})
    assert run_night(config(on_changed_file="replace")) == 0
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    killed = start_night(config(slot="dt=2"), "publish.before:1:kill")
    killed.join(60)
    write_inbox(tmp_path / "in", {"d.parquet": 40})
    died = start_night(config(slot="dt=3"), "put.half_written:12:kill")
    died.join(60)
    assert [killed.exitcode, died.exitcode] == [-9, -9]
    entries = ledger.read_ledger(store)
    before = {key: store.get(key) for key in ("data", "quarantine", "reports") for key in store.keys(key)}
    assert find_garbage(store, entries, datetime.now(UTC), timedelta(days=7)) == []
    soon = find_garbage(store, entries, datetime.now(UTC) + timedelta(days=2), timedelta(days=7))
    assert {item.why for item in soon} == {
        "staged and committed; readers have it elsewhere",
        "plan that was committed",
        "half-written by a run that died",
    }
    later = find_garbage(store, entries, datetime.now(UTC) + timedelta(days=9), timedelta(days=7))
    assert {item.why for item in later} - {item.why for item in soon} == {
        "of a version that was replaced",
        "of an unfinished run",
        "plan of an unfinished run",
    }
    remove(store, later)
    assert {key: store.get(key) for key in before} == before
    assert run_night(config()) == 0
    check_exact(store, {"a.parquet": 20, "b.parquet": 12, "c.parquet": 40, "d.parquet": 40}, slots=3)
    capsys.readouterr()
    assert run(["gc", f"output={store.root}"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_gc_leaves_alone_what_a_live_run_works_on(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    killed = start_night(config(slot="dt=2"), "receipt.after_put:2:kill")
    killed.join(60)
    known = ledger.read_ledger(store)
    plans = open_plans(store, known)
    seen = decide(config(slot="dt=2"), INFO, known, scan_input(config(), store, known, plans, in_this_process, None))
    plan = next_plan(config(slot="dt=2"), seen, store, plans).plan
    of_plan = {key for key in store.keys("control") if plan.plan_key in key}
    parts = {key for key in of_plan if key.endswith(".parquet")}
    assert len(parts) >= 2
    assert f"control/plans/dt=2/{plan.plan_key}.json" in of_plan
    # The attempt that lives has a folder of its own, and uses what the one that was killed left in another.
    with Heartbeat(store, f"{staging_folder(plan)}/other", "r"):
        now = datetime.now(UTC) + timedelta(hours=1)
        found = find_garbage(store, seen.entries, now, timedelta(0))
        assert not of_plan & {item.file.key for item in found}
    for key in of_plan:
        if key.endswith("heartbeat.json"):
            store.delete(key)
    found = find_garbage(store, seen.entries, now, timedelta(0))
    assert parts <= {item.file.key for item in found}


@pytest.mark.slow
def test_a_run_whose_staged_parts_were_taken_away_commits_nothing_and_the_next_is_exact(night, tmp_path):
    store, config = night
    write_inbox(tmp_path / "in", {"c.parquet": 40})
    running = start_night(config(slot="dt=2"), "verify.before:1:sleep")
    wait_for(lambda: len([k for k in store.keys("control/runs/dt=2") if k.endswith("receipt.json")]) == 3, seconds=30)
    store.delete(next(key for key in store.keys("control/runs/dt=2") if "/part-" in key and "receipt" not in key))
    running.join(60)
    assert running.exitcode == 7
    assert slots(store) == [("dt=1", 1)]
    assert run_night(config()) == 0
    check_exact(store, ROWS | {"c.parquet": 40}, slots=2)


def test_a_gc_that_was_killed_is_finished_by_the_next(night, tmp_path):
    store, config = night
    entries = ledger.read_ledger(store)
    far = datetime.now(UTC) + timedelta(days=30)
    garbage = find_garbage(store, entries, far, timedelta(days=7))
    remove(store, garbage[: len(garbage) // 2])
    remove(store, find_garbage(store, entries, far, timedelta(days=7)))
    assert find_garbage(store, entries, far, timedelta(days=7)) == []
    check_exact(store, ROWS)
    assert run_night(config()) == 0
