"""One small interface to a folder or an object-store prefix, with put-if-absent as its only promise of order.

Keys are relative, with forward slashes. A reader never sees half a value: files are written aside and linked or
renamed into place, objects are uploaded in one request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from bertray.errors import ConfigError, InfrastructureError

OBJECT_STORE_SCHEMES = ("s3", "gs")


class Store(Protocol):
    """What the commit protocol needs of a store; `root` is the folder or URI that keys are relative to."""

    root: str

    def put(self, key: str, value: bytes) -> None:
        """Write or overwrite one value, durably."""

    def put_new(self, key: str, value: bytes) -> bool:
        """Write a value only if the key is absent; False when it is there. Exactly one of many racers gets True."""

    def get(self, key: str) -> bytes:
        """Read a value; FileNotFoundError when it is absent."""

    def exists(self, key: str) -> bool:
        """Is there a value under the key?"""

    def keys(self, prefix: str) -> list[str]:
        """Every key below `prefix/`, sorted."""

    def delete(self, key: str) -> None:
        """Remove a value; absent is fine."""

    def publish(self, staged: list[tuple[str, str]], folder: str) -> None:
        """Make the staged `(key, name)` values visible as `folder/name`, with a zero-byte `_SUCCESS`; may run twice."""

    def uri(self, key: str) -> str:
        """Absolute path or URI of a key, for readers."""


def is_uri(path: str) -> bool:
    return "://" in path


def open_store(root: str) -> Store:
    """Store below a local folder or an `s3://` / `gs://` prefix.

    Raises:
        ConfigError: the scheme is not supported, or there is no bucket in it.
    """
    if not is_uri(root):
        return LocalStore(Path(root))
    scheme = root.partition("://")[0].lower()
    if scheme not in OBJECT_STORE_SCHEMES:
        raise ConfigError(
            f"{root}: expected a folder, s3:// or gs://, found {scheme}://.", "Give an output of one of these kinds."
        )
    from obstore.exceptions import BaseError

    remedy = f"Write it as {scheme}://bucket/folder."
    if not root.partition("://")[2].partition("/")[0]:
        raise ConfigError(f"{root}: expected a bucket, found none.", remedy)
    try:
        return ObjectStore(root)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{root}: {str(error).splitlines()[0]}.", remedy) from error


class LocalStore:
    """A folder on a POSIX file system."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.absolute())
        self._path = Path(self.root)

    def uri(self, key: str) -> str:
        return str(self._path / key)

    def put(self, key: str, value: bytes) -> None:
        target = self._path / key
        with _storage_errors(target, writes=True):
            temporary = self._write_aside(target, value)
            temporary.replace(target)
            _sync_folder(target.parent)

    def put_new(self, key: str, value: bytes) -> bool:
        target = self._path / key
        with _storage_errors(target, writes=True):
            temporary = self._write_aside(target, value)
            try:
                # link(2) fails if the name exists, on NFS too; rename would silently win.
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return True

    def _write_aside(self, target: Path, value: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def get(self, key: str) -> bytes:
        path = self._path / key
        with _storage_errors(path):
            return path.read_bytes()

    def exists(self, key: str) -> bool:
        return stat.S_ISREG(self._mode(key))

    def _mode(self, key: str) -> int:
        """Mode bits of what lies under a key, 0 when nothing does; a ConfigError below a file."""
        path = self._path / key
        try:
            with _storage_errors(path):
                return path.stat().st_mode
        except FileNotFoundError:
            return 0

    def keys(self, prefix: str) -> list[str]:
        folder = self._path / prefix
        if not stat.S_ISDIR(self._mode(prefix)):
            return []
        return sorted(
            str(path.relative_to(self._path))
            for path in folder.rglob("*")
            if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".tmp"))
        )

    def delete(self, key: str) -> None:
        path = self._path / key
        with _storage_errors(path):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or gone already
            path.parent.rmdir()

    def publish(self, staged: list[tuple[str, str]], folder: str) -> None:
        target = self._path / folder
        if target.exists():
            return
        aside = self._path / "control" / f"pub-{uuid.uuid4().hex[:8]}"
        with _storage_errors(target):
            aside.mkdir(parents=True)
            try:
                for key, name in staged:
                    if not (self._path / key).is_file():
                        raise InfrastructureError(
                            f"{self._path / key}: committed, but no longer there.", "Restore it from a backup."
                        )
                    _link_or_copy(self._path / key, aside / name)
                (aside / "_SUCCESS").touch()
                _sync_folder(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    aside.rename(target)  # one rename: a reader sees all of it or nothing
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise  # otherwise another run published the same ledger entry first
                _sync_folder(target.parent)
            finally:
                shutil.rmtree(aside, ignore_errors=True)


class ObjectStore:
    """A prefix of an S3-compatible or Google bucket, through obstore."""

    def __init__(self, root: str) -> None:
        from obstore.store import from_url

        self.root = root.rstrip("/")
        self._store: Any = from_url(self.root)

    def uri(self, key: str) -> str:
        return f"{self.root}/{key}"

    def put(self, key: str, value: bytes) -> None:
        import obstore

        with _storage_errors(key):
            obstore.put(self._store, key, value)

    def put_new(self, key: str, value: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with _storage_errors(key):
            try:
                obstore.put(self._store, key, value, mode="create")
            except AlreadyExistsError:
                # The client may have retried a request whose reply was lost: what is stored decides.
                return self.get(key) == value
            return True

    def get(self, key: str) -> bytes:
        import obstore

        with _storage_errors(key):
            return bytes(obstore.get(self._store, key).bytes())

    def exists(self, key: str) -> bool:
        import obstore

        try:
            with _storage_errors(key):
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str) -> list[str]:
        import obstore

        with _storage_errors(prefix):
            batches: Iterator[list[dict[str, Any]]] = obstore.keys(self._store, prefix=f"{prefix}/")
            return sorted(entry["path"] for batch in batches for entry in batch)

    def delete(self, key: str) -> None:
        import obstore

        with _storage_errors(key):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def publish(self, staged: list[tuple[str, str]], folder: str) -> None:
        import obstore

        marker = f"{folder}/_SUCCESS"
        if self.exists(marker):
            return
        with _storage_errors(folder):
            for key, name in staged:
                obstore.copy(self._store, key, f"{folder}/{name}")
            obstore.put(self._store, marker, b"")


class _storage_errors:  # noqa: N801 - reads as a word in a with statement
    """Turn the operating system's and the store's refusals into errors with an exit code."""

    def __init__(self, where: object, *, writes: bool = False) -> None:
        self._where, self._writes = where, writes

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, ConfigError | InfrastructureError):
            return
        if isinstance(error, FileNotFoundError):
            if self._writes:
                raise ConfigError(f"{self._where}: cannot be created here.", "Choose another `output`.") from error
            return
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
            raise ConfigError(
                f"{self._where}: expected a writable output, found {_words(error)}.", "Choose another `output`."
            ) from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise ConfigError(
                f"{self._where}: expected a folder, found a file in its place.", "Choose another `output`."
            ) from error
        if isinstance(error, OSError) or type(error).__module__.startswith("obstore"):
            raise InfrastructureError(
                f"{self._where}: the storage failed: {_words(error)}.",
                "Check the storage, then run the same command again.",
            ) from error


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
