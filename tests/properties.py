"""How many examples a property is tried on: some in `make test`, all in `make test-slow`."""

from __future__ import annotations

import os

THOROUGH = "BERTRAY_THOROUGH"  # set by `make test-slow`, which runs every property once more


def examples(thorough: int) -> int:
    """Number of examples for this run, of which `thorough` are tried by `make test-slow`, a sixth by `make test`."""
    return thorough if os.environ.get(THOROUGH) else max(thorough // 6, 10)
