"""Copies of files of an object store on this machine: fetched once, whichever of its processes is first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bertray.io.cache import Cache
from bertray.io.pool import each_in_pool
from bertray.io.store import Store
from bertray.io.store_protocol import StoredFile


@dataclass(frozen=True)
class LocalCopies:
    """Some files of a store in this machine's cache.

    Args:
        store: that holds them.
        files: as a listing shows them.
        kind: of the cache.
    """

    store: Store
    files: Sequence[StoredFile]
    kind: str

    @property
    def name(self) -> str:
        """Digest of place, size and tag of each file: what changes in the store is fetched anew."""
        state = [(file.key, file.size_bytes, file.etag, file.modified.isoformat()) for file in self.files]
        return hashlib.sha256(json.dumps([self.store.root, state]).encode()).hexdigest()[:16]

    def folder(self) -> Path:
        """Folder with the files under their keys.

        Raises:
            OSError: no home to keep a cache in, no room, or a file cannot be read.
        """
        return Cache.of(self.kind).entry(self.name, self._fetch)

    def remove(self) -> None:
        """Remove the copies; a process that has mapped them keeps them."""
        Cache.of(self.kind).remove(self.name)

    def _fetch(self, target: Path) -> None:
        target.mkdir()
        each_in_pool(partial(self._fetch_one, target), [file.key for file in self.files], self.store.num_threads)

    def _fetch_one(self, target: Path, key: str) -> None:
        path = target / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.store.get(key))
