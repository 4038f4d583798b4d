"""Kernels of a GPU that do more than one thing: addition with layer norm, and GELU within the product before it.

They save reads and writes of activations. Off unless `BERTRAY_FUSED=1`: the first is compiled for each process, which
takes seconds, a C compiler and Python's headers, and whether they pay is for `bertray.benchmark.check` to measure.

Legend: T packed tokens, D hidden, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everyone knows

from bertray.model.linear import PlainLinear, gelu_kind

SWITCH = "BERTRAY_FUSED"
AddNorm = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fused kernels are asked for, and are for this device and number format."""
    return os.environ.get(SWITCH) == "1" and device.type == "cuda" and dtype != torch.float32


def add_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Layer norm of a sum, [T, D]."""
    return F.layer_norm(x_TD + residual_TD, weight_D.shape, weight_D, bias_D, eps)


@functools.cache
def compiled_add_norm(backend: Callable[..., Any] | str = "inductor") -> AddNorm:
    """`add_norm` as one kernel, compiled at its first call: one graph for any number of tokens but one.

    Args:
        backend: as `torch.compile` takes it.
    """
    import torch._inductor.config
    from torch._dynamo import maybe_mark_dynamic

    torch._inductor.config.compile_threads = 1  # or a process a core would be started for a single kernel
    compiled = torch.compile(add_norm, fullgraph=True, backend=backend)

    def of_any_size(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        for tokens_TD in (x_TD, residual_TD):  # D is known to the compiler, which needs that to be fast
            maybe_mark_dynamic(tokens_TD, 0)
        normed_TD: Tensor = compiled(x_TD, residual_TD, weight_D, bias_D, eps)
        return normed_TD

    return of_any_size


class GeluLinear(PlainLinear):
    """torch's linear layer, with GELU within the matrix product; on CUDA that is its tanh form, 5e-4 from the exact."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: object = None) -> None:
        super().__init__(weight_OI, bias_O, activation)
        self._fuses = gelu_kind(activation) is not None

    def activated(self, x_TI: Tensor) -> Tensor:
        if not self._fuses:
            return super().activated(x_TI)
        activated: Tensor = torch._addmm_activation(self._bias_O, x_TI, self._weight_OI.t(), use_gelu=True)
        return activated
