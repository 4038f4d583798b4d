"""The front door to outputs: a local folder or an object-store prefix, behind one interface."""

from __future__ import annotations

from bertray.errors import ConfigError
from bertray.io.local_store import LocalStore
from bertray.io.object_store import ObjectStore
from bertray.io.store_protocol import Store
from bertray.paths import is_uri, local_path

__all__ = ["OBJECT_STORE_SCHEMES", "LocalStore", "ObjectStore", "Store", "open_store"]

OBJECT_STORE_SCHEMES = ("s3", "gs", "az")


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
            f"{root}: expected a folder, s3://, gs:// or az://, found {scheme}://.",
            "Give an output of one of these kinds.",
        )
    from obstore.exceptions import BaseError

    remedy = f"Write it as {scheme}://bucket/folder."
    if not root.partition("://")[2].partition("/")[0]:
        raise ConfigError(f"{root}: expected a bucket, found none.", remedy)
    try:
        return ObjectStore(root)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{root}: {str(error).splitlines()[0]}.", remedy) from error
