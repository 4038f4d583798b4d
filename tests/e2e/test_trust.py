"""Nights one after the other: profiles in the ledger, drift on the page, exit codes, decisions, labels that come later.

Everything but the model is the real thing, see `tests.nightly`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import ScoreConfig
from bertray.errors import DriftFound
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.outputs.decisions import ACCEPTED, Acceptance, read_records
from bertray.runs import night as nights
from bertray.runs.night import score
from tests.nightly import _Stubbed, night_config, run_night

pytestmark = pytest.mark.slow  # a dozen nights; the rules themselves: tests/trust

WORDS = np.array(
    ["good", "bad", "film", "story", "actor", "plot", "music", "camera", "ending", "scene", "boring", "lovely"]
)
ROWS = 150


def write_night(folder: Path, number: int, *, upper: bool = False, rows: int = ROWS, **columns) -> Path:
    rng = np.random.default_rng(number)
    texts = [" ".join(rng.choice(WORDS, 3 + rng.poisson(6))) + f" {n}" for n in range(rows)]
    texts = [text.upper() for text in texts] if upper else texts
    table = pa.table({"id": [f"{number}:{n}" for n in range(rows)], "text": texts})
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values(rng, rows)))
    folder.mkdir(exist_ok=True)
    path = folder / f"{number:03d}.parquet"
    pq.write_table(table, path)
    return path


def report_of(output: Path, day: int) -> dict:
    return json.loads((output / f"reports/dt=2026-11-{day:02d}/run=1/report.json").read_text())


@pytest.fixture(scope="module")
def history(tmp_path_factory, tiny_encoder) -> tuple[Path, Path]:
    """Twelve ordinary nights: (inbox, output)."""
    root = tmp_path_factory.mktemp("history")
    inbox, output = root / "inbox", root / "out"
    for day in range(1, 13):
        write_night(inbox, day, shop=lambda rng, rows: rng.choice(["north", "south"], rows))
        config = night_config(tiny_encoder, inbox, str(output), rows_per_shard=64, drift={"by": ["shop"]})
        assert run_night(config, day=f"2026-11-{day:02d}") == 0
    return inbox, output


@pytest.fixture
def copied(history, tmp_path) -> tuple[Path, Path]:
    """The same nights in a place of the test's own."""
    import shutil

    inbox, output = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in history)
    return inbox, output


def night(encoder, inbox, output, day, **keys):
    config = night_config(encoder, inbox, str(output), rows_per_shard=64, drift={"by": ["shop"]}, **keys)
    return run_night(config, day=f"2026-11-{day:02d}")


def test_every_run_has_the_profile_of_its_rows_whatever_the_parts(history):
    runs = ledger.read_ledger(open_store(str(history[1])))
    for run in runs:
        profile = run.night_profile
        assert profile.rows == run.rows_scored == ROWS
        assert profile.moments["log_length"].rows == ROWS
        assert profile.moments["predicted:pos"].total == run.label_counts["pos"]
        assert sum(profile.ngram_rows) == ROWS
        assert sum(group.rows for group in profile.groups["shop"].values()) == ROWS
        assert len(run.night_profile.model_dump_json()) < 15_000


def test_the_first_ten_nights_have_no_baseline_and_the_eleventh_is_compared(history):
    states = [report_of(history[1], day)["drift"]["state"] for day in range(1, 13)]
    assert states == ["no_baseline"] * 10 + ["ordinary"] * 2
    names = {shift["name"] for shift in report_of(history[1], 12)["drift"]["shifts"]}
    assert {"predicted:pos", "confidence", "log_length", "ngrams", "share:shop=north"} <= names
    page = (history[1] / "reports/dt=2026-11-03/run=1/report.html").read_text()
    assert "No baseline yet: 2 nights of the 10" in page


def test_a_night_in_capitals_alarms_with_the_reviews_that_drive_it(copied, tiny_encoder, capsys):
    inbox, output = copied
    write_night(inbox, 13, upper=True, shop=lambda rng, rows: rng.choice(["north", "south"], rows))
    assert night(tiny_encoder, inbox, output, 13) == 0
    report = report_of(output, 13)
    assert report["drift"]["state"] == "alarm"
    alarms = {shift["name"] for shift in report["drift"]["shifts"] if shift["alarm"]}
    assert {"characters:upper", "characters:lower", "ngrams"} <= alarms
    assert report["findings"][0]["severity"] == "bad"
    page = (output / "reports/dt=2026-11-13/run=1/report.html").read_text()
    assert page.count("<blockquote") >= 5
    assert "FILM" in page
    assert "Drift: " in capsys.readouterr().out


def test_a_new_value_of_a_column_alarms(copied, tiny_encoder):
    inbox, output = copied
    write_night(inbox, 13, shop=lambda rng, rows: rng.choice(["north", "south", "web"], rows))
    assert night(tiny_encoder, inbox, output, 13) == 0
    alarms = [shift["name"] for shift in report_of(output, 13)["drift"]["shifts"] if shift["alarm"]]
    assert "share:shop=(new values)" in alarms
    page = (output / "reports/dt=2026-11-13/run=1/report.html").read_text()
    shown = re.findall(r"<blockquote[^>]*>(.*?)</blockquote>", page.partition("(new values)</h3>")[2])[:5]
    shops = dict(zip(*pq.read_table(inbox / "013.parquet", columns=["text", "shop"]).to_pydict().values(), strict=True))
    assert [shops[text] for text in shown] == ["web"] * 5


def test_a_night_that_does_not_count_a_column_any_more_is_compared_without_it(copied, tiny_encoder):
    inbox, output = copied
    write_night(inbox, 13)
    config = night_config(tiny_encoder, inbox, str(output), rows_per_shard=64)
    assert run_night(config, day="2026-11-13") == 0
    drift = report_of(output, 13)["drift"]
    assert drift["state"] == "ordinary"
    assert not [shift["name"] for shift in drift["shifts"] if shift["name"].startswith("share:")]


def test_a_column_of_very_many_values_does_not_alarm_and_a_frequent_new_one_does(tmp_path, tiny_encoder):
    """A tail of 10,000 values: most of a night's are in no night before, and that is ordinary."""

    def articles(rng, rows, new=0):
        values = [f"article {number}" for number in rng.integers(0, 10_000, rows)]
        return ["the new one"] * new + values[new:]

    inbox, output = tmp_path / "in", tmp_path / "out"
    for day in range(1, 15):
        new = 30 if day == 14 else 0
        write_night(inbox, day, article=lambda rng, rows, new=new: articles(rng, rows, new))
        config = night_config(tiny_encoder, inbox, str(output), rows_per_shard=1000, drift={"by": ["article"]})
        assert run_night(config, day=f"2026-11-{day:02d}") == 0
    states = [report_of(output, day)["drift"]["state"] for day in range(11, 15)]
    assert states == ["ordinary"] * 3 + ["alarm"]
    alarms = [shift["name"] for shift in report_of(output, 14)["drift"]["shifts"] if shift["alarm"]]
    assert "share:article=(new values)" in alarms
    (run, *_) = ledger.read_ledger(open_store(str(output)))
    groups = run.night_profile.groups["article"]
    assert (len(groups), sum(group.rows for group in groups.values())) == (100, ROWS)


def test_fewer_than_a_hundred_rows_are_not_compared(copied, tiny_encoder):
    inbox, output = copied
    write_night(inbox, 13, upper=True, rows=90, shop=lambda rng, rows: rng.choice(["north"], rows))
    assert night(tiny_encoder, inbox, output, 13) == 0
    assert report_of(output, 13)["drift"]["state"] == "too_few_rows"


def test_on_drift_fail_commits_and_says_so_once(copied, tiny_encoder, monkeypatch):
    inbox, output = copied
    write_night(inbox, 13, upper=True, shop=lambda rng, rows: rng.choice(["north", "south"], rows))
    config: Any = night_config(tiny_encoder, inbox, str(output), on_drift="fail", drift={"by": ["shop"]})
    stubbed(monkeypatch)
    with pytest.raises(DriftFound, match=r"Drift: .*Its rows are committed") as raised:
        score(config)
    assert raised.value.exit_code == 8
    assert len(ledger.read_ledger(open_store(str(output)))) == 13
    assert score(config).headline == "nothing new: 13 files listed, all in slots already"
    # A run that is killed before it has told of the night: the next one tells.
    for mark in ("reported", "drifted", "failed"):
        (output / f"control/published/00000013.{mark}").unlink()
    with pytest.raises(DriftFound, match=r"slot dt=.*: Drift: .*Its rows are committed"):
        score(config)
    assert score(config).headline == "nothing new: 13 files listed, all in slots already"


def test_a_call_that_dies_after_it_told_of_drift_leaves_the_exit_code_to_the_next(copied, tiny_encoder, monkeypatch):
    """As MLflow's server may hang, or a second slot be refused; people are not told once more."""
    inbox, output = copied
    write_night(inbox, 13, upper=True, shop=lambda rng, rows: rng.choice(["north", "south"], rows))
    keys: dict[str, Any] = {"on_drift": "fail", "drift": {"by": ["shop"]}, "notify": "tell-me"}
    config: Any = night_config(tiny_encoder, inbox, str(output), **keys)
    stubbed(monkeypatch)
    told: list[str] = []
    monkeypatch.setattr(nights, "send", lambda target, content: told.append(content["slot"]))
    with monkeypatch.context() as dying:
        dying.setattr(nights, "track_nights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            score(config)
    with pytest.raises(DriftFound, match=r"Drift: .*Its rows are committed"):
        score(config)
    assert score(config).runs == ()
    assert len(told) == 1


def test_a_night_that_a_person_accepts_joins_the_reference_with_the_reason(copied, tiny_encoder, monkeypatch):
    inbox, output = copied
    for day in (13, 14):
        write_night(inbox, day, upper=True, shop=lambda rng, rows: rng.choice(["north", "south"], rows))
        if day == 14:
            keys = {"accept": "dt=2026-11-13", "reason": "a new shop system writes capitals"}
            result = score(ScoreConfig.model_validate({"output": str(output), "drift": keys}))
            assert result.notes == ("slot dt=2026-11-13 accepted: their nights join the reference of later nights.",)
            index = json.loads((output / "reports/index.json").read_text())
            assert "Drift:" not in index["headline"]  # at once, not the next morning
            assert index["nights"][0]["is_accepted"]
            again = score(ScoreConfig.model_validate({"output": str(output), "drift": keys}))
            assert (again.headline, repr(again)) == ("", f"ScoreResult({output})")
            assert again.notes == ("slot dt=2026-11-13: accepted before, for the same reason.",)
        assert night(tiny_encoder, inbox, output, day) == 0
        if day == 13:
            index = json.loads((output / "reports/index.json").read_text())
            assert index["headline"].startswith("Look at dt=2026-11-13. Drift:")
    assert [report_of(output, day)["drift"]["state"] for day in (13, 14)] == ["alarm", "ordinary"]
    (record,) = read_records(open_store(str(output)), ACCEPTED, Acceptance)
    assert (record.slots, record.reason) == (["dt=2026-11-13"], "a new shop system writes capitals")
    assert record.after_seq == 13


@pytest.mark.parametrize("key", ["drift.by", "report.slices"])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        (pa.array([b"a", b"\xff"], pa.binary()), "binary"),
        (pa.array([b"a", b"\xff"], pa.large_binary()), "large_binary"),
        (pa.array([b"\xff" * 16] * 2, pa.binary(16)), "fixed_size_binary[16]"),
        (pa.array([["a"], []]), "list<"),
    ],
)
def test_a_column_of_bytes_or_lists_to_count_by_is_refused_before_work_begins(
    tiny_encoder, tmp_path, capsys, key, values, found
):
    (tmp_path / "in").mkdir()
    table = pa.table({"id": ["1", "2"], "text": ["good film", "bad film"], "label": ["pos", "neg"], "shop": values})
    pq.write_table(table, tmp_path / "in/1.parquet")
    room, name = key.split(".")
    keys: Any = {room: {name: ["shop"]}}
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), **keys)
    assert run_night(config) == 2
    assert f"{key}: expected columns of single values, found 'shop' of {found}" in capsys.readouterr().err
    assert not (tmp_path / "out/data").exists()


def test_nights_that_are_accepted_after_others_are_in_force_again(copied):
    _, output = copied
    reason = "shops differ by season"
    notes = [
        score(ScoreConfig.model_validate({"output": str(output), "drift": {"accept": days, "reason": reason}})).notes[0]
        for days in ("dt=2026-11-01..dt=2026-11-10", "dt=2026-11-03..dt=2026-11-12", "dt=2026-11-01..dt=2026-11-10")
    ]
    assert [note.partition(":")[0] for note in notes] == [
        "10 slots (dt=2026-11-01 to dt=2026-11-10) accepted",
        "10 slots (dt=2026-11-03 to dt=2026-11-12) accepted",
        "10 slots (dt=2026-11-01 to dt=2026-11-10) accepted",
    ]
    records = read_records(open_store(str(output)), ACCEPTED, Acceptance)
    assert [record.slots[0] for record in records] == ["dt=2026-11-01", "dt=2026-11-03", "dt=2026-11-01"]


def stubbed(monkeypatch) -> None:
    from tests.nightly import INFO

    monkeypatch.setattr(nights, "open_model", lambda config: INFO)
    monkeypatch.setattr(nights, "executors_of", lambda *args, **keys: _Entered())


class _Entered(_Stubbed):
    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None
