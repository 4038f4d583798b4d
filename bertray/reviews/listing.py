"""From the paths a user names (file, folder, glob, list) to the input files they mean."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.fs as pafs

from bertray.config import TextFormat
from bertray.errors import ConfigError, did_you_mean
from bertray.reviews import acl_imdb, hub
from bertray.reviews.files import check_uri, filesystem_of, local_path, reading, scheme_of
from bertray.reviews.inputs import FileEntry

logger = logging.getLogger(__name__)

COMPRESSIONS = (".gz",)
_BY_EXTENSION = {
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class _Found:
    """A file seen while listing; `relative` is below the folder the user named."""

    path: str
    relative: str
    size_bytes: int
    mtime_ns: int
    outside_root: bool = False


def list_inputs(paths: Sequence[str], reader: TextFormat) -> list[FileEntry]:
    """The input files that `paths` mean, sorted by path, each once.

    Names that start with `.` or `_` are ignored below the folder that was named, and so are files whose extension
    belongs to no known format. An existing folder without any file gives an empty list.

    Raises:
        ConfigError: a path does not exist, is of another kind of storage, or holds only files of unknown formats.
        InfrastructureError: the storage does not answer.
    """
    entries: dict[str, FileEntry] = {}
    for path in paths:
        check_uri(path)
        found = [hub.to_parquet(path)] if scheme_of(path) == "hub" else _entries_of(path, reader)
        entries.update({entry.path: entry for entry in found})
    return _with_distinct_names(sorted(entries.values(), key=lambda entry: entry.path))


def format_of(name: str, reader: TextFormat) -> str | None:
    """The format of a file found in a folder, or None when its name belongs to no known one."""
    extension = _extension(name)
    known = _BY_EXTENSION.get(extension)
    if reader.format in ("csv", "tsv"):
        return "csv" if known == "csv" or extension == ".txt" else None
    if reader.format != "auto":
        return known if known == reader.format else None
    return known


def _extension(name: str) -> str:
    name = name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return posixpath.splitext(name)[1]


def _entries_of(path: str, reader: TextFormat) -> list[FileEntry]:
    """Entries of one path: a file as it is, a folder or glob through the rules for names."""
    filesystem, inner = filesystem_of(path)
    prefix = f"{scheme_of(path)}://" if scheme_of(path) not in ("", "file") else ""
    inner = inner.rstrip("/") or inner
    with reading(path):
        info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.File:
        return [_named_file(path, prefix + inner, info, reader)]
    if info.type == pafs.FileType.Directory:
        found = list(_walk(filesystem, prefix, inner))
        return _by_rule(path, found, reader)
    pattern = _MAGIC.search(inner)
    if not pattern:
        raise _missing(path, filesystem, inner)
    base = inner[: pattern.start()].rpartition("/")[0] or "/"
    with reading(path):
        if filesystem.get_file_info(base).type != pafs.FileType.Directory:
            raise _missing(path, filesystem, base)
    rest = inner[len(base) :].lstrip("/")
    matches = re.compile(f"{_glob_regex(rest)}(?:/.*)?", re.DOTALL).fullmatch
    found = [file for file in _walk(filesystem, prefix, base) if matches(file.relative)]
    return _by_rule(path, found, reader)


def _named_file(path: str, full: str, info: pafs.FileInfo, reader: TextFormat) -> FileEntry:
    """A file the user named itself: it may have any extension when the format is given."""
    name = posixpath.basename(full)
    explicit = {"tsv": "csv", "auto": None, "acl_imdb": None}.get(reader.format, reader.format)
    file_format = explicit or _BY_EXTENSION.get(_extension(name))
    if reader.format == "acl_imdb" or file_format is None:
        raise ConfigError(
            f"{path}: expected a file name that ends in {', '.join(_BY_EXTENSION)} (or .gz after it), found {name!r}.",
            "Set `reader.format` to parquet, csv, tsv or jsonl; for the aclImdb layout name the folder above pos/.",
        )
    return FileEntry(full, name, file_format, int(info.size or 0), str(info.mtime_ns))


def _by_rule(path: str, found: list[_Found], reader: TextFormat) -> list[FileEntry]:
    """Entries of the files below a folder or glob; what belongs to no known format is left out."""
    entries, in_folders = _acl_imdb_entries(path, found) if reader.format in ("auto", "acl_imdb") else ([], set())
    ignored: list[str] = []
    for file in found:
        file_format = format_of(file.relative, reader)
        if file.outside_root or file_format is not None:
            entries.append(
                FileEntry(
                    file.path,
                    file.relative,
                    file_format or "parquet",
                    file.size_bytes,
                    str(file.mtime_ns),
                    file.outside_root,
                )
            )
        elif file.relative not in in_folders:
            ignored.append(file.relative)
    if ignored and not entries:
        kinds = sorted({_extension(name) or "no extension" for name in ignored})[:8]
        raise ConfigError(
            f"{path}: expected files of a known format ({', '.join(_BY_EXTENSION)}, or folders pos/ and neg/), "
            f"found {len(ignored)} of others ({', '.join(kinds)}).",
            "Name one file and set `reader.format`, or convert them.",
        )
    if ignored:
        logger.info("%s: %d files of unknown formats are ignored, such as %r", path, len(ignored), ignored[0])
    return entries


def _acl_imdb_entries(path: str, found: Iterable[_Found]) -> tuple[list[FileEntry], set[str]]:
    """One entry for each labelled folder of one `pos/` + `neg/` pair below `path`, and the files in them."""
    folders: dict[str, list[_Found]] = defaultdict(list)
    for file in found:
        folder, _, name = file.relative.rpartition("/")
        if posixpath.basename(folder) in acl_imdb.LABELS and acl_imdb.FILE_NAME.fullmatch(name):
            folders[folder].append(file)
    parents = sorted({posixpath.dirname(folder) for folder in folders})
    pairs = [p for p in parents if all(posixpath.join(p, label) in folders for label in acl_imdb.LABELS)]
    if len(pairs) > 1:
        raise ConfigError(
            f"{path}: expected one pair of folders pos/ and neg/, found {len(pairs)} (in {', '.join(pairs)}).",
            f"Name one of them, for example {posixpath.join(path.rstrip('/*'), pairs[-1])}.",
        )
    entries, in_folders = [], set()
    for pair in pairs:
        for label in acl_imdb.LABELS:
            relative = posixpath.join(pair, label)
            files = folders[relative]
            newest = max(file.mtime_ns for file in files)
            in_folders |= {file.relative for file in files}
            entries.append(
                FileEntry(
                    posixpath.dirname(files[0].path),
                    relative,
                    acl_imdb.FORMAT,
                    sum(file.size_bytes for file in files),
                    f"{newest}-{len(files)}",
                )
            )
    return entries, in_folders


def _walk(filesystem: pafs.FileSystem, prefix: str, base: str) -> Iterator[_Found]:
    """Files below a folder, without hidden names; local links that leave it are marked, not followed."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield from _walk_local(Path(base))
        return
    with reading(prefix + base):
        infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=True))
    for info in infos:
        relative = info.path[len(base) :].lstrip("/")
        if info.type == pafs.FileType.File and not _is_hidden(relative):
            yield _Found(prefix + info.path, relative, int(info.size or 0), int(info.mtime_ns or 0))


def _walk_local(base: Path) -> Iterator[_Found]:
    root = base.resolve()
    listed: list[_Found] = []
    links: list[tuple[Path, str]] = []
    with reading(str(base)):
        for folder, folders, names in os.walk(base, onerror=_raise):
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            for name in [*folders, *sorted(names)]:
                path = Path(folder, name)
                relative = path.relative_to(base).as_posix()
                if _is_hidden(name):
                    continue
                if path.is_symlink():
                    links.append((path, relative))
                elif name not in folders:
                    info = path.stat()
                    listed.append(_Found(str(path), relative, info.st_size, info.st_mtime_ns))
    yield from listed
    real = {str(Path(file.path).resolve()) for file in listed} if links else set()
    for path, relative in links:
        target = path.resolve()
        if not target.is_relative_to(root):
            yield _Found(str(path), relative, 0, 0, outside_root=True)
        elif target.is_file() and str(target) not in real:
            real.add(str(target))
            info = target.stat()
            yield _Found(str(path), relative, info.st_size, info.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(relative: str) -> bool:
    return any(part[:1] in "._" for part in relative.split("/"))


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` stays inside a folder, `**` crosses folders."""
    out, position = "", 0
    for token in re.finditer(r"\*\*/|\*\*|\*|\?|\[!?[^\]]+\]", pattern):
        out += re.escape(pattern[position : token.start()])
        word = token.group()
        if word.startswith("["):
            out += "[" + word[1:-1].replace("\\", r"\\").replace("!", "^", 1 if word[1] == "!" else 0) + "]"
        else:
            out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[word]
        position = token.end()
    return out + re.escape(pattern[position:])


def _missing(path: str, filesystem: pafs.FileSystem, inner: str) -> ConfigError:
    near = ""
    if isinstance(filesystem, pafs.LocalFileSystem):
        target = local_path(inner)
        if target.parent.is_dir():
            names = [entry.name for entry in os.scandir(target.parent)]
            near = did_you_mean(target.name, names)
    return ConfigError(f"{path}: expected a file, folder or glob, found nothing there.{near}", "Correct the path.")


def _with_distinct_names(entries: list[FileEntry]) -> list[FileEntry]:
    """Entries of several roots that share a relative path take the path below their common folder instead."""
    if len({entry.relative_path for entry in entries}) == len(entries):
        return entries
    schemes = {scheme_of(entry.path) for entry in entries}
    if len(schemes) > 1:
        return [replace(entry, relative_path=entry.path) for entry in entries]
    common = os.path.commonpath([posixpath.dirname(entry.path) for entry in entries])
    return [replace(entry, relative_path=entry.path[len(common) :].lstrip("/")) for entry in entries]
