"""Refusals of a file system or an object store as errors with an exit code."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from bertray.errors import BertrayError, ConfigError, DataRefused, InfrastructureError
from bertray.io.connections import credentials_remedy

_BAD_KEY = re.compile(r'Path "(.+?)"(?: contained|: Encountered)', re.DOTALL)
_ROLE_ADDRESS = "169.254.169.254"  # obstore asks it when it has found no credentials


class storage_errors:  # noqa: N801 - reads as a word in a with statement
    """Turn the operating system's and the store's refusals into errors with an exit code."""

    def __init__(self, where: object, *, writes: bool = False) -> None:
        self._where, self._writes = where, writes

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, BertrayError):
            return
        if isinstance(error, FileNotFoundError):
            if self._writes:
                raise ConfigError(f"{self._where}: cannot be created here.", "Choose another `output`.") from error
            return
        if (told := _told(self._where, error)) is not None:
            raise told from error
        if _is_refused(error) and (self._writes or isinstance(error, OSError)):
            raise ConfigError(
                f"{self._where}: expected a writable output, found {_words(error)}.",
                "Choose another `output`, or see to the rights.",
            ) from error
        if _is_refused(error):
            raise ConfigError(
                f"{self._where}: expected to be allowed to read it, found: permission denied ({_words(error)}).",
                "Give this user or role the right to read it.",
            ) from error
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            raise other_file_system(self._where) from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise ConfigError(
                f"{_file_in_place(self._where)}: expected a folder, found a file.", "Choose another `output`."
            ) from error
        if isinstance(error, OSError) or type(error).__module__.startswith("obstore"):
            raise InfrastructureError(
                f"{self._where}: the storage failed: {_words(error)}.",
                "Check the storage, then run the same command again.",
            ) from error


def _told(where: object, error: BaseException) -> BertrayError | None:
    """Error that says what to set or to rename, for refusals of an object store that come without a type."""
    text = str(error)
    if key := _BAD_KEY.search(text):
        return DataRefused(
            f"{where}: expected names between single slashes, none of them . or .. and none with a control character, "
            f"found the key {key[1]!r}.",
            "Rename that object or remove it, or name the files by paths that leave out its folder.",
        )
    if not type(error).__module__.startswith("obstore"):
        return None
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return ConfigError(f"{where}: expected a bucket, found none of this name.", "Correct the address.")
    if "incorrectly configured region" in text:
        return ConfigError(f"{where}: expected the bucket's own region, found another.", "Set AWS_REGION.")
    if _ROLE_ADDRESS in text:
        return ConfigError(
            f"{where}: expected credentials, found none in the environment, and this machine has no role.",
            credentials_remedy(str(where)),
        )
    return None


def _file_in_place(where: object) -> object:
    """The file that stands where a folder should be, at or above a local path."""
    path = Path(str(where))
    return next((str(above) for above in (path, *path.parents) if above.is_file()), where)


def _is_refused(error: BaseException) -> bool:
    """No right to write, on a file system or an object store."""
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return True
    return type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")  # of obstore


def lost(where: str) -> InfrastructureError:
    return InfrastructureError(f"{where}: committed, but no longer there.", "Restore it from a backup.")


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).partition("\n\nDebug source:")[0]
    return " ".join(str(text).split())[:200] or type(error).__name__


def other_file_system(where: object) -> ConfigError:
    return ConfigError(
        f"{where}: expected the same file system as control/, found another: rows could not be shown in one step.",
        "Keep the whole output on one file system; `output` itself may be a link to another disk.",
    )
