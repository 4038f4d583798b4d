"""Refusals of commands."""

from __future__ import annotations

from pathlib import Path

import pytest


def assert_refused(capsys: pytest.CaptureFixture[str], said: str, output: Path) -> None:
    """A command said on stderr what is wrong, without a traceback, and wrote nothing."""
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not output.exists()
