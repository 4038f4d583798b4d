"""Limit of a machine: the model's own arithmetic over the rate of matrix products of its shapes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_TOKENS = (512, 2048, 8192)  # rows of a matrix product that are tried; the best counts


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide how much a BERT-like encoder computes."""

    layers: int
    hidden: int
    feed_forward: int

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Shape of a config of `transformers`, whatever its family calls the sizes."""
        layers = getattr(config, "num_hidden_layers", None) or config.n_layers
        hidden = getattr(config, "hidden_size", None) or config.dim
        feed_forward = getattr(config, "intermediate_size", None) or config.hidden_dim
        return cls(layers, hidden, feed_forward)

    def flops(self, lens_S: NDArray[Any]) -> float:
        """Floating-point operations of one forward pass of sequences of these lengths, padding not counted.

        Matrix products only, every layer for every token: 2 (4 D^2 + 2 D F) a token for the linear layers, 4 L D a
        token for attention. That an engine may skip some of it counts in its favour.
        """
        lens_S = np.asarray(lens_S, np.float64)
        linear = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.feed_forward) * lens_S.sum()
        attention = 4 * self.hidden * np.square(lens_S).sum()
        return float(self.layers * (linear + attention))

    def products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        hidden = self.hidden
        return [(hidden, 3 * hidden), (hidden, hidden), (hidden, self.feed_forward), (self.feed_forward, hidden)]


def matmul_rate(shape: ModelShape, dtype: torch.dtype, device: torch.device, *, seconds: float = 0.3) -> float:
    """FLOP/s of the linear layers of one block by torch's own matrix product, at the best number of tokens.

    Args:
        shape: of the model.
        dtype, device: as the engine uses them.
        seconds: spent on each number of tokens and layer, at least three products.
    """
    best = 0.0
    for num_tokens in _TOKENS if device.type == "cpu" else (8192, 32768, 131072):
        flops, spent = 0.0, 0.0
        for inputs, outputs in shape.products():
            x_TI = torch.randn(num_tokens, inputs, device=device).to(dtype)
            weight_OI = torch.randn(outputs, inputs, device=device).to(dtype)
            spent += _seconds_each(x_TI, weight_OI, seconds / len(shape.products()))
            flops += 2.0 * num_tokens * inputs * outputs
        best = max(best, flops / spent)
    return best


def _seconds_each(x_TI: torch.Tensor, weight_OI: torch.Tensor, seconds: float) -> float:
    """The median time of one product."""
    times: list[float] = []
    with torch.inference_mode():
        torch.nn.functional.linear(x_TI, weight_OI)
        while sum(times) < seconds or len(times) < 3:
            synchronize(x_TI.device)
            start = time.perf_counter()
            torch.nn.functional.linear(x_TI, weight_OI)
            synchronize(x_TI.device)
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
