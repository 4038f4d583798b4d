"""The aclImdb folder layout: one review a file, label by folder, stars in the file name (`pos/0_9.txt`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from bertray.config import TextFormat
from bertray.reviews.file_access import content_digest as file_digest
from bertray.reviews.file_access import filesystem_of, open_bytes, reading
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
    filesystem, inner = filesystem_of(folder)
    prefix = folder[: len(folder) - len(inner)]
    with reading(folder, store_only=True):
        infos = filesystem.get_file_info(pafs.FileSelector(inner))
    found = []
    for info in infos:
        name = FILE_NAME.fullmatch(info.base_name)
        if name and info.type == pafs.FileType.File:
            found.append((int(name[1]), int(name[2]), prefix + info.path, int(info.size or 0)))
    return sorted(found)


def inspect(entry: FileEntry) -> InputFile:
    """Count the reviews of one labelled folder."""
    files = _files(entry.path)
    return InputFile(
        entry.path,
        entry.relative_path,
        FORMAT,
        entry.size_bytes,
        entry.modified,
        len(files),
        dict(_COLUMNS),
    )


def fingerprint(folder: str) -> str:
    """sha256 of the names and sizes of a labelled folder's reviews."""
    names = [f"{number}_{stars} {size}\n" for number, stars, _, size in _files(folder)]
    return hashlib.sha256("".join(names).encode()).hexdigest()


def content_digest(folder: str) -> str:
    """sha256 of the names and contents of a labelled folder's reviews."""
    digest = hashlib.sha256()
    for number, stars, path, _ in _files(folder):
        digest.update(f"{number}_{stars} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def read(shard: Shard, reader: TextFormat) -> Iterator[RawRows]:
    """Reviews [lo, hi) of a labelled folder, in order of their number."""
    label = shard.file.path.rstrip("/").rpartition("/")[2]
    files = _files(shard.file.path)
    for lo in range(shard.lo, min(shard.hi, len(files)), _ROWS_PER_READ):
        part = files[lo : min(lo + _ROWS_PER_READ, shard.hi)]
        texts: list[str | None] = []
        for _, _, path, _ in part:
            with reading(path), open_bytes(path) as stream:
                raw = stream.read()
            texts.append(raw.decode(records.codec_name(reader.encoding), "surrogateescape"))
        yield RawRows(
            np.arange(lo, lo + len(part), dtype=np.int64),
            {
                ID: pa.array([f"{label}/{number}_{stars}" for number, stars, _, _ in part], pa.string()),
                TEXT: records.as_text(texts, reader.encoding),
                LABEL: pa.array([label] * len(part), pa.string()),
                STARS: pa.array([stars for _, stars, _, _ in part], pa.int32()),
            },
        )
