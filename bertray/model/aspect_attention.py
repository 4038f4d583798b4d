"""A head that pools the tokens of a review with a query of its aspect, and the classifier that it makes of an encoder.

Source: attention pooling by a query of the aspect as in Wang et al. 2016, "Attention-based LSTM for Aspect-level
Sentiment Classification" (section 3.3), on the hidden states of BERT for the pair (review, aspect).

Legend: B sequences, T packed tokens, L padded length, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bertray.model.pretrained.files import reading
from bertray.model.pretrained.weights import load_encoder


class AspectAttention(nn.Module):
    """Logits of pairs of texts: tokens of the first, weighted by a query that is learned of the second.

    The query is tanh(W mean(second) + b), the weights are the softmax of its scaled dot products with the tokens of the
    first text and its special tokens. Their weighted mean, beside the state of the first token, goes through a dense
    layer with tanh to the logits. Without a second text the query is that of a mean of zero.

    Args:
        hidden_size: D.
        dropout: probability of a feature to be dropped in training.
    """

    def __init__(self, hidden_size: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(2 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden_TD: Tensor, lens_B: Tensor, second_lens_B: Tensor) -> Tensor:
        """Logits [B, C].

        Args:
            hidden_TD: last hidden states of sequences end to end, without padding.
            lens_B: int64, tokens of each sequence.
            second_lens_B: int64, trailing tokens of each that are the second text.
        """
        num, device, hidden_TD = len(lens_B), hidden_TD.device, hidden_TD.float()  # sums of many tokens
        stops_B = lens_B.cumsum(0)
        # Its size is known here; the lengths alone would have to be waited for on a GPU.
        owner_T = torch.repeat_interleave(torch.arange(num, device=device), lens_B, output_size=len(hidden_TD))
        second_T = torch.arange(len(owner_T), device=device) >= (stops_B - second_lens_B)[owner_T]
        aspect_BD = _sums(hidden_TD * second_T[:, None], owner_T, num) / second_lens_B.clamp(min=1)[:, None]
        query_BD = torch.tanh(self.query(aspect_BD))
        score_T = (hidden_TD * query_BD[owner_T]).sum(dim=1) / hidden_TD.shape[1] ** 0.5
        score_T = score_T.masked_fill(second_T, float("-inf"))
        # Softmax within each sequence; its first token is never of the second text.
        largest_B = score_T.new_full((num,), float("-inf")).scatter_reduce(0, owner_T, score_T.detach(), "amax")
        weight_T = torch.exp(score_T - largest_B[owner_T])
        total_B = weight_T.new_zeros(num).index_add(0, owner_T, weight_T)
        pooled_BD = _sums(hidden_TD * (weight_T / total_B[owner_T])[:, None], owner_T, num)
        first_BD = hidden_TD.index_select(0, stops_B - lens_B)
        features_BD = torch.tanh(self.dense(torch.cat([first_BD, pooled_BD], dim=1)))
        logits_BC: Tensor = self.out(self.dropout(features_BD))
        return logits_BC


def _sums(values_TD: Tensor, owner_T: Tensor, num: int) -> Tensor:
    return values_TD.new_zeros(num, values_TD.shape[1]).index_add(0, owner_T, values_TD)


class AspectClassifier(nn.Module):
    """An encoder of `transformers` with that head; where code reads a sequence classifier, it can read this.

    Args:
        encoder: with token types, which tell the second text; `check_token_types` says.
    """

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        encoder.pooler = None  # of the first token, which this head does not read
        self.encoder = encoder
        dropout = float(getattr(encoder.config, "hidden_dropout_prob", 0.1))
        self.aspect_attention = AspectAttention(encoder.config.hidden_size, num_classes, dropout)

    @property
    def config(self) -> Any:
        """Config of the encoder."""
        return self.encoder.config

    @property
    def base_model(self) -> Any:
        """The encoder."""
        return self.encoder

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.aspect_attention.out.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.aspect_attention.out.weight.device

    def get_input_embeddings(self) -> Any:
        """Word embeddings of the encoder."""
        return self.encoder.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """No embeddings: nothing is tied to the words."""

    def set_attn_implementation(self, name: str) -> None:
        """Attention of the encoder, by its name in `transformers`."""
        self.encoder.set_attn_implementation(name)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SimpleNamespace:
        """`logits` [B, C] of padded sequences [B, L]."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden_BLD = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask_BL = attention_mask.bool()
        second_lens_B = (token_type_ids * attention_mask).sum(dim=1)
        return SimpleNamespace(logits=self.aspect_attention(hidden_BLD[mask_BL], mask_BL.sum(dim=1), second_lens_B))

    def head_bytes(self) -> bytes:
        """Content of `head.safetensors`."""
        from safetensors.torch import save

        content: bytes = save({name: value.contiguous() for name, value in self.aspect_attention.state_dict().items()})
        return content

    def load_head(self, tensors: Mapping[str, Tensor]) -> None:
        """The head's weights, of a `head.safetensors`."""
        self.aspect_attention.load_state_dict(dict(tensors))

    @classmethod
    def load(cls, folder: Path, head: Path) -> AspectClassifier:
        """A trained classifier in fp32, for evaluation.

        Args:
            folder: of the encoder.
            head: file of the head's weights.
        """
        from safetensors.torch import load_file

        with reading(head):
            tensors = load_file(head)
            model = cls(load_encoder(folder), len(tensors["out.bias"]))
            model.load_head(tensors)
        return model.float().eval()
