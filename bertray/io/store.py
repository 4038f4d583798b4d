"""One small interface to a folder or an object-store prefix, with put-if-absent as its only promise of order.

Keys are relative, with forward slashes. A reader never sees half a value: files are written aside and linked or
renamed into place, objects are uploaded in one request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bertray.errors import ConfigError, InfrastructureError
from bertray.io import faults
from bertray.paths import is_uri, local_path

OBJECT_STORE_SCHEMES = ("s3", "gs")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
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


def open_store(root: str) -> Store:
    """Store below a local folder (a path, or `file://`), or an `s3://` / `gs://` prefix.

    Raises:
        ConfigError: the scheme is not supported, or there is no bucket in it.
    """
    if not is_uri(root):
        return LocalStore(local_path(root))
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

    def publish(
        self, folder: str, runs: Runs, *, settled: Collection[str] = (), obsolete: Collection[str] = ()
    ) -> bool:
        target, wanted = self._path / folder, _wanted(runs)
        aside = self._path / PUBLISHING / uuid.uuid4().hex
        with _storage_errors(target):
            try:
                while True:
                    with _opened(target) as slot:
                        found = _published(self.keys(folder), folder)
                        if not found <= {*wanted, *obsolete}:
                            return False
                        missing = [run for run in runs if run not in settled and not _of(run, wanted) <= found]
                        broken = [run for run in missing if _of(run, found)]
                        if not missing and found.isdisjoint(obsolete):
                            return True
                        if slot is None or broken or not found.isdisjoint(obsolete):
                            self._replace_slot(target, aside, runs, settled, slot)
                        elif _is_still(slot, target):
                            self._add_run(target, aside, missing[0], runs[missing[0]], slot)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _replace_slot(self, target: Path, aside: Path, runs: Runs, settled: Collection[str], slot: int | None) -> None:
        """Exchange the whole folder of a slot, unless another one has come in its place."""
        shutil.rmtree(aside, ignore_errors=True)
        for run, staged in runs.items():
            self._stage_aside(aside / run, staged, target / run, may_lack=run in settled)
        if slot is not None:
            if not _is_still(slot, target):
                return
            self._to_trash(target)
            faults.point("publish.between_renames")
        if runs:
            _sync_folder(aside)
            self._rename_into(aside, target)

    def _add_run(self, target: Path, aside: Path, run: str, staged: Sequence[tuple[str, str]], slot: int) -> None:
        """One run beside those of its slot. In a folder that is replaced meanwhile, it goes where that one goes."""
        shutil.rmtree(aside, ignore_errors=True)
        self._stage_aside(aside / run, staged, target / run)
        self._rename_into(aside / run, target / run, within=slot)

    def _stage_aside(
        self, aside: Path, staged: Sequence[tuple[str, str]], in_place: Path, *, may_lack: bool = False
    ) -> None:
        aside.mkdir(parents=True)
        for key, name in staged:
            source = next((path for path in (self._path / key, in_place / name) if path.is_file()), None)
            if source is not None:
                _link_or_copy(source, aside / name)
            elif not may_lack:
                raise _lost(self.uri(key))
            faults.point("publish.half")
        (aside / SUCCESS).touch()
        _sync_folder(aside)

    def _rename_into(self, source: Path, target: Path, *, within: int | None = None) -> None:
        """One rename: a reader sees all of it or nothing. A folder that is there already stays."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if within is None:
                source.rename(target)
                _sync_folder(target.parent)
            else:
                os.rename(source, target.name, dst_dir_fd=within)
                os.fsync(within)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def check_folder(self, folder: str) -> Path:
        """The folder, or the first of those above it that is there.

        Raises:
            ConfigError: nothing can be created in it.
        """
        return _nearest_folder(self._path / folder)

    def check_rename(self, folder: str) -> None:
        """Find out whether folders can be renamed from `control/` to a place below a folder; changes nothing.

        Raises:
            ConfigError: that folder, or one above it, is on another file system, cannot be written, or is a link to
                nothing.
        """
        source, target = self.check_folder(PUBLISHING), self.check_folder(folder)
        probe = f"probe-{uuid.uuid4().hex}"
        with _storage_errors(target, writes=True), contextlib.suppress(FileNotFoundError):
            (source / probe).rename(target / probe)  # mounts are told from each other before names are looked up
        if source.stat().st_dev != target.stat().st_dev:
            raise _other_file_system(target)

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
            batches: Iterator[list[dict[str, Any]]] = obstore.list(self._store, prefix=f"{prefix}/" if prefix else None)
            found = [StoredFile(e["path"], e["size"], e["last_modified"]) for batch in batches for e in batch]
            return sorted(found, key=lambda file: file.key)

    def delete(self, key: str) -> None:
        import obstore

        with _storage_errors(self.uri(key)):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def publish(
        self, folder: str, runs: Runs, *, settled: Collection[str] = (), obsolete: Collection[str] = ()
    ) -> bool:
        with _storage_errors(self.uri(folder)):
            return publish_by_copy(self, folder, runs, settled=settled, obsolete=obsolete)

    def copy(self, source: str, target: str) -> None:
        import obstore

        with _storage_errors(self.uri(source)):
            obstore.copy(self._store, source, target)


class CopyingStore(Store, Protocol):
    """A store without rename."""

    def copy(self, source: str, target: str) -> None:
        """Copy one value; FileNotFoundError when it is absent."""


def publish_by_copy(
    store: CopyingStore, folder: str, runs: Runs, *, settled: Collection[str], obsolete: Collection[str]
) -> bool:
    """`Store.publish` where a value is the largest thing that appears in one step."""
    found, wanted = _published(store.keys(folder), folder), _wanted(runs)
    if not found <= {*wanted, *obsolete}:
        return False
    outdated = found & set(obsolete)
    if outdated:  # no marker while old and new stand side by side
        for run in sorted({name.partition("/")[0] for name in found}):
            store.delete(f"{folder}/{run}/{SUCCESS}")
    for run, staged in runs.items():
        whole = _of(run, wanted) <= found
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
                        raise _lost(store.uri(key)) from error
            faults.point("publish.half")
        if not outdated:
            store.put(f"{folder}/{run}/{SUCCESS}", b"")
    for name in sorted(outdated):
        store.delete(f"{folder}/{name}")
    if outdated:
        for run in runs:
            store.put(f"{folder}/{run}/{SUCCESS}", b"")
    return True


def _wanted(runs: Runs) -> set[str]:
    return {f"{run}/{name}" for run, staged in runs.items() for name in (SUCCESS, *(name for _, name in staged))}


def _published(keys: Sequence[str], folder: str) -> set[str]:
    """`run/name` of the parts and markers below a slot; what else lies there is none of ours."""
    names = (key.removeprefix(f"{folder}/") for key in keys)
    return {name for name in names if _PUBLISHED.fullmatch(name)}


def _of(run: str, names: Collection[str]) -> set[str]:
    return {name for name in names if name.startswith(f"{run}/")}


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
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            raise _other_file_system(self._where) from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise ConfigError(
                f"{_file_in_place(self._where)}: expected a folder, found a file.", "Choose another `output`."
            ) from error
        if isinstance(error, OSError) or type(error).__module__.startswith("obstore"):
            raise InfrastructureError(
                f"{self._where}: the storage failed: {_words(error)}.",
                "Check the storage, then run the same command again.",
            ) from error


def _file_in_place(where: object) -> object:
    """The file that stands where a folder should be, at or above a local path."""
    path = Path(str(where))
    return next((str(above) for above in (path, *path.parents) if above.is_file()), where)


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


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of a folder, to name it by however it is renamed; None when there is none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_still(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _nearest_folder(path: Path) -> Path:
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise ConfigError(
            f"{nearest}: expected a folder, found {'a link to nothing' if nearest.is_symlink() else 'a file'}.",
            "Mount what it stands for, or choose another `output`.",
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{nearest}: expected a writable output, found one that cannot be written.",
            "Choose another `output`, or see to the rights.",
        )
    return nearest


def _other_file_system(where: object) -> ConfigError:
    return ConfigError(
        f"{where}: expected the same file system as control/, found another: rows could not be shown in one step.",
        "Keep the whole output on one file system; `output` itself may be a link to another disk.",
    )


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
