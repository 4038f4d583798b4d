"""Inputs that change, vanish or cannot be read while a night reads them: no fault of the data, whatever it looks like.

Numbers in docstrings are kinds of faults, as in `test_input_faults.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from bertray.io import faults
from bertray.io.object_store import ObjectStore
from tests.e2e.inbox import (
    GOOD_IDS,
    NUM_GOOD,
    WRITERS,
    Night,
    assert_nothing_committed,
    reviews,
    with_one_good_file,
    with_text,
)
from tests.nightly import RESOURCES, StubExecutor


@pytest.fixture
def night(tmp_path, tiny_encoder) -> Night:
    return with_one_good_file(tmp_path, tiny_encoder)


@dataclass(frozen=True)
class Meddling(StubExecutor):
    """Does something to the inbox once, before the shard with the given number is read."""

    meddle: Callable[[], object]
    before: int

    def run(self, shards: Any, *rest: Any) -> Iterator[Any]:
        for number, shard in enumerate(shards):
            if number == self.before:
                self.meddle()
            yield from super().run([shard], *rest)
        if self.before >= len(shards):
            self.meddle()


def run_meddled(night: Night, meddle: Callable[[], object], before: int, monkeypatch: Any, **keys: Any) -> int:
    with monkeypatch.context() as patch:
        patch.setattr("tests.nightly.stub_executor", lambda: Meddling(RESOURCES, meddle, before))
        return night.run(**keys)


@pytest.mark.parametrize("before", [0, 1, 2, 99])
def test_a_file_that_comes_late_is_of_the_next_slot(night, monkeypatch, before):
    """27"""
    night.add("more.parquet", reviews("more"))
    late = reviews("late")
    assert run_meddled(night, lambda: night.add("late.parquet", late), before, monkeypatch) == 0
    assert "late.parquet" not in night.counts()
    assert night.run() == 0
    assert [entry.rows_in for entry in night.entries] == [NUM_GOOD + 10, 10]
    assert night.scored == sorted([*GOOD_IDS, *reviews("more")["id"].to_pylist(), *late["id"].to_pylist()])


@pytest.mark.parametrize("before", [0, 1, 2, 99])
@pytest.mark.parametrize("form", ["longer", "cut", "touched"])
def test_a_file_that_changes_while_it_is_read_is_no_data_fault(night, monkeypatch, form, before):
    """28"""
    path = night.add("bad.parquet", reviews("bad", 32))

    def meddle() -> None:
        if form == "longer":
            night.add("bad.parquet", reviews("bad", 33))
        elif form == "cut":
            night.add("bad.parquet", path.read_bytes()[:-20])
        else:
            os.utime(path, (1, 1))

    assert run_meddled(night, meddle, before, monkeypatch) == 7
    assert_nothing_committed(night)
    night.add("bad.parquet", reviews("bad", 40))
    assert night.run() == 0
    assert night.counts()["bad.parquet"] == (40, 40, 0)


@pytest.mark.parametrize("before", [0, 1, 2, 99])
def test_a_file_that_vanishes_while_it_is_read_is_no_data_fault(night, monkeypatch, before):
    """29"""
    path = night.add("bad.parquet", reviews("bad", 32))
    assert run_meddled(night, path.unlink, before, monkeypatch) == 7
    assert_nothing_committed(night)
    assert night.run() == 0
    assert night.counts() == {"good.parquet": (NUM_GOOD, NUM_GOOD, 0)}


@pytest.mark.parametrize(
    "fault", ["put.half_written:4:enospc", "put.half_written:5:lost_reply", "part.after_put:2:raise"]
)
def test_a_full_disk_or_a_lost_reply_is_no_data_fault(night, fault):
    night.add("bad.parquet", with_text(pa.array(["a good film", None])))
    faults.arm(fault)
    try:
        assert night.run(on_bad_file="quarantine") == 7
    finally:
        faults.arm("")
    assert_nothing_committed(night)
    assert night.run(on_bad_file="quarantine") == 0
    assert night.counts() == {"good.parquet": (NUM_GOOD, NUM_GOOD, 0), "bad.parquet": (2, 1, 1)}


REQUEST_TIMEOUT_S = 0.5


class UnreliableS3:
    """A server that speaks S3 until it is told to fail."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.failure = ""
        self.patient: ObjectStore | None = None  # a client that waits and tries again
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, environ: Any, start_response: Any) -> Any:
        if self.failure == "hang up":
            environ["werkzeug.socket"].shutdown(2)
            return []
        if self.failure == "no answer":
            time.sleep(2 * REQUEST_TIMEOUT_S)
            return []
        if self.failure:
            start_response(self.failure, [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)

    @contextmanager
    def serving(self) -> Iterator[UnreliableS3]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        yield self
        self._server.shutdown()
        thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def s3() -> Iterator[UnreliableS3]:
    import boto3
    from obstore.store import from_url

    with UnreliableS3().serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        client = boto3.client("s3")
        client.create_bucket(Bucket="faults")
        table = reviews("s3", 40)
        for form, content in WRITERS.items():
            client.put_object(Bucket="faults", Key=f"{form}/a.{form}", Body=content(table.to_pylist()))
        impatient = ObjectStore("s3://faults")
        impatient._store = from_url(
            "s3://faults",
            client_options={"allow_http": True, "timeout": f"{REQUEST_TIMEOUT_S} s"},
            retry_config={"max_retries": 0},
        )
        server.patient = ObjectStore("s3://faults")
        patch.setattr("bertray.reviews.file_access._bucket", lambda *_: impatient)
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("failure", ["503 Slow Down", "500 Internal Server Error", "hang up", "no answer"])
def test_a_store_that_fails_while_it_is_read_is_no_data_fault(night, s3, monkeypatch, form, failure):
    keys = {"input": [f"s3://faults/{form}/"], "on_bad_file": "quarantine", "max_quarantine_ratio": 1}
    try:
        assert run_meddled(night, lambda: setattr(s3, "failure", failure), 1, monkeypatch, **keys) == 7
        assert night.run(**keys) == 7  # nor while it is listed
    finally:
        s3.failure = ""
    assert_nothing_committed(night)
    monkeypatch.setattr("bertray.reviews.file_access._bucket", lambda *_: s3.patient)  # on a loaded machine, too
    assert night.run(**keys) == 0
    assert night.counts() == {f"a.{form}": (40, 40, 0)}
