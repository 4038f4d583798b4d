"""The store: values are whole or absent, and put-if-absent has one winner."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bertray.errors import ConfigError, InfrastructureError
from bertray.storage.store import LocalStore, open_store


@pytest.fixture(params=["local", "no hard links", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_environment").items():
            monkeypatch.setenv(name, value)
        return open_store(f"s3://bertray/{tmp_path.name}")
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", no_link)
    return LocalStore(tmp_path / "out")


def no_link(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_values_come_back_and_keys_are_listed_sorted(store):
    store.put("b/2", b"two")
    store.put("b/1", b"one")
    store.put("a", b"other")
    store.put("b/1", b"uno")
    assert store.get("b/1") == b"uno"
    assert store.keys("b") == ["b/1", "b/2"]
    assert store.keys("nothing") == []
    assert store.exists("a")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
    with pytest.raises(FileNotFoundError):
        store.get("a")


def test_put_new_has_exactly_one_winner_among_racers(store):
    assert store.put_new("control/commits/0", b"")
    assert not store.put_new("control/commits/0", b"other")
    assert store.get("control/commits/0") == b""
    store.delete("control/commits/0")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_new("control/commits/1", str(n).encode()), range(32)))
    if not store.put_new_is_atomic:
        pytest.skip("nothing to build it on, and the store says so: refused unless single_writer")
    assert won.count(True) == 1
    assert store.get("control/commits/1") == str(won.index(True)).encode()
    assert store.keys("control") == ["control/commits/1"]  # nothing is left beside it


def test_publish_shows_all_files_with_a_marker_and_may_run_twice(store):
    store.put("control/x/p0", b"0")
    store.put("control/x/p1", b"1")
    staged = [("control/x/p0", "part-0.parquet"), ("control/x/p1", "part-1.parquet")]
    store.publish(staged, "data/dt=1")
    store.publish(staged, "data/dt=1")
    assert store.keys("data") == ["data/dt=1/_SUCCESS", "data/dt=1/part-0.parquet", "data/dt=1/part-1.parquet"]
    assert store.get("data/dt=1/_SUCCESS") == b""
    assert store.keys("control") == ["control/x/p0", "control/x/p1"]


def test_publish_without_a_staged_file_leaves_nothing_behind(store):
    with pytest.raises(InfrastructureError, match="no longer there"):
        store.publish([("control/x/missing", "part-0.parquet")], "data/dt=1")
    assert store.keys("data") == []


def test_an_output_below_a_file_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="expected a folder"):
        LocalStore(tmp_path / "file" / "out").put_new("a", b"")


def test_an_output_where_nothing_can_be_created_is_a_config_error():
    with pytest.raises(ConfigError):
        LocalStore(Path("/proc/bertray-out")).put("a", b"")


def test_other_schemes_are_refused():
    with pytest.raises(ConfigError, match="found ftp://"):
        open_store("ftp://host/x")


@pytest.mark.parametrize("below", ["", "out"])
def test_reading_an_output_that_is_a_file_or_below_one_is_a_config_error(tmp_path, below):
    (tmp_path / "file").write_text("x")
    store = LocalStore(tmp_path / "file" / below)
    for call in (store.get, store.exists, store.keys, store.delete):
        with pytest.raises(ConfigError, match="expected a folder, found a file in its place"):
            call("control/x")


def test_what_is_absent_is_no_error_but_for_get(store):
    assert not store.exists("control/x")
    assert store.keys("control") == []
    store.put("a", b"")
    assert store.keys("a") == []
    with pytest.raises(FileNotFoundError):
        store.get("control/x")


@pytest.mark.parametrize("uri", ["s3://", "gs://", "s3:///folder", "s3://[x", "s3://b ad/x"])
def test_a_uri_without_a_bucket_or_of_no_sense_is_a_config_error(uri):
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert uri in str(caught.value)
    assert "bucket/folder" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PermissionDeniedError", "UnauthenticatedError"])
def test_an_object_store_that_lets_nobody_write_is_a_matter_of_configuration(kind, monkeypatch):
    import obstore.exceptions

    def refuse(*_: object, **__: object) -> None:
        raise getattr(obstore.exceptions, kind)("403 Forbidden")

    monkeypatch.setattr(obstore, "put", refuse)
    with pytest.raises(ConfigError, match="expected a writable output, found 403 Forbidden"):
        open_store("s3://bucket/out").put("a", b"")
