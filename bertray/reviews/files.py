"""Where bytes come from: local files, `s3://` and `gs://`, and which failures are the data's fault."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import zlib
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from bertray.errors import BertrayError, ConfigError, InfrastructureError

REMOTE_SCHEMES = ("s3", "gs")
_PIECE_BYTES = 1 << 20

# What pyarrow says when a store, not a file's content, failed; local failures carry an errno instead.
_STORE_FAILED = re.compile(r"AWS Error|google::cloud|GCS|curlCode|HTTP status|timed? ?out|Connection|resolve", re.I)
_NOT_ALLOWED = re.compile(
    r"ACCESS_DENIED|PERMISSION_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|FORBIDDEN", re.I
)


def scheme_of(path: str) -> str:
    """`s3`, `gs`, `hub`, ... or an empty string for a local path."""
    head, separator, _ = path.partition("://")
    return head.lower() if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", head) else ""


def local_path(path: str) -> Path:
    """A local path or file:// URI, made absolute; symbolic links stay as they are."""
    return Path(path.removeprefix("file://")).expanduser().absolute()


def check_uri(path: str) -> None:
    """Refuse URIs that name another kind of storage, or carry secrets or endpoints.

    Raises:
        ConfigError: never repeats what stands before an `@`.
    """
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
        with reading(path):
            return _bucket_filesystem(scheme, bucket), inner
    return pafs.LocalFileSystem(), str(local_path(path))


def is_store_failure(error: BaseException) -> bool:
    """True when the world failed (network, disk, rights, memory), false when the bytes themselves are bad."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno is not None or bool(_STORE_FAILED.search(str(error)))
    return False


class reading:  # noqa: N801 - reads as a word in a with statement
    """Turn failures of a store into errors with an exit code; bad data passes through unchanged."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, BertrayError) or not is_store_failure(error):
            return
        if isinstance(error, PermissionError) or _NOT_ALLOWED.search(str(error)):
            raise ConfigError(
                f"{self._path}: expected to be allowed to read it, found: permission denied.",
                "Give this user or role the right to read it.",
            ) from error
        raise InfrastructureError(
            f"{self._path}: cannot be read now ({_one_line(error)}).", "Run the same command again."
        ) from error


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join((str(error) or type(error).__name__).split())[:200]


def open_random_access(path: str) -> Any:
    """A pyarrow file that can seek."""
    filesystem, inner = filesystem_of(path)
    with reading(path):
        return filesystem.open_input_file(inner)


def open_bytes(path: str, start_byte: int = 0) -> IO[bytes]:
    """A buffered binary stream that starts at `start_byte`."""
    if scheme_of(path) in REMOTE_SCHEMES:
        stream = cast("IO[bytes]", io.BufferedReader(open_random_access(path), buffer_size=1 << 20))
    else:
        with reading(path):
            stream = local_path(path).open("rb", buffering=1 << 20)
    if start_byte:
        stream.seek(start_byte)
    return stream


def stamp(path: str) -> tuple[int, str]:
    """Size in bytes and modification time (ns, as text) of a file now.

    Raises:
        InfrastructureError: the file is gone, or the store does not answer.
    """
    filesystem, inner = filesystem_of(path)
    with reading(path):
        info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise InfrastructureError(f"{path}: was listed, and is gone now.", "Run the same command again.")
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
