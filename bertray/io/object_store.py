"""Values below a prefix of an object store, outputs and inputs alike: single requests are atomic, nothing is renamed.

Retries are those of the client, see `connections.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from bertray.io import faults
from bertray.io.connections import connect
from bertray.io.failures import lost, storage_errors
from bertray.io.pool import ItemT, each_in_pool
from bertray.io.store_protocol import SUCCESS, Runs, Store, StoredFile, names_of, published_names, wanted_names


class ObjectStore:
    """A prefix of an S3-compatible or Google bucket, or of an Azure container, through obstore."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.put_new_is_atomic = True
        self.num_threads = 32
        self._store = connect(root)

    def uri(self, key: str) -> str:
        return f"{self.root}/{key}"

    def put(self, key: str, value: bytes) -> str | None:
        import obstore

        with storage_errors(self.uri(key), writes=True):
            return _tag(obstore.put(self._store, key, value))

    def put_new(self, key: str, value: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with storage_errors(self.uri(key), writes=True):
            try:
                obstore.put(self._store, key, value, mode="create")
                return True
            except AlreadyExistsError:
                pass
            except (NotSupportedError, NotImplementedError):
                self.put_new_is_atomic = False
                if self.exists(key):
                    return False
                obstore.put(self._store, key, value)
                return True
        try:
            # The client may have retried a request whose reply was lost: what is stored decides.
            return self.get(key) == value
        except FileNotFoundError:
            return False  # it was there, and somebody has removed it since

    def get(self, key: str) -> bytes:
        import obstore

        with storage_errors(self.uri(key)):
            return bytes(obstore.get(self._store, key).bytes())

    def digest(self, key: str) -> str:
        import obstore

        digest = hashlib.sha256()
        with storage_errors(self.uri(key)):
            for piece in obstore.get(self._store, key).stream():
                digest.update(piece)
        return digest.hexdigest()

    def exists(self, key: str) -> bool:
        try:
            self.status(key)
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str, *, after: str = "") -> list[str]:
        return [file.key for file in self._listed(prefix, after)]

    def listing(self, prefix: str) -> list[StoredFile]:
        return self._listed(prefix, "")

    def _listed(self, prefix: str, after: str) -> list[StoredFile]:
        import obstore

        with storage_errors(self.uri(prefix)):
            batches: Iterator[list[dict[str, Any]]] = obstore.list(
                self._store, prefix=f"{prefix}/" if prefix else None, offset=after or None
            )
            found = sorted((_stored(entry) for batch in batches for entry in batch), key=lambda file: file.key)
            return [file for file in found if file.key > after]  # a store may begin before what it was asked for

    def folder(self, prefix: str) -> list[StoredFile]:
        """Values right below `prefix/`, without those of its folders; sorted by key."""
        import obstore

        with storage_errors(self.uri(prefix)):
            found = obstore.list_with_delimiter(self._store, prefix=f"{prefix}/" if prefix else None)["objects"]
            return sorted(map(_stored, found), key=lambda file: file.key)

    def status(self, key: str) -> StoredFile:
        """Size, time and tag of a value; FileNotFoundError when it is absent."""
        import obstore

        with storage_errors(self.uri(key)):
            return _stored(obstore.head(self._store, key))

    def read(self, key: str, start: int, stop: int, etag: str | None = None) -> tuple[bytes, StoredFile]:
        """Bytes [start, stop) of a value, fewer where it ends, and the value they are of.

        Args:
            etag: of the value; InfrastructureError when another one has come in its place.
        """
        import obstore

        options: dict[str, Any] = {"range": (start, stop)}
        if etag is not None and not etag.startswith("W/"):
            options["if_match"] = f'"{etag}"'
        with storage_errors(self.uri(key)):
            reply = obstore.get(self._store, key, options=options)
            return bytes(reply.bytes()), _stored(reply.meta)

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
    """`Store.publish` where a value is the largest thing that appears in one step: a request a part, in a pool."""
    found, wanted = published_names(store.keys(folder), folder), wanted_names(runs)
    if not found <= {*wanted, *obsolete}:
        return False
    outdated = found & set(obsolete)
    if outdated:  # no marker while old and new stand side by side
        markers = sorted({f"{folder}/{name.partition('/')[0]}/{SUCCESS}" for name in found})
        each_in_pool(store.delete, markers, store.num_threads)
    for run, staged in runs.items():
        whole = names_of(run, wanted) <= found
        if run in settled or (whole and not outdated):
            continue
        if not whole and not outdated and f"{run}/{SUCCESS}" in found:
            store.delete(f"{folder}/{run}/{SUCCESS}")
        missing = [(key, f"{folder}/{run}/{name}") for key, name in staged if f"{run}/{name}" not in found]
        each_in_pool(partial(_copy, store), _with_point(missing, "publish.half"), store.num_threads)
        if not outdated:
            store.put(f"{folder}/{run}/{SUCCESS}", b"")
    if outdated:
        each_in_pool(store.delete, [f"{folder}/{name}" for name in sorted(outdated)], store.num_threads)
        for run in runs:
            store.put(f"{folder}/{run}/{SUCCESS}", b"")
    return True


def _copy(store: CopyingStore, keys: tuple[str, str]) -> None:
    source, target = keys
    try:
        store.copy(source, target)
    except FileNotFoundError as error:
        # Cleared up after another run had put it there: names hold a run's id, so it is the same file.
        if not store.exists(target):
            raise lost(store.uri(source)) from error


def _with_point(items: Iterable[ItemT], point: str) -> Iterator[ItemT]:
    """The items; each passes a fault point once it is on its way, before the next is drawn."""
    for item in items:
        yield item
        faults.point(point)


def _stored(meta: Mapping[str, Any]) -> StoredFile:
    return StoredFile(meta["path"], meta["size"], meta["last_modified"], _tag(meta))


def _tag(meta: Mapping[str, Any]) -> str | None:
    """The store's tag of a content; replies and listings differ in whether it stands in quotes."""
    tag = meta.get("e_tag")
    return None if tag is None else str(tag).strip('"')
