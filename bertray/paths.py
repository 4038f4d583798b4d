"""Paths on this machine as people write them: `~`, `~user`, relative paths and `file://` addresses."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from bertray.errors import ConfigError

_FILE = "file:"


def is_uri(path: str) -> bool:
    """True for an address of another kind of storage, such as `s3://bucket/key`."""
    return "://" in path and not is_file_uri(path)


def is_file_uri(path: str) -> bool:
    """True for `file:///folder`, and the short form `file:/folder`."""
    return path[: len(_FILE) + 1].lower() == f"{_FILE}/"


def local_path(path: str) -> Path:
    """A local path or `file:` address as an absolute path; symbolic links stay as they are.

    `~` and `~user` at its beginning are home folders, as in a shell; a file that is really called so wins.

    Raises:
        ConfigError: the home folder is unknown, or the address names another machine.
    """
    text = _of_file_uri(path) if is_file_uri(path) else path
    first = text.partition("/")[0]
    if not first.startswith("~") or os.path.lexists(first):
        return Path(text).absolute()
    expanded = os.path.expanduser(text)  # noqa: PTH111 - leaves an unknown user's as it is; the check below refuses it
    if expanded == text:
        raise ConfigError(
            f"{path}: expected a home folder for {first}, found none.", f"Write the path out, or ./{first} for a file."
        )
    return Path(expanded).absolute()


def _of_file_uri(uri: str) -> str:
    """`/a b` of `file:///a%20b`. What follows a `?` or `#` belongs to the name, as in a path."""
    rest = uri[len(_FILE) :]
    if not rest.startswith("//"):
        return unquote(rest)
    host, slash, below = rest[2:].partition("/")
    if host.startswith(("~", ".")):  # not by the book, yet clear
        return unquote(rest[2:])
    if host not in ("", "localhost"):
        raise ConfigError(
            f"{uri}: expected a file of this machine, found the host {host!r}.",
            "Write file:///folder/file with three slashes, or the path alone.",
        )
    return unquote(slash + below)
