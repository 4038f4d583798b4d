"""Pooling and heads: the logits of a classifier, pooled embeddings, or a linear head on these.

Legend: B sequences of a batch, T packed tokens, L padded length, D hidden, C classes, K what comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.bundle import CLASSIFIER, HEAD_FILE, INFO_FILE, LINEAR_HEADS, read_info
from bertray.model.encoders import PackedEncoder, PackTensors, Reads
from bertray.model.families import classification_head, why_not_packable
from bertray.model.pretrained import load_classifier, load_encoder, reading
from bertray.settings import Pooling


class Readout(Protocol):
    """Loading, pooling and head of a model, as the engine uses them; results are fp32."""

    @property
    def reads(self) -> Reads:
        """Last hidden states that are read: those of the first token, of all tokens, or either."""

    def load(self, path: Path) -> Any:
        """The model in fp32, for evaluation."""

    def width(self, model: Any) -> int:
        """K."""

    def why_not_packable(self, model: Any) -> str:
        """One sentence on why the packed encoder cannot run this model; empty when it can."""

    def packed(self, model: Any, encoder: PackedEncoder, pack: PackTensors) -> Tensor:
        """[B, K] of a pack."""

    def padded(self, outputs: Any, mask_BL: Tensor) -> Tensor:
        """[B, K] of what `transformers`' own forward pass gave."""


class ClassifierReadout:
    """Logits as a sequence classifier of `transformers` gives them."""

    reads: Reads = "first"

    def load(self, path: Path) -> Any:
        return load_classifier(path)

    def width(self, model: Any) -> int:
        return int(model.config.num_labels)

    def why_not_packable(self, model: Any) -> str:
        if not type(model).__name__.endswith("ForSequenceClassification"):
            return f"{type(model).__name__} is not a sequence classifier"
        return why_not_packable(model)

    def packed(self, model: Any, encoder: PackedEncoder, pack: PackTensors) -> Tensor:
        return classification_head(model)(encoder.first_tokens(pack).float())

    def padded(self, outputs: Any, mask_BL: Tensor) -> Tensor:
        logits: Tensor = outputs.logits
        return logits.float()


class PooledReadout:
    """Embeddings: the last hidden states, averaged over the tokens of a sequence or those of its first token.

    Args:
        pooling: `mean` or `cls`.
    """

    def __init__(self, pooling: Pooling = "mean") -> None:
        self.pooling = pooling
        self.reads: Reads = "both" if pooling == "cls" else "all"  # of an embedder single tokens, too

    def load(self, path: Path) -> Any:
        return load_encoder(path)

    def width(self, model: Any) -> int:
        return int(getattr(model.config, "hidden_size", None) or model.config.dim)

    def why_not_packable(self, model: Any) -> str:
        return why_not_packable(model)

    def packed(self, model: Any, encoder: PackedEncoder, pack: PackTensors) -> Tensor:
        first = self.pooling == "cls"
        return self._finished(encoder.first_tokens(pack).float() if first else encoder.means(pack))

    def padded(self, outputs: Any, mask_BL: Tensor) -> Tensor:
        hidden_BLD = outputs.last_hidden_state.float()
        if self.pooling == "cls":
            return self._finished(hidden_BLD[:, 0])
        # Not times the mask: what stands on padding may be no number.
        kept_BLD = torch.where(mask_BL[:, :, None].bool(), hidden_BLD, 0.0)
        return self._finished(kept_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True))

    def _finished(self, pooled_BD: Tensor) -> Tensor:
        return pooled_BD


class LinearReadout(PooledReadout):
    """A linear head on pooled embeddings: `head.safetensors` with `weight` [C, D] and `bias` [C]."""

    def __init__(self, path: Path, pooling: Pooling) -> None:
        from safetensors.torch import load_file

        super().__init__(pooling)
        with reading(path / HEAD_FILE):
            head = load_file(path / HEAD_FILE)
            self._weight_CD, self._bias_C = head["weight"].float(), head["bias"].float()

    def width(self, model: Any) -> int:
        return len(self._bias_C)

    def _finished(self, pooled_BD: Tensor) -> Tensor:
        return F.linear(pooled_BD, self._weight_CD.to(pooled_BD.device), self._bias_C.to(pooled_BD.device))


def readout_of(path: Path) -> Readout:
    """Readout of a bundle or of a classifier of the hub, by its `head`."""
    poolings: dict[str, Any] = {head: pooling for pooling, head in LINEAR_HEADS.items()}
    head = read_info(path).head if (path / INFO_FILE).is_file() and (path / HEAD_FILE).is_file() else CLASSIFIER
    return LinearReadout(path, poolings[head]) if head in poolings else ClassifierReadout()
