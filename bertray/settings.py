"""Values that the keys of a config and the library share, and the way from a section of a config to plain settings.

The library takes frozen dataclasses, which a machine without pydantic can import; a config checks what a person wrote.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, TypeVar

LongText = Literal["head", "tail", "head_tail", "windows"]
Pooling = Literal["mean", "cls"]
EmbeddingKind = Literal["mean", "cls", "tokens"]
HeadKind = Literal["logreg", "svm"]
NormalForm = Literal["NFC", "NFKC", "none"]
Precision = Literal["auto", "fp32", "bf16"]
ScoringPrecision = Literal["auto", "fp32", "bf16", "int8"]
ClassWeights = Literal["none", "balanced"]
BestMetric = Literal["loss", "accuracy", "macro_f1", "mcc"]
SamplerKind = Literal["tpe", "random", "grid"]

_Settings = TypeVar("_Settings")


def settings_of(kind: type[_Settings], section: object) -> _Settings:
    """Plain settings with the values of a section, which has every field of `kind` under the same name."""
    values: dict[str, Any] = {field.name: getattr(section, field.name) for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**values)
