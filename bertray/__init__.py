"""Reviews in, sentiment labels out, proof beside them: BERT-family models on Ray.

Importing the package is cheap: public names are imported when they are first used, and neither torch nor ray nor
transformers before that.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertray import errors
    from bertray.api.classifier import Classifier
    from bertray.api.embedder import Embedder
    from bertray.api.verbs import (
        answers,
        audit,
        compare,
        embed,
        evaluate,
        fetch,
        files,
        gc,
        plan,
        pretrain,
        promote,
        queue,
        registry,
        rollback,
        score,
        shares,
        topics,
        train,
        tune,
    )
    from bertray.errors import (
        BertrayError,
        ConfigError,
        ConflictError,
        DataRefused,
        Diverged,
        DriftFound,
        GateRefused,
        InfrastructureError,
    )

__version__ = "0.1.0"

__all__ = [
    "BertrayError",
    "Classifier",
    "ConfigError",
    "ConflictError",
    "DataRefused",
    "Diverged",
    "DriftFound",
    "Embedder",
    "GateRefused",
    "InfrastructureError",
    "__version__",
    "answers",
    "audit",
    "compare",
    "embed",
    "errors",
    "evaluate",
    "fetch",
    "files",
    "gc",
    "plan",
    "pretrain",
    "promote",
    "queue",
    "registry",
    "rollback",
    "score",
    "shares",
    "topics",
    "train",
    "tune",
]

# Public name -> module that defines it: verbs are lower-case, and what is no class of its own is an error.
_MODULES = {name: "bertray.api.verbs" if name.islower() else "bertray.errors" for name in __all__}
_MODULES |= {"Classifier": "bertray.api.classifier", "Embedder": "bertray.api.embedder"}

# Without a handler of the program, Python prints warnings of libraries to stderr; results carry them as notes.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("bertray.errors")
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
