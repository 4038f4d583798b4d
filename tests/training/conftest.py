"""Tiny classifiers of every family, as the tests of the model have them; arithmetic in fp32 on every machine."""

import pytest

from bertray.training import objectives
from tests.model.conftest import make_classifier

__all__ = ["make_classifier"]


@pytest.fixture(autouse=True)
def fp32_unless_asked(monkeypatch):
    """What is compared number by number must not depend on whether this CPU multiplies in bf16."""
    monkeypatch.setattr(objectives, "_use_bf16", lambda precision, device: precision == "bf16")
