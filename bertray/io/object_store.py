"""Outputs below a prefix of an object store: single requests are atomic, nothing is renamed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

from bertray.io import faults
from bertray.io.failures import lost, storage_errors
from bertray.io.store_protocol import SUCCESS, Runs, Store, StoredFile, names_of, published_names, wanted_names


class ObjectStore:
    """A prefix of an S3-compatible or Google bucket, through obstore."""

    def __init__(self, root: str) -> None:
        from obstore.store import from_url

        self.root = root.rstrip("/")
        self.put_new_is_atomic = True
        self._store: Any = from_url(self.root)

    def uri(self, key: str) -> str:
        return f"{self.root}/{key}"

    def put(self, key: str, value: bytes) -> None:
        import obstore

        with storage_errors(self.uri(key), writes=True):
            obstore.put(self._store, key, value)

    def put_new(self, key: str, value: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with storage_errors(self.uri(key), writes=True):
            try:
                obstore.put(self._store, key, value, mode="create")
            except AlreadyExistsError:
                # The client may have retried a request whose reply was lost: what is stored decides.
                return self.get(key) == value
            except (NotSupportedError, NotImplementedError):
                self.put_new_is_atomic = False
                if self.exists(key):
                    return False
                obstore.put(self._store, key, value)
            return True

    def get(self, key: str) -> bytes:
        import obstore

        with storage_errors(self.uri(key)):
            return bytes(obstore.get(self._store, key).bytes())

    def exists(self, key: str) -> bool:
        import obstore

        try:
            with storage_errors(self.uri(key)):
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str) -> list[str]:
        return [file.key for file in self.listing(prefix)]

    def listing(self, prefix: str) -> list[StoredFile]:
        import obstore

        with storage_errors(self.uri(prefix)):
            batches: Iterator[list[dict[str, Any]]] = obstore.list(self._store, prefix=f"{prefix}/" if prefix else None)
            found = [StoredFile(e["path"], e["size"], e["last_modified"]) for batch in batches for e in batch]
            return sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        import obstore

        with storage_errors(self.uri(key)):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def publish(
        self, folder: str, runs: Runs, *, settled: Collection[str] = (), obsolete: Collection[str] = ()
    ) -> bool:
        with storage_errors(self.uri(folder)):
            return publish_by_copy(self, folder, runs, settled=settled, obsolete=obsolete)

    def copy(self, source: str, target: str) -> None:
        import obstore

        with storage_errors(self.uri(source)):
            obstore.copy(self._store, source, target)


class CopyingStore(Store, Protocol):
    """A store without rename."""

    def copy(self, source: str, target: str) -> None:
        """Copy one value; FileNotFoundError when it is absent."""


def publish_by_copy(
    store: CopyingStore, folder: str, runs: Runs, *, settled: Collection[str], obsolete: Collection[str]
) -> bool:
    """`Store.publish` where a value is the largest thing that appears in one step."""
    found, wanted = published_names(store.keys(folder), folder), wanted_names(runs)
    if not found <= {*wanted, *obsolete}:
        return False
    outdated = found & set(obsolete)
    if outdated:  # no marker while old and new stand side by side
        for run in sorted({name.partition("/")[0] for name in found}):
            store.delete(f"{folder}/{run}/{SUCCESS}")
    for run, staged in runs.items():
        whole = names_of(run, wanted) <= found
        if run in settled or (whole and not outdated):
            continue
        if not whole and not outdated and f"{run}/{SUCCESS}" in found:
            store.delete(f"{folder}/{run}/{SUCCESS}")
        for key, name in staged:
            if f"{run}/{name}" not in found:
                try:
                    store.copy(key, f"{folder}/{run}/{name}")
                except FileNotFoundError as error:
                    # Cleared up after another run had put it there: names hold a run's id, so it is the same file.
                    if not store.exists(f"{folder}/{run}/{name}"):
                        raise lost(store.uri(key)) from error
            faults.point("publish.half")
        if not outdated:
            store.put(f"{folder}/{run}/{SUCCESS}", b"")
    for name in sorted(outdated):
        store.delete(f"{folder}/{name}")
    if outdated:
        for run in runs:
            store.put(f"{folder}/{run}/{SUCCESS}", b"")
    return True
