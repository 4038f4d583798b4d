"""The errors a user can meet, each with the exit code that cron and people act on.

    BertrayError            1   a bug, when it is raised bare
    ├── ConfigError         2   typo, missing path, model or column, wrong type, read-only output
    ├── ConflictError       4   committed from other inputs or model, output of another run, live run holds it
    ├── DataRefused         6   empty, one class, unknown label, bad files or too many bad rows
    ├── InfrastructureError 7   storage, network, memory: run the same command again
    │   └── Diverged        7   a loss or gradient that is not finite
    ├── GateRefused         8   a release gate said no
    └── DriftFound          8   a night drifted, and on_drift=fail; its rows are committed

A message is one screen: `<where>: expected <this>, found <that>.` and the remedy as its own sentence.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INTERRUPTED = 130


class BertrayError(Exception):
    """Base of every error that bertray raises on purpose.

    Args:
        message: what was expected and what was found; no secrets, no review text.
        remedy: what to do about it, one sentence.
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def __reduce__(self) -> tuple[type[BertrayError], tuple[str, str]]:
        # Both parts survive the trip out of a Ray worker; Exception alone would keep only the first.
        return type(self), (self.message, self.remedy)


class ConfigError(BertrayError):
    """The command or its configuration is wrong; nothing was started."""

    exit_code = 2


class ConflictError(BertrayError):
    """The output already holds something else, or another live run holds it."""

    exit_code = 4


class DataRefused(BertrayError):
    """The data cannot be used as it is."""

    exit_code = 6


class InfrastructureError(BertrayError):
    """The world failed, not the data: the same command may succeed when it is run again."""

    exit_code = 7


class Diverged(InfrastructureError):
    """The loss or a gradient became NaN or infinite."""


class GateRefused(BertrayError):
    """A release gate refused."""

    exit_code = 8


class DriftFound(BertrayError):
    """A committed night is unlike the nights before it, and the config asks to fail then."""

    exit_code = 8


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `choices`, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


# torch on CPU, the CUDA driver, and its libraries, each in a RuntimeError.
NO_MEMORY = re.compile(
    "DefaultCPUAllocator: can't allocate memory|CUDA error: out of memory|(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
)
NO_SPACE = re.compile(rf"\(os error (?:{errno.ENOSPC}|{errno.EDQUOT})\)")  # Rust, in an error of its library


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error and its heirs, or torch's, which are told by name so that torch need not be imported."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None)
    )


def is_disk_full(error: BaseException) -> bool:
    """No space left, or none of the quota; as safetensors says it too."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return type(error).__name__ == "SafetensorError" and NO_SPACE.search(str(error)) is not None


def known(error: BaseException) -> BertrayError | None:
    """An error as one of ours: itself, or a lack of memory or disk as infrastructure; None: a bug."""
    if isinstance(error, BertrayError):
        return error
    words = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        detail = f" ({type(error).__name__}: {words})" if words else ""
        return InfrastructureError(f"out of memory{detail}.", "Use smaller batches or a larger machine.")
    if is_disk_full(error):
        if isinstance(error, OSError):
            words = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return InfrastructureError(f"{words}.", "Make room, then run the same command again.")
    return None
