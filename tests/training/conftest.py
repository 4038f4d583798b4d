"""Tiny classifiers of every family, as the tests of the model have them; arithmetic in fp32 on every machine."""

import pytest
import torch

from bertray.training import objectives
from tests.model.conftest import make_classifier

__all__ = ["make_classifier"]


@pytest.fixture(autouse=True)
def fp32_unless_asked(monkeypatch):
    """What is compared number by number must not depend on whether this CPU multiplies in bf16."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    monkeypatch.setattr(objectives, "compute_dtype", lambda precision, device: dtypes.get(precision, torch.float32))
