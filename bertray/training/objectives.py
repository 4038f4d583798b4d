"""Objectives: a model, the loss of its examples, and the validation metrics of an epoch.

The loop knows steps, ranks and checkpoints; an objective knows what is computed of some examples. All of it is a
function of the examples, the seed, the epoch and the weights, so that any number of ranks computes the same, but for
dropout: each rank draws its own.

Shape letters: B examples of a micro-batch, C classes, V validation rows, K numbers kept of each.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.errors import ConfigError
from bertray.model.calibration import offsets_to_shares
from bertray.model.pretrained.files import calling
from bertray.training.adapters import adapt
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.loading import LoadSettings, load_aspect_classifier, load_classifier
from bertray.training.order import (
    balanced_weights,
    cheapest_microbatches,
    epoch_steps,
    num_steps,
    within_budget,
)
from bertray.training.token_shards import padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from bertray.model.aspect_attention import AspectClassifier
    from bertray.training.packed import PackedBatch, PackedModel

log = logging.getLogger(__name__)

FEW_SHAPES = 32  # tokens of a packed step in bf16 are a multiple of it
# What a forward and backward pass costs besides its tokens, in tokens: on a CPU mostly gradients that are added to
# those there, on a GPU the launches of its kernels.
TOKENS_PER_MICROBATCH = {"cpu": 96, "cuda": 32_768}
CPU_MOST_TOKENS = 8192  # of a forward and backward pass
GPU_LEAST_TOKENS, GPU_MOST_TOKENS = 2048, 65_536
# Activations that wait for the backward pass, in bytes a token, layer and hidden unit, in 16 bit with norms in fp32;
# and bytes a weight: itself, its gradient (twice, where ranks exchange it) and two averages. Estimates: beside the
# weights a GPU's memory is to hold twice the activations.
ACTIVATION_BYTES, WEIGHT_BYTES = 64, 20


class Objective(ABC):
    """A model and what it is to learn.

    Args:
        examples: what there is to learn from.
        folder: of the model, as `from_pretrained` loads it.
        pad_id: padding token; padded positions never count.
        settings: of the run.
        says: log warnings; one rank of all does.
    """

    judged_untrained = False
    """Whether the figures before the first step are worth their time."""
    width: int
    """K."""
    validation_lens_V: np.ndarray
    """Tokens of each validation row."""

    def __init__(
        self, examples: Examples, folder: Path, pad_id: int, settings: LoopSettings, device: str, *, says: bool = True
    ) -> None:

        self.examples, self.folder, self.pad_id = examples, folder, pad_id
        self.settings, self.device = settings, device
        self.dtype = compute_dtype(settings.training.precision, device)
        """Number format of the forward and backward pass."""
        self.model: PreTrainedModel | AspectClassifier = self._loaded()
        # The signature, not the code object: transformers wraps `forward` in decorators. As the engine does it.
        self._takes_types = (
            "token_type_ids" in inspect.signature(self.model.forward).parameters
            and getattr(self.model.config, "type_vocab_size", 0) > 1
        )
        if device == "cpu":
            from bertray.training.dropout import use_fast_dropout

            use_fast_dropout(self.model)
        self.packed, why_not = self._as_packed()
        if self.packed is None:
            if says:
                log.info("trains on padded batches, more slowly: %s", why_not)
            self.model.to(device)
            self._try_padded()
        self.net: torch.nn.Module = self.packed or self._padded_net()
        """Gives what the loss is made of; DDP wraps it."""
        self.max_tokens = settings.training.max_tokens_per_microbatch or default_max_tokens(self.model, device)
        """Tokens of one forward and backward pass, padding included."""
        self._prepare()

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16."""
        import torch

        return self.dtype == torch.bfloat16

    @property
    def load_settings(self) -> LoadSettings:
        """Choices that `_load` loads the model with."""
        return LoadSettings(self.settings.training.attention_dropout, self.bf16, self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether its device is a GPU."""
        return self.device != "cpu"

    def _loaded(self) -> PreTrainedModel | AspectClassifier:
        import torch

        torch.manual_seed(self.settings.seed)  # what is new starts the same on every rank
        return self._load(self.folder)

    def _as_packed(self) -> tuple[PackedModel | None, str]:
        """The model on its device as one that trains without padding, or why it is none."""
        import torch

        from bertray.training.packed import PackedModel

        packed, why_not = PackedModel.of(self.model, kernels_in=None if self.on_gpu else self.dtype)
        if packed is not None and self.on_gpu and (why_not := packed.to_gpu(torch.device(self.device), self.dtype)):
            packed, self.model = None, self._loaded()  # as its family made it, without changed layers
        return packed, why_not

    # --- what each has of its own -------------------------------------------------------------------------------------

    @abstractmethod
    def _load(self, folder: Path) -> PreTrainedModel | AspectClassifier:
        """The model in fp32."""

    def _try_padded(self) -> None:
        """Call the model on two sequences; in fp32 from here on where it cannot be called in fewer bits.

        Weights without a gradient, such as those of a pooler that nothing reads, are frozen: DDP would wait for it.
        """
        import torch

        try:
            with calling(self.folder), self._precision():
                tried = np.arange(4) % self.model.get_input_embeddings().weight.shape[0]
                outputs = self.model(**self.on_device(self._padded([tried, tried[:2]], np.zeros(2, np.int64))))
            out = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
            self.freeze_unread(out.float().sum())
        except ConfigError as error:
            if self.dtype == torch.float32:
                raise
            log.warning("trains in fp32: %s", error.message)
            self.dtype = torch.float32
            self._try_padded()

    def freeze_unread(self, out: torch.Tensor) -> None:
        """Freeze weights that a number which the model gave does not depend on."""
        out.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def _padded_net(self) -> torch.nn.Module:
        net: torch.nn.Module = self.model
        return net

    @abstractmethod
    def _prepare(self) -> None:
        """Prepares what depends on examples and model alone; sets `width` and `validation_lens_V`."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return num_steps(len(self.examples.train), self.settings.training.batch_size)

    def members_of_steps(self, epoch: int) -> list[np.ndarray]:
        """Examples of each optimizer step of an epoch, over all ranks, the longest first; by default each once."""
        examples, settings = self.examples, self.settings
        lens_N, size = examples.shards.lens_N[examples.train], settings.training.batch_size
        steps = epoch_steps(lens_N, batch_size=size, seed=settings.seed, epoch=epoch)
        return [examples.train[step] for step in steps]

    @abstractmethod
    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        """Called on every rank with all examples of a step; returns by what the sum of their losses is divided.

        It and `inputs` may be called for the next step, in another thread, while `loss` computes this one.
        """

    @abstractmethod
    def inputs(self, batch: np.ndarray) -> Any:
        """Inputs of a pass over some examples of the step that began last: tensors of the host, and plain values."""

    @abstractmethod
    def loss(self, net: torch.nn.Module, inputs: Any) -> torch.Tensor:
        """Weighted losses of a pass, summed; its inputs as `inputs` made them, on the device."""

    @abstractmethod
    def validate(self, numbers: np.ndarray) -> np.ndarray:
        """[B, K] of some validation rows, by `net`; float64."""

    @abstractmethod
    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        """`loss` and whatever else `best_metric` may name, of all validation rows."""

    # --- what they share ----------------------------------------------------------------------------------------------

    @property
    def best_metric(self) -> str:
        """The figure that chooses the best epoch; all but `loss` are better when larger."""
        return "loss"

    def microbatches(self, lens_B: np.ndarray) -> list[np.ndarray]:
        """The share of a step in forward and backward passes."""
        if self.packed is not None:
            return within_budget(lens_B, max_tokens=self.max_tokens, padded=False)
        per_pass = TOKENS_PER_MICROBATCH[self.device.partition(":")[0]]
        return cheapest_microbatches(lens_B, max_tokens=self.max_tokens, tokens_per_microbatch=per_pass)

    def validation_microbatches(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Some validation rows, a forward pass after the other."""
        lens = self.validation_lens_V[numbers]
        for positions in within_budget(lens, max_tokens=self.max_tokens, padded=self.packed is None):
            yield numbers[positions]

    def net_inputs(self, ids: Sequence[np.ndarray], second_lens_B: np.ndarray) -> PackedBatch | dict[str, torch.Tensor]:
        """Sequences as the model reads them, packed or padded, on the host."""
        return self._padded(ids, second_lens_B) if self.packed is None else self._pack(ids, second_lens_B)

    def net_inputs_of(self, batch: np.ndarray) -> PackedBatch | dict[str, torch.Tensor]:
        """Some examples as the model reads them, on the host."""
        shards = self.examples.shards
        return self.net_inputs(shards.sequences(batch), shards.second_lens_N[batch])

    def _pack(self, ids: Sequence[np.ndarray], second_lens_B: np.ndarray) -> PackedBatch:
        from bertray.training.packed import pack

        assert self.packed is not None
        # oneDNN prepares each shape anew in bf16; our kernels and a GPU do not.
        few = self.bf16 and not self.packed.own_kernels and not self.on_gpu
        in_groups = not self.packed.varlen
        return pack(
            ids, second_lens_B, self.model.config, tokens_multiple=FEW_SHAPES if few else 1, in_groups=in_groups
        )

    def _padded(self, ids: Sequence[np.ndarray], second_lens_B: np.ndarray) -> dict[str, torch.Tensor]:
        import torch

        inputs = padded(ids, second_lens_B, self.pad_id)
        if not self._takes_types:
            del inputs["token_type_ids"]
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def pinned(self, inputs: Any) -> Any:
        """Inputs of a pass in memory from which a copy to a GPU waits for nothing that is queued there."""
        from bertray.training.inputs import over_tensors

        return over_tensors(inputs, lambda tensor: tensor.pin_memory()) if self.on_gpu else inputs

    def on_device(self, inputs: Any) -> Any:
        """Inputs of a pass on the device."""
        from bertray.training.inputs import over_tensors

        return over_tensors(inputs, lambda x: x.to(self.device, non_blocking=True)) if self.on_gpu else inputs

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        import torch

        with torch.autocast(self.device.partition(":")[0], dtype=self.dtype, enabled=self.dtype != torch.float32):
            yield


# --- classes ---------------------------------------------------------------------------------------------------------


class Classification(Objective):
    """Weighted cross-entropy of the given labels; judged by the logits of the validation split."""

    def _prepare(self) -> None:
        import torch

        training, examples, settings = self._training, self.examples, self.settings
        weights = (
            balanced_weights(examples.label_ids_N[examples.train], len(settings.labels))
            if training.class_weights == "balanced"
            else [1.0] * len(settings.labels)
        )
        self.class_weights_C = np.asarray(weights, np.float64)
        self._weights_C = torch.tensor(weights, dtype=torch.float64).float().to(self.device)
        self.width = len(settings.labels)
        self.validation_lens_V = examples.shards.lens_N[examples.validation]

    @property
    def _training(self) -> TrainingSettings:
        training = self.settings.training
        assert isinstance(training, TrainingSettings)
        return training

    @property
    def best_metric(self) -> str:
        return self._training.best_metric

    def _load(self, folder: Path) -> PreTrainedModel | AspectClassifier:
        model = load_classifier(folder, self.settings.labels, self.load_settings)
        adapt(model, self._training)
        return model

    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        return float(self.class_weights_C[self.examples.label_ids_N[members]].sum())

    def inputs(self, batch: np.ndarray) -> Any:
        import torch

        return self.net_inputs_of(batch), torch.from_numpy(self.examples.label_ids_N[batch].astype(np.int64))

    def loss(self, net: torch.nn.Module, inputs: Any) -> torch.Tensor:
        import torch

        net_inputs, labels_B = inputs
        losses_B = torch.nn.functional.cross_entropy(self._logits(net, net_inputs), labels_B, reduction="none")
        return (losses_B * self._weights_C[labels_B]).sum()

    def logits(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        """Logits of some examples, fp32 [B, C]."""
        return self._logits(net, self.on_device(self.net_inputs_of(batch)))

    def _logits(self, net: torch.nn.Module, net_inputs: Any) -> torch.Tensor:
        with self._precision():
            logits_BC: torch.Tensor = net(net_inputs) if self.packed is not None else net(**net_inputs).logits
        return logits_BC.float()

    def validate(self, numbers: np.ndarray) -> np.ndarray:
        logits_BC: np.ndarray = self.logits(self.net, self.examples.validation[numbers]).double().cpu().numpy()
        return logits_BC

    def predicted(self, rows_VK: np.ndarray) -> np.ndarray:
        """Class of each validation row, int64 [V]."""
        if self._training.match_shares:
            rows_VK = rows_VK + offsets_to_shares(rows_VK, self.examples.label_ids_N[self.examples.validation])
        predicted_V: np.ndarray = rows_VK.argmax(axis=1)
        return predicted_V

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        """Metrics over the whole split, never averaged over batches."""
        from scipy.special import log_softmax
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        label_ids_V = self.examples.label_ids_N[self.examples.validation]
        predicted_V = self.predicted(rows_VK)
        log_probs_VC = log_softmax(rows_VK.astype(np.float64), axis=1)
        return {
            "loss": float(-log_probs_VC[np.arange(len(label_ids_V)), label_ids_V].mean()),
            "accuracy": float(accuracy_score(label_ids_V, predicted_V)),
            "macro_f1": float(f1_score(label_ids_V, predicted_V, average="macro", zero_division=0)),
            "mcc": float(matthews_corrcoef(label_ids_V, predicted_V)),
        }


class AspectClassification(Classification):
    """Cross-entropy of a classifier that pools the tokens of a review by a query of its aspect."""

    def _load(self, folder: Path) -> AspectClassifier:
        model = load_aspect_classifier(folder, self.settings.labels, self.load_settings)
        adapt(model, self._training)
        return model


class Distillation(Classification):
    """The distance to a teacher's probabilities, both softened; judged by how near the student comes to the teacher.

    What `figures` calls accuracy is the share of rows with the teacher's label.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (section 2): softened by a
    temperature, and times its square, so that gradients keep their size.
    """

    def _prepare(self) -> None:
        super()._prepare()
        assert self.examples.soft_NC is not None
        self._soft_NC = self.examples.soft_NC

    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        return float(len(members))

    def inputs(self, batch: np.ndarray) -> Any:
        import torch

        return self.net_inputs_of(batch), torch.from_numpy(self._soft_NC[batch])

    def loss(self, net: torch.nn.Module, inputs: Any) -> torch.Tensor:
        from torch.nn.functional import kl_div, log_softmax

        net_inputs, soft_BC = inputs
        temperature = self._training.softness
        wanted_BC = log_softmax(soft_BC / temperature, dim=1)
        found_BC = log_softmax(self._logits(net, net_inputs) / temperature, dim=1)
        return kl_div(found_BC, wanted_BC, reduction="sum", log_target=True) * temperature**2

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        from scipy.special import log_softmax

        temperature = self._training.softness
        wanted_VC = log_softmax(self._soft_NC[self.examples.validation].astype(np.float64) / temperature, axis=1)
        found_VC = log_softmax(rows_VK / temperature, axis=1)
        loss = float((np.exp(wanted_VC) * (wanted_VC - found_VC)).sum(axis=1).mean()) * temperature**2
        return super().figures(rows_VK) | {"loss": loss}


# --- device ---------------------------------------------------------------------------------------------------------


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """Number format of training on a device.

    Raises:
        ConfigError: the device does not compute in the one that is asked for.
    """
    import torch

    from bertray.model.engine import choose_dtype

    return choose_dtype(precision, torch.device(device))


def default_max_tokens(model: PreTrainedModel | AspectClassifier, device: str) -> int:
    """Tokens of a forward and backward pass where nobody says: on a GPU as many as its memory is likely to hold."""
    import torch

    if device == "cpu":
        return CPU_MOST_TOKENS
    layers = getattr(model.config, "num_hidden_layers", None) or 12
    hidden = getattr(model.config, "hidden_size", None) or 768
    memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
    free = memory - WEIGHT_BYTES * sum(parameter.numel() for parameter in model.parameters())
    tokens = free // (2 * ACTIVATION_BYTES * layers * hidden)
    return int(min(max(tokens, GPU_LEAST_TOKENS), GPU_MOST_TOKENS))
