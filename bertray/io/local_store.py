"""Outputs in a folder of a POSIX file system: written aside, fsynced, linked or renamed into place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bertray.errors import ConfigError
from bertray.io import faults
from bertray.io.failures import lost, other_file_system, storage_errors
from bertray.io.store_protocol import (
    PUBLISHING,
    SUCCESS,
    TRASH,
    Runs,
    StoredFile,
    is_temporary,
    names_of,
    published_names,
    wanted_names,
)

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStore:
    """A folder on a POSIX file system."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.absolute())
        self.put_new_is_atomic = True
        self.num_threads = 8  # the folder may be mounted over a network
        self._path = Path(self.root)

    def uri(self, key: str) -> str:
        return str(self._path / key)

    def put(self, key: str, value: bytes) -> None:  # a file system has no tag of the content
        target = self._path / key
        with storage_errors(target, writes=True):
            temporary = self._write_aside(target, value)
            temporary.replace(target)
            _sync_folder(target.parent)

    def put_new(self, key: str, value: bytes) -> bool:
        target = self._path / key
        with storage_errors(target, writes=True):
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
        content, half = memoryview(value), len(value) // 2  # not copied: a checkpoint may have gigabytes
        try:
            with temporary.open("wb") as file:
                file.write(content[:half])
                file.flush()
                faults.point("put.half_written")
                file.write(content[half:])
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def get(self, key: str) -> bytes:
        path = self._path / key
        with storage_errors(path):
            return path.read_bytes()

    def digest(self, key: str) -> str:
        path = self._path / key
        with storage_errors(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def exists(self, key: str) -> bool:
        return stat.S_ISREG(self._mode(key))

    def _mode(self, key: str) -> int:
        """Mode bits of what lies under a key, 0 when nothing does; a ConfigError below a file."""
        path = self._path / key
        try:
            with storage_errors(path):
                return path.stat().st_mode
        except FileNotFoundError:
            return 0

    def keys(self, prefix: str, *, after: str = "") -> list[str]:
        found = (file.key for file in self.listing(prefix) if not is_temporary(file.key))
        return [key for key in found if key > after]

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
        with storage_errors(path):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or gone already
            path.parent.rmdir()

    def publish(
        self, folder: str, runs: Runs, *, settled: Collection[str] = (), obsolete: Collection[str] = ()
    ) -> bool:
        target, wanted = self._path / folder, wanted_names(runs)
        aside = self._path / PUBLISHING / uuid.uuid4().hex
        with storage_errors(target):
            try:
                while True:
                    with _opened(target) as slot:
                        found = published_names(self.keys(folder), folder)
                        if not found <= {*wanted, *obsolete}:
                            return False
                        missing = [run for run in runs if run not in settled and not names_of(run, wanted) <= found]
                        broken = [run for run in missing if names_of(run, found)]
                        if not missing and found.isdisjoint(obsolete):
                            return True
                        if slot is None or broken or not found.isdisjoint(obsolete):
                            self._replace_slot(target, aside, runs, settled, slot)
                        elif is_still(slot, target):
                            self._add_run(target, aside, missing[0], runs[missing[0]], slot)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _replace_slot(self, target: Path, aside: Path, runs: Runs, settled: Collection[str], slot: int | None) -> None:
        """Exchange the whole folder of a slot, unless another one has come in its place."""
        shutil.rmtree(aside, ignore_errors=True)
        for run, staged in runs.items():
            self._stage_aside(aside / run, staged, target / run, may_lack=run in settled)
        if slot is not None:
            if not is_still(slot, target):
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
                raise lost(self.uri(key))
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
        with storage_errors(target, writes=True), contextlib.suppress(FileNotFoundError):
            (source / probe).rename(target / probe)  # mounts are told from each other before names are looked up
        if source.stat().st_dev != target.stat().st_dev:
            raise other_file_system(target)

    def _to_trash(self, target: Path) -> None:
        trash = self._path / TRASH / uuid.uuid4().hex
        trash.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another run took it away first
            target.rename(trash)
            os.utime(trash)  # its age counts from now


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


def is_still(descriptor: int, folder: Path) -> bool:
    """Whether a path is still that of the open folder."""
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
