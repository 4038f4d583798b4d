"""Python as on a machine that has torch, transformers, pyarrow and numpy, and nothing else that bertray wants."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from typing import Any

# `scipy` and `sklearn` stay: training's validation metrics are theirs.
BLOCKED = (
    *("ray", "pydantic", "pydantic_core", "omegaconf", "ruamel", "typer", "rich", "jinja2", "matplotlib"),
    *("ftfy", "obstore", "pandas", "datasets", "optuna", "bertopic", "cleanlab", "rensa", "openvino", "psutil"),
    *("charset_normalizer", "platformdirs"),
)


class _Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


def block() -> None:
    """Let imports of those packages fail from here on."""
    sys.meta_path.insert(0, _Blocker())
