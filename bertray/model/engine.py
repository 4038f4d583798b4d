"""The forward pass: sequences in, logits out, in input order; the same interface on CPU and GPU.

Legend: S sequences, B sequences of a pack, L padded length, T tokens end to end, C classes.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertray.errors import ConfigError
from bertray.model.encoders import PackedEncoder, fits_kernels
from bertray.model.kernels import kernels
from bertray.model.linear import PlainLinear, PrepackedLinear, QuantizedLinear, can_prepack, can_quantize
from bertray.model.pack_threads import Lanes
from bertray.model.packing import Pack, plan_packs
from bertray.model.pooling import ClassifierReadout, Readout
from bertray.model.pretrained import calling, most_positions
from bertray.model.tokenization import Sequences, ranges

_log = logging.getLogger(__name__)

# On CPU a pack whose activations stay in the cache is fastest; a GPU wants enough work for every multiprocessor.
CPU_TOKENS_PER_PACK = 2048
KERNEL_TOKENS_PER_PACK = 4096  # of our own kernels, which take what stays in the cache from a pack themselves
# Lanes are to end at the same time: each has several packs to take, unless they become too small.
PACKS_OF_A_LANE = 8
LEAST_TOKENS_PER_PACK = 512
CUDA_TOKENS_PER_PACK = 65536

_FP32_TOLERANCE = 1e-3  # of the self-check, where the largest logit is 1 or less, else in proportion
_BF16_TOLERANCE = 0.1
_INT8_TOLERANCE = 0.5  # only a fault is that far off; what it costs is for real reviews to say


class Engine:
    """A model of `transformers`, run without padding where its architecture allows.

    BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT and ALBERT run packed; `why_not_packed` says in one
    sentence why another model does not, and the log repeats it once. Construction ends with a self-check: some made-up
    sequences go through `transformers`' own forward pass and the packed one, and a model for which they differ (by more
    than 1e-3 of the largest logit in fp32, a tenth in bf16) runs padded. It costs two forward passes of some 70 tokens.

    Args:
        path: folder that `from_pretrained` loads, with weights as safetensors.
        readout: what comes out; by default the logits of a sequence classifier.
        device: as torch names it: `cpu`, `cuda`, `cuda:1`.
        precision: `fp32`, `bf16`, or `auto`: bf16 where the hardware computes in it. `int8`: linear layers in int8, the
            rest in fp32; faster on a CPU with VNNI and no bf16, and some labels change. A model that runs padded, or is
            far off in int8, is computed in fp32.
        max_tokens_per_pack: tokens of one forward pass at most; by default what suits the device.

    Raises:
        ConfigError: an unknown precision, or int8 where it is not faster.
        OSError: the folder holds no such model.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        precision: str = "auto",
        max_tokens_per_pack: int | None = None,
        readout: Readout | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = choose_dtype(precision, self.device)
        self.quantized = precision == "int8"
        """Whether linear layers compute in int8; a model that cannot is computed in fp32."""
        self.own_kernels = False
        """Whether our own kernels compute attention and linear layers, which they do in bf16 on CPUs with AMX."""
        default = CPU_TOKENS_PER_PACK if self.device.type == "cpu" else CUDA_TOKENS_PER_PACK
        self.max_tokens_per_pack = max_tokens_per_pack or default

        self._readout: Readout = readout or ClassifierReadout()
        self._model = model = self._readout.load(path)
        config = model.config
        self.width = self._readout.width(model)
        """Numbers that come out for a sequence: logits of so many classes, say."""
        self.labels: tuple[str, ...] = tuple(str(config.id2label[i]) for i in sorted(config.id2label or ()))
        with calling(path):  # some read characters, and have no table of tokens
            self.vocab_size: int = model.get_input_embeddings().weight.shape[0]
        self.max_length: int | None = most_positions(model)
        """Longest sequence that the model can read, in tokens; None: it has no limit of its own."""
        self._lanes = Lanes(1)
        self._encoder: PackedEncoder | None = None
        self._padded: _PaddedModel | None = None

        self.why_not_packed = self._try_to_pack(path, model)
        if max_tokens_per_pack is None and self.own_kernels:
            self.max_tokens_per_pack = KERNEL_TOKENS_PER_PACK
        if self.why_not_packed:
            _log.warning("%s runs padded, more slowly: %s.", path, self.why_not_packed)
            self.quantized = False
            self._padded = self._tried_padded(path, model)

    @property
    def packed(self) -> bool:
        """Whether the model runs without padding."""
        return self._padded is None

    def logits(self, seqs: Sequences) -> NDArray[np.float32]:
        """What the model gives, float32 [S, width], in input order: logits, or whatever the readout reads.

        A number that is not finite is returned as it is; it stays in its own row.

        Raises:
            ConfigError: a sequence is longer than the model's positions, or an id is outside its vocabulary.
            ValueError: a sequence has no tokens.
        """
        self._check(seqs)
        logits_SC = np.empty((len(seqs.lens_S), self.width), np.float32)
        if not len(seqs.lens_S):
            return logits_SC
        packs, starts_S = self._packs(seqs), np.cumsum(seqs.lens_S) - seqs.lens_S

        def run(pack: Pack) -> Tensor:
            with torch.inference_mode():
                return self._run(pack, seqs, starts_S)

        # Stays on the device until all is done: a copy each pack would make a GPU wait for the CPU.
        parts = self._lanes.map(run, packs)
        logits_SC[np.concatenate([pack.sequences_B for pack in packs])] = torch.cat(parts).cpu().numpy()
        return logits_SC

    def token_vectors(self, seqs: Sequences) -> NDArray[np.float32]:
        """The last hidden states, float32 [T, hidden], of every token in input order; for a model without a head.

        Raises:
            ConfigError, ValueError: as `logits`.
        """
        self._check(seqs)
        vectors_TD = np.empty((len(seqs.ids_T), self.width), np.float32)
        if not len(seqs.lens_S):
            return vectors_TD
        packs, starts_S = self._packs(seqs), np.cumsum(seqs.lens_S) - seqs.lens_S

        def run(pack: Pack) -> None:
            with torch.inference_mode():
                if self._padded is not None:
                    hidden_TD = self._padded.token_vectors(pack, seqs, starts_S)
                else:
                    assert self._encoder is not None
                    hidden_TD = self._encoder.tokens(self._encoder.to_tensors(pack, seqs, starts_S))
                vectors_TD[ranges(starts_S[pack.sequences_B], pack.lens_B)] = hidden_TD.float().cpu().numpy()

        self._lanes.map(run, packs)
        return vectors_TD

    def _packs(self, seqs: Sequences) -> list[Pack]:
        tokens = self.max_tokens_per_pack
        if self.own_kernels and self._lanes.num_threads != torch.get_num_threads():
            self._lanes = Lanes(torch.get_num_threads())
        if self._lanes.count > 1:
            share = int(seqs.lens_S.sum()) // (PACKS_OF_A_LANE * self._lanes.count)
            tokens = min(tokens, max(share, LEAST_TOKENS_PER_PACK))
        # oneDNN prepares each shape anew.
        few_shapes = (
            self.device.type == "cpu" and (self.dtype == torch.bfloat16 or self.quantized) and not self.own_kernels
        )
        return plan_packs(
            seqs.lens_S,
            max_tokens_per_pack=tokens,
            padded=not self.packed,
            equal_lengths=self._padded is not None and not self._padded.may_pad,
            width_multiple=16 if few_shapes else 1,
            slots_multiple=64 if few_shapes else 1,
        )

    def _run(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        if self._padded is not None:
            return self._padded.logits(pack, seqs, starts_S)
        assert self._encoder is not None
        return self._readout.packed(self._model, self._encoder, self._encoder.to_tensors(pack, seqs, starts_S))

    def _check(self, seqs: Sequences) -> None:
        if not len(seqs.lens_S):
            return
        if not seqs.lens_S.min():
            raise ValueError("seqs: expected at least one token in each sequence, found none in some.")
        if self.max_length is not None and (longest := int(seqs.lens_S.max())) > self.max_length:
            raise ConfigError(
                f"max_length: expected at most {self.max_length} tokens, as many as the model has positions, "
                f"found a sequence of {longest}.",
                "Lower `max_length`.",
            )
        if (highest := int(seqs.ids_T.max())) >= self.vocab_size:
            raise ConfigError(
                f"model: expected token ids below its vocabulary of {self.vocab_size}, found {highest}.",
                "Use the tokenizer that belongs to the model.",
            )

    def _tried_padded(self, path: Path, model: Any) -> _PaddedModel:
        """The model for padded batches, in fp32 where it cannot be called in another precision.

        A model whose numbers padding changes, as of XLNet, which reads the last place of a row, gets batches of one
        length.
        """
        seqs = _made_up_sequences(self.vocab_size, self.max_length or 17)
        with calling(path), torch.inference_mode():
            together_SC, alone_SC = (
                _PaddedModel(model.float(), self._readout, may_pad).all_logits(seqs, self.width)
                for may_pad in (True, False)
            )
            difference = _difference(together_SC, alone_SC)
            padded = _PaddedModel(
                model.to(device=self.device, dtype=self.dtype), self._readout, difference <= _FP32_TOLERANCE
            )
        if not padded.may_pad:
            _log.warning("%s: padding changes its numbers (by %.2g); batches are of one length.", path, difference)
        try:
            with calling(path), torch.inference_mode():
                padded.all_logits(seqs, self.width)
        except ConfigError as error:
            if self.dtype == torch.float32:
                raise
            _log.warning("Computed in fp32: %s", error.message)
            self.dtype = torch.float32
            return self._tried_padded(path, model)
        return padded

    def _try_to_pack(self, path: Path, model: Any) -> str:
        """Build the packed encoder; returns why it cannot be used, or nothing."""
        if reason := self._readout.why_not_packable(model):
            return reason
        encoder = PackedEncoder(model, torch.float32, torch.device("cpu"))
        self.max_length = encoder.max_length
        seqs = _made_up_sequences(self.vocab_size, encoder.max_length)
        with calling(path), torch.inference_mode():
            expected_SC = _PaddedModel(model, self._readout).all_logits(seqs, self.width)
        # First the arithmetic, where it must be equal, then the precision and the device asked for.
        self._encoder = encoder
        device, self.device = self.device, torch.device("cpu")
        dtype, self.dtype = self.dtype, torch.float32
        difference = _difference(self.logits(seqs), expected_SC)
        self.device, self.dtype = device, dtype
        if not difference <= _FP32_TOLERANCE:
            return f"its packed logits differ from transformers' own by {difference:.2g}"
        if self.quantized:
            self._encoder = PackedEncoder(model, torch.float32, device, QuantizedLinear)
            difference = _difference(self.logits(seqs), expected_SC)
            if not difference <= _INT8_TOLERANCE:
                _log.warning("Computed in fp32: in int8 logits differ from transformers' own by %.2g.", difference)
                self._encoder, self.quantized = encoder, False
        elif (dtype, device.type) != (torch.float32, "cpu"):
            tolerance = _FP32_TOLERANCE if dtype == torch.float32 else _BF16_TOLERANCE
            prepack = can_prepack(dtype, device)
            # The head is small and decides between near classes: it stays in fp32.
            model.to(device)
            if prepack and fits_kernels(model) and (ours := kernels()) is not None:
                self._encoder, self.own_kernels = PackedEncoder(model, dtype, device, kernels=ours), True
                difference = _difference(self.logits(seqs), expected_SC)
                if difference <= tolerance:
                    return ""
                _log.warning(
                    "Our kernels are not used: their logits differ from transformers' own by %.2g.", difference
                )
                self.own_kernels = False
            self._encoder = PackedEncoder(model, dtype, device, PrepackedLinear if prepack else PlainLinear)
            difference = _difference(self.logits(seqs), expected_SC)
            if not difference <= tolerance:
                return f"its packed logits on {device} in {dtype} differ from transformers' in fp32 by {difference:.2g}"
        return ""


class _PaddedModel:
    """`transformers`' own forward pass over padded batches.

    Args:
        may_pad: sequences of several lengths may share a batch.
    """

    def __init__(self, model: Any, readout: Readout, may_pad: bool = True) -> None:
        self._model, self._readout, self.may_pad = model, readout, may_pad
        self._pad_id = model.config.pad_token_id or 0
        self._reads_types = (
            "token_type_ids" in inspect.signature(model.forward).parameters
            and getattr(model.config, "type_vocab_size", 0) > 1
        )

    def all_logits(self, seqs: Sequences, width: int) -> NDArray[np.float32]:
        """[S, width] of a few sequences, in input order."""
        starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
        logits_SC = np.empty((len(seqs.lens_S), width), np.float32)
        for pack in plan_packs(seqs.lens_S, max_tokens_per_pack=1 << 30, padded=True, equal_lengths=not self.may_pad):
            logits_SC[pack.sequences_B] = self.logits(pack, seqs, starts_S).cpu().numpy()
        return logits_SC

    def logits(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        """[B, width] of one pack, fp32."""
        outputs, mask_BL = self._outputs(pack, seqs, starts_S)
        return self._readout.padded(outputs, mask_BL)

    def token_vectors(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        """Last hidden states [T, D] of the tokens of one pack, sequence after sequence."""
        outputs, mask_BL = self._outputs(pack, seqs, starts_S)
        hidden_TD: Tensor = outputs.last_hidden_state[mask_BL.bool()]
        return hidden_TD

    def _outputs(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> tuple[Any, Tensor]:
        inputs = padded_inputs(pack, seqs, starts_S, int(pack.lens_B[0]), self._pad_id)
        if self._reads_types:
            mask_BL = inputs["attention_mask"].astype(bool)
            first_lens_B = pack.lens_B - seqs.second_lens_S[pack.sequences_B]
            in_second_BL = np.arange(mask_BL.shape[1]) >= first_lens_B[:, None]
            inputs["token_type_ids"] = (mask_BL & in_second_BL).astype(np.int64)
        tensors = {name: torch.from_numpy(array).to(self._model.device) for name, array in inputs.items()}
        return self._model(**tensors), tensors["attention_mask"]


def padded_inputs(
    pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64], width: int, pad_id: int
) -> dict[str, NDArray[np.int64]]:
    """`input_ids` and `attention_mask` [B, width] of the sequences of a pack, which begin at `starts_S`."""
    places_L = np.arange(width)
    # The mask comes from the lengths: a review may hold the padding token itself.
    mask_BL = places_L < pack.lens_B[:, None]
    tokens_BL = np.minimum(starts_S[pack.sequences_B, None] + places_L, len(seqs.ids_T) - 1)
    ids_BL = np.where(mask_BL, seqs.ids_T[tokens_BL].astype(np.int64), pad_id)
    return {"input_ids": ids_BL, "attention_mask": mask_BL.astype(np.int64)}


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies in it: AMX or AVX512-BF16, and CUDA from Ampere on.

    Of a model in int8 it is what all but its linear layers use.

    Raises:
        ConfigError: none of `auto`, `fp32`, `bf16`, `int8`; or int8 where it is not faster.
    """
    if precision == "int8" and not can_quantize(device):
        raise ConfigError(
            f"precision=int8: expected a CPU with VNNI or AMX, found {device.type} without.", "Leave `precision` out."
        )
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
            fast = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
    if precision not in dtypes:
        raise ConfigError(f"precision: expected one of {['auto', *dtypes]}, found {precision!r}.")
    return dtypes[precision]


def _made_up_sequences(vocab_size: int, max_length: int) -> Sequences:
    """A few sequences of various lengths: equal ones, near ones, a single token, and one with a second text."""
    lens_S = np.minimum([11, 1, 11, 11, 3, 11, 17, 5], max_length)
    second_lens_S = np.zeros(len(lens_S), np.int32)
    second_lens_S[-1] = min(2, lens_S[-1])
    return Sequences(
        ids_T=np.random.default_rng(0).integers(vocab_size, size=int(lens_S.sum()), dtype=np.int32),
        lens_S=lens_S.astype(np.int64),
        second_lens_S=second_lens_S,
        rows_S=np.arange(len(lens_S)),
        num_rows=len(lens_S),
    )


def _difference(logits_SC: NDArray[np.float32], expected_SC: NDArray[np.float32]) -> float:
    """Largest difference, as a share of the largest expected logit where that is above 1; NaN equals NaN."""
    same_SC = (logits_SC == expected_SC) | (np.isnan(logits_SC) & np.isnan(expected_SC))
    with np.errstate(invalid="ignore"):  # infinity less itself
        differences_SC = np.where(same_SC, 0.0, np.abs(logits_SC - expected_SC))
    finite = expected_SC[np.isfinite(expected_SC)]
    return float(differences_SC.max() / max(1.0, float(np.abs(finite).max(initial=0.0))))
