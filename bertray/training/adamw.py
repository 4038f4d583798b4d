"""AdamW for CPUs, in one pass through memory: the optimizer costs what it reads and writes, a fifth of a short step.

With our kernels a gradient is clipped as it is read, and that of an embedding is only the rows of the tokens of a step:
of a vocabulary of 30,000 words a step meets a few hundred. What it does to the weights is what torch's AdamW does, rows
without a gradient included, whose averages decay like all others; its state is torch's too, so that a run may resume
with the one or the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertray.model.kernels import AdamWStep, AdamWWeight, Kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdamW(torch.optim.AdamW):
    """torch's AdamW with a step that clips.

    It has no `step` of its own: torch wraps the `step` of every class of optimizers to run hooks, so an override that
    called torch's would run them twice, once torch's own AdamW has been made in the same process.

    Args:
        groups: of parameters, as torch takes them.
        lr: learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)

    def gradient_norm(self) -> Tensor:
        """2-norm of all gradients together."""
        return torch.nn.utils.get_total_norm([_values(weight) for weight in self._with_gradient()])

    def clipped_step(self, most: float, norm: Tensor, loss_scale: float = 1.0) -> None:
        """One step with gradients scaled so that their norm is at most `most`.

        Args:
            norm: of the gradients, divided by `loss_scale`; on the host where nothing is to wait for a GPU.
            loss_scale: that the loss was multiplied by.
        """
        factor = _clipping_scale(most, norm) / loss_scale
        if factor != 1:
            torch._foreach_mul_([_values(weight) for weight in self._with_gradient()], factor)
        self.step()
        # torch's fused step does not count as a change, by which our kernels see that weights are to be laid out anew.
        torch.autograd.graph.increment_version(self._with_gradient())

    def _with_gradient(self) -> list[Tensor]:
        return [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]


class KernelAdamW(AdamW):
    """AdamW on our kernels, for fp32 weights on CPU.

    Args:
        groups, lr: as for `AdamW`.
        kernels: those of this machine.

    Raises:
        ValueError: a weight is not contiguous or not fp32.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, kernels: Kernels) -> None:
        super().__init__(groups, lr=lr)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        if not all(w.dtype == torch.float32 and w.is_contiguous() for w in weights):
            raise ValueError("AdamW: our kernel expects contiguous weights in fp32")
        self._kernels = kernels
        self._gradient_scale = 1.0
        self._moved: dict[Tensor, Tensor] = {}

    def clipped_step(self, most: float, norm: Tensor, loss_scale: float = 1.0) -> None:
        """One step that scales each gradient as it is read."""
        self._gradient_scale = _clipping_scale(most, norm) / loss_scale
        try:
            self.step()
        finally:
            self._gradient_scale = 1.0

    def step(self, closure: Any = None) -> Any:
        """One step with gradients as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_with_kernels()
        return loss

    @torch.no_grad()
    def _step_with_kernels(self) -> None:
        steps: dict[tuple[Any, ...], list[AdamWWeight]] = {}
        alive = []  # what the kernel reads and nothing else holds
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self._state_of(weight)
                state["step"] += 1
                torch.autograd.graph.increment_version(weight)
                averages = state["exp_avg"], state["exp_avg_sq"]
                share_left = 1 - group["lr"] * group["weight_decay"]
                if weight.grad.is_sparse:
                    of_rows = weight.grad.coalesce()
                    rows = of_rows.indices()[0]
                    place = torch.full((len(weight),), -1, dtype=torch.int32)
                    place[rows] = torch.arange(len(rows), dtype=torch.int32)
                    gradient, moved = of_rows.values().contiguous(), self._moved_of(weight)
                    struct = AdamWWeight.of_rows(weight, *averages, gradient, place, moved, share_left)
                    alive += [place, gradient]
                else:
                    self._moved.pop(weight, None)  # any row may have
                    gradient = weight.grad.contiguous()
                    struct = AdamWWeight.of(weight, *averages, gradient, share_left)
                    alive.append(gradient)
                beta_mean, beta_square = group["betas"]
                alike = (float(state["step"]), group["lr"], beta_mean, beta_square, group["eps"])
                steps.setdefault(alike, []).append(struct)
        for (step, rate, beta_mean, beta_square, epsilon), structs in steps.items():
            self._kernels.adamw(
                structs,
                AdamWStep(
                    corrected_rate=rate / (1 - beta_mean**step),
                    one_minus_beta_mean=1 - beta_mean,
                    beta_square=beta_square,
                    one_minus_beta_square=1 - beta_square,
                    epsilon=epsilon,
                    root_of_correction=(1 - beta_square**step) ** 0.5,
                    gradient_scale=self._gradient_scale,
                ),
            )

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state

    def _moved_of(self, weight: Tensor) -> Tensor:
        """uint8 [rows]: whether the averages of a row may be other than zero."""
        if weight not in self._moved:
            state = self.state[weight]
            moved = (state["exp_avg"] != 0).any(1) | (state["exp_avg_sq"] != 0).any(1)
            self._moved[weight] = moved.to(torch.uint8)
        return self._moved[weight]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._moved = {}


def _values(weight: Tensor) -> Tensor:
    """The numbers of a weight's gradient; of one that is rows of an embedding, those rows."""
    assert weight.grad is not None
    if not weight.grad.is_sparse:
        return weight.grad
    weight.grad = weight.grad.coalesce()  # sums what the same token has at several places
    return weight.grad.values()


def _clipping_scale(most: float, norm: Tensor) -> float:
    """Factor of the gradients, at most 1, as torch's clipping computes it."""
    return min(1.0, float(most / (norm + 1e-6)))


def give_rows_gradients(model: PreTrainedModel) -> None:
    """Let the gradient of a model's word embeddings be the rows of a step's tokens, where it can be."""
    words: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    if type(words) is nn.Embedding and (output is None or output.weight is not words.weight):
        words.sparse = True
