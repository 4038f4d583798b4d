"""From the paths a user names (file, folder, glob, list) to the input files they mean."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from bertray.config import TextFormat
from bertray.errors import ConfigError, DataRefused, did_you_mean
from bertray.io.pool import in_pool
from bertray.io.store_protocol import StoredFile
from bertray.reviews.file_access import (
    bucket_of,
    check_uri,
    full_path,
    is_file,
    is_remote,
    open_random_access,
    printable,
    reading,
    scheme_of,
    stamp,
    tag_of,
    threads_for,
)
from bertray.reviews.formats import acl_imdb, delta, hub
from bertray.reviews.locations import DELTA, MARKING_FOLDERS, Mark, check_apart, mark_of, marks_above, refuse_marked
from bertray.reviews.rows import FileEntry
from bertray.wording import counted

logger = logging.getLogger(__name__)

COMPRESSIONS = (".gz",)
PARQUET_MAGIC = b"PAR1"
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
_KEY_FOLDER = re.compile(r"([^=]+)=(.+)", re.DOTALL)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


_Matches = Callable[[str], object]


@dataclass(frozen=True)
class _Found:
    """A file seen while listing; `relative` is below the folder the user named."""

    path: str
    relative: str
    size_bytes: int
    mtime_ns: int
    modified: str  # time of change, or the tag of a store
    refused: str = ""  # why it is not read
    target: str = ""  # where a link leads


# Matching files below a folder without hidden names, and what all names say of the folders they are in.
# Local links that leave the folder are refused, not followed.
_Walk = Callable[[_Matches], tuple[list[_Found], list[Mark]]]


def list_inputs(
    paths: Sequence[str], reader: TextFormat, *, key: str = "input", output: str | None = None
) -> list[FileEntry]:
    """The input files that `paths` mean, sorted by path, each once.

    Names that start with `.`, or with `_` and hold no `=`, are ignored below the folder that was named, and so are
    files whose extension belongs to no known format. An existing folder without any file gives an empty list.

    Args:
        paths: files, folders and globs.
        reader: the format, where names do not say it.
        key: of the config, for messages.
        output: where the run writes, which must lie apart from the input.

    Raises:
        ConfigError: a path does not exist, is of another kind of storage, or holds only files of unknown formats; the
            output lies in the input, or the other way about; a folder holds the output of an earlier run.
        DataRefused: files of an Iceberg or Hudi table, or of a Delta table that is not named itself.
        InfrastructureError: the storage does not answer.
    """
    entries: dict[str, FileEntry] = {}
    for path in paths:
        check_uri(path)
        if scheme_of(path) == "hub":
            found = [hub.to_parquet(path)]
        else:
            found = [_with_keys(entry, path) for entry in _entries_of(path, reader, key, output)]
        entries.update({entry.path: entry for entry in found})
    listed = _with_distinct_names(sorted(entries.values(), key=lambda entry: entry.path))
    _name_twins(listed)
    return listed


def _with_keys(entry: FileEntry, named: str) -> FileEntry:
    """The file with the keys of folder names (`dt=2026-11-20`), as Hive, Spark and Ray write them, as columns.

    Args:
        named: path that the user wrote; folders above it are not looked at.
    """
    if "=" not in named and "=" not in entry.relative_path:
        return entry
    typed = [part for part in named.split("/") if part != posixpath.basename(entry.path) and not _MAGIC.search(part)]
    folders = [*typed, *entry.relative_path.split("/")[:-1]]
    keys = {unquote(found[1]): unquote(found[2]) for folder in folders if (found := _KEY_FOLDER.fullmatch(folder))}
    given = {name: None if value == _HIVE_NULL else value for name, value in keys.items()}
    return replace(entry, given=tuple((given | dict(entry.given)).items())) if given else entry


def format_of(name: str, reader: TextFormat) -> str | None:
    """The format of a file found in a folder, or None when its name belongs to no known one."""
    extension = _extension(name)
    known = _BY_EXTENSION.get(extension)
    if reader.format in ("csv", "tsv"):
        return "csv" if known == "csv" or extension == ".txt" else None
    if reader.format != "auto":
        return known if known == reader.format else None
    return known


def sidecar_remedy(path: str, paths: Iterable[str]) -> str:
    """Remedy for a .json file that describes the review files beside it; empty when it may be one of them."""
    others = {_extension(other) for other in paths} - {".json"}
    if _extension(path) != ".json" or not others & set(_BY_EXTENSION):
        return ""
    extension = min(others & set(_BY_EXTENSION))
    file_format = _BY_EXTENSION[extension]
    way = f"set reader.format={file_format}" if file_format != "jsonl" else f"name them by a glob, **/*{extension}"
    return f"If this .json describes the {extension} files beside it and holds no reviews, {way}."


def _extension(name: str) -> str:
    """The extension of a format, in lower case and without that of a compression."""
    name = name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return posixpath.splitext(name)[1]


def _stem(path: str) -> str:
    """A path without the extensions of format and compression."""
    without = path[: -len(".gz")] if path.lower().endswith(COMPRESSIONS) else path
    return without.removesuffix(posixpath.splitext(without)[1])


def _entries_of(path: str, reader: TextFormat, key: str, output: str | None) -> list[FileEntry]:
    """Entries of one path: a file as it is, a folder or glob through the rules for names."""
    named = full_path(path)
    base, rest = named.rstrip("/") or named, ""
    named_itself = is_file(base)
    walk = None if named_itself else _walk_of(base)
    if walk is None and not named_itself and (pattern := _MAGIC.search(base)):
        base = named[: pattern.start()].rpartition("/")[0] or "/"
        rest = named.rstrip("/")[len(base) :].lstrip("/")
        walk = _walk_of(base)
    if walk is None and not named_itself:
        raise _missing(path, base)
    if output is not None:
        parts = [None if "**" in part else re.compile(_glob_regex(part), re.DOTALL) for part in rest.split("/") if part]
        check_apart(key, path, base, parts, output)
    if walk is None:
        # A file that is named itself may be of an output: `topics` reads committed rows so.
        folder = posixpath.dirname(base if is_remote(base) else os.path.realpath(base))
        tables = [mark for mark in marks_above(folder) if mark.is_table]
        refuse_marked(key, path, [], tables, [base])
        return [_named_file(path, base, reader)]
    found, marks = walk(re.compile(f"{_glob_regex(rest)}(?:/.*)?" if rest else ".*", re.DOTALL).fullmatch)
    if not rest and delta.is_installed() and Mark(DELTA, base) in marks:
        return delta.live_files(base, key)
    for file in found:
        if output is not None and file.target and not file.refused:
            check_apart(key, file.path, file.target, [], output)
    refuse_marked(key, base, marks, marks_above(base), [file.path for file in found])
    return _by_rule(path, found, reader)


def _named_file(path: str, full: str, reader: TextFormat) -> FileEntry:
    """A file the user named itself: it may have any extension when the format is given, and none as Parquet."""
    name = posixpath.basename(full)
    explicit = {"tsv": "csv", "auto": None, "acl_imdb": None}.get(reader.format, reader.format)
    is_parquet = not _extension(name) and _begins_as_parquet(full)
    file_format = "parquet" if is_parquet else explicit or _BY_EXTENSION.get(_extension(name))
    if reader.format == "acl_imdb" or file_format is None:
        raise ConfigError(
            f"{path}: expected a file name that ends in {', '.join(_BY_EXTENSION)} (or .gz after it), found {name!r}.",
            "Set `reader.format` to parquet, csv, tsv or jsonl; for the aclImdb layout name the folder above pos/.",
        )
    return FileEntry(full, name, file_format, *stamp(full))


def _begins_as_parquet(path: str) -> bool:
    with reading(path, store_only=True), open_random_access(path) as file:
        return bytes(file.read(len(PARQUET_MAGIC))) == PARQUET_MAGIC


def _by_rule(path: str, found: list[_Found], reader: TextFormat) -> list[FileEntry]:
    """Entries of the files below a folder or glob; what belongs to no known format is left out."""
    entries, in_folders = _acl_imdb_entries(path, found) if reader.format in ("auto", "acl_imdb") else ([], set())
    ignored: list[str] = []
    for file in found:
        file_format = format_of(file.relative, reader)
        if file.refused or file_format is not None:
            entries.append(
                FileEntry(
                    file.path,
                    file.relative,
                    file_format or "parquet",
                    file.size_bytes,
                    file.modified,
                    file.refused,
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
        logger.info("%s: left out %s of unknown format, such as %r", path, counted(len(ignored), "file"), ignored[0])
    return entries


def _acl_imdb_entries(path: str, found: Iterable[_Found]) -> tuple[list[FileEntry], set[str]]:
    """One entry for each labelled folder of one `pos/` + `neg/` pair below `path`, and the files in them."""
    folders: dict[str, list[_Found]] = defaultdict(list)
    for file in found:
        folder, _, name = file.relative.rpartition("/")
        is_review = posixpath.basename(folder) in acl_imdb.LABELS and acl_imdb.FILE_NAME.fullmatch(name)
        if is_review and not file.refused:
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


def _walk_of(base: str) -> _Walk | None:
    """Walk through a folder; None where there is no folder."""
    with reading(base, store_only=True):
        if not is_remote(base):
            return partial(_walk_local, Path(base)) if Path(base).is_dir() else None
        bucket, key = bucket_of(base)
        values = bucket.listing(key)
        return partial(_walk_remote, base, values) if values else None


def _walk_remote(base: str, values: Sequence[StoredFile], matches: _Matches) -> tuple[list[_Found], list[Mark]]:
    key = bucket_of(base)[1]
    found: list[_Found] = []
    marks: dict[Mark, None] = {}
    for value in values:
        relative = value.key[len(key) :].lstrip("/")
        if mark := mark_of(base, relative):
            marks[mark] = None
        if not _is_hidden(relative) and matches(relative):
            seconds = int(value.modified.timestamp())
            found.append(_Found(f"{base}/{relative}", relative, value.size_bytes, seconds * 10**9, tag_of(value)))
    # A key that ends with a slash, written for an empty folder, is listed without it: no value has that name.
    empty = [file.path for file in found if not file.size_bytes]
    folders = {path for path, there in zip(empty, in_pool(is_file, empty, threads_for(base)), strict=True) if not there}
    found = [file for file in found if file.size_bytes or file.path not in folders]
    for path, number in Counter(file.path for file in found).items():
        if number > 1:
            raise DataRefused(
                f"{path}: expected one object of this name, found {number}, whose keys differ by a slash at an end.",
                "Rename all but one.",
            )
    return found, list(marks)


def _walk_local(base: Path, matches: _Matches) -> tuple[list[_Found], list[Mark]]:
    root = base.resolve()
    listed: list[_Found] = []
    links: list[tuple[Path, str]] = []
    marks: dict[Mark, None] = {}
    with reading(str(base), store_only=True):
        for folder, folders, names in os.walk(base, onerror=_raise):
            for name in [name for name in folders if name in MARKING_FOLDERS]:
                below = Path(folder, name).iterdir()
                inside = (mark_of(printable(folder), f"{name}/{printable(path.name)}") for path in below)
                marks.update({mark: None for mark in inside if mark})
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            for name in [*folders, *sorted(names)]:
                path = Path(folder, name)
                relative = path.relative_to(base).as_posix()
                if _is_hidden(name) or (name not in folders and not matches(relative)):
                    continue
                if path.is_symlink():
                    links.append((path, relative))
                elif name not in folders:
                    listed.append(_local_file(path, relative, path.stat()))
        real = {str(Path(file.path).resolve()) for file in listed} if links else set()
        for path, relative in links:
            if not matches(relative):
                continue
            target = path.resolve()
            if not target.is_relative_to(root):
                detail = "a link that leads out of the folder that was named"
                listed.append(_Found(printable(str(path)), printable(relative), 0, 0, "0", detail))
            elif not target.exists():
                detail = "a link to a file that is not there"
                listed.append(_Found(printable(str(path)), printable(relative), 0, 0, "0", detail))
            elif not target.is_dir() and str(target) not in real:
                real.add(str(target))
                listed.append(replace(_local_file(path, relative, target.stat()), target=printable(str(target))))
    return listed, list(marks)


def _local_file(path: Path, relative: str, status: os.stat_result) -> _Found:
    refused = ""
    if not stat.S_ISREG(status.st_mode):
        refused = "a pipe, socket or device, not a file"
    elif printable(str(path)) != str(path):
        refused = "its name is not UTF-8: rename it"
    modified = status.st_mtime_ns
    return _Found(printable(str(path)), printable(relative), status.st_size, modified, str(modified), refused)


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(relative: str) -> bool:
    """Whether a name is ignored, by Spark's rule: `.part`, `_SUCCESS` and all below `_temporary`, but not `_key=1`."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in relative.split("/"))


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


def _missing(path: str, base: str) -> ConfigError:
    near, target = "", Path(base)
    if not is_remote(base) and target.parent.is_dir():
        near = did_you_mean(target.name, [printable(entry.name) for entry in os.scandir(target.parent)])
    return ConfigError(f"{path}: expected a file, folder or glob, found nothing there.{near}", "Correct the path.")


def _name_twins(entries: Sequence[FileEntry]) -> None:
    """Log files that differ by their format or compression alone, and may hold the same reviews twice."""
    stems: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in entries:
        stems[_stem(entry.path)].append(entry)
    twins = [together for together in stems.values() if len(together) > 1]
    if twins:
        logger.warning(
            "%s: %d files differ from another by format or compression alone, such as %s; if they hold the same "
            "reviews, each is read twice",
            twins[0][0].path,
            sum(len(together) - 1 for together in twins),
            twins[0][1].path,
        )


def _with_distinct_names(entries: list[FileEntry]) -> list[FileEntry]:
    """Entries of several roots that share a relative path take the path below their common folder instead."""
    if len({entry.relative_path for entry in entries}) == len(entries):
        return entries
    schemes = {scheme_of(entry.path) for entry in entries}
    if len(schemes) > 1:
        return [replace(entry, relative_path=entry.path) for entry in entries]
    common = os.path.commonpath([posixpath.dirname(entry.path) for entry in entries])
    return [replace(entry, relative_path=entry.path[len(common) :].lstrip("/")) for entry in entries]
