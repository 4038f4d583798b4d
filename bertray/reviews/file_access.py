"""Access to bytes of local files, `s3://` and `gs://`; failures are told apart from faults of the data."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import re
import zlib
from typing import IO, Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.paths import local_path

REMOTE_SCHEMES = ("s3", "gs")
_PIECE_BYTES = 1 << 20

# pyarrow gives the refusals of a store no type of their own; what is not known here is a failure that may pass.
_NOT_ALLOWED = re.compile(
    r"ACCESS_DENIED|PERMISSION_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|FORBIDDEN", re.I
)
_NO_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)


def scheme_of(path: str) -> str:
    """`s3`, `gs`, `hub`, `file`, ... or an empty string for a local path."""
    if re.match("file:/", path, re.I):  # `file:/folder` is how Java writes file:///folder
        return "file"
    head, separator, _ = path.partition("://")
    return head.lower() if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", head) else ""


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
    if scheme not in REMOTE_SCHEMES:
        raise ConfigError(
            f"{scheme}://: expected a local path, s3://, gs:// or hub://, found another kind of address.",
            "Copy the data to one of these.",
        )
    if "@" in urlsplit(path).netloc:
        raise ConfigError(
            f"{scheme}://: expected no credentials in the address, found some.",
            "Use the environment, a profile or the machine's role.",
        )
    if re.search(r"\?[^/*]*=", path):
        raise ConfigError(
            f"{path.partition('?')[0]}: expected no options in the address, found {path.partition('?')[1]}.",
            "An S3-compatible endpoint is set by the environment variable AWS_ENDPOINT_URL.",
        )


@functools.lru_cache(maxsize=64)
def _bucket_filesystem(scheme: str, bucket: str) -> pafs.FileSystem:
    # Only the bucket goes through the URI parser: keys may hold spaces, '%' and '#'.
    filesystem, _ = pafs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return filesystem


def filesystem_of(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a path, and the path inside it."""
    scheme = scheme_of(path)
    if scheme in REMOTE_SCHEMES:
        inner = path.partition("://")[2]
        bucket = inner.partition("/")[0]
        if not bucket:
            raise ConfigError(f"{path}: expected a bucket name after {scheme}://.", f"Write {scheme}://bucket/folder.")
        with reading(path, store_only=True):
            return _bucket_filesystem(scheme, bucket), inner
    return pafs.LocalFileSystem(), str(local_path(path))


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
        if isinstance(error, PermissionError) or _NOT_ALLOWED.search(str(error)):
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
    """A file of a remote store whose every failure, of whatever type, is an error of ours and never bad data.

    A reply shorter than the file is one of them: a decoder would take it for a file that was cut.
    """

    def __init__(self, path: str) -> None:
        filesystem, inner = filesystem_of(path)
        self._path = path
        with reading(path, store_only=True):
            self._file = filesystem.open_input_file(inner)
            self._size = int(self._file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        with reading(self._path, store_only=True):
            return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with reading(self._path, store_only=True):
            return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with reading(self._path, store_only=True):
            wanted = max(0, min(len(buffer), self._size - self._file.tell()))
            content = self._file.read(wanted)
        if len(content) != wanted:
            raise InfrastructureError(
                f"{self._path}: cannot be read now (the store gave {len(content)} of {wanted} bytes).",
                "Run the same command again.",
            )
        memoryview(buffer)[:wanted] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_random_access(path: str) -> Any:
    """A pyarrow file that can seek."""
    if scheme_of(path) in REMOTE_SCHEMES:
        return pa.PythonFile(_RemoteFile(path), mode="r")
    with reading(path, store_only=True):
        return pafs.LocalFileSystem().open_input_file(str(local_path(path)))


def open_bytes(path: str, start_byte: int = 0) -> IO[bytes]:
    """A buffered binary stream that starts at `start_byte`."""
    if scheme_of(path) in REMOTE_SCHEMES:
        stream = cast("IO[bytes]", io.BufferedReader(_RemoteFile(path), buffer_size=1 << 20))
    else:
        with reading(path, store_only=True):
            stream = local_path(path).open("rb", buffering=1 << 20)
    if start_byte:
        stream.seek(start_byte)
    return stream


def stamp(path: str) -> tuple[int, str]:
    """Size in bytes and modification time (ns, as text) of a file now.

    Raises:
        InfrastructureError: the file is gone, or the store does not answer.
    """
    gone = InfrastructureError(f"{path}: was listed, and is gone now.", "Run the same command again.")
    if scheme_of(path) not in REMOTE_SCHEMES:  # pyarrow knows no time outside of 1677 to 2262
        with reading(path, store_only=True):
            try:
                status = local_path(path).stat()
            except FileNotFoundError:
                raise gone from None
        return status.st_size, str(status.st_mtime_ns)
    filesystem, inner = filesystem_of(path)
    with reading(path, store_only=True):
        info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise gone
    return int(info.size or 0), str(info.mtime_ns)


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
