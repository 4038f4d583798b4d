"""A classifier of `transformers` that trains on sequences laid end to end: no linear layer computes padding.

Its own modules do the work, dropout included; only attention is replaced, by torch's fused one in groups of near
length, and the head reads the first token of each sequence where it lies.

Legend: B sequences of a pass, T their tokens end to end, H heads, E size of a head, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.encoders import OFFSET_POSITIONS, GroupIndex, group_index, positions_of, why_not_packable
from bertray.model.packing import Group
from bertray.training.order import cheapest_passes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "bertray_packed"  # as transformers' configs name it
TOKENS_PER_GROUP = 128  # what a group of sequences costs in attention besides its tokens, in tokens
_TOLERANCE = 1e-4  # of the self-check


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, longest first."""

    ids_T: Tensor
    positions_T: Tensor
    types_T: Tensor
    first_tokens_B: Tensor
    groups: tuple[GroupIndex, ...]
    places_B: Tensor
    """int64 [B]: where each sequence of the input stands among the packed ones."""


def pack(ids: Sequence[NDArray[Any]], second_lens_B: NDArray[Any], config: Any) -> PackedBatch:
    """Lay sequences end to end.

    Args:
        ids: token ids of each sequence.
        second_lens_B: trailing tokens of each that belong to a second text.
        config: of the model.
    """
    lens = np.array([len(row) for row in ids], np.int64)
    cuts = cheapest_passes(lens, max_tokens=1 << 40, tokens_per_pass=TOKENS_PER_GROUP)
    order_B = np.concatenate(cuts)
    lens_B = lens[order_B]
    bounds_B1 = np.concatenate([[0], np.cumsum(lens_B)])
    ids_T = np.concatenate([ids[number] for number in order_B]).astype(np.int64)
    types_T = np.zeros(len(ids_T), np.int64)
    for stop, second in zip(bounds_B1[1:], second_lens_B[order_B], strict=True):
        types_T[stop - second : stop] = 1
    pad_id = config.pad_token_id if config.model_type in OFFSET_POSITIONS else None
    ends = np.cumsum([len(cut) for cut in cuts])
    groups = [Group(int(end) - len(cut), int(end), int(lens[cut[0]])) for end, cut in zip(ends, cuts, strict=True)]
    return PackedBatch(
        ids_T=torch.from_numpy(ids_T),
        positions_T=torch.from_numpy(positions_of(ids_T, lens_B, bounds_B1, pad_id)),
        types_T=torch.from_numpy(types_T),
        first_tokens_B=torch.from_numpy(bounds_B1[:-1]),
        groups=tuple(group_index(group, lens_B, bounds_B1, torch.from_numpy) for group in groups),
        places_B=torch.from_numpy(np.argsort(order_B)),
    )


class PackedClassifier(nn.Module):
    """Runs a classifier on packed batches; `of` says whether it can.

    Args:
        classifier: one for which `of` found nothing against.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier
        self._head = _head(classifier)
        self._takes_types = getattr(classifier.config, "type_vocab_size", 0) > 1

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits [B, C], in the order of the input."""
        inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.positions_T[None]}
        if self._takes_types:
            inputs["token_type_ids"] = batch.types_T[None]
        hidden_TD = self.classifier.base_model(**inputs, packed_groups=batch.groups).last_hidden_state[0]
        logits_BC: Tensor = self._head(hidden_TD.index_select(0, batch.first_tokens_B))
        return logits_BC.index_select(0, batch.places_B)

    @classmethod
    def of(cls, classifier: PreTrainedModel) -> tuple[PackedClassifier | None, str]:
        """The classifier packed, or one sentence on why not.

        It is tried on a few made-up sequences: the logits have to be those that the model gives alone for each.
        """
        if reason := why_not_packable(classifier):
            return None, reason
        _register()
        before, was_training = classifier.config._attn_implementation, classifier.training
        classifier.eval()
        random = np.random.default_rng(0)
        longest = min(getattr(classifier.config, "max_position_embeddings", 32) - 4, 17)
        words = classifier.get_input_embeddings().weight.shape[0]
        ids = [random.integers(words, size=size) for size in (5, longest, 1, 5, 9)]
        second_lens = np.array([0, min(3, longest), 0, 0, 2])
        with torch.inference_mode():
            expected = torch.cat([_alone(classifier, *pair) for pair in zip(ids, second_lens, strict=True)])
            try:
                classifier.set_attn_implementation(ATTENTION)
                packed = cls(classifier)
                found = packed(pack(ids, second_lens, classifier.config))
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                found, why = None, f"its forward pass takes no packed input ({type(error).__name__}: {error})"
        if found is not None:
            difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
            why = "" if difference <= _TOLERANCE else f"its packed logits differ by {difference:.2g}"
        classifier.train(was_training)
        if why:
            classifier.set_attn_implementation(before)
            return None, why
        return packed, ""


def _alone(classifier: PreTrainedModel, ids: NDArray[Any], second: int) -> Tensor:
    """Logits [1, C] of one sequence by the model's own forward pass."""
    inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    if getattr(classifier.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(len(ids)) >= len(ids) - second).long()[None]
    logits: Tensor = classifier(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits
    return logits


def _head(classifier: Any) -> Callable[[Tensor], Tensor]:
    """The model's own head in training, from hidden states of first tokens [B, D] to logits [B, C]."""
    kind, last = classifier.config.model_type, classifier.classifier
    if kind == "distilbert":
        return lambda x_BD: last(classifier.dropout(F.relu(classifier.pre_classifier(x_BD))))
    if kind == "albert":
        base = classifier.albert
        return lambda x_BD: last(classifier.dropout(base.pooler_activation(base.pooler(x_BD))))
    if kind == "bert":
        return lambda x_BD: last(classifier.dropout(classifier.bert.pooler(x_BD[:, None])))
    return lambda x_BD: last(x_BD[:, None])  # takes the first token of each sequence itself, and has its dropout


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
    packed_groups: tuple[GroupIndex, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence: [1, H, T, E] to [1, T, H, E]."""
    dtype = query.dtype
    # In fp32: the bf16 kernel has a backward pass on CPU that is several times slower.
    tensors = [x[0].transpose(0, 1).float() for x in (query, key, value)]
    attended = []
    for index in packed_groups:
        q, k, v = (_block(x_THE, index) for x_THE in tensors)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=index.mask, dropout_p=dropout, scale=scaling)
        flat = out.transpose(1, 2).flatten(0, 1)
        attended.append(flat if index.packed_from is None else flat.index_select(0, index.packed_from))
    return torch.cat(attended)[None].to(dtype), None


def _block(x_THE: Tensor, index: GroupIndex) -> Tensor:
    """One group as padded heads [G, H, W, E]."""
    part = x_THE[index.start : index.stop] if index.padded_from is None else x_THE.index_select(0, index.padded_from)
    size = index.group.stop - index.group.first
    return part.reshape(size, index.group.width, *part.shape[1:]).transpose(1, 2)
