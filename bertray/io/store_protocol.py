"""The interface of a store of outputs, with put-if-absent as its only promise of order.

Keys are relative, with forward slashes. A reader never sees half a value: files are written aside and linked or
renamed into place, objects are uploaded in one request.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

SUCCESS = "_SUCCESS"
_PUBLISHED = re.compile(rf"run=\d+/({SUCCESS}|part-[^/]*\.parquet)")
PUBLISHING = "control/publishing"  # folders that are about to be renamed into place
TRASH = "control/trash"  # folders that a later version took the place of


@dataclass(frozen=True)
class StoredFile:
    """One value as a listing shows it, temporary files included.

    Args:
        etag: the store's own tag of the content, as `Store.put` returned it; None on a file system.
    """

    key: str
    size_bytes: int
    modified: datetime
    etag: str | None = None


Runs = Mapping[str, Sequence[tuple[str, str]]]


class Store(Protocol):
    """A folder or prefix that outputs are written to; `root` is the path or URI that keys are relative to."""

    root: str
    put_new_is_atomic: bool  # False once the store turned out to have nothing to build put_new on
    num_threads: int  # requests that it takes at once, see `io.pool`

    def put(self, key: str, value: bytes) -> str | None:
        """Write or overwrite one value, durably; returns the store's tag of the content, if it has such."""

    def put_new(self, key: str, value: bytes) -> bool:
        """Write a value only if the key is absent; False when it is there. Exactly one of many racers gets True."""

    def get(self, key: str) -> bytes:
        """Read a value; FileNotFoundError when it is absent."""

    def digest(self, key: str) -> str:
        """Read a value for its sha256, without holding it; FileNotFoundError when it is absent."""

    def exists(self, key: str) -> bool:
        """Find out whether there is a value under the key."""

    def keys(self, prefix: str, *, after: str = "") -> list[str]:
        """Every key below `prefix/` (empty: below the root), sorted; of them those behind the key `after`."""

    def delete(self, key: str) -> None:
        """Remove a value; absent is fine."""

    def listing(self, prefix: str) -> list[StoredFile]:
        """Every value below `prefix/`, also what a writer that died left half-written; sorted by key."""

    def publish(
        self, folder: str, runs: Runs, *, settled: Collection[str] = (), obsolete: Collection[str] = ()
    ) -> bool:
        """Make some runs the content of a slot's folder, each with a zero-byte `_SUCCESS`.

        May run any number of times, also at once. On a file system a run appears in one step, and so do all of them
        where something is obsolete.

        Args:
            folder: of the slot.
            runs: of each run, by the name of its folder, the staged keys and the names that readers see.
            settled: runs that were published before; what is missing of them stays missing.
            obsolete: `run/name` of values that go.

        Returns:
            False when the folder holds other parts: a later publication was there, and nothing was changed.
        """

    def uri(self, key: str) -> str:
        """Absolute path or URI of a key, for readers."""


def is_temporary(key: str) -> bool:
    """Whether a writer on a file system has not renamed it yet."""
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


def wanted_names(runs: Runs) -> set[str]:
    """`run/name` of every part and marker of some runs."""
    return {f"{run}/{name}" for run, staged in runs.items() for name in (SUCCESS, *(name for _, name in staged))}


def published_names(keys: Sequence[str], folder: str) -> set[str]:
    """`run/name` of the parts and markers below a slot; what else lies there is none of ours."""
    names = (key.removeprefix(f"{folder}/") for key in keys)
    return {name for name in names if _PUBLISHED.fullmatch(name)}


def names_of(run: str, names: Collection[str]) -> set[str]:
    """The names below the folder of one run."""
    return {name for name in names if name.startswith(f"{run}/")}
