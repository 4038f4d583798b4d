"""The environment of a process: variables to set before it imports torch, its streams, its path of modules."""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from bertray.errors import ConfigError

# Threads of torch that wait look for work for a moment, then sleep. By default they spin, which beside any other busy
# process costs it, and them, half of their speed and more; asleep at once they are late for short operations
# (docs/performance.md). The second is read by libgomp, which torch has on Linux, and there overrules the first.
THREADS_ENV = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "4000"}

COMPUTE_ENV = {
    **THREADS_ENV,
    # glibc keeps freed memory instead of handing it back after every batch: measured 1.1-1.2x on CPU inference.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "2",
}

# Modules of Python's own that nothing imports to compute; packages of other people are often called `test`.
NEVER_IMPORTED = frozenset({"antigravity", "distutils", "idlelib", "lib2to3", "test", "this", "turtle", "turtledemo"})

_added: set[str] = set()


def set_up_threads() -> None:
    """Let the threads of this process wait as ours do, unless its environment says how; to be called before torch."""
    ours = unless_chosen(THREADS_ENV)
    _added.update(ours.keys() - os.environ.keys())
    os.environ.update(ours)


def unless_chosen(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings for a process, with what the environment of this one has in place of ours.

    Of how threads wait it is all ours or all the user's, since one setting overrules the other.
    """
    ours = dict(settings)
    if THREADS_ENV.keys() & os.environ.keys():
        for name in THREADS_ENV:
            ours.pop(name, None)
    return ours | {name: os.environ[name] for name in settings if name in os.environ}


def working_folder() -> str | None:
    """The folder that relative paths begin at; None where it is gone."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def work_in(folder: str | None) -> None:
    """Let relative paths of this process mean what they mean to the driver, where its folder is on this machine.

    A Ray that was started elsewhere, or before the driver changed its folder, has workers in another one.

    Args:
        folder: `working_folder` of the driver.
    """
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def environment_of_user() -> dict[str, str]:
    """The environment of this process without what `set_up_threads` added."""
    return {name: value for name, value in os.environ.items() if name not in _added}


class _Tolerant(io.FileIO):
    """A stream of the process that drops what it cannot write, where the reason is a forgiven one."""

    def __init__(self, descriptor: int, forgiven: type[OSError]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.forgiven = forgiven

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except self.forgiven:
            return len(content)


def set_up_streams() -> None:
    """Let no line that cannot be printed end a command.

    Characters that the encoding lacks are escaped. A reader of stdout that has gone wants no more of it (`| head`);
    a disk that is full under it is an error, since the list of files would be cut. Nobody can be told about stderr.
    """
    sys.stdout = _tolerant(sys.stdout, BrokenPipeError)
    sys.stderr = _tolerant(sys.stderr, OSError)


def _tolerant(stream: TextIO, forgiven: type[OSError]) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # closed, or a test's
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Tolerant(stream.fileno(), forgiven)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def close_streams() -> None:
    """Flush the streams of the process; errors have been reported by now, and are passed over."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            raw = getattr(getattr(stream, "buffer", None), "raw", None)
            if isinstance(raw, _Tolerant):
                raw.forgiven = OSError
            stream.flush()


def hidden_modules() -> dict[str, Path]:
    """Modules of Python's own that a file in a folder of PYTHONPATH hides, and that file.

    Such a file is imported in the place of Python's module, in this process and in all that Ray starts.
    """
    hidden: dict[str, Path] = {}
    own = sys.stdlib_module_names - set(sys.builtin_module_names) - NEVER_IMPORTED
    python = Path(os.__file__).resolve().parent
    for entry in os.environ["PYTHONPATH"].split(os.pathsep) if os.environ.get("PYTHONPATH") else []:
        folder = Path(entry)  # empty: the working folder
        if folder.is_dir() and folder.resolve() != python:
            for path in sorted(folder.iterdir()):
                if path.stem in own and (path.suffix == ".py" or (path / "__init__.py").is_file()):
                    hidden.setdefault(path.stem, path.absolute())
    return hidden


@contextmanager
def without_collection() -> Iterator[None]:
    """Turn garbage collection off for the block; objects that exist at its end are never searched again.

    torch and transformers make half a million objects that stay; searching these again and again takes a fifth of the
    time of an import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def num_cpus(control_groups: Path = Path("/sys/fs/cgroup"), of_process: Path = Path("/proc/self/cgroup")) -> int:
    """CPUs that this process may use: those it may run on, at most as many as the limit of its container.

    The count of the operating system is of the whole machine; threads beyond the limit are stopped by turns.

    Args:
        control_groups: where Linux shows the limits of control groups, of version 2 or 1.
        of_process: names the group of this process.
    """
    limits = [float(len(os.sched_getaffinity(0)))]
    for quota_file, period_file in _limit_files(control_groups, of_process):
        try:
            quota, *period = quota_file.read_text().split()
            period = period or period_file.read_text().split()
            if quota not in ("max", "-1"):
                limits.append(float(quota) / float(period[0]))
        except (OSError, ValueError, ZeroDivisionError):  # no such group, or a file system of another kind
            continue
    return max(1, int(min(limits)))


def _limit_files(control_groups: Path, of_process: Path) -> Iterator[tuple[Path, Path]]:
    """(file of the quota, file of its period) of the groups of this process; version 2 has both in one."""
    try:
        own = next((line[3:] for line in of_process.read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        own = "/"
    group = PurePosixPath(own.strip().lstrip("/"))
    for folder in (group, *group.parents):
        yield control_groups / folder / "cpu.max", control_groups / folder / "cpu.max"
    yield control_groups / "cpu/cpu.cfs_quota_us", control_groups / "cpu/cpu.cfs_period_us"


def check_installed(verb: str, packages: Iterable[str]) -> None:
    """Whether what the extra of a verb brings is there; nothing is imported.

    Raises:
        ConfigError: a package is not installed.
    """
    for name in packages:
        if find_spec(name) is None:
            raise ConfigError(f"{verb}: {name} is not installed.", f"Run `pip install 'bertray[{verb}]'`.")


def import_all(names: Sequence[str]) -> None:
    """Import modules ahead of their use."""
    with without_collection():
        for name in names:
            importlib.import_module(name)
