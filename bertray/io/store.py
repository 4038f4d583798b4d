"""The front door to outputs: a local folder or an object-store prefix, behind one interface."""

from __future__ import annotations

import socket
from pathlib import Path

from bertray.errors import ConfigError
from bertray.io.connections import OBJECT_STORE_SCHEMES
from bertray.io.local_store import LocalStore
from bertray.io.object_store import ObjectStore
from bertray.io.store_protocol import Store
from bertray.paths import is_uri, local_path

__all__ = ["OBJECT_STORE_SCHEMES", "LocalStore", "ObjectStore", "Store", "check_seen", "get_if_there", "open_store"]


def open_store(root: str) -> Store:
    """Store below a local folder (a path, or `file://`), or an `s3://`, `gs://` or `az://` prefix.

    Raises:
        ConfigError: the scheme is not supported, or there is no bucket in it.
    """
    if not is_uri(root):
        return LocalStore(local_path(root))
    scheme = root.partition("://")[0].lower()
    if scheme not in OBJECT_STORE_SCHEMES:
        raise ConfigError(
            f"{root}: expected a folder, s3://, gs://, az:// or abfss://, found {scheme}://.",
            "Give an output of one of these kinds.",
        )
    return ObjectStore(root)


def check_seen(store: Store, key: str = "") -> None:
    """Whether this machine sees what the command has written, before it works on it in vain.

    Args:
        key: of something that is there; by default the folder itself.

    Raises:
        ConfigError: a local path that other machines do not see.
    """
    if isinstance(store, LocalStore) and not Path(store.uri(key)).exists():
        raise ConfigError(
            f"output={store.root}: the machine {socket.gethostname()} does not see what is in it.",
            "Give a folder that every machine of the cluster sees (a shared disk), or s3://, gs:// or az://.",
        )


def get_if_there(store: Store, key: str) -> bytes | None:
    """A value; None where there is none, or where gc has cleared it away since it was listed."""
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
