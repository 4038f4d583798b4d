"""Output for a person while a command runs: log lines, a bar on a terminal, tables at the end."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bertray.wording import duration, visible

LOG_EVERY_S = 5.0
_ANY_WIDTH = 10_000  # of a terminal
NOISY = ("ray", "ray.data", "ray.train", "transformers", "huggingface_hub", "fontTools", "matplotlib")  # loggers
WARNING_MODULES = r"(ray|torch|transformers|sklearn|tqdm)\b.*"  # of others, whose warnings a user can do nothing about
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def set_up_logging(*, verbose: bool) -> None:
    """One line a message on stderr; third parties only from warnings on."""
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler()], force=True)
    logging.getLogger("bertray").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=WARNING_MODULES)
        # Set before transformers is imported anywhere: hub progress bars have no place in a job log.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def log_handler() -> logging.Handler:
    """A handler that writes log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


class _VisibleFormatter(logging.Formatter):
    """Log lines without what a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class Ticker:
    """Progress of a known amount of work: a bar on a terminal or in a notebook, a log line now and then elsewhere."""

    def __init__(self, title: str, total: float, unit: str) -> None:
        self.total = total
        self._title, self._unit = title, unit
        self._log = logging.getLogger("bertray.progress")
        self._last = time.monotonic()
        self._first: tuple[float, float] | None = None  # when, and how much was done: a resumed run starts later than 0
        self._bar: Progress | None = None
        # Without ipywidgets Rich would print a warning into the notebook for each bar.
        if err.is_terminal or (err.is_jupyter and find_spec("ipywidgets") is not None):
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}", markup=False),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, unit=unit, note="")

    def __enter__(self) -> Ticker:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, note: str = "") -> None:
        """`done` of the total so far; `note` stands behind it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, note=visible(note))
            return
        now = time.monotonic()
        if self._first is None or done < self._first[1]:  # work that was lost is done again
            self._first = (now, done)
        if now - self._last < LOG_EVERY_S:
            return
        self._last = now
        since, before = self._first
        left = f", {duration((now - since) * (self.total - done) / (done - before))} left" if done > before else ""
        detail = f", {note}" if note else ""
        line = f"{self._title}: {done:,.0f} of {self.total:,.0f} {self._unit}{detail}{left}"
        self._log.info("%s", line)


def say(text: str) -> None:
    """Print a line to stdout, markup as it is (a path may hold `y[red]z`), without what a terminal obeys."""
    out.out(visible(text), highlight=False)


def heading(title: str, text: str) -> None:
    """Print a line that opens a part of a command; the title bold on a terminal."""
    out.print(Text.assemble((visible(title), "bold"), f": {visible(text)}"))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a small table; numbers right-aligned, the first column left. A cell is one line without markup."""
    grid = Table(title=Text(_cell(title), style="bold"), title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(Text(_cell(column)), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    if out.measure(grid, options=out.options.update(max_width=_ANY_WIDTH)).maximum > out.width:
        grid.box, grid.padding, grid.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False  # words fit where lines go
    out.print(grid)


def _cell(value: str) -> str:
    return visible(value).replace("\n", " ")


def remove_empty_stdout() -> None:
    """Remove the file that a shell has made for `> FILE` when a command failed before it wrote a line.

    An empty config would be read as one without keys, an empty list of files as a night without rows. Only a regular
    file goes that is empty, has one name and one owner, and was not opened to append: for anything else somebody waits.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()  # which may go to the same file
        made, flags = os.fstat(1), fcntl.fcntl(1, fcntl.F_GETFL)
        path = Path("/proc/self/fd/1").readlink()  # Linux; elsewhere the file stays
        is_ours = stat.S_ISREG(made.st_mode) and made.st_nlink == 1 and made.st_uid == os.geteuid()
        if is_ours and not made.st_size and not flags & os.O_APPEND and os.path.samestat(made, path.lstat()):
            path.unlink()
            err.out(f"bertray: the empty {path} is removed", highlight=False)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long a stage took, at debug level."""
    start = time.monotonic()
    yield
    logging.getLogger("bertray.time").debug("%s: %.1f s", what, time.monotonic() - start)


@contextmanager
def stderr_without(words: str) -> Iterator[None]:
    """Hold back what this process writes to stderr, native code included, and drop the lines with `words` from it."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed, as a daemon may have it: nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if words.encode() not in line:
                    with suppress(OSError):  # a pipe that nobody reads, a full disk
                        os.write(2, line)
