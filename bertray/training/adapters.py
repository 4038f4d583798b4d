"""Parts of a model that are learned: low-rank adapters in place of whole matrices, frozen layers, rates by depth.

Adapters are those of peft (extra `peft`), put into the model's own linear layers and merged into them at the end: a
bundle holds no trace of them.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685); rates by layer: Howard
and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (section 3.2, arXiv:1801.06146).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bertray.errors import ConfigError
from bertray.training.examples import LoraSettings, TrainingSettings

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|albert_layers)\.(\d+)\.")
_EMBEDDINGS = re.compile(
    r"(?:^|[._])embeddings?[._]"
)  # of words, of positions relative to each other, what widens them
# Query and value projections, as families of models call them; the last two hold the key as well.
_TARGETS = {"query", "q_lin", "query_proj", "value", "v_lin", "value_proj", "Wqkv", "in_proj"}


def adapt(model: Any, training: TrainingSettings) -> None:
    """Put adapters into a model, or freeze some of its layers, as the settings say.

    Raises:
        ConfigError: peft is not installed; no linear layer has the name of a target; fewer layers than are to be
            frozen.
    """
    if training.lora.rank is not None:
        _add_lora(model, training.lora)
    if training.freeze_layers:
        _freeze(model, training.freeze_layers)


def check_adaptable(model: Any, lora: LoraSettings, freeze_layers: int) -> None:
    """Raises what `adapt` would; the model needs no weights, and is left as it is."""
    if lora.rank is not None:
        if find_spec("peft") is None:
            raise _no_peft()
        _lora_layers(model, lora)
    _check_depth(model, freeze_layers)


def has_adapters(model: Any) -> bool:
    """Whether a linear layer of a model computes more than its own weights say."""
    return any(hasattr(module, "lora_A") for module in model.modules())


def merge_adapters(model: Any) -> None:
    """Add adapters to the weights of their layers, and put the layers back as they were."""
    for name, layer in [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad = True


def parameter_groups(model: torch.nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of an optimizer: weight decay on matrices alone, not on biases and norms; rates by layer.

    Args:
        layer_decay: factor of the rate from a layer to the one below it; `rate_scale` of a group is its product.
    """
    scales = dict(_rate_scales(model, layer_decay))
    groups: dict[tuple[float, bool], list[Any]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scales[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if is_matrix else 0.0, "rate_scale": scale}
        for (scale, is_matrix), parameters in groups.items()
    ]


def num_layers(model: Any) -> int:
    """Layers that have weights of their own; 1 where all share them."""
    return 1 + max(
        (int(found[1]) for name, _ in model.named_parameters() if (found := _LAYER.search(name))), default=-1
    )


def _rate_scales(model: torch.nn.Module, decay: float) -> Iterator[tuple[str, float]]:
    """(parameter, factor of its rate): 1 in the head, decay in the last layer, less in each below, least in words."""
    depth = num_layers(model)
    for name, _ in model.named_parameters():
        layer = _LAYER.search(name)
        below = depth - int(layer[1]) if layer else depth + 1 if _EMBEDDINGS.search(name) else 0
        yield name, decay**below


def _check_depth(model: Any, layers: int) -> None:
    if layers > (depth := num_layers(model)):
        raise ConfigError(
            f"training.freeze_layers={layers}: expected at most {depth}, as many layers as the model has weights of.",
            "Give fewer.",
        )


def _freeze(model: Any, layers: int) -> None:
    _check_depth(model, layers)
    for name, parameter in model.named_parameters():
        layer = _LAYER.search(name)
        if _EMBEDDINGS.search(name) or (layer and int(layer[1]) < layers):
            parameter.requires_grad = False


def _no_peft() -> ConfigError:
    return ConfigError("training.lora: peft is not installed.", "Run `pip install 'bertray[peft]'`.")


def _prefix(model: Any) -> str:
    """Beginning of the names of the encoder's parameters in a model."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _lora_layers(model: Any, lora: LoraSettings) -> list[str]:
    """Names of the linear layers that get adapters."""
    import torch

    # The head learns all of its weights, and so does the pooler, which feeds it.
    layers = {
        f"{_prefix(model)}{name}": name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] != "pooler"
    }
    names = set(layers.values())
    targets = set(lora.targets) or names & _TARGETS
    if missing := sorted(targets - names) or ([] if targets else ["query", "value"]):
        raise ConfigError(
            f"training.lora.targets: expected names of linear layers of the encoder, found {', '.join(missing)}.",
            f"It has {', '.join(sorted(names))}.",
        )
    return [name for name, own in layers.items() if own in targets]


def _add_lora(model: Any, lora: LoraSettings) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise _no_peft() from error

    chosen, prefix = _lora_layers(model, lora), _prefix(model)
    assert lora.rank is not None
    alpha = lora.rank * 2 if lora.alpha is None else lora.alpha
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=chosen, bias="none")  # scaled by alpha / rank
    encoder = {name for name, _ in model.base_model.named_parameters()}
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        own = name.removeprefix(prefix)
        if own.startswith("pooler.") or not (own in encoder or "lora_" in name or ".base_layer." in name):
            parameter.requires_grad = True
