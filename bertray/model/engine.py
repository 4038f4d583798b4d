"""The forward pass: sequences in, logits out, in input order; the same interface on CPU and GPU.

Legend: S sequences, B sequences of a pack, L padded length, T tokens end to end, C classes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertray.errors import ConfigError
from bertray.model.backend import choose_backend
from bertray.model.linear import can_quantize
from bertray.model.pack_threads import PackThreads
from bertray.model.packing import Pack
from bertray.model.pooling import ClassifierReadout, Readout
from bertray.model.pretrained.files import calling
from bertray.model.tokenization import Sequences, ranges, some_of
from bertray.model.varlen import SM80
from bertray.settings import Precision

_log = logging.getLogger(__name__)

# On CPU a pack whose activations stay in the cache is fastest; a GPU wants enough work for every multiprocessor.
CPU_TOKENS_PER_PACK = 2048
KERNEL_TOKENS_PER_PACK = 4096  # of our own kernels, which take what stays in the cache from a pack themselves
# Pack threads are to end at the same time: each has several packs to take, unless they become too small.
PACKS_PER_THREAD = 8
LEAST_TOKENS_PER_PACK = 512
CUDA_TOKENS_PER_PACK = 65536  # at most; a smaller GPU gets TOKENS_PER_MULTIPROCESSOR for each multiprocessor
TOKENS_PER_MULTIPROCESSOR = 512
# Whoever computes in one computes in those before it, too.
FORMATS: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_SM_WITH_FP16_CORES = 7  # major version: Volta, Turing


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
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 where the hardware computes in it, fp16 on GPUs that are fast
            in that alone; sequences that overflow fp16 are computed again in fp32. `int8`: linear layers in int8, the
            rest in bf16 where our kernels compute it, else in fp32; faster on a CPU with VNNI or AMX, and close
            decisions change. Where a model runs padded, or is far off in int8, it is computed in fp32.
        max_tokens_per_pack: tokens of one forward pass at most; by default what suits the device.
        emulated: where this CPU has no int8, compute it in fp32, more slowly than fp32 itself.

    Raises:
        ConfigError: an unknown precision, or int8 where it is not faster and not emulated.
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
        emulated: bool = False,
    ) -> None:
        self.device, self._path = torch.device(device), path
        self._readout: Readout = readout or ClassifierReadout()
        model = self._readout.load(path)
        config = model.config
        self.width = self._readout.width(model)
        """Numbers that come out for a sequence: logits of so many classes, say."""
        self.labels: tuple[str, ...] = tuple(str(config.id2label[i]) for i in sorted(config.id2label or ()))
        with calling(path):  # some read characters, and have no table of tokens
            self.vocab_size: int = model.get_input_embeddings().weight.shape[0]
        self._backend, self.why_not_packed = choose_backend(
            path,
            model,
            self._readout,
            dtype=choose_dtype("fp32" if emulated and precision == "int8" else precision, self.device),
            device=self.device,
            quantized=precision == "int8",
        )
        self.max_length = self._backend.max_length
        """Longest sequence that the model can read, in tokens; None: it has no limit of its own."""
        default = CPU_TOKENS_PER_PACK if self.device.type == "cpu" else cuda_tokens_per_pack(self.device)
        self.max_tokens_per_pack = max_tokens_per_pack or (KERNEL_TOKENS_PER_PACK if self.own_kernels else default)
        self._threads = PackThreads(1)
        self._in_fp32: Engine | None = None  # for what overflows fp16

    @property
    def packed(self) -> bool:
        """Whether the model runs without padding."""
        return not self.why_not_packed

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and activations; of a model in int8 that of all but its linear layers."""
        return self._backend.dtype

    @property
    def precision(self) -> str:
        """`fp32`, `bf16`, `fp16` or `int8`: number format of the layers."""
        return "int8" if self.quantized else FORMATS[self.dtype]

    @property
    def quantized(self) -> bool:
        """Whether linear layers compute in int8; a model that cannot is computed in fp32."""
        return self._backend.quantized

    @property
    def own_kernels(self) -> bool:
        """Whether our own kernels compute attention and linear layers, on CPUs that they are written for."""
        return self._backend.own_kernels

    def logits(self, seqs: Sequences) -> NDArray[np.float32]:
        """Output of the head, float32 [S, width], in input order: logits, or embeddings.

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
        parts = self._threads.map(run, packs)
        logits_SC[np.concatenate([pack.sequences_B for pack in packs])] = torch.cat(parts).cpu().numpy()
        if self.dtype == torch.float16:
            overflown_R = np.flatnonzero(~np.isfinite(logits_SC).all(axis=1))
            if len(overflown_R):
                logits_SC[overflown_R] = self._full().logits(some_of(seqs, overflown_R))
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
                hidden_TD = self._backend.token_vectors(pack, seqs, starts_S)
                vectors_TD[ranges(starts_S[pack.sequences_B], pack.lens_B)] = hidden_TD.float().cpu().numpy()

        self._threads.map(run, packs)
        if self.dtype == torch.float16:
            finite_T = np.isfinite(vectors_TD).all(axis=1)
            overflown_R = np.flatnonzero(~np.logical_and.reduceat(finite_T, starts_S))
            if len(overflown_R):
                tokens_K = ranges(starts_S[overflown_R], seqs.lens_S[overflown_R])
                vectors_TD[tokens_K] = self._full().token_vectors(some_of(seqs, overflown_R))
        return vectors_TD

    def _full(self) -> Engine:
        """The same model in fp32, with this one's budget: it is halved where memory runs out."""
        if self._in_fp32 is None:
            _log.warning("%s: some reviews overflow fp16; these are computed in fp32.", self._path)
            self._in_fp32 = Engine(self._path, device=str(self.device), precision="fp32", readout=self._readout)
        self._in_fp32.max_tokens_per_pack = self.max_tokens_per_pack
        return self._in_fp32

    def _packs(self, seqs: Sequences) -> list[Pack]:
        tokens = self.max_tokens_per_pack
        if self.own_kernels and self._threads.num_threads != torch.get_num_threads():
            self._threads = PackThreads(torch.get_num_threads())
        if self._threads.count > 1:
            share = int(seqs.lens_S.sum()) // (PACKS_PER_THREAD * self._threads.count)
            tokens = min(tokens, max(share, LEAST_TOKENS_PER_PACK))
        return self._backend.packs(seqs.lens_S, tokens)

    def _run(self, pack: Pack, seqs: Sequences, starts_S: NDArray[np.int64]) -> Tensor:
        return self._backend.logits(pack, seqs, starts_S)

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


def cuda_tokens_per_pack(device: torch.device) -> int:
    """Tokens of a pack by the size of a GPU: its launches are hidden, and its activations are not larger than needed.

    65,536 on an H100 or H200 (132 multiprocessors), 32,768 on an A100, 16,384 on an L4 or T4.
    """
    tokens = TOKENS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return int(min(CUDA_TOKENS_PER_PACK, 1 << max(tokens, 1).bit_length() - 1))


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Number format of weights and activations on a device.

    `auto` is bf16 where the hardware multiplies in it (AMX or AVX512-BF16; CUDA from Ampere on), fp16 on a GPU that has
    tensor cores for that alone, else fp32. For a model in int8 it is what it is computed in where int8 is not possible.

    Raises:
        ConfigError: none of `auto`, `fp32`, `bf16`, `fp16`, `int8`; int8 where it is not faster; bf16 on a GPU that
            only emulates it, or fp16 on a CPU.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
    if precision not in ("auto", *dtypes):
        raise ConfigError(f"precision: expected one of {['auto', *dtypes]}, found {precision!r}.")
    if precision == "int8" and not can_quantize(device):
        raise ConfigError(
            f"precision=int8: expected a CPU with VNNI or AMX, found {device.type} without.", "Leave `precision` out."
        )
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision=fp16: expected a GPU, found cpu.", "Leave `precision` out, or use GPU workers.")
    if device.type == "cuda" and precision in ("auto", "bf16"):
        return _cuda_dtype(precision, device)
    if precision != "auto":
        return dtypes[precision]
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    fast = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32


def precision_here(precision: str, device: torch.device) -> str:
    """A precision that was computed in elsewhere, or `auto` where this device does not compute in it."""
    try:
        choose_dtype(precision, device)
    except ConfigError:
        return "auto"
    return precision


def _cuda_dtype(precision: str, device: torch.device) -> torch.dtype:
    major, minor = torch.cuda.get_device_capability(device)  # of this one; `is_bf16_supported` asks the current one
    if (major, minor) >= SM80:
        return torch.bfloat16
    if precision == "bf16":
        raise ConfigError(
            f"precision=bf16: expected a GPU that computes in it (sm80, Ampere, or later), found sm{major}{minor}.",
            "Leave `precision` out: `auto` takes fp16 there.",
        )
    return torch.float16 if major >= _SM_WITH_FP16_CORES else torch.float32
