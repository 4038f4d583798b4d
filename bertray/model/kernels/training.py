"""Kernels as autograd functions of torch: a layer of BERT in training, in bf16 with sums in fp32, or all in fp32.

Legend: T packed tokens, B sequences, D hidden, H heads, E size of a head, I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bertray.model.kernels import Kernels, TiledLinear, done, kernels
from bertray.model.kernels.checks import check, check_sizes

_POINTER, _SIZE, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_RANDOM_LEVELS = 1 << 32


class _Dropout(ctypes.Structure):
    _fields_ = (("seed", ctypes.c_uint64), ("dropped", ctypes.c_uint32), ("scale", ctypes.c_float))


class TrainingKernels:
    """The kernels of training of a built library.

    Args:
        kernels: the others, of the same library.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        library, dropout = kernels.library, ctypes.POINTER(_Dropout)
        self._lay_out = library.bertray_lay_out_weight
        self._lay_out.argtypes = [_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _COUNT]
        self._lay_out.restype = None
        self._weight_gradient = library.bertray_weight_gradient
        self._weight_gradient.argtypes = [
            *(_POINTER, _COUNT, _POINTER, _COUNT, _SIZE, _SIZE, _SIZE),
            *(_POINTER, _POINTER, _COUNT),
        ]
        self._attention_gradient = library.bertray_attention_gradient
        self._attention_gradient.argtypes = [
            *(_POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _COUNT, _COUNT),
            *(_POINTER, _POINTER, _POINTER, _SIZE, _COUNT),
        ]
        self._gelu = library.bertray_gelu
        self._gelu.argtypes = [_POINTER, _POINTER, _SIZE, _POINTER, _COUNT]
        self._gelu.restype = None
        self._add_norm = library.bertray_add_norm
        self._add_norm.argtypes = [
            *(_POINTER, _POINTER, _SIZE, _SIZE, dropout, _POINTER, _POINTER, _REAL),
            *(_POINTER, _POINTER, _COUNT),
        ]
        self._add_norm.restype = None
        self._add_norm_gradient = library.bertray_add_norm_gradient
        self._add_norm_gradient.argtypes = [
            *(_POINTER, _POINTER, _SIZE, _SIZE, dropout, _POINTER, _REAL),
            *(_POINTER, _POINTER, _POINTER, _POINTER, _COUNT),
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the kernels, bf16 or fp32."""
        return self._kernels.dtype

    # --- linear layers -----------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, layer: TrainedLinear) -> Tensor:
        """[..., O] in the kernels' number format, of [..., I]; those in bf16 take fp32, too."""
        weights_and_biases = [tensor for module in layer.modules for tensor in (module.weight, module.bias)]
        out: Tensor = _LinearOp.apply(self, layer, x, *weights_and_biases)  # type: ignore[no-untyped-call]
        return out

    def lay_out(self, weight_OI: Tensor, bias_O: Tensor, *, backward: bool) -> tuple[TiledLinear, TiledLinear | None]:
        """The layer in tiles, and its transpose without a bias where it is wanted."""
        outputs, inputs = weight_OI.shape
        check_sizes("linear layer", outputs, inputs)
        check("weights of a linear layer", weight_OI, (outputs, inputs), torch.float32)
        forward = torch.empty(outputs * inputs, dtype=self.dtype)
        transposed = torch.empty_like(forward) if backward else None
        self._lay_out(
            *(weight_OI.data_ptr(), outputs, inputs, forward.data_ptr()),
            *(None if transposed is None else transposed.data_ptr(), torch.get_num_threads()),
        )
        tiled = TiledLinear(forward, bias_O, inputs, outputs)
        return tiled, None if transposed is None else TiledLinear(transposed, None, outputs, inputs)

    def weight_gradient(self, upstream_TO: Tensor, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """[O, I] and the sums of columns [O], fp32."""
        (num_rows, outputs), inputs = upstream_TO.shape, x_TI.shape[1]
        check_sizes("linear layer", outputs, inputs)
        check("gradient of a linear layer", upstream_TO, (num_rows, outputs), *self._kernels.accepted)
        check("input of a linear layer", x_TI, (num_rows, inputs), *self._kernels.accepted)
        gradient_OI, bias_O = (torch.empty(size, dtype=torch.float32) for size in ((outputs, inputs), outputs))
        failed = self._weight_gradient(
            *(upstream_TO.data_ptr(), upstream_TO.dtype == torch.float32),
            *(x_TI.data_ptr(), x_TI.dtype == torch.float32, num_rows, outputs, inputs),
            *(gradient_OI.data_ptr(), bias_O.data_ptr(), torch.get_num_threads()),
        )
        return done(failed, gradient_OI), bias_O

    # --- attention ---------------------------------------------------------------------------------------------------

    def attention(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, cu_seqlens_B1: Tensor) -> Tensor:
        """Attention within each sequence, [T, H, E].

        Args:
            q_THE, k_THE, v_THE: in the kernels' number format; heads of a token lie side by side, equal row strides in
                all three.
            cu_seqlens_B1: int32 [B + 1], offsets of the sequences; the last is T.
        """
        num_tokens = int(cu_seqlens_B1[-1])
        if not q_THE.stride() == k_THE.stride() == v_THE.stride() or num_tokens != len(q_THE):
            raise ValueError(
                f"attention: expected {num_tokens} tokens with equal strides, found {len(q_THE)} at strides of "
                f"{q_THE.stride()}, {k_THE.stride()} and {v_THE.stride()}"
            )
        out: Tensor = _AttentionOp.apply(self, q_THE, k_THE, v_THE, cu_seqlens_B1)  # type: ignore[no-untyped-call]
        return out

    # --- what works on each token by itself --------------------------------------------------------------------------

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU."""
        out: Tensor = _GeluOp.apply(self, x)  # type: ignore[no-untyped-call]
        return out

    def add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm, dropped: float) -> Tensor:
        """norm(dropout(x) + residual) in fp32, of x [..., D] in the kernels' number format.

        Args:
            dropped: probability of a number of x to become 0. Which do is drawn from torch's generator.
        """
        out: Tensor = _AddNormOp.apply(  # type: ignore[no-untyped-call]
            self, x, residual.float(), norm.weight, norm.bias, norm.eps, dropped
        )
        return out


@functools.cache
def training_kernels(dtype: torch.dtype) -> TrainingKernels | None:
    """Those of this machine in a number format; None where torch has to do without them."""
    ours = kernels(dtype)
    return None if ours is None else TrainingKernels(ours)


class TrainedLinear:
    """Linear layers with the same input as one, whose weights are laid out in tiles when they have changed.

    What is written through a weight's `.data` is not seen, since torch does not count it as a change.

    Args:
        modules: with all sizes multiples of 32.
    """

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self.modules = tuple(modules)
        self._of: tuple[Any, ...] = ()
        self._tiled: tuple[TiledLinear, TiledLinear | None]

    def tiled(self, kernels: TrainingKernels, *, backward: bool) -> tuple[TiledLinear, TiledLinear | None]:
        """The layer in tiles, and its transpose for a backward pass; laid out again when a weight has changed."""
        tensors = [tensor for module in self.modules for tensor in (module.weight, module.bias)]
        of = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if of != self._of or (backward and self._tiled[1] is None):
            weights, biases = ([getattr(module, name) for module in self.modules] for name in ("weight", "bias"))
            weight_OI, bias_O = (
                tensors[0] if len(tensors) == 1 else torch.cat(tensors) for tensors in (weights, biases)
            )
            self._tiled = kernels.lay_out(weight_OI.detach().contiguous(), bias_O.detach(), backward=backward)
            self._of = of
        return self._tiled


class _LinearOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ours: TrainingKernels, layer: TrainedLinear, x: Tensor, *_: Tensor) -> Tensor:
        backward = any(ctx.needs_input_grad)
        x_TI = x.flatten(0, -2).contiguous()
        tiled, transposed = layer.tiled(ours, backward=backward)
        if backward:
            ctx.save_for_backward(x_TI)
            ctx.ours, ctx.layer, ctx.transposed, ctx.shape = ours, layer, transposed, x.shape
        return ours._kernels.linear(x_TI, tiled).view(*x.shape[:-1], tiled.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        (x_TI,) = ctx.saved_tensors
        upstream_TO = upstream[0].flatten(0, -2).contiguous()
        gradient = None
        if ctx.needs_input_grad[2]:
            gradient = ctx.ours._kernels.linear(upstream_TO, ctx.transposed, x_TI.dtype).view(ctx.shape)
        if not any(ctx.needs_input_grad[3:]):
            return None, None, gradient, *[None] * len(ctx.needs_input_grad[3:])
        sizes = [module.out_features for module in ctx.layer.modules]
        weights, biases = (whole.split(sizes) for whole in ctx.ours.weight_gradient(upstream_TO, x_TI))
        return None, None, gradient, *(each for both in zip(weights, biases, strict=True) for each in both)


class _AttentionOp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ours: TrainingKernels, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, cu_seqlens_B1: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q_THE, k_THE, v_THE, cu_seqlens_B1)
        ctx.ours = ours
        return ours._kernels.attention(q_THE, k_THE, v_THE, cu_seqlens_B1, cu_seqlens_B1).view(q_THE.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        q_THE, k_THE, v_THE, cu_seqlens_B1 = ctx.saved_tensors
        num_tokens, num_heads, head = q_THE.shape
        upstream_THE = upstream[0].contiguous()
        check("gradient of attention", upstream_THE, q_THE.shape, ctx.ours.dtype)
        gradients_TKHE = torch.empty(num_tokens, 3, num_heads, head, dtype=ctx.ours.dtype)
        q, k, v = gradients_TKHE.unbind(1)
        num_sequences = len(cu_seqlens_B1) - 1
        failed = ctx.ours._attention_gradient(
            *(q_THE.data_ptr(), k_THE.data_ptr(), v_THE.data_ptr(), q_THE.stride(0)),
            *(upstream_THE.data_ptr(), num_heads * head, cu_seqlens_B1.data_ptr(), num_sequences, num_heads, head),
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0), torch.get_num_threads()),
        )
        done(failed, q)
        return None, q, k, v, None


class _GeluOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ours: TrainingKernels, x: Tensor) -> Tensor:
        x = x.contiguous()
        check_sizes("GELU", x.numel())
        check("input of GELU", x, x.shape, ours.dtype)
        ctx.save_for_backward(x)
        ctx.ours = ours
        out = torch.empty_like(x)
        ours._gelu(x.data_ptr(), None, x.numel(), out.data_ptr(), torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        given, out = upstream[0].contiguous(), torch.empty_like(x)
        check("gradient of GELU", given, x.shape, ctx.ours.dtype)
        ctx.ours._gelu(x.data_ptr(), given.data_ptr(), x.numel(), out.data_ptr(), torch.get_num_threads())
        return None, out


class _AddNormOp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ours: TrainingKernels,
        x: Tensor,
        residual: Tensor,
        weight_D: Tensor,
        bias_D: Tensor,
        epsilon: float,
        dropped: float,
    ) -> Tensor:
        x, residual = x.contiguous(), residual.contiguous()
        check_sizes("norm", x.shape[-1])
        check("input of a norm", x, residual.shape, ours.dtype)
        check("residual of a norm", residual, residual.shape, torch.float32)
        for numbers_D in (weight_D, bias_D):
            check("layer norm", numbers_D, residual.shape[-1:], torch.float32)
        level = round(dropped * _RANDOM_LEVELS)
        dropout = _Dropout(seed=0, dropped=0, scale=1.0)
        if level:
            seed = int(torch.empty((), dtype=torch.int64).random_()) * 2 + 1
            scale = _RANDOM_LEVELS / (_RANDOM_LEVELS - level) if level < _RANDOM_LEVELS else 0.0  # none stays
            dropout = _Dropout(seed=seed, dropped=min(level, _RANDOM_LEVELS - 1), scale=scale)
        sums, out = torch.empty_like(residual), torch.empty_like(residual)
        width = residual.shape[-1]
        ours._add_norm(
            *(x.data_ptr(), residual.data_ptr(), residual.numel() // width, width, dropout),
            *(weight_D.data_ptr(), bias_D.data_ptr(), epsilon),
            *(sums.data_ptr(), out.data_ptr(), torch.get_num_threads()),
        )
        ctx.save_for_backward(sums, weight_D)
        ctx.ours, ctx.epsilon, ctx.dropout = ours, epsilon, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        sums, weight_D = ctx.saved_tensors
        given, width = upstream[0].contiguous(), sums.shape[-1]
        check("gradient of a norm", given, sums.shape, torch.float32)
        x_gradient = torch.empty(sums.shape, dtype=ctx.ours.dtype)
        residual_gradient = torch.empty_like(sums)
        weight_gradient, bias_gradient = (torch.empty(width, dtype=torch.float32) for _ in range(2))
        failed = ctx.ours._add_norm_gradient(
            *(given.data_ptr(), sums.data_ptr(), sums.numel() // width, width, ctx.dropout),
            *(weight_D.data_ptr(), ctx.epsilon, x_gradient.data_ptr(), residual_gradient.data_ptr()),
            *(weight_gradient.data_ptr(), bias_gradient.data_ptr(), torch.get_num_threads()),
        )
        done(failed, x_gradient)
        return None, x_gradient, residual_gradient, weight_gradient, bias_gradient, None, None
