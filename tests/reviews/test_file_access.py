"""Paths of this machine, times of change, and which failures are the store's."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.errors import ConfigError, InfrastructureError
from bertray.io.store_protocol import StoredFile
from bertray.reviews import file_access as files
from bertray.reviews.file_access import content_digest, printable
from bertray.reviews.listing import list_inputs
from bertray.reviews.reader import plan_shards, read_shard
from bertray.reviews.rows import BadFile, InputFile, ReadSpec
from tests.scanning import inspect

AUTO = TextFormat()
WRITTEN = datetime(2026, 1, 2, tzinfo=UTC)


# --- local paths -----------------------------------------------------------------------------------------------------


def test_a_uri_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match="expected a file of this machine, found the host 'inbox'"):
        list_inputs(["file://inbox/a.csv"], AUTO)


@pytest.mark.parametrize("uri", ["file://{}", "file:{}", "file://localhost{}"])
def test_a_uri_lists_the_files_of_its_path(tmp_path, uri):
    folder = tmp_path / "in box"
    folder.mkdir()
    (folder / "a.csv").write_text("text\nx\n")
    quoted = str(folder).replace(" ", "%20")
    for end in ("", "/a.csv", "/*.csv"):
        assert [entry.path for entry in list_inputs([uri.format(quoted) + end], AUTO)] == [str(folder / "a.csv")]


@pytest.mark.parametrize("seconds", [-86_400 * 365 * 30, 0, 9_300_000_000, 15_000_000_000])  # 1940 to 2445
def test_any_time_of_change_is_the_same_when_listed_and_when_read(tmp_path, seconds):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one"]}), path)
    os.utime(path, ns=(0, seconds * 10**9 + 1))
    for named in (tmp_path, path):
        [entry] = list_inputs([str(named)], AUTO)
        assert entry.modified == str(path.stat().st_mtime_ns)
        file = inspect(entry, AUTO)
        assert isinstance(file, InputFile)
        assert read_shard(plan_shards([file], 9)[0], ReadSpec()).kept.num_rows == 1


def test_a_path_that_can_be_none_is_a_config_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / ("x" * 300), tmp_path / "loop" / "a.csv", tmp_path / "caf\udce9"):
        with pytest.raises(ConfigError) as caught:
            list_inputs([str(path)], AUTO)
        str(caught.value).encode("utf-8")  # it can be printed


def test_what_is_no_utf8_is_shown_as_an_escape():
    assert printable("caf\udce9") == r"caf\xe9"
    assert printable("café") == "café"


# --- failures of a store ---------------------------------------------------------------------------------------------


def parquet_bytes(rows: int = 3000) -> bytes:
    sink = pa.BufferOutputStream()
    texts = [f"text {i} {i * 7919 % 104729}" for i in range(rows)]
    pq.write_table(pa.table({"id": [str(i) for i in range(rows)], "text": texts}), sink, row_group_size=1000)
    return sink.getvalue().to_pybytes()


def text_bytes(head: str, row: str, rows: int = 3000) -> bytes:
    return (head + "".join(row.format(i=i, n=i * 7919 % 104729) for i in range(rows))).encode()


CONTENTS = {
    "a.parquet": parquet_bytes(),
    "a.csv": text_bytes("id,text\n", "{i},text {n}\n"),
    "a.tsv": text_bytes("id\ttext\n", "{i}\ttext {n}\n"),
    "a.csv.gz": gzip.compress(text_bytes("id,text\n", "{i},text {n}\n")),
    "a.jsonl": text_bytes("", '{{"id": "{i}", "text": "text {n}"}}\n'),
    "a.jsonl.gz": gzip.compress(text_bytes("", '{{"id": "{i}", "text": "text {n}"}}\n')),
}


class _OddStore:
    """A bucket that fails in a way nobody has foreseen."""

    def __init__(self) -> None:
        self.contents = dict(CONTENTS)
        self.failure: Exception | None = None
        self.fail_at: int | None = None  # a byte; None: never
        self.fails_listing = False
        self.num_threads = 1
        self.asked: list[tuple[int, int]] = []

    def status(self, key: str) -> StoredFile:
        if self.fails_listing and self.failure is not None:
            raise self.failure
        if key not in self.contents:
            raise FileNotFoundError(key)
        content = self.contents[key]
        return StoredFile(key, len(content), WRITTEN, hashlib.md5(content).hexdigest())

    def exists(self, key: str) -> bool:
        return bool(self.status(key))

    def folder(self, _prefix: str) -> list[StoredFile]:
        return []

    def read(self, key: str, start: int, stop: int, etag: str | None = None) -> tuple[bytes, StoredFile]:
        value = self.status(key)
        if etag not in (None, value.etag):
            raise InfrastructureError(f"{key}: the storage failed: another value.", "Run the same command again.")
        stop = min(stop, value.size_bytes)
        self.asked.append((start, stop))
        if self.fail_at is not None and stop > self.fail_at:
            if self.failure is not None:
                raise self.failure
            stop = max(start, self.fail_at)  # a connection that is closed early, and nobody says so
        return self.contents[key][start:stop], value


FAILURES = {
    "an OSError of other words": OSError("throttled by quota policy 17"),
    "an Arrow error": pa.ArrowInvalid("Unexpected end of reply"),
    "a Unicode error": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "in a header of the reply"),
    "an EOFError": EOFError("reply ended"),
    "a RuntimeError": RuntimeError("SDK state 3"),
    "not implemented": NotImplementedError("Not yet implemented: range requests"),
    "nothing but silence": None,
}


@pytest.fixture
def store(monkeypatch) -> _OddStore:
    store = _OddStore()
    monkeypatch.setattr(files, "_bucket", lambda *_: store)
    return store


def read_everything(name: str, before_reading: Any = lambda: None) -> int:
    """Rows kept of a file, every shard of it; a bad file or a refused row is none."""
    [entry] = list_inputs([f"s3://bucket/{name}"], AUTO)
    file = inspect(entry, AUTO)
    assert isinstance(file, InputFile), file
    before_reading()
    batches = [read_shard(shard, ReadSpec()) for shard in plan_shards([file], 700)]
    assert not any(batch.refused.num_rows for batch in batches), batches[-1].refused.to_pylist()[:1]
    return sum(batch.kept.num_rows for batch in batches)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_remote_file_of_every_format_reads_as_a_local_one(store, name):
    assert read_everything(name) == 3000


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        (where, failure)
        for where in ("on opening", "while it is counted", "while it is read", "digest")
        for failure in FAILURES
        if where != "on opening" or FAILURES[failure] is not None
    ],
)
@pytest.mark.parametrize("name", CONTENTS)
def test_whatever_a_store_raises_is_never_a_damaged_file(store, name, failure, where):
    size = len(CONTENTS[name])
    failing_at = {"on opening": -1, "while it is counted": size // 2}.get(where)

    def fail() -> None:
        store.failure, store.fail_at = FAILURES[failure], size // 2 if failing_at is None else failing_at

        if where == "while it is counted" and name == "a.parquet":
            store.fail_at = size - 100  # only the footer is read

    def act() -> None:
        if where == "while it is read":
            read_everything(name, fail)
            return
        fail()
        if where == "digest":
            content_digest(f"s3://bucket/{name}")
        else:
            read_everything(name)

    with pytest.raises(InfrastructureError, match=f"{name}: cannot be read now"):
        act()


@pytest.mark.parametrize("failure", [failure for failure in FAILURES if FAILURES[failure]])
def test_whatever_a_store_raises_on_listing_may_pass(store, failure):
    store.failure, store.fails_listing = FAILURES[failure], True
    with pytest.raises(InfrastructureError, match="cannot be read now"):
        list_inputs(["s3://bucket/a.csv"], AUTO)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.jsonl.gz"])
def test_a_file_that_was_cut_before_it_came_to_the_store_is_damaged(store, name):
    store.contents[name] = CONTENTS[name][: len(CONTENTS[name]) // 2]
    [entry] = list_inputs([f"s3://bucket/{name}"], AUTO)
    file = inspect(entry, AUTO)
    assert isinstance(file, BadFile)
    assert file.reason == "file_corrupt"


@pytest.mark.slow
def test_any_way_to_read_a_remote_file_gives_its_bytes_with_few_requests(store):
    content = random.Random(0).randbytes(30 << 20)
    store.contents["f.bin"] = content
    with files.open_bytes("s3://bucket/f.bin") as stream:
        pieces = iter(lambda: stream.read(1 << 20), b"")
        assert b"".join(pieces) == content
    assert len(store.asked) <= 9  # 1, 2, then 4 MiB at once
    store.asked.clear()
    with files.open_bytes("s3://bucket/f.bin") as stream:
        assert stream.read() == content
    assert len(store.asked) <= 2
    store.asked.clear()
    with files.open_bytes("s3://bucket/f.bin", 12_345_678) as stream:
        pieces = iter(lambda: stream.read(100_003), b"")
        assert b"".join(pieces) == content[12_345_678:]
    assert len(store.asked) <= 6
    assert sum(stop - start for start, stop in store.asked) == len(content) - 12_345_678
    store.asked.clear()
    file = files.open_random_access("s3://bucket/f.bin")
    size = file.size()
    assert size == len(content)
    # As Parquet is opened: its magic, the end of its footer, the footer, and all that again.
    for _ in range(2):
        assert [file.read_at(4, 0), file.read_at(8, size - 8)] == [content[:4], content[-8:]]
        assert file.read_at(50_000, size - 50_000) == content[-50_000:]
    assert store.asked == [(0, 1 << 16), (size - (1 << 16), size)]
    assert file.read_at(3 << 20, 5 << 20) == content[5 << 20 : 8 << 20]
    assert file.read_at(1 << 20, 8 << 20) == content[8 << 20 : 9 << 20]
    assert store.asked[2:] == [(5 << 20, 8 << 20), (8 << 20, 9 << 20)]  # column chunks, and not a byte beside them
    rng = random.Random(1)
    for _ in range(200):
        start, length = rng.randrange(size), rng.choice([0, 1, 1000, 70_000, size])
        assert file.read_at(length, start) == content[start : start + length]


def test_an_empty_remote_file_has_no_bytes(store):
    store.contents["empty"] = b""
    with files.open_bytes("s3://bucket/empty") as stream:
        assert stream.read() == b""
    assert files.open_random_access("s3://bucket/empty").size() == 0


def test_a_file_that_is_written_again_while_it_is_read_is_no_mixture_of_both(store):
    store.contents["f.bin"] = bytes(9 << 20)
    with files.open_bytes("s3://bucket/f.bin") as stream:
        assert stream.read(1) == b"\0"
        store.contents["f.bin"] = b"1" * (9 << 20)
        with pytest.raises(InfrastructureError, match="another value"):
            stream.read()


def test_an_unreadable_folder_below_the_input_is_named(tmp_path, monkeypatch):
    (tmp_path / "in" / "locked").mkdir(parents=True)

    def refused(folder: Any, *_args: object, onerror: Any, **_options: object) -> Any:
        onerror(PermissionError(13, "Permission denied", str(Path(folder) / "locked")))
        yield from ()

    monkeypatch.setattr("bertray.reviews.listing.os.walk", refused)
    with pytest.raises(ConfigError, match=r"in/locked: expected to be allowed to read it"):
        list_inputs([str(tmp_path / "in")], AUTO)
