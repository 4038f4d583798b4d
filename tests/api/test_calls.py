"""Calls leave loggers and filters of the program as they were, also where those of several threads overlap."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack

import pytest

from bertray.api.calls import call
from bertray.console import NOISY
from bertray.errors import InfrastructureError

LOGGERS = ("bertray", *NOISY)


def state() -> tuple[list[int], list[logging.Handler], list[object]]:
    handlers = list(logging.getLogger("bertray").handlers)
    return [logging.getLogger(name).level for name in LOGGERS], handlers, list(warnings.filters)


@pytest.mark.parametrize("verbose", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("first_to_end", [0, 1])
def test_overlapping_calls_leave_no_trace(verbose, first_to_end):
    before = state()
    calls = [ExitStack(), ExitStack()]
    for stack, is_verbose in zip(calls, verbose, strict=True):
        stack.enter_context(call(verbose=is_verbose))
    assert all(logging.getLogger(name).level == logging.ERROR for name in NOISY)
    calls[first_to_end].close()
    assert all(logging.getLogger(name).level == logging.ERROR for name in NOISY)
    calls[1 - first_to_end].close()
    assert state() == before


def test_a_call_that_fails_leaves_no_trace_and_an_error_of_the_package():
    before = state()
    with pytest.raises(InfrastructureError), call(verbose=True):
        raise MemoryError
    assert state() == before
