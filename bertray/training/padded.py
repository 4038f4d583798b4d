"""Models of `transformers` on padded batches, read where an objective reads them.

Legend: B sequences, L padded length, D hidden, M tokens read, K what comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bertray.model.families import language_head, why_not_packable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


class PaddedEncoder(nn.Module):
    """Means of the last hidden states of padded batches."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """fp32 [B, D]."""
        hidden_BLD = self.model(**inputs).last_hidden_state.float()
        mask_BL1 = inputs["attention_mask"][:, :, None]
        means_BD: Tensor = (hidden_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)
        return means_BD
