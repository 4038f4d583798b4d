"""Python as on a machine that has torch, transformers, pyarrow and numpy, and nothing else that bertray wants."""

from __future__ import annotations

import sys

# `scipy` and `sklearn` stay: training's validation metrics are theirs. `yaml`, `jinja2`: the four need them.
BLOCKED = (
    *("ray", "pydantic", "pydantic_core", "omegaconf", "ruamel", "typer", "rich", "matplotlib", "ftfy", "obstore"),
    *("datasets", "optuna", "bertopic", "cleanlab", "rensa", "openvino", "nncf", "onnx", "onnxruntime"),
    *("psutil", "charset_normalizer"),
    "platformdirs",  # not `pandas`, which pyarrow and sklearn look up by themselves
)


def block() -> None:
    """Let imports of those packages fail from here on, as if they were not installed."""
    for name in BLOCKED:
        sys.modules[name] = None  # how Python marks a module that cannot be imported
