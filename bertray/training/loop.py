"""The training loop of one worker: plain torch, the same on one process and on many, whatever is learned.

Every rank computes the same plan from the token shards and does its share; only gradients and a few sums travel.
Shape letters: N examples, V validation rows, K numbers kept of each.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.errors import BertrayError, DataRefused, Diverged, InfrastructureError
from bertray.io.store import LocalStore, Store
from bertray.training.adapters import parameter_groups
from bertray.training.background import Background
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
from bertray.training.loss_scale import after_overflow, after_step
from bertray.training.objectives import Classification, Objective
from bertray.training.order import rank_share, step_seed
from bertray.training.ranks import Ranks, in_ddp

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
    validation_VK: np.ndarray
    """Results on the validation rows at the best epoch: float64; a classifier's are logits."""
    resumed_from: int | None
    seconds: float

    @property
    def notes(self) -> list[str]:
        """Sentences for the report on how the run went."""
        if self.resumed_from is None:
            return []
        return [f"The run was interrupted and resumed at step {self.resumed_from}."]


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
) -> list[float]:
    """Seconds of optimizer steps as `run_loop` takes them: packed or padded, by the same kernels, clipping included.

    Args:
        steps: example numbers of each step.
    """
    with tempfile.TemporaryDirectory() as nowhere:  # a step writes nothing
        loop = _Loop(examples, model_folder, pad_id, settings, LocalStore(Path(nowhere)), "cpu", None, None, objective)
        loop.model.train()
        seconds = []
        for members in steps:
            started = time.monotonic()
            prepared = loop._prepared(members, 0)
            loop._step(prepared, settings.training.learning_rate)  # its loss is read, so that a GPU is waited for
            seconds.append(time.monotonic() - started)
            loop.progress.step += 1
    return seconds


@dataclass(frozen=True)
class _Prepared:
    """One rank's share of a step, on the host."""

    total_weight: float  # of all ranks
    passes: list[Any]
    is_idle: bool  # a rank without examples still takes part in what ranks exchange: one example, which does not count
    tokens: float


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

        from bertray.model.engine import FORMATS
        from bertray.model.kernels import kernels
        from bertray.training.adamw import AdamW, KernelAdamW, give_rows_gradients

        if len(examples.train) == 0 or (len(examples.validation) == 0 and settings.kept_epoch == "best"):
            raise DataRefused(
                f"data.train: {len(examples.train)} train and {len(examples.validation)} validation examples; "
                "both need at least one.",
                "Give more labelled reviews, or data.validation.",
            )
        self.examples, self.settings, self.store = examples, settings, store
        self.device, self.on_progress, self.on_epoch = device, on_progress, on_epoch
        self.ranks = Ranks(device)
        self.rank, self.world_size = self.ranks.number, self.ranks.world_size
        if settings.threads and device == "cpu":
            torch.set_num_threads(settings.threads)
        self.settings = settings = self.ranks.agreed(settings)
        training = settings.training
        self.objective = objective(examples, model_folder, pad_id, settings, device, says=self.rank == 0)
        self.raw_model: torch.nn.Module = self.objective.model
        self.net: torch.nn.Module = self.objective.net
        self.model = self.net  # or, on several workers, that in DDP
        # AdamW is in fp32 in either.
        own = kernels(torch.bfloat16) or kernels(torch.float32) if device == "cpu" else None
        least, most = self.ranks.least_and_most(0 if own is None else list(FORMATS).index(own.dtype) + 1)
        if least != most:
            own = None  # all of them the same or none, lest weights drift apart by rounding
        groups = parameter_groups(self.raw_model, training.weight_decay, getattr(training, "layer_decay", 1.0))
        rate = training.learning_rate
        self.optimizer = AdamW(groups, rate) if own is None else KernelAdamW(groups, rate, own)
        if own is not None and self.world_size == 1:  # workers sum whole gradients
            give_rows_gradients(self.raw_model)
        self.steps_per_epoch = self.objective.steps_per_epoch
        self.total_steps = self.steps_per_epoch * training.epochs
        self.log_every = -(-self.total_steps // MAX_HISTORY_ROWS)
        self.progress = Progress()
        self.resumed_from: int | None = None
        self.best_validation_VK: np.ndarray | None = None
        self._last_save = self._started = time.monotonic()
        self._last_report = 0.0
        self._report_failed = self._prune_failed = False
        # Storage takes its time, in which a GPU and all other ranks would wait; on a CPU a thread would take theirs.
        on_gpu = self.objective.on_gpu
        self._reports, self._checkpoints = (Background(name, in_thread=on_gpu) for name in ("report", "checkpoint"))

    def run(self) -> Outcome:
        try:
            return self._run()
        finally:
            self._reports.close()
            self._checkpoints.close()

    def _run(self) -> Outcome:
        if not self.settings.in_one_go:
            self._resume()
        if self.world_size == 1:
            return self._train()
        import torch

        ids = [torch.cuda.current_device()] if self.device.startswith("cuda") else None
        self.model = in_ddp(self.net, ids, compress=self.settings.training.gradient_compression == "bf16")
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
            validation_VK=self._best_validation(best),
            resumed_from=self.resumed_from,
            seconds=self.progress.seconds,
        )

    # --- one epoch ---------------------------------------------------------------------------------------------------

    def _epoch(self) -> None:
        progress = self.progress
        steps = self.objective.members_of_steps(progress.epoch)
        self.model.train()
        window_tokens, window_start = 0, time.monotonic()
        for prepared in self._prepared_steps(steps[progress.step_in_epoch :], progress.epoch):
            learning_rate = self._learning_rate(progress.step)
            loss, save_now, tokens = self._step(prepared, learning_rate)
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

    def _prepared_steps(self, steps: Sequence[np.ndarray], epoch: int) -> Generator[_Prepared, None, None]:
        """Shares of some steps; on a GPU a thread prepares the next one while this one is computed."""
        if not self.objective.on_gpu:
            yield from (self._prepared(members, epoch) for members in steps)
            return
        with ThreadPoolExecutor(1, "prepare") as pool:
            coming = pool.submit(self._prepared, steps[0], epoch)
            for members in steps[1:]:
                prepared = coming.result()
                coming = pool.submit(self._prepared, members, epoch)
                yield prepared
            yield coming.result()

    def _prepared(self, members: np.ndarray, epoch: int) -> _Prepared:
        objective, lens_N = self.objective, self.examples.shards.lens_N
        # Every rank knows the whole step, so the global sum of weights needs no message.
        total_weight = objective.begin_step(members, epoch)
        share = rank_share(members, rank=self.rank, world_size=self.world_size)
        idle = len(share) == 0
        batches = [members[:1]] if idle else [share[positions] for positions in objective.microbatches(lens_N[share])]
        passes = [objective.pinned(objective.inputs(batch)) for batch in batches]
        return _Prepared(total_weight, passes, idle, tokens=float(lens_N[share].sum()))

    def _step(self, prepared: _Prepared, learning_rate: float) -> tuple[float, bool, int]:
        """One optimizer step over all ranks; returns (mean loss, save now, tokens). The host waits for a GPU once."""
        import torch

        training, objective, scale = self.settings.training, self.objective, self._loss_scale()
        torch.manual_seed(step_seed(self.settings.seed, self.progress.step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_scale"]
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, inputs in enumerate(prepared.passes):
            last = number == len(prepared.passes) - 1
            with contextlib.nullcontext() if last or self.world_size == 1 else self._no_sync():
                loss = objective.loss(self.model, objective.on_device(inputs))
                if prepared.is_idle:
                    loss = self._nothing()
                # DDP averages gradients over ranks; times world_size makes the average a sum over the step.
                part = loss * (self.world_size * scale / prepared.total_weight)
                part.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
                loss_sum += loss.detach()
        save_due = time.monotonic() - self._last_save >= training.checkpoint_every_s and not self.settings.in_one_go
        counts = (float(save_due and self.rank == 0), prepared.tokens)
        sums = torch.stack([loss_sum, *(loss_sum.new_full((), count) for count in counts)])
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        # After the all-reduce every rank has the same norm.
        norm = self.optimizer.gradient_norm() / scale
        total, save_votes, tokens, norm_value = torch.cat([sums, norm.double()[None]]).tolist()
        mean_loss = total / prepared.total_weight
        self._check_finite("loss", mean_loss)
        self._optimizer_step(norm_value, scale)
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, save_votes > 0, int(tokens)

    def _nothing(self) -> torch.Tensor:
        """The loss of a rank without examples: zero, as is its gradient, of which DDP waits for one of every weight.

        Not the loss of some example times zero: where that is not finite, neither is the product or its gradient.
        """
        import torch

        weights = [weight for weight in self.raw_model.parameters() if weight.requires_grad]
        return torch.stack([weight.flatten()[:1].sum() * 0.0 for weight in weights]).sum()

    def _optimizer_step(self, norm: float, scale: float) -> None:
        """Clip and step; in fp16 a step whose gradient overflowed is left out, and the next loss is scaled by less."""
        import torch

        progress, in_fp16 = self.progress, self.objective.dtype == torch.float16
        if in_fp16 and not np.isfinite(norm) and progress.loss_scale > 1:
            progress.loss_scale, progress.scaled_steps = after_overflow(progress.loss_scale), 0
            return
        # A finite loss may have a gradient that is not; clipping would spread it over all weights.
        self._check_finite("gradient", norm)
        self.optimizer.clipped_step(self.settings.training.max_grad_norm, torch.tensor(norm), scale)
        if in_fp16:
            progress.loss_scale, progress.scaled_steps = after_step(progress.loss_scale, progress.scaled_steps)

    def _loss_scale(self) -> float:
        import torch

        return self.progress.loss_scale if self.objective.dtype == torch.float16 else 1.0

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
        progress.epoch += 1
        judged = len(self.objective.validation_lens_V) > 0 and not (
            self.settings.in_one_go and progress.epoch < training.epochs
        )
        validation_VK = self._validate() if judged else np.empty((0, self.objective.width))
        figures = self.ranks.as_rank_0_has_them(self.objective.figures(validation_VK)) if judged else {}
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
        if self.settings.kept_epoch == "last" or self._is_best(figures):
            progress.best_step, progress.epochs_without_gain = progress.step, 0
            self.best_validation_VK = validation_VK
        else:
            progress.epochs_without_gain += 1
        patience = training.early_stopping_patience
        stopped = patience is not None and progress.epochs_without_gain >= patience
        progress.finished = stopped or progress.epoch >= training.epochs
        if self.rank == 0:
            log.info(
                "epoch %d of %d: train loss %.4f%s%s",
                progress.epoch,
                training.epochs,
                progress.history[-1]["train_loss"],
                f", validation loss {figures['loss']:.4f}, accuracy {figures['accuracy']:.4f}" if figures else "",
                "; stopped early" if stopped and progress.epoch < training.epochs else "",
            )
        if not self.settings.in_one_go:
            self._save()
        self._tell_epoch(progress.history[-1])

    def _is_best(self, figures: Mapping[str, float]) -> bool:
        """Whether an epoch is better than those before it, and remembers it then.

        Raises:
            Diverged: its figures are not finite.
        """
        metric, progress = self.objective.best_metric, self.progress
        value = -figures["loss"] if metric == "loss" else figures[metric]
        if not np.isfinite([value, figures["loss"]]).all():
            raise Diverged(
                "training: the validation loss is not finite; the last checkpoint before it is kept.",
                "Lower `training.learning_rate` or set `training.precision=fp32`, in a new output.",
            )
        if progress.best_value is not None and value <= progress.best_value:
            return False
        progress.best_value = value
        return True

    def _tell_epoch(self, row: dict[str, Any]) -> None:
        if self.on_epoch is not None and self.rank == 0:
            self.on_epoch(row)

    def _judge_untrained(self) -> None:
        figures = self.objective.figures(self._validate())
        self.progress.history.append({"kind": "eval", "step": 0, "epoch": 0.0, "seconds": 0.0, **figures})

    def _validate(self) -> np.ndarray:
        """Results of the model as it is on the validation rows, on every rank: float64 [V, K]."""
        import torch

        objective = self.objective
        rows_VK = torch.zeros(len(objective.validation_lens_V), objective.width, dtype=torch.float64)
        mine = np.arange(self.rank, len(rows_VK), self.world_size)
        self.net.eval()
        with torch.inference_mode():
            for numbers in objective.validation_microbatches(mine):
                rows_VK[torch.from_numpy(numbers)] = torch.from_numpy(objective.validate(numbers))
        if self.world_size > 1:
            rows_VK = rows_VK.to(self.device)
            torch.distributed.all_reduce(rows_VK)
        self.model.train()
        return rows_VK.cpu().numpy()

    def _best_validation(self, best_step: int) -> np.ndarray:
        """Results on the validation rows at the best epoch; computed again when this process did not see that epoch."""
        if self.best_validation_VK is None:
            best = load_best(self.store, best_step, self.settings.run_key)
            load_model_tensors(self.raw_model, best.model)
            self.best_validation_VK = self._validate()
        return self.best_validation_VK

    # --- checkpoints and messages ------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Rank 0 writes; all ranks learn how that went, so that none waits for one that has given up.

        Beside a GPU a thread writes: what fails is told at the next checkpoint, and of the last one at once.
        """
        self.progress.seconds = time.monotonic() - self._started
        failure: Exception | None = None
        if self.rank == 0:
            try:
                self._checkpoints.wait()  # before there are copies for another one
                self._checkpoints.run(partial(self._write, self._checkpoint()))
                if self.progress.finished:
                    self._checkpoints.wait()
            except Exception as error:
                failure = error
        (num_failures,) = self.ranks.sums(float(failure is not None))
        if failure is not None:
            raise failure
        if num_failures:
            raise _not_written(f"a checkpoint up to step {self.progress.step}", ", on rank 0.")
        self._last_save = time.monotonic()

    def _checkpoint(self) -> Checkpoint:
        """The run as it is: copies, where it goes on while they are written."""
        copied = self.objective.on_gpu
        # After the last step the optimizer's state, twice as large as the model, is not needed.
        optimizer = {} if self.progress.finished else optimizer_tensors(self.optimizer, copied=copied)
        progress = replace(self.progress, history=list(self.progress.history))
        return Checkpoint(progress, model_tensors(self.raw_model, copied=copied), optimizer, self.settings.run_key)

    def _write(self, checkpoint: Checkpoint) -> None:
        """Raises InfrastructureError where the storage fails; a bug keeps its own name and trace."""
        progress = checkpoint.progress
        try:
            save_checkpoint(self.store, checkpoint)
        except (BertrayError, OSError) as error:
            reason = f": {getattr(error, 'message', error)}"
            raise _not_written(f"the checkpoint of step {progress.step}", reason) from error
        best = {progress.best_step} if progress.best_step is not None else set()
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
        lowest, highest = self.ranks.least_and_most(step)
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

    def _report(self, loss: float, learning_rate: float) -> None:
        now = time.monotonic()
        if self.rank != 0 or self.on_progress is None or now - self._last_report < 1.0 or self._reports.busy:
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
            self._reports.run(partial(self.on_progress, state))
        except (BertrayError, OSError) as error:
            # Only someone's view of the run suffers; the other ranks would wait for this one.
            if not self._report_failed:
                log.warning("progress cannot be shown for now, training goes on: %s", error)
            self._report_failed = True


def _not_written(what: str, reason: str) -> InfrastructureError:
    return InfrastructureError(
        f"training: {what} cannot be written{reason}",
        "Check the storage, then run the same command again: it resumes from the checkpoint before.",
    )
