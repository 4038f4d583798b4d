"""`bertray doctor`: checks of this machine, one line per check, with the remedy."""

from __future__ import annotations

import time
from collections.abc import Callable

from bertray.config import DoctorConfig
from bertray.console import say
from bertray.errors import BertrayError, InfrastructureError
from bertray.runs.machine_checks import machine_checks


def run_doctor(config: DoctorConfig) -> int:
    """Run every check, also after a failed one.

    Returns:
        0 when all checks pass, else the exit code of the first that fails.
    """
    codes = [_check(name, check) for name, check in machine_checks(config).items()]
    failed = [code for code in codes if code]
    say(f"{len(codes) - len(failed)} of {len(codes)} checks passed")
    return failed[0] if failed else 0


def _check(name: str, check: Callable[[], str]) -> int:
    started = time.monotonic()
    try:
        found = check()
    except BertrayError as error:
        say(f"FAIL  {name:14} {error.message} {error.remedy}")
        return error.exit_code
    except Exception as error:  # whatever a check meets is its finding; the next checks still run
        say(f"FAIL  {name:14} {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return InfrastructureError.exit_code
    say(f"ok    {name:14} {found} ({time.monotonic() - started:.1f} s)")
    return 0
