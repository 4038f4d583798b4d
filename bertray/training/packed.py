"""A model of `transformers` that trains on sequences laid end to end: no linear layer computes padding.

Its own modules do the work, dropout included. Only attention is replaced, by torch's fused one in groups of near
length; or, in bf16 on CPUs with AMX, all of a layer by our kernels. The head reads hidden states where they lie: that
of the first token of each sequence in a classifier, those of masked tokens in a language model. Of the last layer, what
comes after attention is computed for these tokens alone.

Legend: B sequences of a pass, T their tokens end to end, H heads, E size of a head, D hidden, M tokens read,
K what comes out: classes, or words of the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.encoders import GroupIndex, group_index, positions_of
from bertray.model.families import (
    activations,
    after_attention,
    classification_head,
    fits_kernels,
    is_language_model,
    language_head,
    linear_layers,
    outputs,
    query_key_value,
    why_not_packable,
)
from bertray.model.kernels.training import TrainedLinear, TrainingKernels, training_kernels
from bertray.model.linear import gelu_kind
from bertray.model.packing import Group, round_up
from bertray.model.pretrained import OFFSET_POSITIONS
from bertray.training.order import cheapest_microbatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ATTENTION = "bertray_packed"  # as transformers' configs name it
TOKENS_PER_GROUP = 128  # what a group of sequences costs in attention besides its tokens, in tokens
_TOLERANCE = 1e-4  # of the self-check
_NOT_PACKED = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)  # of a model whose code is another
_KERNELS_TOLERANCE = 0.1  # of bf16; only a fault is farther off


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, longest first."""

    ids_T: Tensor
    positions_T: Tensor
    types_T: Tensor
    first_tokens_B: Tensor
    groups: tuple[GroupIndex, ...]
    cu_seqlens_B1: Tensor
    """int32 [B + 1]: where each sequence begins and the last one ends."""
    places_B: Tensor
    """int64 [B]: where each sequence of the input stands among the packed ones."""


def pack(
    ids: Sequence[NDArray[Any]], second_lens_B: NDArray[Any], config: Any, *, tokens_multiple: int = 1
) -> PackedBatch:
    """Lay sequences end to end.

    Args:
        ids: token ids of each sequence.
        second_lens_B: trailing tokens of each that belong to a second text.
        config: of the model.
        tokens_multiple: padding, which nothing reads, makes this or a multiple of it of the tokens, so that few shapes
            occur.
    """
    lens = np.array([len(row) for row in ids], np.int64)
    cuts = cheapest_microbatches(lens, max_tokens=1 << 40, tokens_per_microbatch=TOKENS_PER_GROUP)
    order_B = np.concatenate(cuts)
    lens_B = lens[order_B]
    cu_seqlens_B1 = np.concatenate([[0], np.cumsum(lens_B)])
    ids_T = np.concatenate([ids[number] for number in order_B]).astype(np.int64)
    types_T = np.zeros(len(ids_T), np.int64)
    for stop, second in zip(cu_seqlens_B1[1:], second_lens_B[order_B], strict=True):
        types_T[stop - second : stop] = 1
    pad_id = config.pad_token_id if config.model_type in OFFSET_POSITIONS else None
    positions_T = positions_of(ids_T, lens_B, cu_seqlens_B1, pad_id)
    padding = round_up(len(ids_T), tokens_multiple) - len(ids_T)
    ids_T, positions_T, types_T = (np.pad(x_T, (0, padding)) for x_T in (ids_T, positions_T, types_T))
    ends = np.cumsum([len(cut) for cut in cuts])
    groups = [Group(int(end) - len(cut), int(end), int(lens[cut[0]])) for end, cut in zip(ends, cuts, strict=True)]
    return PackedBatch(
        ids_T=torch.from_numpy(ids_T),
        positions_T=torch.from_numpy(positions_T),
        types_T=torch.from_numpy(types_T),
        first_tokens_B=torch.from_numpy(cu_seqlens_B1[:-1]),
        groups=tuple(group_index(group, lens_B, cu_seqlens_B1, torch.from_numpy) for group in groups),
        cu_seqlens_B1=torch.from_numpy(cu_seqlens_B1.astype(np.int32)),
        places_B=torch.from_numpy(np.argsort(order_B)),
    )


class PackedModel(nn.Module):
    """Runs a classifier or a masked language model on packed batches; `of` says whether it can.

    Args:
        model: one for which `of` found nothing against.
        kernels: those that compute its layers; None: torch's operations.
    """

    def __init__(self, model: PreTrainedModel, kernels: TrainingKernels | None = None) -> None:
        super().__init__()
        self.model, self._kernels = model, kernels
        self._head = language_head(model) if is_language_model(model) else classification_head(model)
        self._takes_types = getattr(model.config, "type_vocab_size", 0) > 1
        # A layer that runs again in the backward pass would see all tokens there.
        self._narrows = not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    @property
    def own_kernels(self) -> bool:
        """Whether our kernels compute its layers; they need no padding."""
        return self._kernels is not None

    def forward(self, batch: PackedBatch, read_M: Tensor | None = None) -> Tensor:
        """Logits [M, K] at some packed tokens; by default [B, K] at the first of each sequence, as they came."""
        inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None]}
        if self._takes_types:
            inputs["token_type_ids"] = batch.types_T[None]
        if read_M is None:
            read_M = batch.first_tokens_B.index_select(0, batch.places_B)
        last = after_attention(self.model) if self._narrows else None
        if last is None:
            hidden_MD = self._hidden(inputs, batch).index_select(0, read_M)
        else:
            with last.register_forward_pre_hook(partial(_narrow, read_M)):
                hidden_MD = self._hidden(inputs, batch)
            if len(hidden_MD) != len(read_M):
                raise ValueError(f"{len(hidden_MD)} tokens behind the last attention, expected {len(read_M)}")
        return self._head(hidden_MD)

    def _hidden(self, inputs: dict[str, Tensor], batch: PackedBatch) -> Tensor:
        hidden_TD: Tensor = self.model.base_model(**inputs, packed=batch, kernels=self._kernels).last_hidden_state[0]
        return hidden_TD

    @classmethod
    def of(cls, model: PreTrainedModel, *, bf16: bool = False) -> tuple[PackedModel | None, str]:
        """The model packed, or one sentence on why not.

        It is tried on a few made-up sequences: the logits have to be those that the model gives alone for each.

        Args:
            bf16: whether it will train under autocast, where our kernels take the place of its layers if they can.
        """
        if reason := why_not_packable(model):
            return None, reason
        _register()
        before, was_training = model.config._attn_implementation, model.training
        model.eval()
        random = np.random.default_rng(0)
        longest = min(getattr(model.config, "max_position_embeddings", 32) - 4, 17)
        words = model.get_input_embeddings().weight.shape[0]
        ids = [random.integers(words, size=size) for size in (5, longest, 1, 5, 9)]
        second_lens = np.array([0, min(3, longest), 0, 0, 2])
        with torch.inference_mode():
            expected = torch.cat([_alone(model, *pair) for pair in zip(ids, second_lens, strict=True)])
            batch = pack(ids, second_lens, model.config)
            try:
                model.set_attn_implementation(ATTENTION)
                packed = cls(model)
                found = packed(batch)
            except _NOT_PACKED as error:
                found, why = None, f"its forward pass takes no packed input ({type(error).__name__}: {error})"
        if found is not None:
            difference = _difference(found, expected)
            why = "" if difference <= _TOLERANCE else f"its packed logits differ by {difference:.2g}"
        if not why:
            with_kernels = cls._with_kernels(model, batch, expected) if bf16 else None
            if with_kernels is None:
                for modules in query_key_value(model):
                    _Together(modules)
            else:
                packed = with_kernels
        model.train(was_training)
        if why:
            model.set_attn_implementation(before)
            return None, why
        return packed, ""

    @classmethod
    def _with_kernels(cls, model: PreTrainedModel, batch: PackedBatch, expected: Tensor) -> PackedModel | None:
        """The packed model with our kernels in place of its layers; None, and all as it was, where they do not fit."""
        ours = training_kernels()
        if ours is None or not fits_kernels(model):
            return None
        changed = _use_kernels(model, ours)
        packed = cls(model, ours)
        try:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                difference = _difference(packed(batch).float(), expected)
        except _NOT_PACKED as error:
            why = f"its layers are called in another way ({type(error).__name__}: {error})"
        else:
            why = f"with them its logits differ by {difference:.2g}"
            if difference <= _KERNELS_TOLERANCE:
                return packed
        log.warning("trains without our kernels, more slowly: %s", why)
        for module in changed:
            del module.forward
        return None


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of logits, as a share of the largest expected one where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def _use_kernels(model: PreTrainedModel, ours: TrainingKernels) -> list[nn.Module]:
    """Let the layers of a model be computed by our kernels; the modules whose `forward` is another now."""
    changed: list[nn.Module] = []

    def change(module: nn.Module, forward: Callable[..., Tensor]) -> None:
        module.forward = forward
        changed.append(module)

    for modules in query_key_value(model):
        _Together(modules, partial(_linear, ours, TrainedLinear(modules)))
        changed += modules
    for module in linear_layers(model):
        change(module, partial(_linear, ours, TrainedLinear([module])))
    for activation in activations(model):
        if gelu_kind(activation) == "none":
            change(activation, ours.gelu)
    for output in outputs(model):
        change(output, partial(_add_norm, ours, output))
    return changed


def _linear(ours: TrainingKernels, layer: TrainedLinear, x: Tensor) -> Tensor:
    return ours.linear(x, layer)


def _add_norm(ours: TrainingKernels, output: Any, x: Tensor, residual: Tensor) -> Tensor:
    dropped = output.dropout.p if output.training else 0.0
    return ours.add_norm(output.dense(x), residual, output.LayerNorm, dropped)


class _Together:
    """Linear layers with the same input, run one after the other, as one: the first computes for all.

    Args:
        modules: they stay where they are, with their weights.
        product: what all of them give of an input, side by side; by default by torch.
    """

    def __init__(self, modules: Sequence[nn.Linear], product: Callable[[Tensor], Tensor] | None = None) -> None:
        self._modules = modules
        self._product = product or self._by_torch
        self._given: Tensor | None = None
        self._parts: list[Tensor] = []
        for number, module in enumerate(modules):
            module.forward = partial(self._run, number)  # type: ignore[method-assign]

    def _run(self, number: int, x: Tensor) -> Tensor:
        if number == 0:
            sizes = [module.out_features for module in self._modules]
            self._given, self._parts = x, list(torch.split_with_sizes(self._product(x), sizes, dim=-1))
        if x is not self._given:
            module = self._modules[number]
            return F.linear(x, module.weight, module.bias)
        part = self._parts[number]
        if number == len(self._modules) - 1:  # nothing is kept that is not asked for
            self._given, self._parts = None, []
        return part

    def _by_torch(self, x: Tensor) -> Tensor:
        weight = torch.cat([module.weight for module in self._modules])
        bias = torch.cat([module.bias for module in self._modules])
        return F.linear(x, weight, bias)


class PaddedLanguageModel(nn.Module):
    """Reads a masked language model on padded batches at some tokens only, where its head is known."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._head = None if why_not_packable(model) else language_head(model)

    def forward(self, inputs: dict[str, Tensor], read_M: Tensor) -> Tensor:
        """Logits [M, K] at places of the batch, counted row after row."""
        if self._head is None:
            logits_MK: Tensor = self.model(**inputs).logits.flatten(0, 1).index_select(0, read_M)
            return logits_MK
        hidden_BLD = self.model.base_model(**inputs).last_hidden_state
        return self._head(hidden_BLD.flatten(0, 1).index_select(0, read_M))


def _narrow(read_M: Tensor, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs of a module, [1, T, D] each, at the tokens that are read."""
    return tuple(x.index_select(1, read_M) for x in given)


def _alone(model: PreTrainedModel, ids: NDArray[Any], second: int) -> Tensor:
    """Logits [1, K] of one sequence by the model's own forward pass; a language model's at its first token."""
    inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(len(ids)) >= len(ids) - second).long()[None]
    logits: Tensor = model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits
    return logits[:, 0] if is_language_model(model) else logits


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedBatch,
    kernels: TrainingKernels | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence: [1, H, T, E] to [1, T, H, E]."""
    if kernels is not None and not dropout:
        q_THE, k_THE, v_THE = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        return kernels.attention(q_THE, k_THE, v_THE, packed.cu_seqlens_B1)[None], None
    dtype = query.dtype
    # In fp32: the bf16 kernel has a backward pass on CPU that is several times slower.
    num_heads = query.shape[1]
    tensors = [x[0].transpose(0, 1).flatten(1).float() for x in (query, key, value)]
    attended = []
    sizes = [index.stop - index.start for index in packed.groups]
    padding = query.shape[2] - sum(sizes)
    # Cut all at once: the gradient of a part taken alone is as large as the whole.
    parts = zip(packed.groups, *(torch.split_with_sizes(x_TD, [*sizes, padding]) for x_TD in tensors), strict=False)
    # Autocast would make bf16 of it again.
    with torch.autocast(query.device.type, enabled=False):
        for index, *of_group in parts:
            q, k, v = (index.heads(x_SD, 1, num_heads)[0] for x_SD in of_group)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=index.mask, dropout_p=dropout, scale=scaling)
            flat = out.transpose(1, 2).flatten(0, 1)
            attended.append(flat if index.packed_from is None else flat.index_select(0, index.packed_from))
    if padding:
        attended.append(tensors[0].new_zeros(padding, num_heads, query.shape[3]))
    return torch.cat(attended)[None].to(dtype), None
