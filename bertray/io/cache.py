"""This user's cache on this machine: kernels, models of object stores, data sets of the hub; anything in it can go.

An entry is a file or a folder, made aside and renamed into place, so that it is whole or not there. Folders of the
cache belong to this user alone (mode 0700): a kernel is code, and nobody else may put one there. Where the entries
exceed the limit, those that were used least recently go, but none that was used within the last day.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

LIMIT_ENV = "BERTRAY_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
IN_USE_S = 24 * 3600.0  # an entry that was used so lately may be open in another process
_MAKING = ".making-"  # prefix of what is not whole yet


class UnsafeCache(OSError):
    """A folder or entry of the cache that another user owns or can write to."""


def cache_root() -> Path:
    """`bertray` in this user's cache folder: `$XDG_CACHE_HOME`, else `~/.cache`; an empty variable counts as none.

    Raises:
        OSError: this user has no home.
    """
    import platformdirs

    root = platformdirs.user_cache_path("bertray", appauthor=False)
    if not root.is_absolute():
        raise OSError(f"no home to keep a cache in, found {root}")
    return root


@dataclass(frozen=True)
class Cache:
    """Entries of one kind, such as models.

    Args:
        folder: holds the entries, one below the other entry kinds of `root`.
        root: whose size is limited.
        private: refuse what another user owns or can write to.
    """

    folder: Path
    root: Path
    private: bool = True

    @classmethod
    def of(cls, kind: str) -> Cache:
        """Entries of a kind in this user's cache.

        Raises:
            OSError: this user has no home.
        """
        root = cache_root()
        return cls(root / kind, root)

    def entry(self, name: str, make: Callable[[Path], object]) -> Path:
        """Path of an entry; made when it is not there yet, by whichever process is first, while others wait for it.

        Args:
            name: names the content: another content has another name.
            make: writes the entry, a file or a folder, at the path that it gets.

        Raises:
            UnsafeCache: another user owns the entry or its folder, or can write to them.
            OSError: the entry cannot be written, or whatever else `make` raises.
        """
        if (found := self.existing(name)) is not None:
            return found
        self._make_folder()
        with self._making(name):
            return self.existing(name) or self._made(name, make)

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        target = self.folder / name
        aside = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self.folder))
        try:
            make(aside / name)
            try:
                (aside / name).rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, where there are no locks
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _touch(target)
        self._evict(keep=target)
        return target

    def existing(self, name: str) -> Path | None:
        """Path of an entry that is there, marked as used now; None where it is not.

        Raises:
            UnsafeCache: as `entry`.
        """
        target = self.folder / name
        if not target.exists():
            return None
        if self.private:
            for path in (self.root, self.folder, target):
                _check_owner(path)
        _touch(target)
        return target

    @contextmanager
    def _making(self, name: str) -> Iterator[None]:
        """Let one process of this machine at a time make an entry."""
        path = self.folder / f"{_MAKING}lock-{name}"
        with path.open("a") as lock:
            with suppress(OSError):  # a file system without locks: all make it, and the first one counts
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # whoever waits for it finds the entry, or makes it

    def remove(self, name: str) -> None:
        """Remove an entry; files that a process has mapped stay with it."""
        _remove(self.folder / name)

    def _make_folder(self) -> None:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.root, self.folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.private:
                _check_owner(path)
                if stat.S_IMODE(path.stat().st_mode) != 0o700:  # of an earlier version: 0755
                    path.chmod(0o700)

    def _evict(self, keep: Path) -> None:
        """Remove the least recently used entries of all kinds until the cache is within its limit."""
        limit, now = limit_bytes(), time.time()
        for left in self.root.glob(f"*/{_MAKING}*"):  # by a process that was killed
            with suppress(FileNotFoundError):  # by one that has just ended
                if now - left.stat().st_mtime > IN_USE_S:
                    _remove(left)
        entries = []
        for path in _entries(self.root):
            with suppress(FileNotFoundError):  # another process removes entries too
                entries.append((path.stat().st_atime, _size(path), path))
        total = 0
        for used, size, path in sorted(entries, reverse=True):
            total += size
            if total > limit and path != keep and now - used > IN_USE_S:
                log.info("cache: %s was last used %d days ago and goes", path, (now - used) / 86400)
                _remove(path)
                total -= size


def limit_bytes() -> float:
    """Most bytes of the cache: `$BERTRAY_CACHE_GB`, else 20 GB; what is no number counts as the default."""
    with suppress(ValueError):
        return float(os.environ.get(LIMIT_ENV) or DEFAULT_LIMIT_GB) * 1e9
    return DEFAULT_LIMIT_GB * 1e9


def _check_owner(path: Path) -> None:
    """Raises:
    UnsafeCache: another user owns the path or can write to it, or it is a link.
    """
    found = path.lstat()
    others_write = stat.S_IMODE(found.st_mode) & 0o022
    if found.st_uid == os.geteuid() and not others_write and not stat.S_ISLNK(found.st_mode):
        return
    why = "is a link" if stat.S_ISLNK(found.st_mode) else "can be written by others"
    if found.st_uid != os.geteuid():
        why = f"belongs to user {found.st_uid}, this is user {os.geteuid()}"
    raise UnsafeCache(f"{path} {why}; remove it, or point XDG_CACHE_HOME to a folder of your own")


def _entries(root: Path) -> Iterator[Path]:
    for kind in root.iterdir():
        if kind.is_dir() and not kind.is_symlink():
            yield from (path for path in kind.iterdir() if not path.name.startswith(_MAKING))


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(file.lstat().st_size for file in path.rglob("*"))
    return path.lstat().st_size


def _touch(path: Path) -> None:
    """Note the use of an entry as its time of access; its time of change stays, since inputs are known by theirs."""
    with suppress(OSError):  # a cache that is mounted read-only
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
