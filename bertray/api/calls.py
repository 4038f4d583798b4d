"""Common parts of every API call: quiet runs, errors of the package alone, plain values for a config."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from bertray import errors, runtime
from bertray.console import NOISY, WARNING_MODULES
from bertray.errors import BertrayError, ConfigError


@contextlib.contextmanager
def call(*, verbose: bool = False) -> Iterator[None]:
    """One call: third parties are quiet meanwhile, and what goes wrong is an error of the package where it is known.

    Args:
        verbose: show log lines of the run on stderr.
    """
    if "torch" not in sys.modules:
        runtime.set_up_threads()
    try:
        with _loggers(verbose=verbose):
            yield
    except Exception as error:
        known = known_error(error)
        if known is None or known is error:
            raise
        raise known from error


@contextlib.contextmanager
def _loggers(*, verbose: bool) -> Iterator[None]:
    """Log lines of ours on stderr or nowhere, those of others from errors on; afterwards as before."""
    ours = logging.getLogger("bertray")
    names = ("bertray", *NOISY)
    levels = {name: logging.getLogger(name).level for name in names}
    handler: logging.Handler | None = None
    with contextlib.ExitStack() as stack:
        if verbose:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
            ours.addHandler(handler)
            stack.callback(ours.removeHandler, handler)
            ours.setLevel(logging.INFO)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=WARNING_MODULES)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def known_error(error: BaseException) -> BertrayError | None:
    """The error as one of the package, also where Ray has wrapped it; None: a bug."""
    if (known := errors.known(error)) is None and "ray" in sys.modules:
        from bertray.execution.remote_errors import as_known

        return as_known(error)
    return known


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
