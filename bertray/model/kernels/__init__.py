"""Kernels for CPUs: attention over packed sequences, linear layers, the feed forward of a layer, AdamW.

They are C++ in the folders beside this file, for each number format: bf16, with linear layers in int8, too, for CPUs
that multiply in either, and fp32 for those that have no instructions wider than AVX2. The installation compiles it,
where a compiler is, to a library for each instruction set. Where that library, Linux, the instructions or the right
sizes are missing, torch's own operations do the same, more slowly. `BERTRAY_KERNELS` in the environment chooses,
several words by commas: `off` for none; `amx`, `avx512bf16`, `avx512vnni` or `avx2`, each among those in its number
format, by default the fastest of the CPU; `build` to compile the kernels when a process first wants them, and keep the
library in the user's cache.

Legend: T packed tokens, B sequences, D hidden, H heads, E size of a head, I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.io.cache import Cache
from bertray.model.kernels.build import (
    INSTRUCTION_SETS,
    SETS_OF,
    compile_library,
    digest_of,
    find_compiler,
    flags_of,
    library_of,
    on_this_platform,
)
from bertray.model.kernels.checks import WIDE, WIDE_IN_INT8, check, check_cu_seqlens, check_heads, check_sizes

_log = logging.getLogger(__name__)

_OFF = {"off", "0", "false"}

_COLUMNS = 16  # outputs of a panel in fp32
_MOST_HEAD = 4 * WIDE
_FORMATS = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "int8"}
_LARGEST_CODE = 127
_ZERO_CODE = 128  # of inputs in int8 on CPUs that multiply unsigned bytes with signed ones
_TINY = 1e-30  # what a scale of nothing but zeros is


class _Linear(ctypes.Structure):
    _fields_ = (
        ("tiles", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_float))


class AdamWWeight(ctypes.Structure):
    """A weight, its averages and its gradient, all fp32, as addresses, which `of` checks; see `adamw.cpp`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "mean", "square", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        *((name, ctypes.c_void_p) for name in ("place", "moved")),
        ("share_left", ctypes.c_float),
    )

    @classmethod
    def of(cls, weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, share_left: float) -> AdamWWeight:
        """A weight with a dense gradient; the caller keeps all tensors alive."""
        for what, tensor in (("weight", weight), ("mean", mean), ("square", square), ("gradient", gradient)):
            check(f"AdamW, {what}", tensor, weight.shape, torch.float32)
        pointers = (tensor.data_ptr() for tensor in (weight, mean, square, gradient))
        return cls(*pointers, rows=1, width=weight.numel(), share_left=share_left)

    @classmethod
    def of_rows(
        cls,
        weight_VD: Tensor,
        mean_VD: Tensor,
        square_VD: Tensor,
        gradient_RD: Tensor,
        place_V: Tensor,
        moved_V: Tensor,
        share_left: float,
    ) -> AdamWWeight:
        """A weight with a gradient of some rows; `adamw.cpp` says what `place` and `moved` hold."""
        rows, width = weight_VD.shape
        for what, tensor in (("weight", weight_VD), ("mean", mean_VD), ("square", square_VD)):
            check(f"AdamW, {what}", tensor, (rows, width), torch.float32)
        check("AdamW, rows of a gradient", gradient_RD, (len(gradient_RD), width), torch.float32)
        check("AdamW, places of rows", place_V, (rows,), torch.int32)
        check("AdamW, rows that moved", moved_V, (rows,), torch.uint8)
        if int(place_V.max()) >= len(gradient_RD):
            raise ValueError(f"AdamW: a row has its gradient at {int(place_V.max())} of {len(gradient_RD)}")
        pointers = (tensor.data_ptr() for tensor in (weight_VD, mean_VD, square_VD, gradient_RD))
        return cls(*pointers, rows, width, place_V.data_ptr(), moved_V.data_ptr(), share_left)


class AdamWStep(ctypes.Structure):
    """Settings of a step that all weights share."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in (
            *("corrected_rate", "one_minus_beta_mean", "beta_square", "one_minus_beta_square"),
            *("epsilon", "root_of_correction", "gradient_scale"),
        )
    )


class TiledLinear:
    """A linear layer whose weights lie in tiles: 32 outputs and 32 inputs at a time in bf16, 16 outputs in fp32.

    Args:
        tiles: `of` lays them out.
        bias_O: kept in fp32; None adds nothing.
        inputs, outputs: multiples of 32; in int8 inputs are multiples of 64.
        scales_O: fp32, of outputs in int8.
        zeros_ZO: int32, in int8: 128 times the sums of the weights of all inputs before the first, before the next 64,
            ..., before the end.
    """

    def __init__(
        self,
        tiles: Tensor,
        bias_O: Tensor | None,
        inputs: int,
        outputs: int,
        scales_O: Tensor | None = None,
        zeros_ZO: Tensor | None = None,
    ) -> None:
        in_int8 = tiles.dtype == torch.int8
        _check_layer_sizes(inputs, outputs, tiles.dtype)
        check("tiles of a linear layer", tiles.view(-1), (inputs * outputs,), *_FORMATS)
        self._tiles, self.dtype = tiles, tiles.dtype
        self._bias_O = None if bias_O is None else bias_O.to(torch.float32).contiguous()
        self._scales_O, self._zeros_ZO = scales_O, zeros_ZO
        self.inputs, self.outputs = inputs, outputs
        if self._bias_O is not None:
            check("bias of a linear layer", self._bias_O, (outputs,), torch.float32)
        if any((tensor is not None) != in_int8 for tensor in (scales_O, zeros_ZO)):
            raise ValueError("linear layer: expected scales and zeros with tiles in int8, and none with others")
        if scales_O is not None and zeros_ZO is not None:
            check("scales of a linear layer", scales_O, (outputs,), torch.float32)
            check("zeros of a linear layer", zeros_ZO, (inputs // WIDE_IN_INT8 + 1, outputs), torch.int32)
        rest = (None if tensor is None else tensor.data_ptr() for tensor in (self._bias_O, scales_O, zeros_ZO))
        bias, scales, zeros = rest
        self.struct = _Linear(tiles.data_ptr(), bias, inputs, outputs, scales, zeros)

    @property
    def has_bias(self) -> bool:
        """Whether something is added to the products."""
        return self._bias_O is not None

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor, dtype: torch.dtype = torch.bfloat16) -> TiledLinear:
        """The layer of these weights, for kernels in bf16 or fp32; in int8 each output has a scale."""
        outputs, inputs = weight_OI.shape
        _check_layer_sizes(inputs, outputs, dtype)
        if dtype == torch.float32:
            panels = weight_OI.to(dtype).view(outputs // _COLUMNS, _COLUMNS, inputs)
            return cls(panels.transpose(1, 2).contiguous(), bias_O, inputs, outputs)
        if dtype == torch.bfloat16:
            return cls(_in_tiles(weight_OI.to(dtype), 2), bias_O, inputs, outputs)
        scales_O = weight_OI.float().abs().amax(dim=1).clamp_min(_TINY) / _LARGEST_CODE
        codes_OI = (weight_OI / scales_O[:, None]).round().to(dtype)
        sums_OZ = codes_OI.view(outputs, -1, WIDE_IN_INT8).sum(dim=2, dtype=torch.int32).cumsum(dim=1)
        zeros_ZO = F.pad(_ZERO_CODE * sums_OZ, (1, 0)).t().to(torch.int32).contiguous()
        return cls(_in_tiles(codes_OI, 4), bias_O, inputs, outputs, scales_O, zeros_ZO)


def _check_layer_sizes(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    check_sizes("outputs of a linear layer", outputs)
    check_sizes("inputs of a linear layer", inputs, multiple=WIDE_IN_INT8 if dtype == torch.int8 else WIDE)


def _in_tiles(weight_OI: Tensor, side_by_side: int) -> Tensor:
    """Weights in tiles of 16 rows: `side_by_side` inputs of 16 outputs a row."""
    outputs, inputs = weight_OI.shape
    half = WIDE // 2
    blocks = weight_OI.view(outputs // WIDE, 2, half, inputs // (half * side_by_side), half, side_by_side)
    return blocks.permute(0, 3, 1, 4, 2, 5).contiguous()


class Kernels:
    """Kernels of one built library, for tensors on CPU, contiguous and in its number format unless stated otherwise.

    Args:
        dtype: its number format, bf16 or fp32.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype
        library = self.library = ctypes.CDLL(str(path))
        pointer, size, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        linear, norm = ctypes.POINTER(_Linear), ctypes.POINTER(_Norm)
        self._attention = library.bertray_attention
        self._attention.argtypes = [
            *(pointer, size, pointer, pointer, size, pointer, pointer),
            *(size, count, count, pointer, size, count),
        ]
        self._self_attention = library.bertray_self_attention
        self._self_attention.argtypes = [pointer, linear, pointer, size, count, pointer, count]
        self._linear = library.bertray_linear
        self._linear.argtypes = [pointer, count, size, linear, pointer, count, count]
        self._feed_forward = library.bertray_feed_forward
        self._feed_forward.argtypes = [pointer, pointer, size, linear, norm, linear, linear, norm, pointer, count]
        self._adamw = library.bertray_adamw
        self._adamw.argtypes = [ctypes.POINTER(AdamWWeight), size, ctypes.POINTER(AdamWStep), count]
        self._adamw.restype = None

    @property
    def accepted(self) -> tuple[torch.dtype, ...]:
        """Number formats of what linear layers take and give: kernels in bf16 read and write fp32, too."""
        return (torch.float32,) if self.dtype == torch.float32 else (torch.bfloat16, torch.float32)

    def attention(
        self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor
    ) -> Tensor:
        """Attention within each sequence, [T, H * E].

        Args:
            q_THE: queries; the heads of a token lie side by side, any row stride.
            k_THE, v_THE: keys and values, with the same row stride.
            cu_seqlens_q: int32 [B + 1], offsets of each sequence's queries and the end of the last.
            cu_seqlens_k: likewise keys and values.
        """
        num_tokens, num_heads, head = q_THE.shape
        check_heads("queries", q_THE, q_THE.shape, q_THE.stride(0), self.dtype)
        for what, x_THE in (("keys", k_THE), ("values", v_THE)):
            check_heads(what, x_THE, (len(k_THE), num_heads, head), k_THE.stride(0), self.dtype)
        check_cu_seqlens("offsets of queries", cu_seqlens_q, num_tokens)
        check_cu_seqlens("offsets of keys", cu_seqlens_k, len(k_THE))
        if len(cu_seqlens_q) != len(cu_seqlens_k):
            raise ValueError(
                f"attention: {len(cu_seqlens_q) - 1} sequences of queries, {len(cu_seqlens_k) - 1} of keys"
            )
        out_TD = torch.empty(num_tokens, num_heads * head, dtype=self.dtype)
        failed = self._attention(
            *(q_THE.data_ptr(), q_THE.stride(0), k_THE.data_ptr(), v_THE.data_ptr(), k_THE.stride(0)),
            *(cu_seqlens_q.data_ptr(), cu_seqlens_k.data_ptr(), len(cu_seqlens_q) - 1, num_heads, head),
            *(out_TD.data_ptr(), num_heads * head, torch.get_num_threads()),
        )
        return done(failed, out_TD)

    def self_attention(self, layer: TiledLinear, num_heads: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Attention within each sequence with its query, key and value projections, [T, D], from input and offsets.

        `layer` is [H * 3 * E, D]: queries, keys and values of the first of `num_heads`, then those of the next; bounds
        are int32 [B + 1], where each sequence begins and the last ends, the first of them 0.
        """

        self._check_layers(layer)
        if layer.outputs != 3 * layer.inputs or layer.inputs % num_heads:
            raise ValueError(f"attention: {layer.inputs} to {layer.outputs} is no projection of {num_heads} heads")

        def run(x_TD: Tensor, cu_seqlens_B1: Tensor) -> Tensor:
            check("input of attention", x_TD, (len(x_TD), layer.inputs), self.dtype)
            check_cu_seqlens("offsets of sequences", cu_seqlens_B1, len(x_TD))
            out_TD = torch.empty_like(x_TD)
            failed = self._self_attention(
                *(x_TD.data_ptr(), layer.struct, cu_seqlens_B1.data_ptr(), len(cu_seqlens_B1) - 1),
                *(num_heads, out_TD.data_ptr(), torch.get_num_threads()),
            )
            return done(failed, out_TD)

        return run

    def linear(self, x_TI: Tensor, layer: TiledLinear, dtype: torch.dtype | None = None) -> Tensor:
        """[T, O], from and to the kernels' number format; kernels in bf16 take and give fp32, too."""
        self._check_layers(layer)
        check("input of a linear layer", x_TI, (len(x_TI), layer.inputs), *self.accepted)
        out_TO = torch.empty(len(x_TI), layer.outputs, dtype=dtype or self.dtype)
        check("output of a linear layer", out_TO, out_TO.shape, *self.accepted)
        failed = self._linear(
            *(x_TI.data_ptr(), x_TI.dtype == torch.float32, len(x_TI), layer.struct),
            *(out_TO.data_ptr(), out_TO.dtype == torch.float32, torch.get_num_threads()),
        )
        return done(failed, out_TO)

    def feed_forward(
        self,
        attended: TiledLinear,
        attended_norm: torch.nn.LayerNorm,
        up: TiledLinear,
        down: TiledLinear,
        output_norm: torch.nn.LayerNorm,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Everything behind attention in a layer of BERT, [T, D], from attention's output and the layer's input.

        The activation is the exact GELU; the norms are those of `transformers`, in fp32.
        """
        self._check_layers(attended, up, down)
        hidden, inner = attended.outputs, up.outputs
        norms = [_NormOf(norm, hidden) for norm in (attended_norm, output_norm)]
        if (attended.inputs, up.inputs, down.inputs, down.outputs) != (hidden, hidden, inner, hidden):
            raise ValueError("feed forward: its linear layers do not follow each other")
        if not all(layer.has_bias for layer in (attended, up, down)):
            raise ValueError("feed forward: expected linear layers with a bias")

        def run(attended_TD: Tensor, x_TD: Tensor) -> Tensor:
            for what, given_TD in (("attention's output", attended_TD), ("input of the layer", x_TD)):
                check(what, given_TD, (len(x_TD), hidden), self.dtype)
            out_TD = torch.empty_like(x_TD)
            failed = self._feed_forward(
                *(attended_TD.data_ptr(), x_TD.data_ptr(), len(x_TD)),
                *(attended.struct, norms[0].struct, up.struct, down.struct, norms[1].struct),
                *(out_TD.data_ptr(), torch.get_num_threads()),
            )
            return done(failed, out_TD)

        return run

    def adamw(self, weights: Sequence[AdamWWeight], step: AdamWStep) -> None:
        """Moves all weights one step on, in place."""
        self._adamw((AdamWWeight * len(weights))(*weights), len(weights), step, torch.get_num_threads())

    @property
    def multiplies(self) -> tuple[torch.dtype, ...]:
        """Number formats that the tiles of linear layers may be in: kernels in bf16 take those in int8, too."""
        return (self.dtype, torch.int8) if self.dtype == torch.bfloat16 else (self.dtype,)

    def _check_layers(self, *layers: TiledLinear) -> None:
        found = {layer.dtype for layer in layers}
        if len(found) > 1 or not found <= {*self.multiplies}:
            expected = " or all in ".join(_FORMATS[dtype] for dtype in self.multiplies)
            names = " and ".join(sorted(_FORMATS[dtype] for dtype in found))
            raise ValueError(f"linear layers: expected tiles all in {expected}, found {names}")


class _NormOf:
    """The numbers of a norm, in fp32, for as long as the kernels want them."""

    def __init__(self, norm: torch.nn.LayerNorm, width: int) -> None:
        self._numbers = [tensor.detach().float().clone() for tensor in (norm.weight, norm.bias)]
        for numbers_D in self._numbers:
            check("layer norm", numbers_D, (width,), torch.float32)
        self.struct = _Norm(*(tensor.data_ptr() for tensor in self._numbers), norm.eps)


_NO_MEMORY = 1  # what kernels return besides 0; 2: heads of no size for tiles


def done(failed: int, result: Tensor) -> Tensor:
    """The result of a kernel, where it has not failed.

    Raises:
        MemoryError: no memory for the working space of a thread.
        ValueError: heads of a size that `fits` refuses.
    """
    if failed == _NO_MEMORY:
        raise MemoryError("kernels: not enough memory for a thread's working space")
    if failed:
        raise ValueError("kernels: expected heads of a size for tiles, found another")
    return result


def fits(hidden: int, inner: int, head: int, *, in_int8: bool = False) -> bool:
    """Whether a model of such sizes can run in tiles."""
    wide = WIDE_IN_INT8 if in_int8 else WIDE
    return hidden % wide == inner % wide == head % WIDE == 0 and head <= _MOST_HEAD


@functools.cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """The kernels of this machine in a number format; None where torch has to do without them, and the log says why."""
    instructions, may_build = choose_kernels(dtype)
    if instructions is None:
        return None
    try:
        library = library_of(instructions)
        if library.exists():
            return Kernels(library, dtype)
        if may_build:
            return _built(instructions, flags_of(instructions))
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.warning("The model runs without our kernels, more slowly: %s", said.strip()[-500:])
        return None
    _log.warning(
        "The model runs without our kernels, more slowly: they were not compiled when bertray was installed. "
        "Install it again with a C++ compiler (apt install g++), or set BERTRAY_KERNELS=build."
    )
    return None


def choose_kernels(dtype: torch.dtype) -> tuple[str | None, bool]:
    """The one of `INSTRUCTION_SETS` to use here in a number format, and whether its library may be built if need be.

    None for none: on CPUs with AVX512, whose registers are twice as wide, torch's operations in fp32 are the faster
    ones unless `avx2` is asked for.
    """
    here, chosen = _supported(), _words()
    may_build = "build" in chosen
    if unknown := chosen - {*here, *_OFF, "build"}:
        expected, found = ", ".join((*here, "build", "off")), ", ".join(sorted(unknown))
        _log.warning("BERTRAY_KERNELS: expected one of %s on this machine, found %s. None are used.", expected, found)
    if not any_wanted():
        return None, may_build
    of_format = [name for name in here if name in SETS_OF.get(_FORMATS.get(dtype, ""), ())]
    named = [name for name in of_format if name in chosen]
    usual = [] if dtype == torch.float32 and torch.cpu.get_capabilities().get("avx512_f") else of_format
    return next(iter(named or usual), None), may_build


def any_wanted() -> bool:
    """Whether a library of kernels may be loaded: `BERTRAY_KERNELS` does not say off, nor anything unknown here."""
    return _words() <= {*_supported(), "build"}


def _words() -> set[str]:
    return {word.strip() for word in os.environ.get("BERTRAY_KERNELS", "").lower().split(",")} - {""}


def _supported() -> list[str]:
    """Instruction sets of this CPU that this process may use, the fastest first."""
    if not on_this_platform():
        return []
    capabilities = torch.cpu.get_capabilities()
    found = [name for name, needs in INSTRUCTION_SETS.items() if all(capabilities.get(need) for need in needs)]
    return [name for name in found if name != "amx" or _may_use_tiles()]


def _may_use_tiles() -> bool:
    """Ask Linux for the tiles of AMX, which a process may use only then."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return int(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data)) == 0


def _built(instructions: str, flags: Sequence[str]) -> Kernels:
    """The kernels from the user's cache, or built into it.

    Raises:
        OSError, subprocess.SubprocessError: they cannot be built, or not be loaded.
    """
    name = f"{digest_of(instructions, flags, platform.libc_ver())}.so"
    dtype = torch.float32 if instructions in SETS_OF["fp32"] else torch.bfloat16
    try:
        cache: Cache | None = Cache.of("kernels")
        found = cache.existing(name) if cache is not None else None
    except OSError as error:
        cache = found = None
        _log.warning("Kernels are built anew for this process: %s", error)
    if found is not None:
        return Kernels(found, dtype)
    compiler = find_compiler()
    if compiler is None:
        raise OSError("BERTRAY_KERNELS=build, but there is no C++ compiler (apt install g++)")

    def build(to: Path) -> Path:
        start = time.monotonic()
        compile_library(compiler, instructions, flags, to)
        _log.info("built kernels in %.1f s", time.monotonic() - start)
        return to

    if cache is not None:
        try:
            return Kernels(cache.entry(name, build), dtype)
        except OSError as error:
            _log.warning("Kernels are built anew for this process: %s", error)
    with tempfile.TemporaryDirectory(prefix="bertray-build-") as temporary:  # the process keeps what it has loaded
        return Kernels(build(Path(temporary) / name), dtype)
