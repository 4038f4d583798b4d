"""The training loop of one worker: plain torch, the same on one process and on many, whatever is learned.

Every rank computes the same plan from the token shards and does its share; only gradients and a few sums travel.
Shape letters: N examples, V what is held out, K numbers kept of each.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.errors import BertrayError, DataRefused, Diverged, InfrastructureError
from bertray.io.store import LocalStore, Store
from bertray.training.checkpoint import (
    Checkpoint,
    Progress,
    forget_after,
    load_best,
    load_latest,
    load_model_tensors,
    model_tensors,
    optimizer_tensors,
    prune,
    restore_optimizer,
    save_checkpoint,
)
from bertray.training.examples import Examples, LoopSettings
from bertray.training.objectives import Classification, Objective
from bertray.training.order import epoch_steps, num_steps, rank_share, step_seed

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MAX_HISTORY_ROWS = 500  # rows of kind "step" over the whole run


@dataclass(frozen=True)
class Outcome:
    """Result of training, equal on every rank."""

    best_step: int
    num_steps: int
    history: list[dict[str, Any]]
    held_out_VK: np.ndarray
    """Held-out results of the best epoch: float64; of a classifier the logits of the validation split."""
    resumed_from: int | None
    seconds: float


def run_loop(
    examples: Examples,
    model_folder: Path,
    pad_id: int,
    settings: LoopSettings,
    store: Store,
    *,
    objective: Callable[..., Objective] = Classification,
    device: str = "cpu",
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Train, or resume, to the end; every rank calls it with the same arguments, but for `on_progress`.

    An example is one sequence. Where `long_text` is `windows` the token shards hold the first window of each review,
    so training, the validation figures and the logits to fit a temperature on see that window alone.

    Args:
        objective: loss and validation metrics of the examples.
        on_progress: called by rank 0 about once a second; one that fails with a BertrayError or an OSError is logged
            once and does not end training.
        on_epoch: called by rank 0 with the row of the history of each epoch, after its checkpoint; after a resume with
            those of the epochs before it first.

    Raises:
        Diverged: the loss or the gradient is not finite; the last checkpoint, which is finite, is kept. Every rank
            raises it.
        InfrastructureError: a checkpoint cannot be written, or ranks see different ones. Every rank raises it.
        DataRefused: a split has no example.
    """
    return _Loop(examples, model_folder, pad_id, settings, store, device, on_progress, on_epoch, objective).run()


def step_seconds(
    examples: Examples,
    model_folder: Path,
    pad_id: int,
    settings: LoopSettings,
    steps: Sequence[np.ndarray],
    *,
    objective: Callable[..., Objective] = Classification,
    device: str = "cpu",
) -> list[float]:
    """Seconds of optimizer steps as `run_loop` takes them: packed or padded, by the same kernels, clipping included.

    Args:
        steps: example numbers of each step.
    """
    with tempfile.TemporaryDirectory() as nowhere:  # a step writes nothing
        loop = _Loop(examples, model_folder, pad_id, settings, LocalStore(Path(nowhere)), device, None, None, objective)
        loop.model.train()
        seconds = []
        for members in steps:
            started = time.monotonic()
            loop._step(members, settings.training.learning_rate)  # its loss is read, so that a GPU is waited for
            seconds.append(time.monotonic() - started)
            loop.progress.step += 1
    return seconds


class _Loop:
    def __init__(
        self,
        examples: Examples,
        model_folder: Path,
        pad_id: int,
        settings: LoopSettings,
        store: Store,
        device: str,
        on_progress: Callable[[dict[str, Any]], None] | None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        objective: Callable[..., Objective] = Classification,
    ) -> None:
        import torch
        import torch.distributed as dist

        from bertray.model.kernels import kernels
        from bertray.training.adamw import AdamW, KernelAdamW, give_rows_gradients

        if len(examples.train) == 0 or len(examples.validation) == 0:
            raise DataRefused(
                f"data.train: {len(examples.train)} train and {len(examples.validation)} validation examples; "
                "both need at least one.",
                "Give more labelled reviews, or data.validation.",
            )
        self.examples, self.settings, self.store = examples, settings, store
        self.device, self.on_progress, self.on_epoch = device, on_progress, on_epoch
        self.distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        if settings.threads and device == "cpu":
            torch.set_num_threads(settings.threads)
        training = settings.training
        self.objective = objective(examples, model_folder, pad_id, settings, device, says=self.rank == 0)
        self.raw_model: torch.nn.Module = self.objective.model
        self.net: torch.nn.Module = self.objective.net
        self.model = self.net  # or, on several workers, that in DDP
        own = kernels() if device == "cpu" else None
        if self._sum_over_ranks(float(own is not None)) != (self.world_size,):
            own = None  # all of them or none, lest weights drift apart by rounding
        groups = _parameter_groups(self.raw_model, training.weight_decay)
        rate = training.learning_rate
        self.optimizer = AdamW(groups, rate) if own is None else KernelAdamW(groups, rate, own)
        if own is not None and self.world_size == 1:  # workers sum whole gradients
            give_rows_gradients(self.raw_model)
        self.steps_per_epoch = num_steps(len(examples.train), training.batch_size)
        self.total_steps = self.steps_per_epoch * training.epochs
        self.log_every = -(-self.total_steps // MAX_HISTORY_ROWS)
        self.progress = Progress()
        self.resumed_from: int | None = None
        self.best_held_out_VK: np.ndarray | None = None
        self._last_save = self._started = time.monotonic()
        self._last_report = 0.0
        self._report_failed = self._prune_failed = False

    def run(self) -> Outcome:
        self._resume()
        if self.world_size == 1:
            return self._train()
        import torch

        ids = [torch.cuda.current_device()] if self.device.startswith("cuda") else None
        self.model = torch.nn.parallel.DistributedDataParallel(self.net, device_ids=ids)
        try:
            return self._train()
        finally:
            # DDP lies in a cycle and holds the process group. Were it the last to, collecting it would end the group
            # with the interpreter's lock held, and wait for ever for a thread of gloo's that waits for that lock.
            self.model = self.net
            gc.collect()

    def _train(self) -> Outcome:
        for row in self.progress.history:
            if row["kind"] == "eval":
                self._tell_epoch(row)
        if self.objective.judged_untrained and not self.progress.history:
            self._judge_untrained()
        before = self.progress.seconds
        self._started = time.monotonic() - before
        while not self.progress.finished:
            self._epoch()
        best = self.progress.best_step
        assert best is not None
        return Outcome(
            best_step=best,
            num_steps=self.progress.step,
            history=self.progress.history,
            held_out_VK=self._best_held_out(best),
            resumed_from=self.resumed_from,
            seconds=self.progress.seconds,
        )

    # --- one epoch ---------------------------------------------------------------------------------------------------

    def _epoch(self) -> None:
        training, progress = self.settings.training, self.progress
        steps = epoch_steps(
            self.examples.shards.lens_N[self.examples.train],
            batch_size=training.batch_size,
            seed=self.settings.seed,
            epoch=progress.epoch,
        )
        self.model.train()
        window_tokens, window_start = 0, time.monotonic()
        for step_examples in steps[progress.step_in_epoch :]:
            members = self.examples.train[step_examples]
            learning_rate = self._learning_rate(progress.step)
            loss, save_now, tokens = self._step(members, learning_rate)
            progress.step += 1
            progress.step_in_epoch += 1
            progress.tokens += tokens
            progress.loss_sum += loss
            progress.window_loss += loss
            progress.window_steps += 1
            window_tokens += tokens
            if progress.step % self.log_every == 0:
                now = time.monotonic()
                progress.history.append(
                    {
                        "kind": "step",
                        "step": progress.step,
                        "epoch": progress.epoch + progress.step_in_epoch / self.steps_per_epoch,
                        "loss": progress.window_loss / progress.window_steps,
                        "learning_rate": learning_rate,
                        "tokens_per_s": window_tokens / max(now - window_start, 1e-9),
                        "seconds": now - self._started,
                    }
                )
                progress.window_loss, progress.window_steps, window_tokens, window_start = 0.0, 0, 0, now
            self._report(loss, learning_rate)
            if save_now and progress.step_in_epoch < self.steps_per_epoch:  # else the end of the epoch saves
                self._save()
        self._end_epoch()

    def _step(self, members: np.ndarray, learning_rate: float) -> tuple[float, bool, int]:
        """One optimizer step over all ranks; returns (mean loss, save now, tokens)."""
        import torch

        training, shards = self.settings.training, self.examples.shards
        torch.manual_seed(step_seed(self.settings.seed, self.progress.step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # Every rank knows the whole step, so the global sum of weights needs no message.
        total_weight = self.objective.begin_step(members, self.progress.epoch)
        share = rank_share(members, rank=self.rank, world_size=self.world_size)
        # A rank without examples still takes part in the all-reduce: one example, weight zero.
        idle = len(share) == 0
        batches = self.objective.microbatches(shards.lens_N[share])
        passes = [members[:1]] if idle else [share[positions] for positions in batches]
        loss_sum = 0.0
        for number, batch in enumerate(passes):
            last = number == len(passes) - 1
            with contextlib.nullcontext() if last or self.world_size == 1 else self._no_sync():
                loss = self.objective.loss(self.model, batch) * (0.0 if idle else 1.0)
                # DDP averages gradients over ranks; times world_size makes the average a sum over the step.
                (loss * (self.world_size / total_weight)).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
                loss_sum += float(loss.detach())
        save_due = time.monotonic() - self._last_save >= training.checkpoint_every_s
        loss_sum, save_votes, tokens = self._sum_over_ranks(
            loss_sum, float(save_due and self.rank == 0), float(shards.lens_N[share].sum())
        )
        mean_loss = loss_sum / total_weight
        self._check_finite("loss", mean_loss)
        # A finite loss may have a gradient that is not; clipping would spread it over all weights. After the
        # all-reduce every rank has the same norm.
        norm = self.optimizer.gradient_norm()
        self._check_finite("gradient", float(norm))
        self.optimizer.clipped_step(training.max_grad_norm, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, save_votes > 0, int(tokens)

    def _check_finite(self, what: str, value: float) -> None:
        if not np.isfinite(value):
            raise Diverged(
                f"training: the {what} is {value} at step {self.progress.step + 1}; the last checkpoint is finite.",
                "Lower `training.learning_rate` or set `training.precision=fp32`, in a new output.",
            )

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of all but the last pass stay on this rank."""
        no_sync: Callable[[], contextlib.AbstractContextManager[None]] = getattr(self.model, "no_sync")  # noqa: B009
        return no_sync()

    def _learning_rate(self, step: int) -> float:
        """Linear rise over the warm-up steps, then linear fall to zero at the end."""
        training = self.settings.training
        warmup = int(self.total_steps * training.warmup_ratio)
        if step < warmup:
            return training.learning_rate * (step + 1) / warmup
        return training.learning_rate * (self.total_steps - step) / max(self.total_steps - warmup, 1)

    # --- validation, best, stop --------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        training, progress = self.settings.training, self.progress
        held_out_VK = self._held_out()
        figures = self.objective.figures(held_out_VK)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.history.append(
            {
                "kind": "eval",
                "step": progress.step,
                "epoch": float(progress.epoch),
                "train_loss": progress.loss_sum / self.steps_per_epoch,
                "seconds": time.monotonic() - self._started,
                **figures,
            }
        )
        progress.loss_sum = 0.0
        metric = self.objective.best_metric
        value = -figures["loss"] if metric == "loss" else figures[metric]
        if not np.isfinite([value, figures["loss"]]).all():
            raise Diverged(
                "training: the validation loss is not finite; the last checkpoint before it is kept.",
                "Lower `training.learning_rate` or set `training.precision=fp32`, in a new output.",
            )
        if progress.best_value is None or value > progress.best_value:
            progress.best_value, progress.best_step, progress.epochs_without_gain = value, progress.step, 0
            self.best_held_out_VK = held_out_VK
        else:
            progress.epochs_without_gain += 1
        patience = training.early_stopping_patience
        stopped = patience is not None and progress.epochs_without_gain >= patience
        progress.finished = stopped or progress.epoch >= training.epochs
        if self.rank == 0:
            log.info(
                "epoch %d of %d: train loss %.4f, validation loss %.4f, accuracy %.4f%s",
                progress.epoch,
                training.epochs,
                progress.history[-1]["train_loss"],
                figures["loss"],
                figures["accuracy"],
                "; stopped early" if stopped and progress.epoch < training.epochs else "",
            )
        self._save()
        self._tell_epoch(progress.history[-1])

    def _tell_epoch(self, row: dict[str, Any]) -> None:
        if self.on_epoch is not None and self.rank == 0:
            self.on_epoch(row)

    def _judge_untrained(self) -> None:
        figures = self.objective.figures(self._held_out())
        self.progress.history.append({"kind": "eval", "step": 0, "epoch": 0.0, "seconds": 0.0, **figures})

    def _held_out(self) -> np.ndarray:
        """Held-out results of the model as it is, on every rank: float64 [V, K]."""
        import torch

        objective = self.objective
        rows_VK = torch.zeros(len(objective.held_out_lens_V), objective.width, dtype=torch.float64)
        mine = np.arange(self.rank, len(rows_VK), self.world_size)
        self.net.eval()
        with torch.inference_mode():
            for numbers in objective.held_out_microbatches(mine):
                rows_VK[torch.from_numpy(numbers)] = torch.from_numpy(objective.held_out(numbers))
        if self.world_size > 1:
            rows_VK = rows_VK.to(self.device)
            torch.distributed.all_reduce(rows_VK)
        self.model.train()
        return rows_VK.cpu().numpy()

    def _best_held_out(self, best_step: int) -> np.ndarray:
        """Held-out results of the best epoch; computed again when this process did not see that epoch."""
        if self.best_held_out_VK is None:
            best = load_best(self.store, best_step, self.settings.run_key)
            load_model_tensors(self.raw_model, best.model)
            self.best_held_out_VK = self._held_out()
        return self.best_held_out_VK

    # --- checkpoints and messages ------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Rank 0 writes; all ranks learn how that went, so that none waits for one that has given up."""
        self.progress.seconds = time.monotonic() - self._started
        failure: Exception | None = None
        if self.rank == 0:
            try:
                self._write_checkpoint()
            except Exception as error:
                failure = error
        (num_failures,) = self._sum_over_ranks(float(failure is not None))
        if failure is not None and not isinstance(failure, BertrayError | OSError):
            raise failure  # a bug keeps its own name and trace
        if num_failures:
            reason = ", on rank 0." if failure is None else f": {getattr(failure, 'message', failure)}"
            raise InfrastructureError(
                f"training: the checkpoint of step {self.progress.step} cannot be written{reason}",
                "Check the storage, then run the same command again: it resumes from the checkpoint before.",
            ) from failure
        self._last_save = time.monotonic()

    def _write_checkpoint(self) -> None:
        # After the last step the optimizer's state, twice as large as the model, is not needed.
        optimizer = {} if self.progress.finished else optimizer_tensors(self.optimizer)
        checkpoint = Checkpoint(self.progress, model_tensors(self.raw_model), optimizer, self.settings.run_key)
        save_checkpoint(self.store, checkpoint)
        best = {self.progress.best_step} if self.progress.best_step is not None else set()
        self._remove_old(lambda: prune(self.store, best))

    def _remove_old(self, remove: Callable[[], None]) -> None:
        try:
            remove()
        except (BertrayError, OSError) as error:  # what is to be kept is there; older ones only take space
            if not self._prune_failed:
                log.warning("older checkpoints cannot be removed, training goes on: %s", error)
            self._prune_failed = True

    def _resume(self) -> None:
        """Go on from the latest checkpoint, the same one on every rank."""
        checkpoint = load_latest(self.store, self.settings.run_key)
        step = checkpoint.progress.step if checkpoint is not None else -1
        lowest, highest = self._least_and_most(step)
        if lowest != highest:
            raise InfrastructureError(
                f"training: workers see different checkpoints (steps {lowest} and {highest}; -1: none), as on a file "
                "system that shows new files late.",
                "Run the same command again.",
            )
        if self.rank == 0:
            self._remove_old(lambda: forget_after(self.store, step))
        if checkpoint is not None:
            self._restore(checkpoint)
            self.resumed_from = step
            if self.rank == 0:
                log.info("resuming at step %d of %d", step + 1, self.total_steps)

    def _restore(self, checkpoint: Checkpoint) -> None:
        load_model_tensors(self.raw_model, checkpoint.model)
        if not checkpoint.progress.finished:
            restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.progress = checkpoint.progress

    def _least_and_most(self, number: int) -> tuple[int, int]:
        """Minimum and maximum over all ranks."""
        if self.world_size == 1:
            return number, number
        import torch

        extremes = torch.tensor([-number, number], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
        return -int(extremes[0]), int(extremes[1])

    def _sum_over_ranks(self, *values: float) -> tuple[float, ...]:
        if self.world_size == 1:
            return values
        import torch

        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return tuple(sums.tolist())

    def _report(self, loss: float, learning_rate: float) -> None:
        now = time.monotonic()
        if self.rank != 0 or self.on_progress is None or now - self._last_report < 1.0:
            return
        self._last_report = now
        progress = self.progress
        seconds = now - self._started
        state = {
            "step": progress.step,
            "total_steps": self.total_steps,
            "epoch": progress.epoch + progress.step_in_epoch / self.steps_per_epoch,
            "loss": loss,
            "learning_rate": learning_rate,
            "tokens_per_s": progress.tokens / max(seconds, 1e-9),
        }
        try:
            self.on_progress(state)
        except (BertrayError, OSError) as error:
            # Only someone's view of the run suffers; the other ranks would wait for this one.
            if not self._report_failed:
                log.warning("progress cannot be shown for now, training goes on: %s", error)
            self._report_failed = True


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: not on biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
