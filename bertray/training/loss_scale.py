"""Loss scaling of fp16: small gradients would be zero in it, so the loss is multiplied, and the gradient divided.

The factor is halved where a gradient overflows, whose step is left out, and doubled after `GROWTH_STEPS` without one.
Rule and numbers are those of `torch.amp.GradScaler`, as plain values that a checkpoint keeps, without a wait for a GPU.

Source: Micikevicius et al. 2018, "Mixed Precision Training" (section 3.2).
"""

from __future__ import annotations

FIRST = 65_536.0
GROWTH_STEPS = 2000


def after_overflow(scale: float) -> float:
    """The scale after a step whose gradient was not finite."""
    return scale / 2


def after_step(scale: float, good_steps: int) -> tuple[float, int]:
    """The scale after a good step, and good steps since it changed."""
    return (scale * 2, 0) if good_steps + 1 == GROWTH_STEPS else (scale, good_steps + 1)
