"""The aclImdb folder layout: one review a file, label by folder, stars in the file name (`pos/0_9.txt`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bertray.config import TextFormat
from bertray.io.pool import in_pool
from bertray.reviews.file_access import content_digest as file_digest
from bertray.reviews.file_access import files_in, open_bytes, reading, threads_for
from bertray.reviews.formats import text_records as records
from bertray.reviews.rows import FileEntry, InputFile, RawRows, Shard
from bertray.schema import ID, LABEL, STARS, TEXT

FORMAT = "acl_imdb"
LABELS = ("neg", "pos")
FILE_NAME = re.compile(r"(\d+)_(\d+)\.txt")
_COLUMNS = {ID: "string", TEXT: "string", LABEL: "string", STARS: "int32"}
_ROWS_PER_READ = 1024


def _files(folder: str) -> list[tuple[int, int, str, int]]:
    """(number, stars, path, bytes) of the reviews of a labelled folder, by number."""
    names = ((FILE_NAME.fullmatch(name), size) for name, size in files_in(folder))
    return sorted((int(name[1]), int(name[2]), f"{folder}/{name[0]}", size) for name, size in names if name)


def inspect(entry: FileEntry) -> InputFile:
    """Count the reviews of one labelled folder."""
    return entry.readable(len(_files(entry.path)), dict(_COLUMNS))


def fingerprint(folder: str) -> str:
    """sha256 of the names and sizes of a labelled folder's reviews."""
    names = [f"{number}_{stars} {size}\n" for number, stars, _, size in _files(folder)]
    return hashlib.sha256("".join(names).encode()).hexdigest()


def content_digest(folder: str) -> str:
    """sha256 of the names and contents of a labelled folder's reviews."""
    digest = hashlib.sha256()
    files = _files(folder)
    digests = in_pool(file_digest, (path for _, _, path, _ in files), threads_for(folder))
    for (number, stars, _, _), of_file in zip(files, digests, strict=True):
        digest.update(f"{number}_{stars} {of_file}\n".encode())
    return digest.hexdigest()


def _content(path: str) -> bytes:
    with reading(path), open_bytes(path) as stream:
        return stream.read()


def read(shard: Shard, reader: TextFormat) -> Iterator[RawRows]:
    """Reviews [lo, hi) of a labelled folder, in order of their number."""
    label = shard.file.path.rstrip("/").rpartition("/")[2]
    files = _files(shard.file.path)
    for lo in range(shard.lo, min(shard.hi, len(files)), _ROWS_PER_READ):
        part = files[lo : min(lo + _ROWS_PER_READ, shard.hi)]
        contents = in_pool(_content, (path for _, _, path, _ in part), threads_for(shard.file.path))
        texts: list[str | None] = [
            raw.decode(records.codec_name(reader.encoding), "surrogateescape") for raw in contents
        ]
        yield RawRows(
            np.arange(lo, lo + len(part), dtype=np.int64),
            {
                ID: pa.array([f"{label}/{number}_{stars}" for number, stars, _, _ in part], pa.string()),
                TEXT: records.as_text(texts, reader.encoding),
                LABEL: pa.array([label] * len(part), pa.string()),
                STARS: pa.array([stars for _, stars, _, _ in part], pa.int32()),
            },
        )
