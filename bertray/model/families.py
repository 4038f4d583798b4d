"""Families of BERT-like models: which of them run packed, and where each keeps its weights and its head.

Legend: B sequences, M masked tokens, D hidden, V vocabulary, P positions, C classes, W words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.errors import ConfigError
from bertray.model.aspect_attention import AspectClassifier
from bertray.model.kernels import fits

_BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
_PACKABLE = (*_BERT_LIKE, "distilbert", "albert")
_LINEAR = ("attended", "up", "down")  # linear layers of each layer besides those of attention


@dataclass(frozen=True)
class Weights:
    """Modules and weights of a model of `transformers`, shared, not copied."""

    words_VD: Tensor
    positions_PD: Tensor
    types_2D: Tensor | None
    embedding_norm: torch.nn.LayerNorm
    projection: torch.nn.Linear | None
    layers: list[dict[str, Any]]
    num_heads: int


def why_not_packable(model: Any) -> str:
    """One sentence on what the packed encoder does not implement of this model; empty when it can run it."""
    config = model.config
    kind = config.model_type
    ours = isinstance(model, AspectClassifier)
    if kind not in _PACKABLE or not type(model.encoder if ours else model).__module__.startswith(
        "transformers.models."
    ):
        return f"model type {kind!r} has no packed forward pass"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"position_embedding_type {config.position_embedding_type!r} is not absolute"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "the model is configured as a decoder"
    if getattr(config, "quantization_config", None) is not None:
        return "the weights are quantized"
    return ""


def is_language_model(model: Any) -> bool:
    """Whether a model is a masked language model, by its class."""
    return type(model).__name__.endswith("ForMaskedLM")


def is_encoder(model: Any) -> bool:
    """Whether a model is an encoder without a head."""
    return model.base_model is model


def language_head(model: Any) -> Callable[[Tensor], Tensor]:
    """The model's own head, from hidden states [M, D] to logits over the vocabulary [M, W]."""
    kind = model.config.model_type
    if kind == "distilbert":
        return lambda x_MD: model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(x_MD))))
    if kind == "electra":
        return lambda x_MD: model.generator_lm_head(model.generator_predictions(x_MD))
    head: Callable[[Tensor], Tensor] = getattr(model, {"bert": "cls", "albert": "predictions"}.get(kind, "lm_head"))
    return head


def classification_head(model: Any) -> Callable[[Tensor], Tensor]:
    """The model's own head, from hidden states of first tokens [B, D] to logits [B, C]; drops out in training."""
    kind, classifier = model.config.model_type, model.classifier
    if kind == "distilbert":
        return lambda x_BD: classifier(model.dropout(F.relu(model.pre_classifier(x_BD))))
    if kind == "albert":
        pooler, activation = model.albert.pooler, model.albert.pooler_activation
        return lambda x_BD: classifier(model.dropout(activation(pooler(x_BD))))
    if kind == "bert":
        return lambda x_BD: classifier(model.dropout(model.bert.pooler(x_BD[:, None])))
    return lambda x_BD: classifier(x_BD[:, None])  # takes the first token of each sequence itself


def after_attention(model: Any) -> torch.nn.Module | None:
    """First module behind attention in the last layer; it takes attention's output and the residual, or their sum.

    It and what follows work on each token by itself. None: its layers share their modules.
    """
    if model.config.model_type == "albert":
        return None
    layer: Any
    if model.config.model_type == "distilbert":
        *_, layer = model.base_model.transformer.layer
        found: torch.nn.Module = layer.sa_layer_norm
    else:
        *_, layer = model.base_model.encoder.layer
        found = layer.attention.output
    return found


def query_key_value(model: Any) -> list[tuple[torch.nn.Linear, ...]]:
    """Query, key and value projections of each attention layer of a packable model; each once."""
    return list({id(layer["attention"][0]): layer["attention"] for layer in find_weights(model).layers}.values())


def linear_layers(model: Any) -> list[torch.nn.Linear]:
    """Linear layers of a packable model besides those of `query_key_value`; each once."""
    return list({id(layer[name]): layer[name] for layer in find_weights(model).layers for name in _LINEAR}.values())


def activations(model: Any) -> list[Any]:
    """Activations between the two linear layers of each feed forward; each once."""
    return list({id(layer["activation"]): layer["activation"] for layer in find_weights(model).layers}.values())


def outputs(model: Any) -> list[Any]:
    """The modules of a packable model that are `LayerNorm(dropout(dense(x)) + residual)`, where it has such."""
    if model.config.model_type not in _BERT_LIKE:
        return []
    return [output for layer in model.base_model.encoder.layer for output in (layer.attention.output, layer.output)]


def output_bias(model: Any) -> Tensor:
    """Bias of the last linear layer of a sequence classifier's head, [C].

    Raises:
        ConfigError: it adds nothing.
    """
    encoder = f"{model.base_model_prefix}."
    of_head = [parameter for name, parameter in model.named_parameters() if not name.startswith(encoder)]
    if not of_head or of_head[-1].shape != (model.config.num_labels,):
        raise ConfigError(
            f"training.match_shares: expected a head that ends with a bias, found none in {type(model).__name__}.",
            "Leave training.match_shares out.",
        )
    bias_C: Tensor = of_head[-1]
    return bias_C


def find_weights(model: Any) -> Weights:
    kind, base = model.config.model_type, model.base_model
    embeddings = base.embeddings
    projection = None
    if kind == "distilbert":
        layers = [_distilbert_layer(layer) for layer in base.transformer.layer]
        num_heads = model.config.n_heads
    elif kind == "albert":
        config = model.config
        layers_per_group = config.num_hidden_layers / config.num_hidden_groups
        groups = [base.encoder.albert_layer_groups[int(i / layers_per_group)] for i in range(config.num_hidden_layers)]
        layers = [_albert_layer(layer) for group in groups for layer in group.albert_layers]
        num_heads = config.num_attention_heads
        projection = base.encoder.embedding_hidden_mapping_in
    else:
        layers = [_bert_layer(layer) for layer in base.encoder.layer]
        num_heads = model.config.num_attention_heads
        projection = getattr(base, "embeddings_project", None)  # ELECTRA
    types = getattr(embeddings, "token_type_embeddings", None)  # DistilBERT has none
    return Weights(
        words_VD=embeddings.word_embeddings.weight.detach(),
        positions_PD=embeddings.position_embeddings.weight.detach(),
        types_2D=None if types is None else types.weight.detach(),
        embedding_norm=embeddings.LayerNorm,
        projection=projection,
        layers=layers,
        num_heads=num_heads,
    )


def _bert_layer(layer: Any) -> dict[str, Any]:
    attention = layer.attention.self
    return {
        "attention": (attention.query, attention.key, attention.value),
        "attended": layer.attention.output.dense,
        "attended_norm": layer.attention.output.LayerNorm,
        "up": layer.intermediate.dense,
        "activation": layer.intermediate.intermediate_act_fn,
        "down": layer.output.dense,
        "output_norm": layer.output.LayerNorm,
    }


def _distilbert_layer(layer: Any) -> dict[str, Any]:
    attention = layer.attention
    return {
        "attention": (attention.q_lin, attention.k_lin, attention.v_lin),
        "attended": attention.out_lin,
        "attended_norm": layer.sa_layer_norm,
        "up": layer.ffn.lin1,
        "activation": layer.ffn.activation,
        "down": layer.ffn.lin2,
        "output_norm": layer.output_layer_norm,
    }


def _albert_layer(layer: Any) -> dict[str, Any]:
    attention = layer.attention
    return {
        "attention": (attention.query, attention.key, attention.value),
        "attended": attention.dense,
        "attended_norm": attention.LayerNorm,
        "up": layer.ffn,
        "activation": layer.activation,
        "down": layer.ffn_output,
        "output_norm": layer.full_layer_layer_norm,
    }


def fits_kernels(model: Any, *, in_int8: bool = False) -> bool:
    """Whether our kernels have tiles for all sizes of a packable model."""
    weights = find_weights(model)
    found = [*weights.layers, *([] if weights.projection is None else [{"up": weights.projection, "head": 0}])]
    for layer in found:
        inner, hidden = layer["up"].weight.shape
        if not fits(hidden, inner, layer.get("head", hidden // weights.num_heads), in_int8=in_int8):
            return False
    return True


def release_encoder(model: Any) -> None:
    """Let go of a model's embeddings and layers, which a packed encoder has taken over; its head stays."""
    base = model.base_model
    for name in ("embeddings", "encoder", "transformer"):
        if hasattr(base, name):
            setattr(base, name, torch.nn.Identity())
    for parameter in model.parameters():  # a view of the file keeps all of it mapped
        parameter.data = parameter.data.clone()
