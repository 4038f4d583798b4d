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
    """One value as a listing shows it, temporary files included."""

    key: str
    size_bytes: int
    modified: datetime


Runs = Mapping[str, Sequence[tuple[str, str]]]


class Store(Protocol):
    """What the commit protocol needs of a store; `root` is the folder or URI that keys are relative to."""

    root: str
    put_new_is_atomic: bool  # False once the store turned out to have nothing to build put_new on

    def put(self, key: str, value: bytes) -> None:
        """Write or overwrite one value, durably."""

    def put_new(self, key: str, value: bytes) -> bool:
        """Write a value only if the key is absent; False when it is there. Exactly one of many racers gets True."""

    def get(self, key: str) -> bytes:
        """Read a value; FileNotFoundError when it is absent."""

    def exists(self, key: str) -> bool:
        """Is there a value under the key?"""

    def keys(self, prefix: str) -> list[str]:
        """Every key below `prefix/`, sorted; below the root where `prefix` is empty."""

    def delete(self, key: str) -> None:
        """Remove a value; absent is fine."""

    def listing(self, prefix: str) -> list[StoredFile]:
        """Everything below `prefix/`, also what a writer that died left half-written; sorted by key."""

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
    """Is it a file that a writer on a file system has not renamed yet?"""
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


def wanted_names(runs: Runs) -> set[str]:
    return {f"{run}/{name}" for run, staged in runs.items() for name in (SUCCESS, *(name for _, name in staged))}


def published_names(keys: Sequence[str], folder: str) -> set[str]:
    """`run/name` of the parts and markers below a slot; what else lies there is none of ours."""
    names = (key.removeprefix(f"{folder}/") for key in keys)
    return {name for name in names if _PUBLISHED.fullmatch(name)}


def names_of(run: str, names: Collection[str]) -> set[str]:
    return {name for name in names if name.startswith(f"{run}/")}
