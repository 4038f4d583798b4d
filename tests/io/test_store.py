"""The store: values are whole or absent, and put-if-absent has one winner."""

import errno
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bertray.errors import ConfigError, InfrastructureError
from bertray.io.store import LocalStore, open_store


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
    runs = {"run=1": [("control/x/p0", "part-0.parquet"), ("control/x/p1", "part-1.parquet")]}
    assert store.publish("data/dt=1", runs)
    assert store.publish("data/dt=1", runs)
    first = [f"data/dt=1/run=1/{name}" for name in ("_SUCCESS", "part-0.parquet", "part-1.parquet")]
    assert store.keys("data") == first
    assert store.get(first[0]) == b""
    assert store.keys("control") == ["control/x/p0", "control/x/p1"]
    # A second run beside it, also when the staged parts of the first are gone.
    store.delete("control/x/p0")
    store.put("control/x/p2", b"2")
    runs["run=2"] = [("control/x/p2", "part-2.parquet")]
    assert store.publish("data/dt=1", runs, settled={"run=1"})
    assert store.keys("data") == [*first, "data/dt=1/run=2/_SUCCESS", "data/dt=1/run=2/part-2.parquet"]


def test_publish_replaces_all_runs_of_a_slot_by_one(store):
    for number in range(4):
        store.put(f"control/x/p{number}", b"%d" % number)
    old = {f"run={n}": [(f"control/x/p{n}", f"part-{n}.parquet")] for n in (1, 2, 3)}
    assert store.publish("data/dt=1", old)
    obsolete = {f"{run}/{name}" for run, [(_, part)] in old.items() for name in (part, "_SUCCESS")}
    new = {"run=1": [("control/x/p0", "part-0.parquet")]}
    for _ in range(2):
        assert store.publish("data/dt=1", new, obsolete=obsolete - {"run=1/_SUCCESS"})
        assert store.keys("data") == ["data/dt=1/run=1/_SUCCESS", "data/dt=1/run=1/part-0.parquet"]
    # Who knows only of the old runs leaves it as it is, and is told so.
    assert not store.publish("data/dt=1", old)
    assert store.keys("data") == ["data/dt=1/run=1/_SUCCESS", "data/dt=1/run=1/part-0.parquet"]
    assert store.publish("data/dt=1", {}, obsolete={"run=1/_SUCCESS", "run=1/part-0.parquet"})
    assert store.keys("data") == []


def test_a_marker_of_rows_that_are_gone_does_not_stand_beside_half_of_the_new(store):
    """An old run without any part left a marker under the same name."""
    assert store.publish("data/dt=1", {"run=1": []})
    with pytest.raises(InfrastructureError, match="no longer there"):
        store.publish("data/dt=1", {"run=1": [("control/x/missing", "part-0.parquet")]})
    store.put("control/x/p0", b"0")
    assert store.publish("data/dt=1", {"run=1": [("control/x/p0", "part-0.parquet")]})
    assert store.keys("data") == ["data/dt=1/run=1/_SUCCESS", "data/dt=1/run=1/part-0.parquet"]


def test_what_others_put_beside_the_parts_of_a_slot_does_not_stop_it(store):
    store.put("data/dt=1/.DS_Store", b"x")
    store.put("control/x/p0", b"0")
    assert store.publish("data/dt=1", {"run=1": [("control/x/p0", "part-0.parquet")]})
    assert store.keys("data/dt=1/run=1") == ["data/dt=1/run=1/_SUCCESS", "data/dt=1/run=1/part-0.parquet"]


def test_a_run_that_comes_late_goes_away_with_the_slot_that_was_replaced_meanwhile(tmp_path, monkeypatch):
    store, aside = LocalStore(tmp_path), LocalStore._stage_aside
    for number in range(3):
        store.put(f"control/x/p{number}", b"%d" % number)
    first = {"run=1": [("control/x/p0", "part-0.parquet")]}
    assert store.publish("data/dt=1", first)

    def replaced_while_staging(self, *args, **keys) -> None:
        aside(self, *args, **keys)
        monkeypatch.setattr(LocalStore, "_stage_aside", aside)
        new = {"run=1": [("control/x/p2", "part-2.parquet")]}
        assert store.publish("data/dt=1", new, obsolete={"run=1/part-0.parquet"})

    monkeypatch.setattr(LocalStore, "_stage_aside", replaced_while_staging)
    assert not store.publish("data/dt=1", first | {"run=2": [("control/x/p1", "part-1.parquet")]})
    assert store.keys("data") == ["data/dt=1/run=1/_SUCCESS", "data/dt=1/run=1/part-2.parquet"]


def test_publish_without_a_staged_file_leaves_nothing_behind(store):
    with pytest.raises(InfrastructureError, match="no longer there"):
        store.publish("data/dt=1", {"run=1": [("control/x/missing", "part-0.parquet")]})
    assert store.keys("data") == []
    assert store.keys("control") == []


def other_disk() -> Path:
    """A folder of another file system than the temporary folder's, to be removed."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("no second file system on this machine")
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.mark.parametrize("linked", ["data", "data/dt=1", "control", "control/publishing"])
def test_an_output_on_two_file_systems_is_told_before_anything_is_written(linked, tmp_path):
    elsewhere = other_disk()
    try:
        (tmp_path / "out" / linked).parent.mkdir(parents=True)
        (tmp_path / "out" / linked).symlink_to(elsewhere)
        (tmp_path / "out" / "control").mkdir(exist_ok=True)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match="expected the same file system as control/, found another"):
            LocalStore(tmp_path / "out").check_rename("data/dt=1")
        assert sorted(tmp_path.rglob("*")) == before
        assert not any(elsewhere.iterdir())
    finally:
        shutil.rmtree(elsewhere)


def test_an_output_that_is_a_link_to_another_disk_is_as_good_as_any(tmp_path):
    elsewhere = other_disk()
    try:
        (tmp_path / "out").symlink_to(elsewhere)
        store = LocalStore(tmp_path / "out")
        store.check_rename("data/dt=1")
        store.put("control/x/p0", b"0")
        assert store.publish("data/dt=1", {"run=1": [("control/x/p0", "part-0.parquet")]})
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: data.symlink_to("/nowhere/at/all"), "expected a folder, found a link to nothing"),
        (lambda data: data.write_text(""), "expected a folder, found a file"),
    ],
)
def test_a_folder_that_nothing_can_be_renamed_into_is_told(make, said, tmp_path):
    make(tmp_path / "data")
    with pytest.raises(ConfigError, match=said):
        LocalStore(tmp_path).check_rename("data/dt=1")


def test_a_rename_that_crosses_disks_after_all_is_a_matter_of_configuration(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    store = LocalStore(tmp_path)
    store.put("control/x/p0", b"0")
    monkeypatch.setattr(os, "rename", refuse)
    for call in (
        lambda: store.check_rename("data/dt=1"),
        lambda: store.publish("data/dt=1", {"run=1": [("control/x/p0", "part-0.parquet")]}),
    ):
        with pytest.raises(ConfigError, match="found another"):
            call()


@pytest.mark.parametrize(
    "root", ["~/out", "file://~/out", "~root/../{}/out", "file://{}/out", "file://localhost{}/out"]
)
def test_an_output_lies_where_its_path_says(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert os.path.realpath(open_store(root.format(tmp_path)).root) == str(tmp_path / "out")


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
        with pytest.raises(ConfigError, match="expected a folder, found a file"):
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


def test_an_azure_prefix_is_a_store_and_without_an_account_a_config_error(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="expected the storage account in AZURE_STORAGE_ACCOUNT_NAME, found none"):
        open_store("az://reviews/scored")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    assert open_store("az://reviews/scored/").uri("data") == "az://reviews/scored/data"


def test_a_server_without_tls_that_the_environment_names_is_talked_to(s3_environment, monkeypatch, tmp_path):
    for name, value in s3_environment.items():
        if name != "AWS_ALLOW_HTTP":
            monkeypatch.setenv(name, value)
    store = open_store(f"s3://bertray/{tmp_path.name}")
    store.put("a", b"1")
    assert store.get("a") == b"1"


@pytest.mark.parametrize("put", [LocalStore.put, LocalStore.put_new])
def test_a_value_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(put, tmp_path, monkeypatch):
    target, synced = tmp_path / "output" / "folder" / "key", []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.is_dir(), path.parent, target.exists(), path.is_dir() or path.read_bytes() == b"value"))

    monkeypatch.setattr(os, "fsync", fsync)
    put(LocalStore(tmp_path / "output"), "folder/key", b"value")
    assert synced == [(False, target.parent, False, True), (True, tmp_path / "output", True, True)]


def test_keys_begin_where_they_were_asked_for_whatever_a_store_lists(monkeypatch):
    """Asked to begin at the last key of a folder, Azure's emulator lists all of it: a ledger would grow for ever."""
    import obstore
    from obstore.store import MemoryStore

    from bertray.io import object_store

    memory, listed = MemoryStore(), obstore.list
    monkeypatch.setattr(object_store, "connect", lambda _root: memory)
    monkeypatch.setattr(obstore, "list", lambda store, prefix, offset: listed(store, prefix=prefix))
    store = open_store("s3://bucket/out")
    for key in ("c/1", "c/2", "c/3"):
        store.put(key, b"")
    assert [store.keys("c", after=key) for key in ("", "c/1", "c/3")] == [["c/1", "c/2", "c/3"], ["c/2", "c/3"], []]
