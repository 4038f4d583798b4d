"""Places that are no plain folder of reviews: the run's own output, what an earlier run wrote, tables with a log."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bertray.errors import ConfigError, DataRefused
from bertray.io.pool import in_pool
from bertray.paths import local_path
from bertray.reviews.file_access import files_in, full_path, is_remote, scheme_of, threads_for
from bertray.reviews.formats import delta

_OUTPUT = "an output of bertray"
DELTA = "a Delta Lake table"
_MARKS = {
    DELTA: re.compile(r"(.*/)?_delta_log/.+"),
    "an Apache Hudi table": re.compile(r"(.*/)?\.hoodie/.+"),
    "an Apache Iceberg table": re.compile(
        r"(.*/)?metadata/(?:v?\d+(?:-[\w-]+)?(?:\.gz)?\.metadata\.json(?:\.gz)?|version-hint\.text|snap-\d+-.+\.avro)"
    ),
    _OUTPUT: re.compile(r"(.*/)?control/run\.json"),
}
MARKING_FOLDERS = ("_delta_log", ".hoodie", "metadata", "control")
_SCANS = {DELTA: "delta_scan", "an Apache Iceberg table": "iceberg_scan"}
_NO_REVIEWS = ("control", "quarantine", "reports")  # folders of an output


@dataclass(frozen=True)
class Mark:
    """A folder that is more than its files, known by the name of a file below it."""

    kind: str
    root: str  # path or URI of the folder

    @property
    def is_table(self) -> bool:
        return self.kind != _OUTPUT

    def holds(self, path: str) -> bool:
        return path.startswith(self.root.rstrip("/") + "/")


def mark_of(base: str, relative: str) -> Mark | None:
    """Mark of a folder above a file and below `base`, by the file's name."""
    for kind, name in _MARKS.items():
        if found := name.fullmatch(relative):
            return Mark(kind, posixpath.join(base, found[1] or "").rstrip("/"))
    return None


def marks_above(path: str) -> Iterator[Mark]:
    """Marks of a folder and of every folder above it, those of a local one behind its symbolic links."""
    folder = path.rstrip("/") if is_remote(path) else os.path.realpath(full_path(path))
    folders = []
    while folder.strip("/") and not folder.endswith(":/"):
        folders.append(folder)
        folder = posixpath.dirname(folder)
    places = [(folder, name) for folder in folders for name in MARKING_FOLDERS]
    inside = in_pool(lambda place: _names_in("/".join(place)), places, threads_for(path))
    for (folder, name), names in zip(places, inside, strict=True):
        if mark := next(filter(None, (mark_of(folder, f"{name}/{file}") for file in names)), None):
            yield mark


def _names_in(folder: str) -> list[str]:
    with contextlib.suppress(OSError, ConfigError):  # there may be no right to look above the input
        return [name for name, _ in files_in(folder)]
    return []


def refuse_marked(key: str, path: str, marks: Iterable[Mark], above: Iterable[Mark], files: Sequence[str]) -> None:
    """Refuse files of tables, and what an earlier run wrote beside its committed rows.

    Args:
        key: of the config.
        path: that the user named.
        marks: of folders below it.
        above: of the folder that was named, and of those it lies in.
        files: that were found.

    Raises:
        DataRefused: a table's log says which of its rows count; the files also hold what was deleted.
        ConfigError: they are not reviews.
    """
    for mark in above:
        inside = _components(path)[len(_components(mark.root)) :]
        if files and mark.is_table:
            raise _table(key, mark)
        if not mark.is_table and inside[:1] and inside[0] in _NO_REVIEWS:
            raise ConfigError(
                f"{key}: expected reviews, found {path}, which belongs to {_OUTPUT} ({mark.root}).",
                f"Name {posixpath.join(mark.root, 'data')} to read its committed rows.",
            )
    for mark in marks:
        held = [file for file in files if mark.holds(file)]
        if held and mark.is_table:
            raise _table(key, mark)
        if any(not Mark(_OUTPUT, posixpath.join(mark.root, "data")).holds(file) for file in held):
            raise ConfigError(
                f"{key}: expected reviews, found {_OUTPUT} in {path}: {mark.root}.",
                "Name the files of reviews by a glob that leaves it out; its committed rows alone are in "
                f"{posixpath.join(mark.root, 'data')}.",
            )


def _table(key: str, mark: Mark) -> DataRefused:
    scan = _SCANS.get(mark.kind)
    way = f"with DuckDB: COPY (FROM {scan}('{mark.root}')) TO 'rows.parquet'" if scan else "with Spark"
    remedy = f"Write the live rows as Parquet, {way}, and name that file or its folder."
    if mark.kind == DELTA:
        extra = "" if delta.is_installed() else "Run `pip install 'bertray[delta]'`, and name "
        remedy = f"{extra or 'Name '}the folder of the table itself, whose log is read then. Or w{remedy[1:]}"
    return DataRefused(
        f"{key}: expected files of reviews, found {mark.kind}: {mark.root}. Its files also hold rows that were deleted "
        "or replaced; only its log says which count.",
        remedy,
    )


def output_that_holds(path: str) -> str | None:
    """The output of an earlier run that a file belongs to."""
    return next((mark.root for mark in marks_above(posixpath.dirname(path)) if not mark.is_table), None)


def check_apart(key: str, path: str, base: str, globs: Sequence[re.Pattern[str] | None], output: str) -> None:
    """Raises ConfigError where an input lies in the output of the run, or may hold it.

    Args:
        key: of the config.
        path: as the user named it.
        base: the file or folder that it means, without a glob.
        globs: what matches each folder and the file below the base; None where any number of them match.
        output: as the user named it. Symbolic links, `~`, `..` and file: are resolved in both.
    """
    ours, theirs = _components(output), _components(base)
    if theirs[: len(ours)] == ours:
        raise ConfigError(
            f"{key}: expected an input apart from the output, found {path} in output={output}.",
            "Choose another `output`, or move the reviews out of it.",
        )
    if ours[: len(theirs)] == theirs and _reaches(globs, ours[len(theirs) :]):
        raise ConfigError(
            f"{key}: expected an input apart from the output, found output={output} in {path}: a later run would read "
            "what this one writes.",
            "Choose an `output` beside the input, or name the reviews by a glob that does not reach it.",
        )


def _reaches(globs: Sequence[re.Pattern[str] | None], folders: Sequence[str]) -> bool:
    """Can a glob match a file below these folders? One that matches a folder gives its files."""
    for glob, folder in zip(globs, folders, strict=False):
        if glob is None:
            return True
        if not glob.fullmatch(folder):
            return False
    return True


def _components(path: str) -> tuple[str, ...]:
    """The storage and the folders of a place; equal for equal places."""
    scheme = scheme_of(path)
    if scheme in ("", "file"):
        return ("", *os.path.realpath(local_path(path)).strip("/").split("/"))
    bucket, *folders = filter(None, path.partition("://")[2].split("/"))
    if scheme in ("abfs", "abfss"):
        scheme, bucket = "az", bucket.partition("@")[0]
    return (scheme, bucket, *folders)
