"""Models to train, with the head that an objective asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertray.errors import ConfigError
from bertray.model.bundle import ASPECT_ATTENTION, HEAD_FILE, INFO_FILE, read_info
from bertray.model.pretrained.files import read_json
from bertray.model.pretrained.weights import load_for_training, single_label_classes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bertray.model.aspect_attention import AspectClassifier


@dataclass(frozen=True)
class LoadSettings:
    """Choices that a model is loaded with for training.

    Args:
        attention_dropout: keep the dropout on attention weights that the model has.
        bf16: forward and backward passes are computed in it.
        device: that they run on.
    """

    attention_dropout: bool = False
    bf16: bool = False
    device: str = "cpu"


AS_GIVEN = LoadSettings(attention_dropout=True)  # to be written: config.json keeps its dropout


def load_classifier(folder: Path, labels: tuple[str, ...], settings: LoadSettings = LoadSettings()) -> PreTrainedModel:
    """Model with a classification head for `labels`.

    A head that knows these very classes, in whatever order, is kept; its rows are put into the order of `labels`. A
    multi-label or regression head is replaced.

    Raises:
        ConfigError: the folder lacks weights that the encoder has, or has them in other sizes.
    """
    import torch

    before = _known_classes(folder)
    change = partial(_name_classes, labels=labels)
    model = loaded_for_training("SequenceClassification", folder, settings, change)
    encoder = f"{model.base_model_prefix}."
    if before is None:
        for name, module in model.named_modules():
            if not f"{name}.".startswith(encoder):
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False  # else it is left as it is
                if name:
                    model._init_weights(module)
    elif before != labels and sorted(before) == sorted(labels):
        order = torch.tensor([before.index(label) for label in labels])
        for name, parameter in model.named_parameters():
            if not name.startswith(encoder) and len(parameter) == len(labels):
                parameter.data = parameter.data[order]
    return model


def load_aspect_classifier(
    folder: Path, labels: tuple[str, ...], settings: LoadSettings = LoadSettings()
) -> AspectClassifier:
    """Encoder with a new head of aspect attention, or with that of a bundle of these very classes in their order.

    Raises:
        ConfigError: as `load_classifier`; the encoder has no token types.
    """
    from safetensors.torch import load_file

    from bertray.model.aspect_attention import AspectClassifier

    change = partial(_name_classes, labels=labels)
    encoder = loaded_for_training("", folder, settings, change)
    model = AspectClassifier(encoder, len(labels))
    if (
        (folder / INFO_FILE).is_file()
        and (info := read_info(folder)).head == ASPECT_ATTENTION
        and info.labels == labels
    ):
        model.load_head(load_file(folder / HEAD_FILE))
    return model


def _name_classes(config: Any, labels: tuple[str, ...]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def _known_classes(folder: Path) -> tuple[str, ...] | None:
    """Classes of the head of a folder in id order; None where it is of another kind, and no start for a classifier."""
    try:
        return single_label_classes(read_json(folder / "config.json", str(folder)), str(folder))
    except ConfigError:
        return None


def loaded_for_training(
    kind: str, folder: Path, settings: LoadSettings, change: Callable[[Any], None]
) -> PreTrainedModel:
    """Attention is torch's fused one where the architecture has it and it is fast, else plain matrix products."""

    def change_all(config: Any) -> None:
        change(config)
        if not settings.attention_dropout:
            for name in ("attention_probs_dropout_prob", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, 0.0)

    # On CPU the bf16 kernel of fused attention has a backward several times slower than plain matrix products.
    attention = "eager" if settings.device == "cpu" and settings.bf16 else "sdpa"
    model, _ = load_for_training(kind, folder, change_all, attention=attention)
    return model
