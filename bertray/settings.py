"""Values that the keys of a config and the library share, and the way from a section of a config to plain settings.

The library takes frozen dataclasses, which a machine without pydantic can import; a config checks what a person wrote.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, get_type_hints

Auto = Literal["auto"]
LongText = Literal["head", "tail", "head_tail", "windows", "select"]
Pooling = Literal["mean", "cls"]
EmbeddingKind = Literal["mean", "cls", "tokens", "vocabulary"]
VocabularyUnit = Literal["character", "token", "word"]
VectorFormat = Literal["parquet", "word2vec"]
AspectHead = Literal["classifier", "attention"]
HeadKind = Literal["logreg", "svm"]
NormalForm = Literal["NFC", "NFKC", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ScoringPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
GradientCompression = Literal["none", "bf16"]
ClassWeights = Literal["none", "balanced"]
BestMetric = Literal["loss", "accuracy", "macro_f1", "mcc"]
KeptEpoch = Literal["best", "last"]
SamplerKind = Literal["tpe", "random", "grid"]

_Settings = TypeVar("_Settings")


def settings_of(kind: type[_Settings], section: object) -> _Settings:
    """Plain settings with the values of a section, which has every field of `kind` under the same name.

    A field that is a dataclass itself takes the values of a section below the section.
    """
    kinds = get_type_hints(kind)
    values: dict[str, Any] = {field.name: getattr(section, field.name) for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    nested = {name: settings_of(kinds[name], value) for name, value in values.items() if is_dataclass(kinds[name])}
    return kind(**values | nested)
