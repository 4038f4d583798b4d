"""Copies of stored files on this machine: fetched once by whoever is first, anew when they change."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from bertray.io.local_copies import LocalCopies
from bertray.io.store import LocalStore


class Counting(LocalStore):
    """A store that is slow, and counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, key: str) -> bytes:
        self.read.append(key)
        time.sleep(0.01)
        return super().get(key)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Counting:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    store = Counting(tmp_path / "out")
    for name in ("a", "b/c"):
        store.put(f"tokens/{name}.arrow", name.encode() * 100)
    return store


def copies(store: Counting) -> LocalCopies:
    return LocalCopies(store, store.listing("tokens"), "tokens")


def test_ranks_of_a_machine_that_start_together_fetch_each_file_once(store):
    folders: list[Path] = []
    ranks = [threading.Thread(target=lambda: folders.append(copies(store).folder())) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(set(folders)) == 1
    assert sorted(store.read) == ["tokens/a.arrow", "tokens/b/c.arrow"]
    assert (folders[0] / "tokens" / "b" / "c.arrow").read_bytes() == b"b/c" * 100


def test_a_file_that_changes_is_fetched_anew(store):
    before = copies(store).folder()
    store.put("tokens/a.arrow", b"other")
    after = copies(store).folder()
    assert before != after
    assert (after / "tokens" / "a.arrow").read_bytes() == b"other"


def test_copies_that_are_removed_stay_with_who_has_mapped_them(store):
    folder = copies(store).folder()
    mapped = pa.memory_map(str(folder / "tokens" / "a.arrow"))
    copies(store).remove()
    assert not folder.exists()
    assert mapped.read() == b"a" * 100
    copies(store).remove()
