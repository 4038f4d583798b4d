"""The fine-tuning loop of one worker: plain torch, the same on one process and on many.

Every rank computes the same plan from the token shards and does its share; only gradients and a few sums travel.
Shape letters: N examples, V validation examples, B examples of a forward pass, C classes.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.config import Training
from bertray.errors import BertrayError, DataRefused, Diverged, InfrastructureError
from bertray.storage.store import Store
from bertray.training.checkpoint import (
    Checkpoint,
    Progress,
    load_latest,
    load_step,
    optimizer_tensors,
    prune,
    restore_optimizer,
    save_checkpoint,
)
from bertray.training.order import (
    balanced_weights,
    by_padded_tokens,
    by_tokens,
    cheapest_passes,
    epoch_steps,
    num_steps,
    rank_share,
    step_seed,
)
from bertray.training.token_shards import TokenShards

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from bertray.training.packed import PackedClassifier

log = logging.getLogger(__name__)

# What a forward and backward pass costs besides its tokens, in tokens: mostly gradients that are added to those there.
TOKENS_PER_PASS = {"cpu": 96, "cuda": 4096}
MAX_HISTORY_ROWS = 500  # rows of kind "step" over the whole run


@dataclass(frozen=True)
class Examples:
    """Token shards with the label and the split of each of their rows."""

    shards: TokenShards
    label_ids_N: np.ndarray  # int32; < 0: the row has no usable label
    train: np.ndarray  # example numbers of the train split, ascending
    validation: np.ndarray  # example numbers of the validation split, ascending


@dataclass(frozen=True)
class LoopSettings:
    """What a worker must know besides its examples."""

    labels: tuple[str, ...]
    training: Training
    seed: int
    run_key: str
    threads: int | None


@dataclass(frozen=True)
class Outcome:
    """What training leaves behind, equal on every rank."""

    best_step: int
    num_steps: int
    history: list[dict[str, Any]]
    validation_logits_VC: np.ndarray
    validation_label_ids_V: np.ndarray
    resumed_from: int | None
    seconds: float


def load_classifier(
    folder: Path, labels: tuple[str, ...], training: Training, *, bf16: bool, device: str
) -> PreTrainedModel:
    """Model with a classification head for `labels`; dropout on attention weights only when asked for.

    Attention is torch's fused one where the architecture has it and it is fast, else plain matrix products.
    """
    import torch
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    if not training.attention_dropout:
        for name in ("attention_probs_dropout_prob", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    has_fused = getattr(model_class, "_supports_sdpa", True)  # DeBERTa-v2 has none, and refuses to load with it
    # On CPU the bf16 kernel of fused attention has a backward several times slower than plain matrix products.
    implementation = "eager" if not has_fused or (device == "cpu" and bf16) else "sdpa"
    with _quiet_transformers():
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=implementation,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
        )


def run_loop(
    examples: Examples,
    model_folder: Path,
    pad_id: int,
    settings: LoopSettings,
    store: Store,
    *,
    device: str = "cpu",
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Train, or resume, to the end; every rank calls it with the same arguments, but for `on_progress`.

    An example is one sequence. Where `long_text` is `windows` the token shards hold the first window of each review,
    so training, the validation figures and the logits to fit a temperature on see that window alone.

    Args:
        on_progress: called by rank 0 about once a second; one that fails with a BertrayError or an OSError is logged
            once and does not end training.
        on_epoch: called by rank 0 with the row of the history of each epoch, after its checkpoint; after a resume with
            those of the epochs before it first.

    Raises:
        Diverged: the loss or the gradient is not finite; the last checkpoint, which is finite, is kept. Every rank
            raises it.
        InfrastructureError: a checkpoint cannot be written. Every rank raises it.
        DataRefused: a split has no example.
    """
    return _Loop(examples, model_folder, pad_id, settings, store, device, on_progress, on_epoch).run()


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
    ) -> None:
        import torch
        import torch.distributed as dist

        if len(examples.train) == 0 or len(examples.validation) == 0:
            raise DataRefused(
                f"data.train: {len(examples.train)} train and {len(examples.validation)} validation examples; "
                "both need at least one.",
                "Give more labelled reviews, or data.validation.",
            )
        self.examples, self.pad_id, self.settings, self.store = examples, pad_id, settings, store
        self.device, self.on_progress, self.on_epoch = device, on_progress, on_epoch
        self.distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        if settings.threads and device == "cpu":
            torch.set_num_threads(settings.threads)
        training = settings.training
        self.bf16 = _use_bf16(training.precision, device)
        torch.manual_seed(settings.seed)  # a new head starts the same on every rank
        classifier = load_classifier(model_folder, settings.labels, training, bf16=self.bf16, device=device)
        # The signature, not the code object: transformers wraps `forward` in decorators. As the engine does it.
        self._takes_types = (
            "token_type_ids" in inspect.signature(classifier.forward).parameters
            and getattr(classifier.config, "type_vocab_size", 0) > 1
        )
        if device == "cpu":
            from bertray.training.dropout import use_fast_dropout

            use_fast_dropout(classifier)
        self.raw_model: torch.nn.Module = classifier.to(device)
        self.packed = self._packed(classifier) if device == "cpu" else None
        self.net: torch.nn.Module = self.packed or self.raw_model  # gives the logits
        self.model = self.net  # or, on several workers, that in DDP
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.raw_model, training.weight_decay), lr=training.learning_rate, fused=True
        )
        label_ids_N = examples.label_ids_N
        weights = (
            balanced_weights(label_ids_N[examples.train], len(settings.labels))
            if training.class_weights == "balanced"
            else [1.0] * len(settings.labels)
        )
        self.class_weights_C = np.asarray(weights, np.float64)
        self.steps_per_epoch = num_steps(len(examples.train), training.batch_size)
        self.total_steps = self.steps_per_epoch * training.epochs
        self.log_every = -(-self.total_steps // MAX_HISTORY_ROWS)
        self.progress = Progress()
        self.resumed_from: int | None = None
        self.best_logits_VC: np.ndarray | None = None
        self._last_save = self._started = time.monotonic()
        self._last_report = 0.0
        self._report_failed = False

    def run(self) -> Outcome:
        checkpoint = load_latest(self.store, self.settings.run_key)
        if checkpoint is not None:
            self._restore(checkpoint)
            self.resumed_from = checkpoint.progress.step
            if self.rank == 0:
                log.info("resuming at step %d of %d", checkpoint.progress.step + 1, self.total_steps)
        if self.world_size > 1:
            import torch

            ids = [torch.cuda.current_device()] if self.device.startswith("cuda") else None
            self.model = torch.nn.parallel.DistributedDataParallel(self.net, device_ids=ids)
        for row in self.progress.history:
            if row["kind"] == "eval":
                self._tell_epoch(row)
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
            validation_logits_VC=self._best_validation_logits(best),
            validation_label_ids_V=self.examples.label_ids_N[self.examples.validation],
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
            if save_now:
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
        total_weight = float(self.class_weights_C[self.examples.label_ids_N[members]].sum())
        share = rank_share(members, rank=self.rank, world_size=self.world_size)
        # A rank without examples still takes part in the all-reduce: one example, weight zero.
        idle = len(share) == 0
        batches = self._passes(shards.lens_N[share])
        passes = [members[:1]] if idle else [share[positions] for positions in batches]
        loss_sum = 0.0
        for number, batch in enumerate(passes):
            last = number == len(passes) - 1
            with contextlib.nullcontext() if last or self.world_size == 1 else self._no_sync():
                losses_B = self._losses(batch) * (0.0 if idle else 1.0)
                # DDP averages gradients over ranks; times world_size makes the average a sum over the step.
                (losses_B.sum() * (self.world_size / total_weight)).backward()  # type: ignore[no-untyped-call]
                loss_sum += float(losses_B.detach().sum())
        save_due = time.monotonic() - self._last_save >= training.checkpoint_every_s
        loss_sum, save_votes, tokens = self._sum_over_ranks(
            loss_sum, float(save_due and self.rank == 0), float(shards.lens_N[share].sum())
        )
        loss = loss_sum / total_weight
        self._check_finite("loss", loss)
        # A finite loss may have a gradient that is not; clipping would spread it over all weights. After the
        # all-reduce every rank has the same norm.
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.max_grad_norm)
        self._check_finite("gradient", float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, save_votes > 0, int(tokens)

    def _check_finite(self, what: str, value: float) -> None:
        if not np.isfinite(value):
            raise Diverged(
                f"training: the {what} is {value} at step {self.progress.step + 1}; the last checkpoint is finite.",
                "Lower training.learning_rate or set training.precision=fp32, in a new output.",
            )

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of all but the last pass stay on this rank."""
        no_sync: Callable[[], contextlib.AbstractContextManager[None]] = getattr(self.model, "no_sync")  # noqa: B009
        return no_sync()

    def _losses(self, batch: np.ndarray) -> torch.Tensor:
        """Weighted cross-entropy of each example: float32 [B]."""
        import torch

        labels_B = torch.from_numpy(self.examples.label_ids_N[batch].astype(np.int64)).to(self.device)
        weights_C = torch.from_numpy(self.class_weights_C).float().to(self.device)
        logits_BC = self._logits(batch)
        return torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="none") * weights_C[labels_B]

    def _packed(self, classifier: PreTrainedModel) -> PackedClassifier | None:
        from bertray.training.packed import PackedClassifier

        packed, why_not = PackedClassifier.of(classifier)
        if packed is None and self.rank == 0:
            log.info("trains on padded batches, more slowly: %s", why_not)
        return packed

    def _passes(self, lens_B: np.ndarray) -> list[np.ndarray]:
        """The share of a step in forward and backward passes."""
        most = self.settings.training.max_tokens_per_microbatch
        if self.packed is not None:
            return by_tokens(lens_B, max_tokens=most)
        per_pass = TOKENS_PER_PASS[self.device.partition(":")[0]]
        return cheapest_passes(lens_B, max_tokens=most, tokens_per_pass=per_pass)

    def _logits(self, batch: np.ndarray) -> torch.Tensor:
        import torch

        if self.packed is not None:
            from bertray.training.packed import pack

            shards = self.examples.shards
            packed = pack(shards.sequences(batch), shards.second_lens_N[batch], self.packed.classifier.config)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
                return self.model(packed).float()  # type: ignore[no-any-return]
        inputs = self.examples.shards.padded(batch, self.pad_id)
        if not self._takes_types:
            del inputs["token_type_ids"]
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        with torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=self.bf16):
            return self.model(**tensors).logits.float()  # type: ignore[no-any-return]

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
        logits_VC = self._validation_logits()
        figures = _figures(logits_VC, self.examples.label_ids_N[self.examples.validation])
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
        value = -figures["loss"] if training.best_metric == "loss" else figures[training.best_metric]
        if not np.isfinite([value, figures["loss"]]).all():
            raise Diverged(
                "training: the validation loss is not finite; the last checkpoint before it is kept.",
                "Lower training.learning_rate or set training.precision=fp32, in a new output.",
            )
        if progress.best_value is None or value > progress.best_value:
            progress.best_value, progress.best_step, progress.epochs_without_gain = value, progress.step, 0
            self.best_logits_VC = logits_VC
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

    def _validation_logits(self) -> np.ndarray:
        """Logits of every validation example, on every rank: float32 [V, C]."""
        import torch

        validation = self.examples.validation
        logits_VC = torch.zeros(len(validation), len(self.settings.labels), dtype=torch.float64)
        mine = np.arange(self.rank, len(validation), self.world_size)
        lens = self.examples.shards.lens_N[validation[mine]]
        self.net.eval()
        wrapped, self.model = self.model, self.net  # no DDP hooks: ranks may do different numbers of passes
        with torch.inference_mode():
            most = self.settings.training.max_tokens_per_microbatch
            for positions in (by_tokens if self.packed else by_padded_tokens)(lens, max_tokens=most):
                rows = mine[positions]
                logits_VC[torch.from_numpy(rows)] = self._logits(validation[rows]).double().cpu()
        self.model = wrapped
        if self.world_size > 1:
            logits_VC = logits_VC.to(self.device)
            torch.distributed.all_reduce(logits_VC)
        self.model.train()
        return logits_VC.float().cpu().numpy()

    def _best_validation_logits(self, best_step: int) -> np.ndarray:
        """Logits of the best epoch; computed again when this process did not see that epoch."""
        if self.best_logits_VC is None:
            checkpoint = load_step(self.store, best_step, self.settings.run_key)
            if checkpoint is None:
                raise InfrastructureError(
                    f"training: the best checkpoint (step {best_step}) is damaged.", "Train again in a new output."
                )
            self.raw_model.load_state_dict(checkpoint.model)
            self.best_logits_VC = self._validation_logits()
        return self.best_logits_VC

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
        state, optimizer = _on_cpu(self.raw_model.state_dict()), _on_cpu(optimizer_tensors(self.optimizer))
        save_checkpoint(self.store, Checkpoint(self.progress, state, optimizer, self.settings.run_key))
        best = {self.progress.best_step} if self.progress.best_step is not None else set()
        prune(self.store, best)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.raw_model.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.progress = checkpoint.progress

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


def _use_bf16(precision: str, device: str) -> bool:
    import torch

    from bertray.model.engine import choose_dtype

    return choose_dtype(precision, torch.device(device)) == torch.bfloat16


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: not on biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _figures(logits_VC: np.ndarray, label_ids_V: np.ndarray) -> dict[str, float]:
    """Validation figures over the whole split, never averaged over batches."""
    from scipy.special import log_softmax
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted_V = logits_VC.argmax(axis=1)
    log_probs_VC = log_softmax(logits_VC.astype(np.float64), axis=1)
    return {
        "loss": float(-log_probs_VC[np.arange(len(label_ids_V)), label_ids_V].mean()),
        "accuracy": float(accuracy_score(label_ids_V, predicted_V)),
        "macro_f1": float(f1_score(label_ids_V, predicted_V, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(label_ids_V, predicted_V)),
    }


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


@contextlib.contextmanager
def _quiet_transformers() -> Any:
    """A new classification head is what we want; transformers warns of it at length."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
