"""A model of `transformers` that trains on sequences laid end to end: no linear layer computes padding.

Its own modules do the work, dropout included. Only attention is replaced: on a GPU by the flash kernel for packed
input, elsewhere by torch's fused one in groups of near length; or, where the CPU has the instructions, all of a layer
by our kernels. The head reads hidden states where they lie: that of the first token of each sequence in a classifier,
those of masked tokens in a language model. Of the last layer, what comes after attention is computed for these tokens
alone. An encoder without a head gives means over all tokens.

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

from bertray.errors import is_out_of_memory
from bertray.model.aspect_attention import AspectClassifier
from bertray.model.encoders import GroupIndex, group_index, positions_of
from bertray.model.families import (
    activations,
    after_attention,
    classification_head,
    fits_kernels,
    is_encoder,
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
from bertray.model.pretrained.weights import padding_of_positions
from bertray.model.varlen import takes_varlen, varlen_attention
from bertray.training.adapters import has_adapters
from bertray.training.inputs import over_tensors
from bertray.training.order import cheapest_microbatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ATTENTION = "bertray_packed"  # as transformers' configs name it
TOKENS_PER_GROUP = 128  # what a group of sequences costs in attention besides its tokens, in tokens
_TOLERANCE = 1e-4  # of the self-check
_NOT_PACKED = (AttributeError, KeyError, ImportError, RuntimeError, TypeError, ValueError)  # code that is another
_TOLERANCE_GPU = 1e-3  # in fp32, where it adds in another order
_TOLERANCE_16_BIT = 0.1  # only a fault is farther off


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
    second_lens_B: Tensor
    """int64 [B]: trailing tokens of each sequence that belong to a second text."""
    places_B: Tensor
    """int64 [B]: where each sequence of the input stands among the packed ones."""
    num_tokens: int
    """Tokens of all sequences, on the host; padding follows them."""
    max_len: int
    """Tokens of the longest one, on the host."""


def pack(
    ids: Sequence[NDArray[Any]],
    second_lens_B: NDArray[Any],
    config: Any,
    *,
    tokens_multiple: int = 1,
    in_groups: bool = True,
) -> PackedBatch:
    """Lay sequences end to end.

    Args:
        ids: token ids of each sequence.
        second_lens_B: trailing tokens of each that belong to a second text.
        config: of the model.
        tokens_multiple: padding, which nothing reads, makes this or a multiple of it of the tokens, so that few shapes
            occur.
        in_groups: cut them into groups, for attention that takes no packed input.
    """
    lens = np.array([len(row) for row in ids], np.int64)
    if in_groups:
        cuts = cheapest_microbatches(lens, max_tokens=1 << 40, tokens_per_microbatch=TOKENS_PER_GROUP)
        order_B = np.concatenate(cuts)
    else:
        cuts, order_B = [], np.argsort(-lens, kind="stable")
    lens_B = lens[order_B]
    cu_seqlens_B1 = np.concatenate([[0], np.cumsum(lens_B)])
    ids_T = np.concatenate([ids[number] for number in order_B]).astype(np.int64)
    types_T = np.zeros(len(ids_T), np.int64)
    for stop, second in zip(cu_seqlens_B1[1:], second_lens_B[order_B], strict=True):
        types_T[stop - second : stop] = 1
    pad_id = padding_of_positions(config)
    positions_T = positions_of(ids_T, lens_B, cu_seqlens_B1, pad_id)
    num_tokens = len(ids_T)
    padding = round_up(num_tokens, tokens_multiple) - num_tokens
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
        second_lens_B=torch.from_numpy(second_lens_B[order_B].astype(np.int64)),
        places_B=torch.from_numpy(np.argsort(order_B)),
        num_tokens=num_tokens,
        max_len=int(lens.max()),
    )


class PackedModel(nn.Module):
    """Runs a classifier, a masked language model or an encoder on packed batches; `of` says whether it can.

    Args:
        model: one for which `of` found nothing against.
        kernels: those that compute its layers; None: torch's operations.
    """

    def __init__(self, model: PreTrainedModel | AspectClassifier, kernels: TrainingKernels | None = None) -> None:
        super().__init__()
        self.model, self._kernels = model, kernels
        self.varlen = False
        """Whether attention takes batches that are not cut into groups."""
        self._head: Callable[..., Tensor] | None
        if isinstance(model, AspectClassifier):
            self._head = model.aspect_attention
        elif is_encoder(model):
            self._head = None
        else:
            self._head = language_head(model) if is_language_model(model) else classification_head(model)
        self._takes_types = getattr(model.config, "type_vocab_size", 0) > 1
        # A layer that runs again in the backward pass would see all tokens there.
        self._narrows = not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    @property
    def own_kernels(self) -> bool:
        """Whether our kernels compute its layers; they need no padding."""
        return self._kernels is not None

    def forward(self, batch: PackedBatch, read_M: Tensor | None = None) -> Tensor:
        """Logits [M, K] at some packed tokens; by default [B, K] at the first of each sequence, as they came.

        Of an encoder the mean of the last hidden states of each sequence, fp32 [B, D].
        """
        inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None]}
        if self._takes_types:
            inputs["token_type_ids"] = batch.types_T[None]
        if self._head is None:
            return means_of(self._hidden(inputs, batch), batch)
        if isinstance(self.model, AspectClassifier):  # reads all tokens
            lens_B = torch.diff(batch.cu_seqlens_B1).long()
            hidden_TD = self._hidden(inputs, batch)[: batch.num_tokens]
            return self._head(hidden_TD, lens_B, batch.second_lens_B).index_select(0, batch.places_B)
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
    def of(
        cls, model: PreTrainedModel | AspectClassifier, *, kernels_in: torch.dtype | None = None
    ) -> tuple[PackedModel | None, str]:
        """The model packed, or one sentence on why not.

        It is tried on a few made-up sequences: the logits have to be those that the model gives alone for each.

        Args:
            kernels_in: number format in which it will train on a CPU, under autocast where that is not fp32; our
                kernels in it take the place of its layers if they can. None: torch computes all.
        """
        if reason := why_not_packable(model):
            return None, reason
        _register()
        before, was_training = model.config._attn_implementation, model.training
        model.eval()
        ids, second_lens = _made_up(model)
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
        if not why and not has_adapters(model):  # what takes the place of a layer knows its weights alone
            with_kernels = None if kernels_in is None else cls._with_kernels(model, batch, expected, kernels_in)
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

    def to_gpu(self, device: torch.device, dtype: torch.dtype) -> str:
        """Move the model to a GPU, and let attention run there as fast as it gives the same numbers.

        Some made-up sequences go forward as on the CPU, where `of` has checked them, and backward.

        Args:
            dtype: of autocast; fp32 for none.

        Returns:
            Why it does not train packed there, in one sentence; empty where it does.
        """
        was_training = self.training
        self.eval()
        ids, second_lens = _made_up(self.model)
        with torch.inference_mode():
            expected = self(pack(ids, second_lens, self.model.config))
        self.to(device)
        head_size = query_key_value(self.model)[0][0].out_features // self.model.config.num_attention_heads
        self.varlen = takes_varlen(device, dtype, head_size) and not _attention_dropout(self.model)
        why_not = self._why_not(ids, second_lens, expected, device, dtype)
        if why_not and self.varlen:
            log.warning("trains with attention in groups, more slowly: with the flash kernel %s", why_not)
            self.varlen = False
            why_not = self._why_not(ids, second_lens, expected, device, dtype)
        self.train(was_training)
        return why_not

    def _why_not(
        self,
        ids: list[NDArray[Any]],
        second_lens: NDArray[Any],
        expected: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> str:
        batch = pack(ids, second_lens, self.model.config, in_groups=not self.varlen)
        try:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                found = self(over_tensors(batch, lambda tensor: tensor.to(device))).float()
            found.sum().backward()
        except _NOT_PACKED as error:
            if is_out_of_memory(error):
                raise
            return f"its packed forward or backward pass fails there ({' '.join(str(error).split())[:200]})"
        finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in self.parameters())
        self.zero_grad(set_to_none=True)
        difference = _difference(found.detach().cpu(), expected)
        tolerance = _TOLERANCE_GPU if dtype == torch.float32 else _TOLERANCE_16_BIT
        if finite and difference <= tolerance:
            return ""
        return f"its packed logits differ there by {difference:.2g}" if finite else "its gradient is not finite there"

    @classmethod
    def _with_kernels(
        cls, model: PreTrainedModel | AspectClassifier, batch: PackedBatch, expected: Tensor, dtype: torch.dtype
    ) -> PackedModel | None:
        """The packed model with our kernels in place of its layers; None, and all as it was, where they do not fit."""
        ours = training_kernels(dtype)
        if ours is None or not fits_kernels(model):
            return None
        changed = _use_kernels(model, ours)
        packed = cls(model, ours)
        try:
            with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                difference = _difference(packed(batch).float(), expected)
        except _NOT_PACKED as error:
            why = f"its layers are called in another way ({type(error).__name__}: {error})"
        else:
            why = f"with them its logits differ by {difference:.2g}"
            if difference <= (_TOLERANCE if dtype == torch.float32 else _TOLERANCE_16_BIT):
                return packed
        log.warning("trains without our kernels, more slowly: %s", why)
        for module in changed:
            del module.forward
        return None


def means_of(hidden_TD: Tensor, batch: PackedBatch) -> Tensor:
    """Mean of the hidden states of each sequence, fp32 [B, D], in the order in which the sequences came."""
    lens_B = batch.cu_seqlens_B1.diff().long()
    numbers_B = torch.arange(len(lens_B), device=hidden_TD.device)
    sequence_T = torch.repeat_interleave(numbers_B, lens_B, output_size=batch.num_tokens)
    hidden_TD = hidden_TD[: batch.num_tokens].float()  # without the padding
    sums_BD = hidden_TD.new_zeros(len(lens_B), hidden_TD.shape[1]).index_add(0, sequence_T, hidden_TD)
    return (sums_BD / lens_B[:, None]).index_select(0, batch.places_B)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of logits, as a share of the largest expected one where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def _use_kernels(model: PreTrainedModel | AspectClassifier, ours: TrainingKernels) -> list[nn.Module]:
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


def _narrow(read_M: Tensor, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs of a module, [1, T, D] each, at the tokens that are read."""
    return tuple(x.index_select(1, read_M) for x in given)


def _made_up(model: PreTrainedModel | AspectClassifier) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """A few sequences that a model can read, and the lengths of their second texts."""
    random = np.random.default_rng(0)
    longest = min(getattr(model.config, "max_position_embeddings", 32) - 4, 17)
    words = model.get_input_embeddings().weight.shape[0]
    ids = [random.integers(words, size=size) for size in (5, longest, 1, 5, 9)]
    return ids, np.array([0, min(3, longest), 0, 0, 2])


def _attention_dropout(model: PreTrainedModel | AspectClassifier) -> bool:
    """Whether a model drops attention weights, which the flash kernel for packed input cannot."""
    names = ("attention_probs_dropout_prob", "attention_dropout")
    return any(getattr(model.config, name, 0.0) for name in names)


def _alone(model: PreTrainedModel | AspectClassifier, ids: NDArray[Any], second: int) -> Tensor:
    """Logits [1, K] of one sequence by the model's own forward pass; a language model's at its first token.

    Of an encoder the mean of its last hidden states, [1, D].
    """
    inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(len(ids)) >= len(ids) - second).long()[None]
    outputs = model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    if is_encoder(model):
        means_1D: Tensor = outputs.last_hidden_state.mean(dim=1)
        return means_1D
    logits: Tensor = outputs.logits
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
    if not packed.groups:
        q_THE, k_THE, v_THE = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        bounds, longest = packed.cu_seqlens_B1, packed.max_len
        return varlen_attention(q_THE, k_THE, v_THE, bounds, bounds, longest, longest, scaling)[None], None
    dtype = query.dtype
    num_heads = query.shape[1]
    tensors = [x[0].transpose(0, 1).flatten(1) for x in (query, key, value)]
    if query.device.type == "cpu":  # the bf16 kernel has a backward pass there that is several times slower
        tensors = [x_TD.float() for x_TD in tensors]
    attended = []
    sizes = [index.stop - index.start for index in packed.groups]
    padding = query.shape[2] - sum(sizes)
    # Cut all at once: the gradient of a part taken alone is as large as the whole.
    parts = zip(packed.groups, *(torch.split_with_sizes(x_TD, [*sizes, padding]) for x_TD in tensors), strict=False)
    # Autocast would make bf16 of it again.
    with torch.autocast(query.device.type, enabled=False):
        for index, *of_group in parts:
            q, k, v = (index.heads(x_SD, 1, num_heads)[0] for x_SD in of_group)
            mask = None if index.mask is None else index.mask.to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
            flat = out.transpose(1, 2).flatten(0, 1)
            attended.append(flat if index.packed_from is None else flat.index_select(0, index.packed_from))
    if padding:
        attended.append(tensors[0].new_zeros(padding, num_heads, query.shape[3]))
    return torch.cat(attended)[None].to(dtype), None
