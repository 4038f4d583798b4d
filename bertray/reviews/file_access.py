"""Access to bytes of local files and of object stores; failures are told apart from faults of the data."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import re
import zlib
from collections import deque
from typing import IO, Any, cast
from urllib.parse import urlsplit

import pyarrow as pa

from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.io.connections import OBJECT_STORE_SCHEMES, endpoint_variable
from bertray.io.object_store import ObjectStore
from bertray.io.store_protocol import StoredFile
from bertray.paths import local_path

_PIECE_BYTES = 1 << 20
_LEAST_BYTES, _MOST_BYTES, _LARGEST_BYTES = 1 << 16, 4 << 20, 32 << 20  # of a request: least, ahead of a reader, any
_SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", "HOME")  # environment variables that say how a store is reached
_AZURE_HOST = re.compile(r"[\w.-]+@([a-z0-9-]{3,64})\.(?:dfs|blob)\.([a-z0-9.-]+)")  # CONTAINER@ACCOUNT.dfs.CLOUD
_AZURE_CLOUDS = ("core.windows.net", "fabric.microsoft.com")  # whose addresses the client knows
_NO_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)


def scheme_of(path: str) -> str:
    """`s3`, `gs`, `hub`, `file`, ... or an empty string for a local path."""
    if re.match("file:/", path, re.I):  # `file:/folder` is how Java writes file:///folder
        return "file"
    head, separator, _ = path.partition("://")
    return head.lower() if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", head) else ""


def is_remote(path: str) -> bool:
    """Whether an object store holds what a path names."""
    return scheme_of(path) in OBJECT_STORE_SCHEMES


def printable(path: str) -> str:
    r"""A path that can be stored and shown: bytes that are no UTF-8 become `\xe9`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_uri(path: str) -> None:
    """Refuse URIs that name another kind of storage, or carry secrets or endpoints.

    Raises:
        ConfigError: never repeats what stands before an `@`.
    """
    if printable(path) != path:
        raise ConfigError(f"{printable(path)}: expected a path in UTF-8, found other bytes.", "Rename it.")
    scheme = scheme_of(path)
    if scheme in ("", "file", "hub"):
        return
    if scheme not in OBJECT_STORE_SCHEMES:
        raise ConfigError(
            f"{scheme}://: expected a local path, s3://, gs://, az://, abfss:// or hub://, found another kind of "
            "address.",
            "Copy the data to one of these.",
        )
    host = urlsplit(path).netloc
    azure = _AZURE_HOST.fullmatch(host) if scheme in ("abfs", "abfss") else None
    if azure and azure[2] not in _AZURE_CLOUDS:
        account, container = azure[1], host.partition("@")[0]
        raise ConfigError(
            f"{scheme}://: expected a host of Azure below {' or '.join(_AZURE_CLOUDS)}, found {azure[2]}.",
            f"Write az://{container}/folder, and set AZURE_STORAGE_ACCOUNT_NAME={account} and "
            f"AZURE_STORAGE_ENDPOINT=https://{account}.blob.{azure[2]}.",
        )
    if "@" in host and not azure:
        raise ConfigError(
            f"{scheme}://: expected no credentials in the address, found some.",
            "Use the environment, a profile or the machine's role.",
        )
    if re.search(r"\?[^/*]*=", path):
        raise ConfigError(
            f"{path.partition('?')[0]}: expected no options in the address, found {path.partition('?')[1]}.",
            f"Another endpoint is set by the environment variable {endpoint_variable(path)}."
            if endpoint_variable(path)
            else "Write the address without them.",
        )


def full_path(path: str) -> str:
    """A local path as an absolute one; an address of a store as it is."""
    return path if is_remote(path) else str(local_path(path))


def threads_for(path: str) -> int:
    """Requests at once where each has to wait for a store."""
    return bucket_of(path)[0].num_threads if is_remote(path) else 1


def bucket_of(path: str) -> tuple[ObjectStore, str]:
    """The bucket of an address, and the key in it.

    Raises:
        ConfigError: the address has no bucket, or the settings of its provider are incomplete.
    """
    scheme, _, inner = path.partition("://")
    bucket, _, key = inner.partition("/")
    settings = ((name, value) for name, value in os.environ.items() if name.startswith(_SETTINGS))
    return _bucket(f"{scheme.lower()}://{bucket}", tuple(sorted(settings))), key


@functools.lru_cache(maxsize=64)
def _bucket(root: str, _settings: tuple[tuple[str, str], ...]) -> ObjectStore:
    """One client a bucket, and another once a person has set other credentials."""
    return ObjectStore(root)


def is_store_failure(error: BaseException) -> bool:
    """True when the world failed (disk, rights, memory), false when the bytes themselves are bad.

    Of remote files decoders see no failure of the store: `open_bytes` and `open_random_access` raise it as ours.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


class reading:  # noqa: N801 - reads as a word in a with statement
    """Turn failures of a store into errors with an exit code; bad data passes through unchanged.

    Args:
        path: what is read.
        store_only: no decoder is at work, so that every error is one of the store.
    """

    def __init__(self, path: str, *, store_only: bool = False) -> None:
        self._path, self._store_only = path, store_only

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, BertrayError):
            return
        if not self._store_only and not is_store_failure(error):
            return
        named = getattr(error, "filename", None)  # of a folder below the one that was named, for example
        where = printable(os.fsdecode(named)) if isinstance(named, str | bytes) else self._path
        if isinstance(error, PermissionError):
            raise ConfigError(
                f"{where}: expected to be allowed to read it, found: permission denied.",
                "Give this user or role the right to read it.",
            ) from error
        if isinstance(error, OSError) and error.errno in _NO_PATH:
            raise ConfigError(f"{where}: expected a path, found: {_one_line(error)}.", "Correct the path.") from error
        raise InfrastructureError(
            f"{where}: cannot be read now ({_one_line(error)}).", "Run the same command again."
        ) from error


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join((str(error) or type(error).__name__).split())[:200]


class _RemoteFile(io.RawIOBase):
    """A value of an object store as a file; every failure, of whatever type, is an error of ours and never bad data.

    A request asks for more than is read: for the rest of a header or footer, and for more each time while reading goes
    on where the last request ended. All requests are for the value that the first one found: one that is written
    meanwhile under the same key is an error.

    Args:
        path: address of the value.
        most_ahead: bytes of a request at most, unless more are read at once.
    """

    def __init__(self, path: str, most_ahead: int) -> None:
        self._path, self._most_ahead = path, most_ahead
        self._at, self._end, self._asked = 0, -1, 0  # end and length of the last request
        self._value: StoredFile | None = None
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=2)  # (start, bytes) of requests that asked for more

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size() if whence == io.SEEK_END else 0)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """The next bytes, as many as have come already, or as are wanted."""
        at = self._at
        kept = next((memoryview(kept)[at - lo :] for lo, kept in self._kept if lo <= at < lo + len(kept)), None)
        content = self.read(len(buffer)) if kept is None else kept[: len(buffer)]
        self._at = at + len(content)
        memoryview(buffer)[: len(content)] = content
        return len(content)

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes; fewer at the end of the file alone."""
        wanted = self._size() - self._at if size is None or size < 0 else size
        if self._value is not None:
            wanted = max(0, min(wanted, self._value.size_bytes - self._at))
        pieces = []
        while wanted and (piece := self._some(self._at, min(wanted, _LARGEST_BYTES))):
            pieces.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readall(self) -> bytes:
        return self.read()

    def _size(self) -> int:
        if self._value is None:
            self._request(0, _LEAST_BYTES)
        assert self._value is not None
        return self._value.size_bytes

    def _some(self, start: int, wanted: int) -> bytes:
        """Bytes [start, start + wanted) of the file, as far as it goes."""
        for lo, kept in self._kept:
            if lo <= start and (start + wanted <= lo + len(kept) or lo + len(kept) == self._size()):
                return kept[start - lo : start - lo + wanted]
        ahead = min(2 * self._asked, self._most_ahead) if start == self._end else 0
        stop = start + max(wanted, ahead, _LEAST_BYTES)
        if self._value is not None and stop >= self._value.size_bytes:  # a footer is read from its end
            stop = self._value.size_bytes
            content = self._request(min(start, max(0, stop - _LEAST_BYTES)), stop)
            return content[len(content) - (stop - start) :][:wanted]
        return self._request(start, stop)[:wanted]

    def _request(self, start: int, stop: int) -> bytes:
        with reading(self._path, store_only=True):
            bucket, key = bucket_of(self._path)
            try:
                content, value = bucket.read(key, start, stop, self._value.etag if self._value else None)
            except FileNotFoundError:
                raise _gone(self._path) from None
            except InfrastructureError:  # an empty value has no bytes to ask for
                if self._value is not None:
                    raise
                value, content = bucket.status(key), b""
                if value.size_bytes:
                    raise
        wanted = max(0, min(stop, value.size_bytes) - start)
        if len(content) != wanted:
            # A decoder would take it for a file that was cut.
            raise InfrastructureError(
                f"{self._path}: cannot be read now (the store gave {len(content)} of {wanted} bytes).",
                "Run the same command again.",
            )
        self._value, self._end, self._asked = value, start + len(content), len(content)
        if stop - start <= max(self._most_ahead, _LEAST_BYTES):
            self._kept.append((start, content))
        return content


def open_random_access(path: str) -> Any:
    """A pyarrow file that can seek."""
    if is_remote(path):
        return pa.PythonFile(_RemoteFile(path, most_ahead=0), mode="r")
    with reading(path, store_only=True):
        return pa.OSFile(str(local_path(path)))


def open_bytes(path: str, start_byte: int = 0) -> IO[bytes]:
    """A buffered binary stream that starts at `start_byte`."""
    if is_remote(path):
        remote = _RemoteFile(path, most_ahead=_MOST_BYTES)
        remote.seek(start_byte)
        return cast("IO[bytes]", io.BufferedReader(remote, buffer_size=_PIECE_BYTES))
    with reading(path, store_only=True):
        stream = local_path(path).open("rb", buffering=_PIECE_BYTES)
    if start_byte:
        stream.seek(start_byte)
    return stream


def stamp(path: str) -> tuple[int, str]:
    """Size in bytes, and tag of the content or modification time (ns, as text), of a file now.

    Raises:
        InfrastructureError: the file is gone, or the store does not answer.
    """
    with reading(path, store_only=True):
        try:
            if is_remote(path):
                bucket, key = bucket_of(path)
                value = bucket.status(key)
                return value.size_bytes, tag_of(value)
            status = local_path(path).stat()
        except FileNotFoundError:
            raise _gone(path) from None
    return status.st_size, str(status.st_mtime_ns)


def tag_of(value: StoredFile) -> str:
    """A store's tag of a content; of a store without tags the time of change in ns."""
    # A listing may give fractions of a second, and a reply about one value never does.
    return value.etag or str(int(value.modified.timestamp()) * 10**9)


def is_file(path: str) -> bool:
    """Whether there is a file or value, and no folder, under a path."""
    with reading(path, store_only=True):
        if is_remote(path):
            bucket, key = bucket_of(path)
            return bool(key) and bucket.exists(key)
        return local_path(path).is_file()


def files_in(folder: str) -> list[tuple[str, int]]:
    """(name, bytes) of the files right in a folder, sorted; none where there is no folder."""
    with reading(folder, store_only=True):
        if is_remote(folder):
            bucket, key = bucket_of(folder)
            return [(file.key.rpartition("/")[2], file.size_bytes) for file in bucket.folder(key) if file.key != key]
        path = local_path(folder)
        if not path.is_dir():
            return []
        return sorted((entry.name, entry.stat().st_size) for entry in os.scandir(path) if entry.is_file())


def _gone(path: str) -> InfrastructureError:
    return InfrastructureError(f"{path}: was listed, and is gone now.", "Run the same command again.")


def content_digest(path: str) -> str:
    """sha256 of all bytes of a file."""
    digest = hashlib.sha256()
    with reading(path), open_bytes(path) as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def short(error: BaseException) -> str:
    """A library's message as a quarantine detail: one line, at most 200 characters."""
    return _one_line(error)


DATA_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, zlib.error)
"""What readers raise for damaged content, once `reading` has taken out the failures of the store."""
