"""Pooling and heads: the logits of a classifier, pooled embeddings, or a linear head on these.

Legend: B sequences of a batch, T packed tokens, L padded length, D hidden, C classes, K what comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.aspect_attention import AspectClassifier
from bertray.model.bundle import ASPECT_ATTENTION, HEAD_FILE, INFO_FILE, HeadForm, head_form, read_info
from bertray.model.encoders import PackedEncoder, PackTensors, Reads
from bertray.model.families import classification_head, why_not_packable
from bertray.model.pretrained.files import reading
from bertray.model.pretrained.weights import load_classifier, load_encoder
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
    """A linear head on pooled embeddings: `head.safetensors` with `weight` [C, D] and `bias` [C].

    Of a stack it is the encoder's part; that of the terms is added by `Predictor`.
    """

    def __init__(self, path: Path, form: HeadForm) -> None:
        from safetensors.torch import load_file

        super().__init__(form.pooling)
        self.form = form
        with reading(path / HEAD_FILE):
            head = load_file(path / HEAD_FILE)
            self._weight_CD, self._bias_C = head["weight"].float(), head["bias"].float()
        self.constant_C: Tensor | None = None if self._weight_CD.numel() else self._bias_C
        """The bias, where it is all that comes out: the head of a stack that leaves the encoder out."""

    def width(self, model: Any) -> int:
        return len(self._bias_C)

    def _finished(self, pooled_BD: Tensor) -> Tensor:
        if self.constant_C is not None:
            return self.constant_C.to(pooled_BD.device).expand(len(pooled_BD), -1)
        if self.form.normalized:
            pooled_BD = F.normalize(pooled_BD, dim=1)
        if self._weight_CD.device != pooled_BD.device:  # once; a copy each pack would make a GPU wait
            self._weight_CD, self._bias_C = self._weight_CD.to(pooled_BD.device), self._bias_C.to(pooled_BD.device)
        return F.linear(pooled_BD, self._weight_CD, self._bias_C)


class AttentionReadout:
    """Logits of a review by a query of its aspect: an encoder with the head of `AspectClassifier`.

    Args:
        path: of the bundle.
    """

    reads: Reads = "all"

    def __init__(self, path: Path) -> None:
        self._head = path / HEAD_FILE

    def load(self, path: Path) -> Any:
        return AspectClassifier.load(path, self._head)

    def width(self, model: Any) -> int:
        return int(model.aspect_attention.out.out_features)

    def why_not_packable(self, model: Any) -> str:
        return why_not_packable(model)

    def packed(self, model: Any, encoder: PackedEncoder, pack: PackTensors) -> Tensor:
        lens_B = torch.diff(pack.first_tokens_B, append=pack.end_1)
        logits_BC: Tensor = model.aspect_attention(encoder.tokens(pack), lens_B, pack.second_lens_B)
        return logits_BC

    def padded(self, outputs: Any, mask_BL: Tensor) -> Tensor:
        logits: Tensor = outputs.logits
        return logits.float()


def readout_of(path: Path) -> Readout:
    """Readout of a bundle or of a classifier of the hub, by its `head`.

    Raises:
        ConfigError: a head that this version does not know.
    """
    if not ((path / INFO_FILE).is_file() and (path / HEAD_FILE).is_file()):
        return ClassifierReadout()
    info = read_info(path)
    if info.head == ASPECT_ATTENTION:
        return AttentionReadout(path)
    form = head_form(info.to_json(), str(path))
    return ClassifierReadout() if form is None else LinearReadout(path, form)
