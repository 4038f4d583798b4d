"""Inputs of a pass (tensors in dicts, tuples and dataclasses), changed as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from torch import Tensor

Value = TypeVar("Value")


def over_tensors(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """A copy of some inputs (tensors in dicts, tuples and dataclasses) with every tensor changed."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, dict):
        changed = {key: over_tensors(part, change) for key, part in value.items()}
    elif isinstance(value, tuple):
        changed = tuple(over_tensors(part, change) for part in value)
    elif is_dataclass(value) and not isinstance(value, type):
        changed = replace(
            value, **{part.name: over_tensors(getattr(value, part.name), change) for part in fields(value)}
        )
    return cast("Value", changed)
