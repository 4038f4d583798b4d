"""Paths of this machine, times of change, and which failures are the store's."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from bertray.config import TextFormat
from bertray.errors import ConfigError, InfrastructureError
from bertray.reviews import file_access as files
from bertray.reviews.file_access import content_digest, printable
from bertray.reviews.reader import BadFile, InputFile, ReadSpec, list_inputs, plan_shards, read_shard
from tests.scanning import inspect

AUTO = TextFormat()


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


class _Stream:
    """Bytes of a store that stop coming at some byte."""

    def __init__(self, content: bytes, fail_at: int, failure: Exception | None) -> None:
        self._content, self._fail_at, self._failure = content, fail_at, failure
        self._at, self.closed = 0, False

    def read(self, size: int = -1) -> bytes:
        end = len(self._content) if size < 0 else min(self._at + size, len(self._content))
        if end > self._fail_at:
            if self._failure is not None:
                raise self._failure
            end = max(self._at, self._fail_at)  # a connection that is closed early, and nobody says so
        piece = self._content[self._at : end]
        self._at = end
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._content))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


class _OddStore(pafs.FileSystemHandler):
    """A store that fails in a way nobody has foreseen."""

    def __init__(self) -> None:
        self.contents = {f"bucket/{name}": content for name, content in CONTENTS.items()}
        self.failure: Exception | None = None
        self.fail_at: int | None = None  # a byte; -1: on opening; None: never
        self.fails_listing = False

    def get_type_name(self) -> str:
        return "odd"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        if self.fails_listing and self.failure is not None:
            raise self.failure
        kinds = [pafs.FileType.File if path in self.contents else pafs.FileType.NotFound for path in paths]
        return [
            pafs.FileInfo(path, kind, size=len(self.contents.get(path, b"")), mtime_ns=1)
            for path, kind in zip(paths, kinds, strict=True)
        ]

    def get_file_info_selector(self, selector: Any) -> list[pafs.FileInfo]:
        return []

    def open_input_file(self, path: str) -> pa.PythonFile:
        if self.fail_at == -1 and self.failure is not None:
            raise self.failure
        size = len(self.contents[path])
        return pa.PythonFile(
            _Stream(self.contents[path], size if self.fail_at is None else self.fail_at, self.failure), mode="r"
        )

    def _unused(self, *_args: object) -> Any:
        raise AssertionError("reading needs nothing else")

    open_input_stream = open_output_stream = open_append_stream = move = copy_file = _unused
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _unused


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
    handler = _OddStore()
    monkeypatch.setattr(files, "_bucket_filesystem", lambda *_: pafs.PyFileSystem(handler))
    return handler


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
    store.contents[f"bucket/{name}"] = CONTENTS[name][: len(CONTENTS[name]) // 2]
    [entry] = list_inputs([f"s3://bucket/{name}"], AUTO)
    file = inspect(entry, AUTO)
    assert isinstance(file, BadFile)
    assert file.reason == "file_corrupt"


def test_a_right_that_is_missing_is_a_config_error(store):
    store.failure, store.fail_at = OSError("When reading: AWS Error ACCESS_DENIED during GetObject"), -1
    with pytest.raises(ConfigError, match="permission denied"):
        read_everything("a.csv")


def test_an_unreadable_folder_below_the_input_is_named(tmp_path, monkeypatch):
    (tmp_path / "in" / "locked").mkdir(parents=True)

    def refused(folder: Any, *_args: object, onerror: Any, **_options: object) -> Any:
        onerror(PermissionError(13, "Permission denied", str(Path(folder) / "locked")))
        yield from ()

    monkeypatch.setattr("bertray.reviews.listing.os.walk", refused)
    with pytest.raises(ConfigError, match=r"in/locked: expected to be allowed to read it"):
        list_inputs([str(tmp_path / "in")], AUTO)
