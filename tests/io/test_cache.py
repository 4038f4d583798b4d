"""The cache of a user: entries whole or not there, of this user alone, within a limit."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bertray.io.cache import IN_USE_S, LIMIT_ENV, Cache, UnsafeCache, cache_root, limit_bytes


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return Cache.of("models")


def writes(content: bytes):
    return lambda path: path.write_bytes(content)


def folder_of(content: bytes):
    def make(path: Path) -> None:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_bytes(content)

    return make


def used(path: Path, seconds_ago: float) -> None:
    os.utime(path, (time.time() - seconds_ago, path.stat().st_mtime))


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_variable_counts_as_none(value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_root() == tmp_path / ".cache" / "bertray"


def test_folders_belong_to_this_user_alone_and_an_entry_is_made_once(cache):
    assert cache.existing("a") is None
    assert not cache.root.exists()  # looking makes nothing
    path = cache.entry("a", folder_of(b"content"))
    assert (path / "inner" / "file").read_bytes() == b"content"
    assert [oct(each.stat().st_mode & 0o777) for each in (cache.root, cache.folder)] == ["0o700", "0o700"]
    assert cache.entry("a", lambda _: pytest.fail("made twice")) == path == cache.existing("a")
    assert list(cache.folder.iterdir()) == [path]


def test_a_folder_of_an_earlier_version_becomes_private(cache):
    cache.root.mkdir(parents=True, mode=0o755)
    cache.entry("a", writes(b"x"))
    assert cache.root.stat().st_mode & 0o777 == 0o700


def test_what_fails_leaves_nothing(cache):
    def make(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.entry("a", make)
    assert list(cache.folder.iterdir()) == []


def test_of_several_that_want_an_entry_at_once_one_makes_it_and_the_others_wait(cache):
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.05)
        folder_of(b"same")(path)

    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(cache.entry("a", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert paths == [cache.folder / "a"] * 4
    assert list(cache.folder.iterdir()) == [cache.folder / "a"]
    cache.remove("a")
    assert list(cache.folder.iterdir()) == []
    cache.remove("a")


def test_of_two_that_make_an_entry_at_once_where_there_are_no_locks_one_is_kept(cache, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("bertray.io.cache.fcntl.flock", no_locks)
    barrier = threading.Barrier(2)

    def make(path: Path) -> None:
        folder_of(b"same")(path)
        barrier.wait(10)

    threads = [threading.Thread(target=cache.entry, args=("a", make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.folder / "a" / "inner" / "file").read_bytes() == b"same"
    assert len(list(cache.folder.iterdir())) == 1


def test_what_other_processes_remove_while_this_one_looks_for_room_is_no_error(cache):
    cache.entry("a", folder_of(b"x"))
    for name in (".making-gone", "gone"):  # listed, and nothing is there any more
        (cache.folder / name).symlink_to("nowhere")
    (cache.folder / "a" / "gone").symlink_to("nowhere")
    assert cache.entry("b", writes(b"y")).read_bytes() == b"y"


@pytest.mark.parametrize("what", ["root", "folder", "entry"])
def test_what_others_can_write_to_is_refused_with_its_path(cache, what):
    entry = cache.entry("a", writes(b"x"))
    path = {"root": cache.root, "folder": cache.folder, "entry": entry}[what]
    path.chmod(0o777)
    with pytest.raises(UnsafeCache, match=f"{path} can be written by others; remove it"):
        cache.existing("a")


def test_what_another_user_owns_is_refused_when_it_is_read_and_before_it_is_written(cache, monkeypatch):
    cache.entry("a", writes(b"x"))
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    for use in (lambda: cache.existing("a"), lambda: cache.entry("b", writes(b"x"))):
        with pytest.raises(UnsafeCache, match="this is user 4242"):
            use()


def test_a_shared_cache_asks_for_no_owner(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "shared" / "datasets", tmp_path / "shared", private=False)
    cache.entry("a", writes(b"x")).chmod(0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert cache.existing("a") == tmp_path / "shared" / "datasets" / "a"


def test_the_least_recently_used_entries_of_all_kinds_go_when_the_limit_is_reached(cache, monkeypatch):
    monkeypatch.setenv(LIMIT_ENV, "0.000003")  # 3,000 bytes
    other = Cache.of("kernels")
    entries = {
        "oldest": cache.entry("oldest", folder_of(bytes(1000))),
        "used again": cache.entry("used again", writes(bytes(1000))),
        "library": other.entry("library", writes(bytes(1000))),
        "in use": cache.entry("in use", writes(bytes(1000))),
    }
    for days, name in ((9, "oldest"), (8, "used again"), (3, "library")):
        used(entries[name], days * 86400)
    used(entries["in use"], IN_USE_S / 2)
    changed = entries["used again"].stat().st_mtime_ns
    cache.existing("used again")
    assert entries["used again"].stat().st_mtime_ns == changed  # inputs are known by their time of change
    cache.entry("new", writes(bytes(1000)))
    assert {path.name for path in cache.folder.iterdir()} == {"used again", "in use", "new"}
    assert list(other.folder.iterdir()) == []


def test_what_a_killed_process_left_goes_after_a_day(cache):
    cache.entry("a", writes(b"x"))
    left = cache.folder / ".making-killed"
    left.mkdir()
    cache.entry("b", writes(b"x"))
    assert left.is_dir()
    os.utime(left, (0, 0))
    cache.entry("c", writes(b"x"))
    assert not left.exists()


def test_a_limit_that_is_no_number_is_the_default(monkeypatch):
    monkeypatch.setenv(LIMIT_ENV, "much")
    assert limit_bytes() == 20e9
    monkeypatch.setenv(LIMIT_ENV, "0.5")
    assert limit_bytes() == 5e8
