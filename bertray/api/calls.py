"""Common parts of every API call: quiet runs, errors of the package alone, plain values for a config."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from bertray import runtime
from bertray.console import NOISY, WARNING_MODULES, log_handler
from bertray.errors import ConfigError
from bertray.execution.remote_errors import known_error


@contextlib.contextmanager
def call(*, verbose: bool = False) -> Iterator[None]:
    """One call: third parties are quiet meanwhile, and what goes wrong is an error of the package where it is known.

    Args:
        verbose: show log lines of the run on stderr.
    """
    if "torch" not in sys.modules:
        runtime.set_up_threads()
    try:
        with _QUIET, _shown_on_stderr() if verbose else contextlib.nullcontext():
            yield
    except Exception as error:
        known = known_error(error)
        if known is None or known is error:
            raise
        raise known from error


class _Quiet:
    """Third parties kept quiet for as long as any call runs, also where calls of several threads overlap."""

    def __init__(self) -> None:
        self._lock, self._calls, self._before = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                for name in ("bertray", *NOISY):
                    logger = logging.getLogger(name)
                    self._before.callback(logger.setLevel, logger.level)
                    if name != "bertray":
                        logger.setLevel(logging.ERROR)
                self._before.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=WARNING_MODULES)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if not self._calls:
                self._before.close()


_QUIET = _Quiet()


@contextlib.contextmanager
def _shown_on_stderr() -> Iterator[None]:
    """Log lines of ours on stderr."""
    ours, handler = logging.getLogger("bertray"), log_handler()
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)


def plain(value: Any) -> Any:
    """A value of Python as a config takes it: paths as text, numbers of NumPy as Python's, at any depth."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def device_of(device: str) -> str:
    """`cpu` or `cuda` of `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: another word, or no GPU where one is asked for.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu or cuda, found {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda: this process sees no GPU.",
            "Leave `device` out, or give the actors of `map_batches` a GPU each.",
        )
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
