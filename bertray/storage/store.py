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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bertray.errors import ConfigError, InfrastructureError
from bertray.storage import faults

OBJECT_STORE_SCHEMES = ("s3", "gs")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
SUCCESS = "_SUCCESS"
PUBLISHING = "control/publishing"  # folders that are about to be renamed into place
TRASH = "control/trash"  # folders that a later version took the place of


@dataclass(frozen=True)
class StoredFile:
    """One value as a listing shows it, temporary files included."""

    key: str
    size_bytes: int
    modified: datetime


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
        """Every key below `prefix/`, sorted."""

    def delete(self, key: str) -> None:
        """Remove a value; absent is fine."""

    def listing(self, prefix: str) -> list[StoredFile]:
        """Everything below `prefix/`, also what a writer that died left half-written; sorted by key."""

    def publish(self, staged: Sequence[tuple[str, str]], folder: str, obsolete: Collection[str] = ()) -> None:
        """Make the staged `(key, name)` values, and a zero-byte `_SUCCESS`, the content of a folder.

        Values named in `obsolete` go; a folder that holds other names is of a later publication and stays as it is.
        May run any number of times, also at once.
        """

    def unpublish(self, folder: str, obsolete: Collection[str]) -> None:
        """Take away a folder that holds nothing but values named in `obsolete` and `_SUCCESS`."""

    def uri(self, key: str) -> str:
        """Absolute path or URI of a key, for readers."""


def is_uri(path: str) -> bool:
    return "://" in path


def is_temporary(key: str) -> bool:
    """Is it a file that a writer on a file system has not renamed yet?"""
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


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
        self.put_new_is_atomic = True
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
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                # The best that such a file system allows; `single_writer` says that nobody races.
                self.put_new_is_atomic = False
                if target.exists():
                    return False
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return True

    def _write_aside(self, target: Path, value: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(value[: len(value) // 2])
                file.flush()
                faults.point("put.half_written")
                file.write(value[len(value) // 2 :])
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
        return [file.key for file in self.listing(prefix) if not is_temporary(file.key)]

    def listing(self, prefix: str) -> list[StoredFile]:
        folder = self._path / prefix
        if not stat.S_ISDIR(self._mode(prefix)):
            return []
        found = []
        for path in folder.rglob("*"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # another run has just removed it
            if stat.S_ISREG(status.st_mode):
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                found.append(StoredFile(str(path.relative_to(self._path)), status.st_size, modified))
        return sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        path = self._path / key
        with _storage_errors(path):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or gone already
            path.parent.rmdir()

    def publish(self, staged: Sequence[tuple[str, str]], folder: str, obsolete: Collection[str] = ()) -> None:
        target = self._path / folder
        wanted = {name for _, name in staged}
        if self._is_done(target, wanted, obsolete):
            return
        aside = self._path / PUBLISHING / uuid.uuid4().hex
        with _storage_errors(target):
            aside.mkdir(parents=True)
            try:
                for key, name in staged:
                    if not (self._path / key).is_file():
                        raise _lost(self.uri(key))
                    _link_or_copy(self._path / key, aside / name)
                    faults.point("publish.half")
                (aside / SUCCESS).touch()
                _sync_folder(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                while not self._is_done(target, wanted, obsolete):
                    if target.exists():
                        self._to_trash(target)
                        faults.point("publish.between_renames")
                    try:
                        aside.rename(target)  # one rename: a reader sees all of it or nothing
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                            raise  # otherwise another run was first; what it published is looked at again
                _sync_folder(target.parent)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def unpublish(self, folder: str, obsolete: Collection[str]) -> None:
        target = self._path / folder
        with _storage_errors(target):
            if target.is_dir() and _names(target) <= {*obsolete, SUCCESS}:
                self._to_trash(target)

    def _is_done(self, target: Path, wanted: Collection[str], obsolete: Collection[str]) -> bool:
        """Does a folder hold what is wanted, or what a later publication put there?"""
        if not target.is_dir():
            return False
        found = _names(target)
        return found == {*wanted, SUCCESS} or not found <= {*obsolete, SUCCESS}

    def _to_trash(self, target: Path) -> None:
        trash = self._path / TRASH / uuid.uuid4().hex
        trash.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another run took it away first
            target.rename(trash)
            os.utime(trash)  # its age counts from now


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

        with _storage_errors(self.uri(key), writes=True):
            obstore.put(self._store, key, value)

    def put_new(self, key: str, value: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with _storage_errors(self.uri(key), writes=True):
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

        with _storage_errors(self.uri(key)):
            return bytes(obstore.get(self._store, key).bytes())

    def exists(self, key: str) -> bool:
        import obstore

        try:
            with _storage_errors(self.uri(key)):
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str) -> list[str]:
        return [file.key for file in self.listing(prefix)]

    def listing(self, prefix: str) -> list[StoredFile]:
        import obstore

        with _storage_errors(self.uri(prefix)):
            batches: Iterator[list[dict[str, Any]]] = obstore.list(self._store, prefix=f"{prefix}/")
            found = [StoredFile(e["path"], e["size"], e["last_modified"]) for batch in batches for e in batch]
            return sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        import obstore

        with _storage_errors(self.uri(key)):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def publish(self, staged: Sequence[tuple[str, str]], folder: str, obsolete: Collection[str] = ()) -> None:
        import obstore

        wanted = {name for _, name in staged}
        found = self._names(folder)
        if found == {*wanted, SUCCESS} or not found <= {*wanted, *obsolete, SUCCESS}:
            return
        with _storage_errors(self.uri(folder)):
            if found & set(obsolete):
                self.delete(f"{folder}/{SUCCESS}")  # absent while old and new stand side by side
            for key, name in staged:
                try:
                    obstore.copy(self._store, key, f"{folder}/{name}")
                except FileNotFoundError as error:
                    # Cleared up after another run had put it there: names hold a run's id, so it is the same file.
                    if not self.exists(f"{folder}/{name}"):
                        raise _lost(self.uri(key)) from error
                faults.point("publish.half")
            for name in found & set(obsolete):
                self.delete(f"{folder}/{name}")
            obstore.put(self._store, f"{folder}/{SUCCESS}", b"")

    def unpublish(self, folder: str, obsolete: Collection[str]) -> None:
        found = self._names(folder)
        if found <= {*obsolete, SUCCESS}:
            for name in sorted(found, key=lambda name: name != SUCCESS):
                self.delete(f"{folder}/{name}")

    def _names(self, folder: str) -> set[str]:
        return {key.rpartition("/")[2] for key in self.keys(folder)}


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
        if _is_refused(error) and (self._writes or isinstance(error, OSError)):
            raise ConfigError(
                f"{self._where}: expected a writable output, found {_words(error)}.",
                "Choose another `output`, or see to the rights.",
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


def _is_refused(error: BaseException) -> bool:
    """No right to write, on a file system or an object store."""
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return True
    return type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")  # of obstore


def _lost(where: str) -> InfrastructureError:
    return InfrastructureError(f"{where}: committed, but no longer there.", "Restore it from a backup.")


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


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
