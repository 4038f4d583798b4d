"""The way in which a model computes: packed where its architecture allows and its numbers agree, else padded.

Legend: S sequences, B sequences of a pack, L padded length, T tokens end to end, C classes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertray.errors import ConfigError, is_out_of_memory
from bertray.model.encoders import PackedEncoder, Reads, to_device
from bertray.model.families import fits_kernels, release_encoder
from bertray.model.fused import GeluLinear, compiled_add_norm, fuses
from bertray.model.kernels import kernels
from bertray.model.linear import (
    EmulatedQuantizedLinear,
    PlainLinear,
    PrepackedLinear,
    QuantizedLinear,
    can_prepack,
    can_quantize,
)
from bertray.model.packing import Pack, plan_packs
from bertray.model.pooling import Readout
from bertray.model.pretrained.files import calling
from bertray.model.pretrained.weights import most_positions
from bertray.model.tokenization import Sequences

_log = logging.getLogger(__name__)

_FP32_TOLERANCE = 1e-3  # of the self-check, where the largest logit is 1 or less, else in proportion
_16_BIT_TOLERANCE = 0.1
_INT8_TOLERANCE = 0.5  # only a fault is that far off; what it costs is for real reviews to say
_DOES_NOT_RUN = (ImportError, RuntimeError, TypeError, ValueError)  # of a kernel that is not there, or is called anew


class Backend(Protocol):
    """One way of running a model over packs of sequences."""

    dtype: torch.dtype
    quantized: bool
    own_kernels: bool
    max_length: int | None

    def packs(self, lens_S: NDArray[np.int64], max_tokens: int) -> list[Pack]:
        """Packs of all sequences, of `max_tokens` tokens at most where one sequence has no more."""

    def logits(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        """[B, width] of one pack, fp32; sequences begin at `starts_S`."""

    def token_vectors(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        """Last hidden states [T, D] of the tokens of one pack, sequence after sequence."""


class PackedBackend:
    """A packed encoder, with the head of its model.

    Args:
        model: whose head is read; its encoder may have been released.
        encoder: runs the layers.
        quantized: whether its linear layers compute in int8.
        own_kernels: whether it computes by our kernels.
    """

    def __init__(
        self,
        model: Any,
        readout: Readout,
        encoder: PackedEncoder,
        *,
        quantized: bool = False,
        own_kernels: bool = False,
    ) -> None:
        self._model, self._readout, self._encoder = model, readout, encoder
        self.dtype, self.quantized, self.own_kernels = encoder.dtype, quantized, own_kernels
        self.max_length: int | None = encoder.max_length
        # oneDNN prepares each shape anew.
        on_cpu = encoder.device.type == "cpu" and not own_kernels
        self._few_shapes = on_cpu and (quantized or self.dtype == torch.bfloat16)

    def packs(self, lens_S: NDArray[np.int64], max_tokens: int) -> list[Pack]:
        width_multiple, slots_multiple = (16, 64) if self._few_shapes else (1, 1)
        return plan_packs(
            lens_S, max_tokens_per_pack=max_tokens, width_multiple=width_multiple, slots_multiple=slots_multiple
        )

    def logits(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        return self._readout.packed(self._model, self._encoder, self._encoder.to_tensors(pack, seqs, starts_S))

    def token_vectors(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        return self._encoder.tokens(self._encoder.to_tensors(pack, seqs, starts_S))

    def release_model(self) -> None:
        """Let go of the model's own encoder, whose storage the packed one shares or has copied."""
        release_encoder(self._model)


class PaddedBackend:
    """`transformers`' own forward pass over padded batches.

    Args:
        model: in the precision and on the device to compute in.
        may_pad: sequences of several lengths may share a batch.
    """

    quantized = own_kernels = False

    def __init__(self, model: Any, readout: Readout, may_pad: bool = True) -> None:
        self._model, self._readout, self.may_pad = model, readout, may_pad
        self.dtype: torch.dtype = model.dtype
        self.max_length = most_positions(model)
        self._pad_id = model.config.pad_token_id or 0
        self._reads_types = (
            "token_type_ids" in inspect.signature(model.forward).parameters
            and getattr(model.config, "type_vocab_size", 0) > 1
        )

    def packs(self, lens_S: NDArray[np.int64], max_tokens: int) -> list[Pack]:
        return plan_packs(lens_S, max_tokens_per_pack=max_tokens, padded=True, equal_lengths=not self.may_pad)

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
        tensors = {name: to_device(array, self._model.device) for name, array in inputs.items()}
        return self._model(**tensors), tensors["attention_mask"]


def choose_backend(
    path: Path, model: Any, readout: Readout, *, dtype: torch.dtype, device: torch.device, quantized: bool
) -> tuple[Backend, str]:
    """The fastest way whose numbers agree with `transformers`' own, and why the model does not run packed, if so.

    Some made-up sequences of some 70 tokens go through `transformers`' forward pass in fp32 and through each way that
    is tried. The model's own encoder is let go of where a packed one takes its place.

    Args:
        path: folder of the model, for messages.
        model: in fp32, on CPU.
        readout: what is to come out.
        dtype, device: to compute in, where that agrees.
        quantized: linear layers in int8, where that agrees.
    """
    packed, why_not = _packed_backend(path, model, readout, dtype, device, quantized)
    if packed is not None:
        packed.release_model()
        return packed, ""
    _log.warning("%s runs padded, more slowly: %s.", path, why_not)
    return _padded_backend(path, model, readout, dtype, device), why_not


def _packed_backend(
    path: Path, model: Any, readout: Readout, dtype: torch.dtype, device: torch.device, quantized: bool
) -> tuple[PackedBackend | None, str]:
    """A packed backend, or why there is none: first the arithmetic is checked, then precision and device."""
    if reason := readout.why_not_packable(model):
        return None, reason
    cpu, reads = torch.device("cpu"), readout.reads
    encoder = PackedEncoder(model, torch.float32, cpu, reads=reads)
    plain = PackedBackend(model, readout, encoder)
    seqs, width = made_up_sequences(_vocabulary(model), encoder.max_length), readout.width(model)
    with calling(path):
        expected_SC = logits_of(PaddedBackend(model, readout), seqs, width)

    def difference_of(backend: Backend) -> float:
        return _difference(logits_of(backend, seqs, width), expected_SC)

    if not (difference := difference_of(plain)) <= _FP32_TOLERANCE:
        return None, f"its packed logits differ from transformers' own by {difference:.2g}"
    if quantized:
        for encoder, is_own in _in_int8(model, device, reads):
            in_int8 = PackedBackend(model, readout, encoder, quantized=True, own_kernels=is_own)
            if (difference := difference_of(in_int8)) <= _INT8_TOLERANCE:
                return in_int8, ""
            _log.warning("Not computed in int8: logits differ from transformers' own by %.2g.", difference)
    tolerance = _tolerance(dtype)
    model.to(device)  # the head is small and decides between near classes: it stays in fp32
    if device.type == "cpu" and fits_kernels(model) and (ours := kernels(dtype)) is not None:
        encoder = PackedEncoder(model, dtype, device, kernels=ours, reads=reads)
        by_kernels = PackedBackend(model, readout, encoder, own_kernels=True)
        if (difference := difference_of(by_kernels)) <= tolerance:
            return by_kernels, ""
        _log.warning("Our kernels are not used: their logits differ from transformers' own by %.2g.", difference)
    if (dtype, device.type) == (torch.float32, "cpu"):
        return plain, ""
    where = f"on {device} in {dtype}"
    if fuses(device, dtype):
        encoder = PackedEncoder(model, dtype, device, GeluLinear, reads=reads, add_norm=compiled_add_norm())
        backend = PackedBackend(model, readout, encoder)
        if not (why_not := _why_not(partial(difference_of, backend), tolerance, where)):
            return backend, ""
        _log.warning("%s: without fused kernels: with them %s.", path, why_not)
    linear = PrepackedLinear if can_prepack(dtype, device) else PlainLinear
    encoder = PackedEncoder(model, dtype, device, linear, reads=reads)
    backend = PackedBackend(model, readout, encoder)
    why_not = _why_not(partial(difference_of, backend), tolerance, where)
    if why_not and encoder.varlen:
        _log.warning("%s: attention in groups of sequences, more slowly: with the flash kernel %s.", path, why_not)
        encoder.varlen = False
        why_not = _why_not(partial(difference_of, backend), tolerance, where)
    return (None, why_not) if why_not else (backend, "")


def _in_int8(model: Any, device: torch.device, reads: Reads) -> Iterator[tuple[PackedEncoder, bool]]:
    """Encoders whose linear layers are in int8, the fastest first, and whether our kernels compute them."""
    ours = kernels(torch.bfloat16) if device.type == "cpu" and fits_kernels(model, in_int8=True) else None
    if ours is not None:
        yield PackedEncoder(model, torch.bfloat16, device, kernels=ours, quantized=True, reads=reads), True
    linear = QuantizedLinear if can_quantize(device) else EmulatedQuantizedLinear
    yield PackedEncoder(model, torch.float32, device, linear, reads=reads), False


def _why_not(difference: Callable[[], float], tolerance: float, where: str) -> str:
    """Reason of a self-check against a way of computing, or an empty string; a kernel that does not run is one.

    Raises:
        RuntimeError: out of memory.
    """
    try:
        found = difference()
    except _DOES_NOT_RUN as error:
        if is_out_of_memory(error):
            raise
        return f"its packed forward pass {where} fails ({' '.join(str(error).split())[:200]})"
    return "" if found <= tolerance else f"its packed logits {where} differ from transformers' in fp32 by {found:.2g}"


def _padded_backend(
    path: Path, model: Any, readout: Readout, dtype: torch.dtype, device: torch.device
) -> PaddedBackend:
    """The model for padded batches, in fp32 where it cannot be called in another precision.

    A model whose numbers padding changes, as of XLNet, which reads the last position of a row, gets batches of one
    length.
    """
    seqs = made_up_sequences(_vocabulary(model), most_positions(model) or 17)
    width = readout.width(model)
    with calling(path):
        together_SC, alone_SC = (
            logits_of(PaddedBackend(model.float(), readout, may_pad), seqs, width) for may_pad in (True, False)
        )
    difference = _difference(together_SC, alone_SC)
    padded = PaddedBackend(model.to(device=device, dtype=dtype), readout, difference <= _FP32_TOLERANCE)
    if not padded.may_pad:
        _log.warning("%s: padding changes its numbers (by %.2g); batches are of one length.", path, difference)
    try:
        with calling(path):
            difference = _difference(logits_of(padded, seqs, width), alone_SC)
    except ConfigError as error:
        if dtype == torch.float32:
            raise
        why_not = error.message
    else:
        why_not = "" if difference <= _tolerance(dtype) else f"in {dtype} its logits differ by {difference:.2g}."
    if not why_not or dtype == torch.float32:
        return padded
    _log.warning("%s: computed in fp32: %s", path, why_not)
    return _padded_backend(path, model, readout, torch.float32, device)


def _tolerance(dtype: torch.dtype) -> float:
    return _FP32_TOLERANCE if dtype == torch.float32 else _16_BIT_TOLERANCE


def logits_of(backend: Backend, seqs: Sequences, width: int) -> NDArray[np.float32]:
    """[S, width] of a few sequences, in input order."""
    starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
    logits_SC = np.empty((len(seqs.lens_S), width), np.float32)
    with torch.inference_mode():
        for pack in backend.packs(seqs.lens_S, 1 << 30):
            logits_SC[pack.sequences_B] = backend.logits(pack, seqs, starts_S).cpu().numpy()
    return logits_SC


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


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


def made_up_sequences(vocab_size: int, max_length: int) -> Sequences:
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
