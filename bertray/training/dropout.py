"""Dropout for CPUs: torch draws its masks one number after the other, which can be a third of a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16  # probabilities are kept to this many steps: 0.1 becomes 0.10001


class FastDropout(nn.Module):
    """`torch.nn.Dropout` whose mask takes a quarter of the random numbers: four elements share one of 64 bits.

    Reproducible by `torch.manual_seed`, as the original is, but with other masks. What is kept is scaled by the
    probability in use, so the expectation is exact.

    Args:
        p: probability of an element to become zero, from 0 to 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """`x` with elements dropped in training, `x` itself otherwise."""
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped == 0:
            return x
        result: Tensor = _Drop.apply(x, dropped)  # type: ignore[no-untyped-call]  # torch gives it no types
        return result

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        keep = _keep_mask(x, dropped)
        ctx.save_for_backward(keep)
        ctx.scale = _LEVELS / (_LEVELS - dropped) if dropped < _LEVELS else 0.0
        return x.mul(keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return gradients[0].mul(keep).mul_(ctx.scale), None


def _keep_mask(x: Tensor, dropped: int) -> Tensor:
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over all 16-bit numbers
    return levels >= dropped - _LEVELS // 2 if dropped < _LEVELS else torch.zeros_like(x, dtype=torch.bool)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every `torch.nn.Dropout` in a model that trains on CPU."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p))
