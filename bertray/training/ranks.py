"""The ranks of a training run: sums over them, and what all of them decide alike."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bertray.errors import ConfigError
from bertray.training.examples import LoopSettings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class RefusedByAll(ConfigError):
    """A setting that not every rank can follow: all of them refuse it, and would again."""


class Ranks:
    """This rank and the others; alone where torch has no process group.

    Args:
        device: to compute on; messages of several ranks travel from it.
    """

    def __init__(self, device: str) -> None:
        import torch.distributed as dist

        self._device = device
        together = dist.is_available() and dist.is_initialized()
        self.number = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    def sums(self, *values: float) -> tuple[float, ...]:
        """Sum of each value over all ranks."""
        if self.world_size == 1:
            return values
        import torch

        sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(sums)
        return tuple(sums.tolist())

    def least_and_most(self, number: int) -> tuple[int, int]:
        """Minimum and maximum over all ranks."""
        if self.world_size == 1:
            return number, number
        import torch

        extremes = torch.tensor([-number, number], dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
        return -int(extremes[0]), int(extremes[1])

    def as_rank_0_has_them(self, figures: dict[str, float]) -> dict[str, float]:
        """Figures of rank 0, on all ranks: on unlike machines the last bit may differ, and with it a decision."""
        mine = figures.values() if self.number == 0 else [0.0] * len(figures)
        return dict(zip(figures, self.sums(*mine), strict=True))

    def agreed(self, settings: LoopSettings) -> LoopSettings:
        """Settings with the number format that all ranks compute in: their GPUs may be of different kinds.

        Raises:
            RefusedByAll: some rank does not compute in the one that is asked for. Every rank raises it.
        """
        if self.world_size == 1:
            return settings
        from bertray.model.engine import FORMATS
        from bertray.training.objectives import compute_dtype

        names, refused = list(FORMATS.values()), None
        try:
            mine = names.index(FORMATS[compute_dtype(settings.training.precision, self._device)])
        except ConfigError as error:
            refused, mine = error, -1
        least, most = self.least_and_most(mine)
        if refused is not None:
            raise RefusedByAll(refused.message, refused.remedy) from refused
        if least < 0:
            raise RefusedByAll(
                f"training.precision={settings.training.precision}: the device of another worker does not compute in "
                "it.",
                "Leave `training.precision` out: all workers then take what each of them computes in.",
            )
        if least != most and self.number == 0:
            log.warning("workers compute in %s to %s; all take %s", names[least], names[most], names[least])
        return replace(settings, training=replace(settings.training, precision=names[least]))


def in_ddp(net: torch.nn.Module, device_ids: Sequence[int] | None, *, compress: bool) -> torch.nn.Module:
    """A model whose gradients are averaged over all ranks.

    No buffer changes in training, so none is sent at a forward pass; gradients are views of what is exchanged.

    Args:
        compress: exchange gradients in bf16.
    """
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True, "device_ids": device_ids}
    ddp = DistributedDataParallel(net, **options)
    if compress:
        ddp.register_comm_hook(None, lambda state, bucket: _exchanged_in_bf16(bucket))  # DDP reads annotations
    return ddp


def _exchanged_in_bf16(bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """torch's own hook of this kind refuses every backend but NCCL."""
    import torch
    import torch.distributed as dist

    gradients: torch.Tensor = bucket.buffer()
    halved = gradients.to(torch.bfloat16).div_(dist.get_world_size())
    exchanged = dist.all_reduce(halved, async_op=True).get_future()

    def restored(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        return gradients.copy_(done.value()[0])

    result: torch.futures.Future[torch.Tensor] = exchanged.then(restored)
    return result
