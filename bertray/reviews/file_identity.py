"""Identity of a file: which contents are the same, told by as few bytes as possible.

Files of one size with different fingerprints are different; the whole content is read only where these are the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bertray.errors import BertrayError
from bertray.execution.executor import Progress, in_order
from bertray.execution.on_demand import ExecutorFor
from bertray.reviews.file_access import content_digest, open_random_access, reading, stamp
from bertray.reviews.formats import acl_imdb
from bertray.reviews.rows import FileEntry, InputFile

FINGERPRINT_BYTES = 1 << 16  # at either end of a file


def fingerprint_of(entry: FileEntry) -> tuple[str, str | None]:
    """(fingerprint, digest of the content where that has been read as a whole).

    Files of one size with different fingerprints are different. That of a folder is made from names and sizes.
    """
    if entry.format == acl_imdb.FORMAT:
        return acl_imdb.fingerprint(entry.path), None
    digest = hashlib.sha256()
    with reading(entry.path), open_random_access(entry.path) as file:
        digest.update(file.read(FINGERPRINT_BYTES))
        start_of_tail = max(FINGERPRINT_BYTES, entry.size_bytes - FINGERPRINT_BYTES)
        if start_of_tail < entry.size_bytes:
            file.seek(start_of_tail)
            digest.update(file.read(FINGERPRINT_BYTES))
    is_whole = entry.size_bytes <= 2 * FINGERPRINT_BYTES
    return digest.hexdigest(), digest.hexdigest() if is_whole else None


def digest_file(file: FileEntry | InputFile) -> str:
    """sha256 of the whole content of a file."""
    return (acl_imdb.content_digest if file.format == acl_imdb.FORMAT else content_digest)(file.path)


def with_digests_where_alike(
    files: Sequence[InputFile], executor_for: ExecutorFor, others: Iterable[tuple[int, str]] = ()
) -> list[InputFile]:
    """The files, each with the digest of its content where another file has the same size and fingerprint.

    Args:
        files: some scanned files.
        executor_for: where contents are read.
        others: sizes and fingerprints of further files.
    """
    distinct = {(file.path, file.size_bytes, file.fingerprint) for file in files}
    alike = Counter((size, fingerprint) for _, size, fingerprint in distinct)
    alike.update(set(others))
    wanted = {file.path: file for file in files if file.digest is None and alike[file.size_bytes, file.fingerprint] > 1}
    digests = digests_of(list(wanted.values()), executor_for)
    found = dict(zip(wanted, digests, strict=True))
    return [replace(file, digest=file.digest or found.get(file.path)) for file in files]


def is_unchanged(entry: FileEntry, fingerprint: str | None) -> bool:
    """Whether a file is still there as it was listed and scanned; only a listing is read for it."""
    try:
        if entry.format == acl_imdb.FORMAT:
            return acl_imdb.fingerprint(entry.path) == fingerprint
        return stamp(entry.path) == (entry.size_bytes, entry.modified)
    except BertrayError:
        return False


def digests_of(files: Sequence[FileEntry | InputFile], executor_for: ExecutorFor) -> list[str]:
    """sha256 of the whole content of each file."""
    if not files:
        return []
    executor = executor_for(sum(file.size_bytes for file in files))
    return in_order(executor, files, digest_file, Progress("comparing", "file", lambda file: str(file.path)))
