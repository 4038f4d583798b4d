"""The padding-free forward pass of the BERT family, over transformers' own weights.

All these models are the same stack (attention, add, norm, feed forward, add, norm) under different module names; one
adapter each finds the weights, one encoder runs them. Sequences lie end to end, so linear layers never see padding.

Legend: B sequences of a pack, T packed tokens, D hidden, F feed forward, H heads, P positions, V vocabulary,
E size of a head, G sequences of a group, S their tokens, W its width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.families import find_weights
from bertray.model.fused import AddNorm
from bertray.model.kernels import Kernels, TiledLinear
from bertray.model.linear import KernelLinear, Linear, PlainLinear, gelu_kind
from bertray.model.packing import Group, Pack
from bertray.model.pretrained.weights import padding_of_positions
from bertray.model.tokenization import Sequences, ranges
from bertray.model.varlen import takes_varlen, varlen_attention

Reads = Literal["first", "all", "both"]

# --- one pack, as tensors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupIndex:
    """Index of one group between packed tokens and a padded [G, W] block.

    A group of equal lengths is already such a block: nothing to gather, nothing to mask.
    """

    group: Group
    start: int
    stop: int
    """Its packed tokens are [start, stop)."""
    padded_from: Tensor | None = None
    """int64 [G*W]: the token at each position, counted from `start`; padding repeats the sequence's own last token."""
    packed_from: Tensor | None = None
    """int64 [stop - start]: the position of each packed token in the block."""
    mask: Tensor | None = None
    """[G, 1, 1, W]: 0, or -inf on padding."""

    def heads(self, x_SK: Tensor, num_parts: int, num_heads: int) -> tuple[Tensor, ...]:
        """Projections of the group's S tokens side by side, [S, num_parts * H * E], as padded tensors [G, H, W, E]."""
        block = x_SK if self.padded_from is None else x_SK.index_select(0, self.padded_from)
        size = self.group.stop - self.group.first
        return block.view(size, self.group.width, num_parts, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


@dataclass(frozen=True)
class PackTensors:
    """One pack on the device of the model."""

    ids_T: Tensor
    positions_T: Tensor
    """int64 [T]: rows of the position table, which is one table a token type, end to end."""
    first_tokens_B: Tensor
    """int64 [B]: where each sequence begins."""
    end_1: Tensor
    """int64 [1]: where the last one ends."""
    second_lens_B: Tensor
    """int64 [B]: trailing tokens of each sequence that belong to a second text."""
    num_tokens: int
    """Tokens of the pack, on the host; padding follows them."""
    groups: tuple[GroupIndex, ...]
    cu_seqlens_B1: Tensor | None
    """int32 [B + 1]: where sequences begin and the last ends; only for kernels that take packed input as it is."""
    max_len: int


# --- the encoder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """Layer norm of one width."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x_TD: Tensor) -> Tensor:
        return F.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """One block of the stack."""

    query: Linear | None
    key_value: Linear | None
    """Projections of attention for the first token of each sequence; only in the last layer, where nothing else may
    be wanted."""
    query_key_value: Linear | None
    """Projections of attention for all tokens; None where `attend` has them, or only the first token is wanted."""
    attended: Linear
    attended_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm
    attend: Callable[[Tensor, Tensor], Tensor] | None
    """Attention with what goes before it as one kernel, from what the layer got and `PackTensors.cu_seqlens_B1`."""
    feed_forward: Callable[[Tensor, Tensor], Tensor] | None
    """All that follows attention, from what it gave and what the layer got, as one kernel."""


class PackedEncoder:
    """The encoder of a packable model.

    Args:
        model: one that `why_not_packable` has nothing against.
        dtype: of weights and activations.
        device: where they live.
        linear: the linear layers, made from weight, bias and activation.
        kernels: our own in `dtype`, which then take the place of linear layers and of torch's attention, on CPU; the
            model is one that `fits_kernels`.
        quantized: linear layers of these kernels are in int8.
        reads: states of the last layer that are wanted: of the `first` token of each sequence, of `all` tokens, or
            `both`, at different times. Others are not computed, and weights for them are not held.
        add_norm: norm of a sum as one kernel; None: one after the other.

    Weights are the model's own storage where precision and device are the same; only projections that are computed as
    one are copied.
    """

    def __init__(
        self,
        model: Any,
        dtype: torch.dtype,
        device: torch.device,
        linear: Callable[..., Linear] = PlainLinear,
        kernels: Kernels | None = None,
        quantized: bool = False,
        reads: Reads = "both",
        add_norm: AddNorm | None = None,
    ) -> None:
        config = model.config
        weights = find_weights(model)
        to: dict[str, Any] = {"dtype": dtype, "device": device}
        linears_to, weight_format = to, torch.int8 if quantized else dtype
        if kernels is not None:
            linear = partial(KernelLinear, kernels, weight_format=weight_format)
            linears_to = {**to, "dtype": torch.float32}  # these lay out weights themselves
        self.dtype, self.device = dtype, device
        self.num_heads = weights.num_heads
        self._kernels, self._add_norm = kernels, add_norm
        # Flash kernels and ours take packed input as it is; everything else gets groups.
        head_size = weights.layers[0]["attention"][0].out_features // weights.num_heads
        self.varlen = kernels is not None or takes_varlen(device, dtype, head_size)

        self._pad_id = padding_of_positions(config)
        self.max_length = weights.positions_PD.shape[0] - (0 if self._pad_id is None else self._pad_id + 1)
        # Adding the type's vector to every position beforehand leaves one look-up and one addition a token.
        self._num_positions = weights.positions_PD.shape[0]
        self._num_types = 1 if weights.types_2D is None else weights.types_2D.shape[0]
        positions_PD = weights.positions_PD
        if weights.types_2D is not None:
            positions_PD = torch.cat([positions_PD + type_D for type_D in weights.types_2D])
        self._words_VD = weights.words_VD.to(**to)
        self._positions_PD = positions_PD.to(**to)
        self._embedding_norm = _norm(weights.embedding_norm, to)
        self._projection = None if weights.projection is None else _linear([weights.projection], linears_to, linear)
        uses: dict[int, set[str]] = {}  # ALBERT runs the same layer many times
        for number, found in enumerate(weights.layers):
            is_last = number == len(weights.layers) - 1
            wanted = {"first", "all"} if reads == "both" else {reads}
            uses.setdefault(id(found["up"]), set()).update(wanted if is_last else {"all"})
        built = {
            key: _layer(found, to, linears_to, linear, kernels, weight_format, self.num_heads, uses[key])
            for key, found in {id(found["up"]): found for found in weights.layers}.items()
        }
        self._layers = [built[id(found["up"])] for found in weights.layers]

    def first_tokens(self, pack: PackTensors) -> Tensor:
        """Hidden states of the first token of each sequence, [B, D]; the last layer computes nothing else."""
        x_TD = self._embed(pack)
        for layer in self._layers[:-1]:
            x_TD = self._run_layer(layer, x_TD, pack)
        layer = self._layers[-1]
        x_BD = x_TD.index_select(0, pack.first_tokens_B)
        return self._feed_forward(layer, self._attend_first(layer, x_TD, x_BD, pack), x_BD)

    def means(self, pack: PackTensors) -> Tensor:
        """Mean of the hidden states of each sequence, fp32 [B, D]."""
        x_TD = self.tokens(pack)
        lens_B = torch.diff(pack.first_tokens_B, append=pack.end_1)
        # Its size is known here; the lengths alone would have to be waited for on a GPU.
        numbers_B = torch.arange(len(lens_B), device=self.device)
        owners_T = torch.repeat_interleave(numbers_B, lens_B, output_size=pack.num_tokens)
        sums_BD = torch.zeros(len(lens_B), x_TD.shape[1], device=self.device)
        sums_BD.index_add_(0, owners_T, x_TD.float())
        return sums_BD / lens_B[:, None]

    def tokens(self, pack: PackTensors) -> Tensor:
        """Hidden states of every token, [T, D], without the padding at the end of a pack."""
        x_TD = self._embed(pack)
        for layer in self._layers:
            x_TD = self._run_layer(layer, x_TD, pack)
        return x_TD[: pack.num_tokens]

    def _embed(self, pack: PackTensors) -> Tensor:
        x_TD = F.embedding(pack.ids_T, self._words_VD)
        x_TD = self._embedding_norm(x_TD.add_(F.embedding(pack.positions_T, self._positions_PD)))
        return x_TD if self._projection is None else self._projection(x_TD)

    def _run_layer(self, layer: Layer, x_TD: Tensor, pack: PackTensors) -> Tensor:
        return self._feed_forward(layer, self._attend(layer, x_TD, pack), x_TD)

    def _feed_forward(self, layer: Layer, attended_TD: Tensor, x_TD: Tensor) -> Tensor:
        if layer.feed_forward is not None:
            return layer.feed_forward(attended_TD, x_TD)
        x_TD = self._added(layer.attended, attended_TD, x_TD, layer.attended_norm)
        return self._added(layer.down, layer.up.activated(x_TD), x_TD, layer.output_norm)

    def _added(self, linear: Linear, x_TI: Tensor, residual_TD: Tensor, norm: Norm) -> Tensor:
        """Norm of what a linear layer gives and a residual connection adds, [T, D]."""
        if self._add_norm is None:
            return norm(linear.plus(x_TI, residual_TD))
        return self._add_norm(linear(x_TI), residual_TD, norm.weight, norm.bias, norm.eps)

    def _attend(self, layer: Layer, x_TD: Tensor, pack: PackTensors) -> Tensor:
        if layer.attend is not None:
            assert pack.cu_seqlens_B1 is not None
            return layer.attend(x_TD, pack.cu_seqlens_B1)
        assert layer.query_key_value is not None
        qkv_T3D = layer.query_key_value(x_TD)
        num_tokens, hidden = x_TD.shape
        if pack.cu_seqlens_B1 is not None:
            q_THE, k_THE, v_THE = qkv_T3D.view(num_tokens, 3, self.num_heads, -1).unbind(1)
            return self._varlen(q_THE, k_THE, v_THE, pack.cu_seqlens_B1, pack.cu_seqlens_B1, pack.max_len, pack.max_len)
        out_TD = torch.empty_like(x_TD)
        if pack.groups[-1].stop < num_tokens:
            out_TD[pack.groups[-1].stop :] = 0  # padding: no sequence, but its numbers go through the linear layers
        for index in pack.groups:
            q, k, v = index.heads(qkv_T3D[index.start : index.stop], 3, self.num_heads)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=index.mask)
            flat = attended.transpose(1, 2).reshape(-1, hidden)
            if index.packed_from is None:
                out_TD[index.start : index.stop] = flat
            else:
                torch.index_select(flat, 0, index.packed_from, out=out_TD[index.start : index.stop])
        return out_TD

    def _attend_first(self, layer: Layer, x_TD: Tensor, x_BD: Tensor, pack: PackTensors) -> Tensor:
        """Attention's output for the first token of each sequence, [B, D]."""
        assert layer.query is not None
        assert layer.key_value is not None
        q_BD, kv_T2D = layer.query(x_BD), layer.key_value(x_TD)
        if pack.cu_seqlens_B1 is not None:
            k_THE, v_THE = kv_T2D.view(len(x_TD), 2, self.num_heads, -1).unbind(1)
            ones_B1 = torch.arange(len(x_BD) + 1, dtype=torch.int32, device=self.device)
            q_BHE = q_BD.view(len(x_BD), self.num_heads, -1)
            return self._varlen(q_BHE, k_THE, v_THE, ones_B1, pack.cu_seqlens_B1, 1, pack.max_len)
        out_BD = torch.empty_like(x_BD)
        for index in pack.groups:
            chosen = slice(index.group.first, index.group.stop)
            k, v = index.heads(kv_T2D[index.start : index.stop], 2, self.num_heads)
            q = q_BD[chosen].view(len(k), self.num_heads, 1, -1)
            out_BD[chosen] = F.scaled_dot_product_attention(q, k, v, attn_mask=index.mask).flatten(1)
        return out_BD

    def _varlen(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_q: int, max_k: int
    ) -> Tensor:
        """Attention within each sequence of packed [T, H, E] tensors, as [T, D]; on a GPU in 16 bit."""
        if self._kernels is not None:
            return self._kernels.attention(q, k, v, cu_seqlens_q, cu_seqlens_k)
        return varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k).flatten(1)

    def to_tensors(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> PackTensors:
        """The input of one pack: a few array operations over its tokens, none a sequence.

        Args:
            pack: which sequences.
            seqs: all sequences.
            starts_S: where each of them begins in `seqs.ids_T`.
        """
        lens_B = pack.lens_B
        num_tokens = int(lens_B.sum())
        cu_seqlens_B1 = np.zeros(len(lens_B) + 1, np.int64)
        np.cumsum(lens_B, out=cu_seqlens_B1[1:])
        ids_T = np.zeros(pack.num_slots, np.int64)
        ids_T[:num_tokens] = seqs.ids_T[ranges(starts_S[pack.sequences_B], lens_B)]
        positions_T = np.zeros(pack.num_slots, np.int64)
        positions_T[:num_tokens] = positions_of(ids_T[:num_tokens], lens_B, cu_seqlens_B1, self._pad_id)
        second_B = seqs.second_lens_S[pack.sequences_B].astype(np.int64)
        if self._num_types > 1 and second_B.any():
            positions_T[ranges(cu_seqlens_B1[1:] - second_B, second_B)] += self._num_positions
        return PackTensors(
            ids_T=self._tensor(ids_T),
            positions_T=self._tensor(positions_T),
            first_tokens_B=self._tensor(cu_seqlens_B1[:-1]),
            end_1=self._tensor(cu_seqlens_B1[-1:]),
            second_lens_B=self._tensor(second_B),
            num_tokens=num_tokens,
            groups=()
            if self.varlen
            else tuple(group_index(group, lens_B, cu_seqlens_B1, self._tensor, self.dtype) for group in pack.groups),
            cu_seqlens_B1=self._tensor(cu_seqlens_B1.astype(np.int32)) if self.varlen else None,
            max_len=int(lens_B[0]),
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self.device)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device; on a GPU by pinned memory, from which a copy waits for nothing that is queued there."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def positions_of(
    ids_T: NDArray[np.int64], lens_B: NDArray[np.int64], cu_seqlens_B1: NDArray[np.int64], pad_id: int | None
) -> NDArray[np.int64]:
    """Position of each token of sequences end to end as `transformers` counts them; with a `pad_id`, from behind it."""
    if pad_id is None:
        return ranges(np.zeros_like(lens_B), lens_B)
    # A review may spell out the padding token; transformers then counts on without it.
    counts_T = ids_T != pad_id
    so_far_T = np.cumsum(counts_T)
    before_B = np.concatenate([[0], so_far_T])[cu_seqlens_B1[:-1]]
    positions_T: NDArray[np.int64] = (so_far_T - np.repeat(before_B, lens_B)) * counts_T + pad_id
    return positions_T


def group_index(
    group: Group,
    lens_B: NDArray[np.int64],
    cu_seqlens_B1: NDArray[np.int64],
    to_tensor: Callable[[NDArray[Any]], Tensor],
    dtype: torch.dtype = torch.float32,
) -> GroupIndex:
    """Index of one group, for sequences of `lens_B` tokens that begin and end at `cu_seqlens_B1`; masks in `dtype`."""
    lens_G = lens_B[group.first : group.stop]
    start, stop = int(cu_seqlens_B1[group.first]), int(cu_seqlens_B1[group.stop])
    if stop - start == len(lens_G) * group.width:
        return GroupIndex(group, start, stop)
    places_W = np.arange(group.width)
    # Padding that repeats the sequence itself: a NaN there stays the sequence's own.
    own_GW = np.minimum(places_W, lens_G[:, None] - 1)
    padded_from = cu_seqlens_B1[group.first : group.stop, None] - start + own_GW
    packed_from = ranges(np.arange(len(lens_G)) * group.width, lens_G)
    mask = np.where(places_W < lens_G[:, None], 0.0, -np.inf).astype(np.float32)[:, None, None, :]
    return GroupIndex(
        group,
        start,
        stop,
        padded_from=to_tensor(padded_from.ravel()),
        packed_from=to_tensor(packed_from),
        mask=to_tensor(mask).to(dtype),
    )


def _layer(
    found: dict[str, Any],
    to: dict[str, Any],
    linears_to: dict[str, Any],
    linear: Callable[..., Linear],
    kernels: Kernels | None,
    weight_format: torch.dtype,
    num_heads: int,
    uses: set[str],
) -> Layer:
    """A layer with projections for its uses: `first` token, `all` tokens; `weight_format` is that of kernels."""
    attended, up, down = (
        _linear([found["attended"]], linears_to, linear),
        _linear([found["up"]], linears_to, linear, found["activation"]),
        _linear([found["down"]], linears_to, linear),
    )
    attend = feed_forward = query = key_value = query_key_value = None
    attention = found["attention"]
    if "all" in uses and kernels is not None:
        attend = kernels.self_attention(_tiled_by_head(attention, num_heads, weight_format), num_heads)
    if "all" in uses and kernels is None:
        weight, bias = _side_by_side(attention, linears_to)
        query_key_value = linear(weight, bias, None)
        if "first" in uses:
            hidden = attention[0].out_features
            query, key_value = (linear(weight[of], bias[of], None) for of in (slice(hidden), slice(hidden, None)))
    elif "first" in uses:
        query, key_value = _linear(attention[:1], linears_to, linear), _linear(attention[1:], linears_to, linear)
    if kernels is not None and gelu_kind(found["activation"]) == "none":
        assert isinstance(attended, KernelLinear)
        assert isinstance(up, KernelLinear)
        assert isinstance(down, KernelLinear)
        feed_forward = kernels.feed_forward(
            attended.tiled, found["attended_norm"], up.tiled, down.tiled, found["output_norm"]
        )
    return Layer(
        query=query,
        key_value=key_value,
        query_key_value=query_key_value,
        attended=attended,
        attended_norm=_norm(found["attended_norm"], to),
        up=up,
        down=down,
        output_norm=_norm(found["output_norm"], to),
        attend=attend,
        feed_forward=feed_forward,
    )


def _linear(modules: Any, to: dict[str, Any], linear: Callable[..., Linear], activation: Any = None) -> Linear:
    """Linears with the same input as one, their outputs side by side."""
    return linear(*_side_by_side(modules, to), activation)


def _side_by_side(modules: Any, to: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of linears with the same input as one; those of a single one are shared, not copied."""
    weights, biases = ([getattr(module, name).detach() for module in modules] for name in ("weight", "bias"))
    weight = (weights[0] if len(weights) == 1 else torch.cat(weights)).to(**to)
    bias = torch.cat(biases).to(device=to["device"])
    return weight, bias


def _tiled_by_head(modules: Any, num_heads: int, dtype: torch.dtype) -> TiledLinear:
    """Queries, keys and values as one linear layer for our kernels: those of the first head, then of the next."""

    def by_head(tensors: list[Tensor]) -> Tensor:
        heads = [tensor.detach().view(num_heads, -1, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(heads, dim=1).flatten(0, 1)

    weights, biases = ([getattr(module, name) for module in modules] for name in ("weight", "bias"))
    return TiledLinear.of(by_head(weights), by_head(biases), dtype)


def _norm(module: torch.nn.LayerNorm, to: dict[str, Any]) -> Norm:
    return Norm(module.weight.detach().to(**to), module.bias.detach().to(**to), module.eps)
