"""Linear layers over packed tokens, alone or with what follows them: the one place for kernels of certain hardware.

Legend: T packed tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.kernels import Kernels, TiledLinear

_ZERO = 128  # the code of zero in an unsigned byte
_TINY = 1e-30  # what a scale of nothing but zeros is

Activation = Callable[[Tensor], Tensor]


class Linear(Protocol):
    """A linear layer as a layer of an encoder uses it; it does not change its input.

    Each is made of a weight [O, I] in the precision to compute in, a bias [O] in fp32, and an activation or None.
    """

    def __call__(self, x_TI: Tensor) -> Tensor:
        """[T, O]: the layer alone."""

    def activated(self, x_TI: Tensor) -> Tensor:
        """[T, O]: the layer, then the activation it was made with."""

    def plus(self, x_TI: Tensor, residual_TO: Tensor) -> Tensor:
        """[T, O]: the layer, then what a residual connection adds."""


class PlainLinear:
    """torch's own linear layer, fastest on GPU and, of torch's, in fp32 on CPU."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Any = None) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O.to(weight_OI.dtype)
        self._activate = in_place(activation, weight_OI.dtype)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return F.linear(x_TI, self._weight_OI, self._bias_O)

    def activated(self, x_TI: Tensor) -> Tensor:
        return self._activate(self(x_TI))

    def plus(self, x_TI: Tensor, residual_TO: Tensor) -> Tensor:
        return self(x_TI).add_(residual_TO)


class PrepackedLinear:
    """oneDNN's linear layer: weights laid out once for its kernels, GELU and residual added while results are in cache.

    For bf16 on CPUs that multiply in it (AMX, AVX512-BF16). In fp32 on AVX2 it is slower than `PlainLinear`, 0.85x.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Any = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
        self._bias_O = bias_O.to(weight_OI.dtype)
        self._gelu = gelu_kind(activation)
        self._activate = in_place(activation, weight_OI.dtype)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._pointwise(x_TI, "none", "none")

    def activated(self, x_TI: Tensor) -> Tensor:
        return self._activate(self(x_TI)) if self._gelu is None else self._pointwise(x_TI, "gelu", self._gelu)

    def plus(self, x_TI: Tensor, residual_TO: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_TI, residual_TO, self._weight, self._bias_O, "add")
        return result

    def _pointwise(self, x_TI: Tensor, what: str, kind: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, self._bias_O, what, [], kind)
        return result


class KernelLinear:
    """A linear layer by our kernels; GELU, residual and norm are added where all of a layer is one.

    Args:
        weight_format: number format of the weights; by default that of the kernels.
    """

    def __init__(
        self,
        kernels: Kernels,
        weight_OI: Tensor,
        bias_O: Tensor,
        activation: Any = None,
        *,
        weight_format: torch.dtype | None = None,
    ) -> None:
        self._kernels = kernels
        self.tiled = TiledLinear.of(weight_OI, bias_O, weight_format or kernels.dtype)
        self._activate = in_place(activation, kernels.dtype)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._kernels.linear(x_TI, self.tiled)

    def activated(self, x_TI: Tensor) -> Tensor:
        return self._activate(self(x_TI))

    def plus(self, x_TI: Tensor, residual_TO: Tensor) -> Tensor:
        return self(x_TI).add_(residual_TO)


class QuantizedLinear:
    """oneDNN's linear layer in int8, in and out in fp32, for CPUs with VNNI or AMX and models that our kernels leave.

    Weights have a scale for each output, activations one for each token: what comes out for a token depends on no
    other, and NaN stays in its own row.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Any = None) -> None:
        self._scales_O = weight_OI.abs().amax(dim=1).clamp_min(_TINY) / 127
        self._bias_O = bias_O
        self._lay_out((weight_OI / self._scales_O[:, None]).round().to(torch.int8))
        self._activate = in_place(activation, torch.float32)

    def __call__(self, x_TI: Tensor) -> Tensor:
        products_TO, scales_T1 = self._products(x_TI)
        return torch.addcmul(self._bias_O, products_TO, scales_T1)

    def activated(self, x_TI: Tensor) -> Tensor:
        return self._activate(self(x_TI))

    def plus(self, x_TI: Tensor, residual_TO: Tensor) -> Tensor:
        products_TO, scales_T1 = self._products(x_TI)
        return torch.addcmul(residual_TO, products_TO, scales_T1).add_(self._bias_O)

    def _products(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """Products in units of each token's scale, and these scales."""
        scales_T1 = x_TI.abs().amax(dim=1, keepdim=True).clamp_min_(_TINY).div_(127)
        codes_TI = (x_TI / scales_T1).add_(_ZERO + 0.5).to(torch.uint8)
        return self._multiply(codes_TI), scales_T1

    def _lay_out(self, int8_OI: Tensor) -> None:
        self._weight = torch.ops.onednn.qlinear_prepack(int8_OI, None)
        self._zeros_O = torch.zeros(len(int8_OI), dtype=torch.int32)

    def _multiply(self, codes_TI: Tensor) -> Tensor:
        """[T, O]: products of unsigned bytes, in which _ZERO stands for zero, with the weight."""
        products_TO: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes_TI,
            1.0,
            _ZERO,
            self._weight,
            self._scales_O,
            self._zeros_O,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return products_TO


class EmulatedQuantizedLinear(QuantizedLinear):
    """`QuantizedLinear` by products in fp32, slower than these alone, for CPUs without VNNI and AMX.

    Its numbers are those of int8 but for the rounding of sums beyond 2**24. It is there to see what int8 changes.
    """

    def _lay_out(self, int8_OI: Tensor) -> None:
        self._weight_IO = int8_OI.float().t().contiguous()

    def _multiply(self, codes_TI: Tensor) -> Tensor:
        return (codes_TI.float().sub_(_ZERO) @ self._weight_IO).mul_(self._scales_O)


def can_quantize(device: torch.device) -> bool:
    """Whether oneDNN computes in int8 here, and it is faster than fp32: VNNI or AMX."""
    if device.type != "cpu" or not _has_onednn():
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni") or capabilities.get("amx_int8"))


def can_prepack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN computes in this precision here, and it pays."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return _has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch gives it no types


def gelu_kind(activation: Any) -> str | None:
    """`none` for the exact GELU, `tanh` for its approximation, None for anything else."""
    name = type(activation).__name__
    if name == "GELUActivation":
        return "none"
    return "tanh" if name in ("NewGELUActivation", "GELUTanh") else None


def in_place(activation: Any, dtype: torch.dtype) -> Activation:
    """GELU in place for fp32: on CPU that is some times faster than into fresh memory."""
    kind = gelu_kind(activation)
    if dtype == torch.float32 and kind is not None:
        return lambda x: torch.ops.aten.gelu_(x, approximate=kind)
    found: Activation = activation
    return found
