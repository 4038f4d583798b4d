"""Digests that name content: keys of caches and runs, and hashes of whole files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def cache_key(parts: dict[str, Any]) -> str:
    """16 hex digits over `parts` as sorted JSON; a value that JSON lacks counts as its `str`.

    It knows only what it is given: who keys a cache by it names all that decides the cached content, a file by its
    digest and never by its path alone.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """64 hex digits over the bytes of a local file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
