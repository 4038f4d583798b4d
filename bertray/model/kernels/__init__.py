"""Kernels for CPUs with AMX: attention over packed sequences, linear layers, the feed forward of a layer, AdamW.

They are C++ beside this file, built by the machine's compiler when a process first wants them, which takes some seconds
once a machine and version: the result is kept in the user's cache. Where AMX, Linux, a compiler or the right sizes are
missing, or `BERTRAY_KERNELS=off` is in the environment, torch's own operations do the same, more slowly.

Legend: T packed tokens, B sequences, D hidden, H heads, E size of a head, I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bertray.io.cache import Cache
from bertray.model.kernels.checks import check, check_cu_seqlens, check_heads

_log = logging.getLogger(__name__)

_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
)
_NEEDS = ("amx_tile", "amx_bf16", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16")
_BUILD_LIMIT_S = 300.0

_WIDE = 32  # numbers in bf16 in a row of a tile
_MOST_HEAD = 4 * _WIDE


class _Linear(ctypes.Structure):
    _fields_ = (
        ("tiles", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
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
    """A linear layer whose weights lie in tiles, 32 outputs and 32 inputs at a time.

    Args:
        tiles: bf16, `of` lays them out.
        bias_O: kept in fp32; None adds nothing.
        inputs, outputs: multiples of 32.
    """

    def __init__(self, tiles: Tensor, bias_O: Tensor | None, inputs: int, outputs: int) -> None:
        if inputs % _WIDE or outputs % _WIDE:
            raise ValueError(f"linear layer: expected sizes in multiples of {_WIDE}, found {inputs} and {outputs}")
        check("tiles of a linear layer", tiles.view(-1), (inputs * outputs,), torch.bfloat16)
        self._tiles = tiles
        self._bias_O = None if bias_O is None else bias_O.to(torch.float32).contiguous()
        if self._bias_O is not None:
            check("bias of a linear layer", self._bias_O, (outputs,), torch.float32)
        self.inputs, self.outputs = inputs, outputs
        bias = None if self._bias_O is None else self._bias_O.data_ptr()
        self.struct = _Linear(tiles.data_ptr(), bias, inputs, outputs)

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor) -> TiledLinear:
        """The layer of these weights."""
        outputs, inputs = weight_OI.shape
        blocks = weight_OI.to(torch.bfloat16).view(outputs // _WIDE, 2, _WIDE // 2, inputs // _WIDE, _WIDE // 2, 2)
        return cls(blocks.permute(0, 3, 1, 4, 2, 5).contiguous(), bias_O, inputs, outputs)


class Kernels:
    """Kernels of one built library, for tensors on CPU, contiguous and bf16 unless stated otherwise."""

    def __init__(self, path: Path) -> None:
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
        if library.bertray_allow_tiles() != 0:
            raise OSError("the operating system does not let this process use AMX")

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
        check_heads("queries", q_THE, q_THE.shape, q_THE.stride(0))
        for what, x_THE in (("keys", k_THE), ("values", v_THE)):
            check_heads(what, x_THE, (len(k_THE), num_heads, head), k_THE.stride(0))
        check_cu_seqlens("offsets of queries", cu_seqlens_q, num_tokens)
        check_cu_seqlens("offsets of keys", cu_seqlens_k, len(k_THE))
        if len(cu_seqlens_q) != len(cu_seqlens_k):
            raise ValueError(
                f"attention: {len(cu_seqlens_q) - 1} sequences of queries, {len(cu_seqlens_k) - 1} of keys"
            )
        out_TD = torch.empty(num_tokens, num_heads * head, dtype=torch.bfloat16)
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

        if layer.outputs != 3 * layer.inputs or layer.inputs % num_heads:
            raise ValueError(f"attention: {layer.inputs} to {layer.outputs} is no projection of {num_heads} heads")

        def run(x_TD: Tensor, cu_seqlens_B1: Tensor) -> Tensor:
            check("input of attention", x_TD, (len(x_TD), layer.inputs), torch.bfloat16)
            check_cu_seqlens("offsets of sequences", cu_seqlens_B1, len(x_TD))
            out_TD = torch.empty_like(x_TD)
            failed = self._self_attention(
                *(x_TD.data_ptr(), layer.struct, cu_seqlens_B1.data_ptr(), len(cu_seqlens_B1) - 1),
                *(num_heads, out_TD.data_ptr(), torch.get_num_threads()),
            )
            return done(failed, out_TD)

        return run

    def linear(self, x_TI: Tensor, layer: TiledLinear, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """[T, O] in bf16 or fp32, of either."""
        check("input of a linear layer", x_TI, (len(x_TI), layer.inputs))
        out_TO = torch.empty(len(x_TI), layer.outputs, dtype=dtype)
        failed = self._linear(
            *(x_TI.data_ptr(), x_TI.dtype == torch.float32, len(x_TI), layer.struct),
            *(out_TO.data_ptr(), dtype == torch.float32, torch.get_num_threads()),
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
        hidden, inner = attended.outputs, up.outputs
        norms = [_NormOf(norm, hidden) for norm in (attended_norm, output_norm)]
        if (attended.inputs, up.inputs, down.inputs, down.outputs) != (hidden, hidden, inner, hidden):
            raise ValueError("feed forward: its linear layers do not follow each other")

        def run(attended_TD: Tensor, x_TD: Tensor) -> Tensor:
            for what, given_TD in (("attention's output", attended_TD), ("input of the layer", x_TD)):
                check(what, given_TD, (len(x_TD), hidden), torch.bfloat16)
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


def fits(hidden: int, inner: int, head: int) -> bool:
    """Whether a model of such sizes can run in tiles."""
    return hidden % _WIDE == inner % _WIDE == head % _WIDE == 0 and head <= _MOST_HEAD


@functools.cache
def kernels() -> Kernels | None:
    """The kernels of this machine, built if need be; None where torch has to do without them, and the log says why."""
    if not _supported() or os.environ.get("BERTRAY_KERNELS", "").lower() in ("off", "0", "false"):
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    try:
        return _loaded(compiler.split() if compiler else None)
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.warning("The model runs without our kernels for AMX, more slowly: %s", said.strip()[-500:])
        return None


def _supported() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    capabilities = torch.cpu.get_capabilities()
    return all(capabilities.get(name) for name in _NEEDS)


def _loaded(compiler: list[str] | None) -> Kernels | None:
    """The kernels from the cache, or built into it; None where they are not there and no compiler is.

    Raises:
        OSError, subprocess.SubprocessError: they cannot be built, or not be loaded.
    """
    folder = Path(__file__).parent
    sources = sorted(folder.glob("*.cpp"))
    digest = hashlib.sha256(repr((_FLAGS, platform.libc_ver())).encode())
    for path in [*sources, *sorted(folder.glob("*.h"))]:
        digest.update(path.read_bytes())
    name = f"{digest.hexdigest()[:16]}.so"
    try:
        cache: Cache | None = Cache.of("kernels")
        found = cache.existing(name) if cache is not None else None
    except OSError as error:
        cache = found = None
        _log.warning("Kernels for AMX are built anew for this process: %s", error)
    if found is not None:
        return Kernels(found)
    if compiler is None:
        _log.info("No C++ compiler: the model runs without our kernels for AMX, more slowly.")
        return None
    if cache is not None and (built := _built_into(cache, name, compiler, sources)) is not None:
        return Kernels(built)
    with tempfile.TemporaryDirectory(prefix="bertray-build-") as temporary:  # the process keeps what it has loaded
        return Kernels(_compile(compiler, sources, Path(temporary) / name))


def _built_into(cache: Cache, name: str, compiler: list[str], sources: list[Path]) -> Path | None:
    """The library in the cache; None where it cannot be written there."""
    try:
        return cache.entry(name, lambda to: _compile(compiler, sources, to))
    except OSError as error:
        _log.warning("Kernels for AMX are built anew for this process: %s", error)
        return None


def _compile(compiler: list[str], sources: list[Path], to: Path) -> Path:
    start = time.monotonic()
    command = [*compiler, *_FLAGS, *map(str, sources), "-o", str(to)]
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_BUILD_LIMIT_S)  # noqa: S603 - our sources
    to.chmod(0o700)
    _log.info("built kernels for AMX in %.1f s", time.monotonic() - start)
    return to
