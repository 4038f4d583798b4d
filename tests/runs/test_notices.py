"""Headlines of nights reach a webhook or a command, and nothing there can stop a night."""

from __future__ import annotations

import http.server
import json
import logging
import shlex
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bertray.config import FilesConfig
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.runs.nights_overview import write_index
from bertray.runs.notices import send
from bertray.runs.stored import list_files
from tests.nightly import night_config, run_night, start_night, write_inbox


@pytest.fixture
def webhook():
    """A server that takes posts: (address, what came)."""
    came = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(500 if self.path.startswith("/broken") else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_night_posts_its_headline_and_no_text(webhook, tiny_encoder, tmp_path):
    address, came = webhook
    write_inbox(tmp_path / "in", {"a.parquet": 14})
    config = night_config(
        tiny_encoder, tmp_path / "in", str(tmp_path / "out"), notify=f"{address}/hook", slot="dt=2026-11-20"
    )
    assert run_night(config) == 0
    ((path, kind, content),) = came
    assert (path, kind) == ("/hook", "application/json")
    assert content["text"].startswith("dt=2026-11-20: 14 reviews came in with 1 file: 12 scored, 2 quarantined.")
    assert (content["slot"], content["rows_scored"], content["drift"]) == ("dt=2026-11-20", 12, "too_few_rows")
    assert "the film was good" not in json.dumps(content)


@pytest.mark.parametrize("crash", ["publish.after:1", "index.after_put:1", "reported.before_put:1"])
def test_of_a_killed_night_the_next_run_tells_and_the_index_has_it(crash, tiny_encoder, tmp_path):
    write_inbox(tmp_path / "in", {"a.parquet": 14})
    told = tmp_path / "told"
    script = f"import sys, pathlib; pathlib.Path({str(told)!r}).open('a').write(sys.stdin.read() + chr(10))"
    keys: dict[str, Any] = {
        "notify": shlex.join([sys.executable, "-c", script]),
        "slot": "dt=2026-11-20",
        "takeover": True,
    }
    config = night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"), **keys)
    killed = start_night(config, f"{crash}:kill")
    killed.join(60)
    assert killed.exitcode == -9
    (tmp_path / "out/reports/index.json").unlink(missing_ok=True)
    assert run_night(config) == 0
    notices = [json.loads(line) for line in told.read_text().splitlines()]
    assert {notice["slot"] for notice in notices} == {"dt=2026-11-20"}
    assert len(notices) == (2 if crash.startswith("reported") else 1)
    index = json.loads((tmp_path / "out/reports/index.json").read_text())
    assert [night["title"] for night in index["nights"]] == ["dt=2026-11-20"]
    assert run_night(config) == 0  # and once it is marked, no more
    assert len(told.read_text().splitlines()) == len(notices)


def test_an_index_that_a_run_beside_us_outdates_is_written_again(tiny_encoder, tmp_path, monkeypatch):
    inbox, output = tmp_path / "in", str(tmp_path / "out")
    write_inbox(inbox, {"a.parquet": 14})
    assert run_night(night_config(tiny_encoder, inbox, output, slot="dt=1")) == 0
    store = open_store(output)
    known = ledger.read_ledger(store)
    write_inbox(inbox, {"b.parquet": 14})
    assert run_night(night_config(tiny_encoder, inbox, output, slot="dt=2")) == 0
    write_index(store, known)  # the ledger of before
    index = json.loads((tmp_path / "out/reports/index.json").read_text())
    assert [night["title"] for night in index["nights"]] == ["dt=2", "dt=1"]


def test_a_command_reads_it_on_its_standard_input(tmp_path):
    target = tmp_path / "told.json"
    script = f"import sys, pathlib; pathlib.Path({str(target)!r}).write_text(sys.stdin.read())"
    assert send(shlex.join([sys.executable, "-c", script]), {"text": "night’s headline"})
    assert json.loads(target.read_text()) == {"text": "night’s headline"}


@pytest.mark.parametrize("target", ["no-such-command-here", "http://127.0.0.1:9/x", f"{sys.executable} -c 'exit(3)'"])
def test_what_cannot_be_told_is_logged_and_stops_nothing(target, caplog):
    with caplog.at_level(logging.WARNING):
        assert not send(target, {"text": "x"})
    assert "could not be told" in caplog.text


def test_the_log_holds_no_secret_of_the_address(webhook, caplog):
    address, _ = webhook
    assert not send(f"{address}/broken?token=s3cret", {"text": "x"})
    assert "s3cret" not in caplog.text


def test_files_warn_of_a_night_that_did_not_come(webhook, tiny_encoder, tmp_path, caplog):
    address, came = webhook
    write_inbox(tmp_path / "in", {"a.parquet": 3})
    assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out"))) == 0
    keys = {"output": str(tmp_path / "out"), "notify": address}
    assert len(list_files(FilesConfig.model_validate({**keys, "expect_every": 26}))) == 1
    assert came == []
    assert len(list_files(FilesConfig.model_validate({**keys, "expect_every": 1e-9}))) == 1
    assert "the newest night was committed 0 hours ago" in caplog.text
    assert "the newest night was committed" in came[0][2]["text"]


def test_an_old_slot_is_not_late_where_a_newer_one_came(webhook, tiny_encoder, tmp_path, monkeypatch):
    address, came = webhook
    for number, day in enumerate(("2026-11-01", "2026-11-02")):
        write_inbox(tmp_path / "in", {f"{number}.parquet": 3})
        assert run_night(night_config(tiny_encoder, tmp_path / "in", str(tmp_path / "out")), day=day) == 0
    runs = ledger.read_ledger(open_store(str(tmp_path / "out")))
    old, new = (datetime.fromisoformat(run.committed_at) for run in runs)
    hours = (datetime.now(UTC) - new + (new - old) / 2) / timedelta(hours=1)  # between the ages of the two
    keys = {"output": str(tmp_path / "out"), "notify": address, "slot": "dt=2026-11-01", "expect_every": hours}
    assert len(list_files(FilesConfig.model_validate(keys))) == 1
    assert came == []
