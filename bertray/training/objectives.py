"""Objectives: a model, the loss of its examples, and the validation metrics of an epoch.

The loop knows steps, ranks and checkpoints; an objective knows what is computed of some examples. All of it is a
function of the examples, the seed, the epoch and the weights, so that any number of ranks computes the same, but for
dropout: each rank draws its own.

Shape letters: B examples of a micro-batch, C classes, V what is held out, K numbers kept of each, L padded length,
D hidden, M masked tokens, W words of the vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.errors import ConfigError
from bertray.model.calibration import offsets_to_shares
from bertray.model.pretrained import calling, load_for_training, read_json, single_label_classes
from bertray.training.examples import Examples, LoopSettings, Optimization, PretrainingSettings, TrainingSettings
from bertray.training.masking import Masked, Masker, Vocabulary, held_out_places
from bertray.training.order import balanced_weights, cheapest_microbatches, within_budget
from bertray.training.token_shards import padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from bertray.training.packed import PackedBatch, PackedModel

log = logging.getLogger(__name__)

FEW_SHAPES = 32  # tokens of a packed step in bf16 are a multiple of it
# What a forward and backward pass costs besides its tokens, in tokens: mostly gradients that are added to those there.
TOKENS_PER_MICROBATCH = {"cpu": 96, "cuda": 4096}


class Objective(ABC):
    """A model and what it is to learn.

    Args:
        examples: what there is to learn from.
        folder: of the model, as `from_pretrained` loads it.
        pad_id: padding token; padded positions never count.
        settings: of the run.
        device: as torch names it.
        says: log warnings; one rank of all does.
    """

    judged_untrained = False
    """Whether the figures before the first step are worth their time."""
    width: int
    """K."""
    held_out_lens_V: np.ndarray
    """Tokens of each of what is held out."""

    def __init__(
        self, examples: Examples, folder: Path, pad_id: int, settings: LoopSettings, device: str, *, says: bool = True
    ) -> None:
        import torch

        self.examples, self.folder, self.pad_id = examples, folder, pad_id
        self.settings, self.device = settings, device
        self.bf16 = _use_bf16(settings.training.precision, device)
        torch.manual_seed(settings.seed)  # what is new starts the same on every rank
        self.model: PreTrainedModel = self._load(folder)
        # The signature, not the code object: transformers wraps `forward` in decorators. As the engine does it.
        self._takes_types = (
            "token_type_ids" in inspect.signature(self.model.forward).parameters
            and getattr(self.model.config, "type_vocab_size", 0) > 1
        )
        if device == "cpu":
            from bertray.training.dropout import use_fast_dropout

            use_fast_dropout(self.model)
        self.model.to(device)
        self.packed: PackedModel | None = None
        if device == "cpu":
            from bertray.training.packed import PackedModel

            self.packed, why_not = PackedModel.of(self.model, bf16=self.bf16)
            if self.packed is None and says:
                log.info("trains on padded batches, more slowly: %s", why_not)
        if self.packed is None:
            self._try_padded()
        self.net: torch.nn.Module = self.packed or self._padded_net()
        """Gives what the loss is made of; DDP wraps it."""
        self._prepare()

    # --- what each has of its own -------------------------------------------------------------------------------------

    @abstractmethod
    def _load(self, folder: Path) -> PreTrainedModel:
        """The model in fp32."""

    def _try_padded(self) -> None:
        """Call the model on two sequences; in fp32 from here on where it cannot be called in bf16."""
        import torch

        try:
            with calling(self.folder), torch.no_grad(), self._precision():
                tried = np.arange(4) % self.model.get_input_embeddings().weight.shape[0]
                self.model(**self._padded([tried, tried[:2]], np.zeros(2, np.int64)))
        except ConfigError as error:
            if not self.bf16:
                raise
            log.warning("trains in fp32: %s", error.message)
            self.bf16 = False
            self._try_padded()

    def _padded_net(self) -> torch.nn.Module:
        net: torch.nn.Module = self.model
        return net

    @abstractmethod
    def _prepare(self) -> None:
        """Prepares what depends on examples and model alone; sets `width` and `held_out_lens_V`."""

    @abstractmethod
    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        """Called on every rank with all examples of a step; returns by what the sum of their losses is divided."""

    @abstractmethod
    def loss(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        """Weighted losses of the examples of a pass, summed."""

    @abstractmethod
    def held_out(self, numbers: np.ndarray) -> np.ndarray:
        """[B, K] of some of what is held out, by `net`; float64."""

    @abstractmethod
    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        """`loss` and whatever else `best_metric` may name, of all that is held out."""

    # --- what they share ----------------------------------------------------------------------------------------------

    @property
    def best_metric(self) -> str:
        """The figure that chooses the best epoch; all but `loss` are better when larger."""
        return "loss"

    def microbatches(self, lens_B: np.ndarray) -> list[np.ndarray]:
        """The share of a step in forward and backward passes."""
        most = self.settings.training.max_tokens_per_microbatch
        if self.packed is not None:
            return within_budget(lens_B, max_tokens=most, padded=False)
        per_pass = TOKENS_PER_MICROBATCH[self.device.partition(":")[0]]
        return cheapest_microbatches(lens_B, max_tokens=most, tokens_per_microbatch=per_pass)

    def held_out_microbatches(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Some of what is held out, a forward pass after the other."""
        most = self.settings.training.max_tokens_per_microbatch
        lens = self.held_out_lens_V[numbers]
        for positions in within_budget(lens, max_tokens=most, padded=self.packed is None):
            yield numbers[positions]

    def _pack(self, ids: Sequence[np.ndarray], second_lens_B: np.ndarray) -> PackedBatch:
        from bertray.training.packed import pack

        # oneDNN prepares each shape anew in bf16; our kernels do not.
        few = self.bf16 and self.packed is not None and not self.packed.own_kernels
        return pack(ids, second_lens_B, self.model.config, tokens_multiple=FEW_SHAPES if few else 1)

    def _padded(self, ids: Sequence[np.ndarray], second_lens_B: np.ndarray) -> dict[str, torch.Tensor]:
        import torch

        inputs = padded(ids, second_lens_B, self.pad_id)
        if not self._takes_types:
            del inputs["token_type_ids"]
        return {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        import torch

        with torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=self.bf16):
            yield


# --- classes ---------------------------------------------------------------------------------------------------------


class Classification(Objective):
    """Weighted cross-entropy of the given labels; judged by the logits of the validation split."""

    def _prepare(self) -> None:
        training, examples, settings = self._training, self.examples, self.settings
        weights = (
            balanced_weights(examples.label_ids_N[examples.train], len(settings.labels))
            if training.class_weights == "balanced"
            else [1.0] * len(settings.labels)
        )
        self.class_weights_C = np.asarray(weights, np.float64)
        self.width = len(settings.labels)
        self.held_out_lens_V = examples.shards.lens_N[examples.validation]

    @property
    def _training(self) -> TrainingSettings:
        training = self.settings.training
        assert isinstance(training, TrainingSettings)
        return training

    @property
    def best_metric(self) -> str:
        return self._training.best_metric

    def _load(self, folder: Path) -> PreTrainedModel:
        return load_classifier(folder, self.settings.labels, self.settings.training, bf16=self.bf16, device=self.device)

    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        return float(self.class_weights_C[self.examples.label_ids_N[members]].sum())

    def loss(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        import torch

        labels_B = torch.from_numpy(self.examples.label_ids_N[batch].astype(np.int64)).to(self.device)
        weights_C = torch.from_numpy(self.class_weights_C).float().to(self.device)
        losses_B = torch.nn.functional.cross_entropy(self.logits(net, batch), labels_B, reduction="none")
        return (losses_B * weights_C[labels_B]).sum()

    def logits(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        """Logits of some examples, fp32 [B, C]."""
        shards = self.examples.shards
        ids, second_lens_B = shards.sequences(batch), shards.second_lens_N[batch]
        if self.packed is not None:
            with self._precision():
                logits_BC: torch.Tensor = net(self._pack(ids, second_lens_B))
            return logits_BC.float()
        with self._precision():
            padded_BC: torch.Tensor = net(**self._padded(ids, second_lens_B)).logits
        return padded_BC.float()

    def held_out(self, numbers: np.ndarray) -> np.ndarray:
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

    def loss(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        import torch
        from torch.nn.functional import kl_div, log_softmax

        temperature = self._training.softness
        wanted_BC = log_softmax(torch.from_numpy(self._soft_NC[batch]).to(self.device) / temperature, dim=1)
        found_BC = log_softmax(self.logits(net, batch) / temperature, dim=1)
        return kl_div(found_BC, wanted_BC, reduction="sum", log_target=True) * temperature**2

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        from scipy.special import log_softmax

        temperature = self._training.softness
        wanted_VC = log_softmax(self._soft_NC[self.examples.validation].astype(np.float64) / temperature, axis=1)
        found_VC = log_softmax(rows_VK / temperature, axis=1)
        loss = float((np.exp(wanted_VC) * (wanted_VC - found_VC)).sum(axis=1).mean()) * temperature**2
        return super().figures(rows_VK) | {"loss": loss}


# --- words -----------------------------------------------------------------------------------------------------------


class MaskedLanguage(Objective):
    """Cross-entropy of masked tokens; judged by tokens of the validation split, each guessed with all others in sight.

    The mean of those losses is the logarithm of the pseudo-perplexity: Salazar et al. 2020, "Masked Language Model
    Scoring" (section 2), here of a random sample of the tokens.
    """

    judged_untrained = True
    width = 2

    def _prepare(self) -> None:
        settings, examples, training = self.settings, self.examples, self.settings.training
        assert isinstance(training, PretrainingSettings)
        self.vocabulary = Vocabulary.of(self.folder)
        self._masker = Masker(
            self.vocabulary, ratio=training.mask_ratio, whole_words=training.whole_words, seed=settings.seed
        )
        self._step: dict[int, Masked] = {}
        shards, validation = examples.shards, examples.validation
        texts_V, self._places_V = held_out_places(
            shards.sequences(validation), self.vocabulary, most=training.held_out_tokens, seed=settings.seed
        )
        self._held_out_V = validation[texts_V]
        self.held_out_lens_V = shards.lens_N[self._held_out_V]

    def _load(self, folder: Path) -> PreTrainedModel:
        training = self.settings.training
        return _loaded("MaskedLM", folder, training, lambda _: None, bf16=self.bf16, device=self.device)

    def _padded_net(self) -> torch.nn.Module:
        from bertray.training.packed import PaddedLanguageModel

        return PaddedLanguageModel(self.model)

    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        texts = zip(members.tolist(), self.examples.shards.sequences(members), strict=True)
        self._step = {example: self._masker.mask(ids, epoch=epoch, example=example) for example, ids in texts}
        return float(max(1, sum(len(text.places_M) for text in self._step.values())))

    def loss(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        import torch

        masked = [self._step[int(example)] for example in batch]
        logits_MW = self._logits(net, [text.ids_T for text in masked], [text.places_M for text in masked])
        targets_M = torch.from_numpy(np.concatenate([text.targets_M for text in masked])).to(self.device)
        return torch.nn.functional.cross_entropy(logits_MW, targets_M, reduction="sum")

    def held_out(self, numbers: np.ndarray) -> np.ndarray:
        """Loss of each token, and whether it is guessed right."""
        import torch

        texts = [ids.astype(np.int64) for ids in self.examples.shards.sequences(self._held_out_V[numbers])]
        places = self._places_V[numbers]
        targets_B = torch.from_numpy(np.array([ids[place] for ids, place in zip(texts, places, strict=True)]))
        for ids, place in zip(texts, places, strict=True):
            ids[place] = self.vocabulary.mask_id
        logits_BW = self._logits(self.net, texts, [places[row : row + 1] for row in range(len(texts))]).cpu()
        losses_B = torch.nn.functional.cross_entropy(logits_BW, targets_B, reduction="none")
        right_B = logits_BW.argmax(dim=1) == targets_B
        return np.stack([losses_B.double().numpy(), right_B.double().numpy()], axis=1)

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        losses_V, right_V = rows_VK.T
        loss = float(losses_V.mean())
        half = 1.96 * error_of_mean(losses_V, self._held_out_V)
        return {
            "loss": loss,
            "accuracy": float(right_V.mean()),
            "perplexity": float(np.exp(loss)),
            "perplexity_low": float(np.exp(loss - half)),
            "perplexity_high": float(np.exp(loss + half)),
        }

    def _logits(self, net: torch.nn.Module, texts: list[np.ndarray], places: list[np.ndarray]) -> torch.Tensor:
        """Logits over the vocabulary at some places of each text, text after text: fp32 [M, W]."""
        import torch

        second_lens_B = np.zeros(len(texts), np.int64)
        num_places = np.array([len(of_one) for of_one in places])
        if self.packed is not None:
            packed = self._pack(texts, second_lens_B)
            starts_B = packed.first_tokens_B[packed.places_B].numpy()
            read_M = torch.from_numpy(np.repeat(starts_B, num_places) + np.concatenate(places))
            with self._precision():
                logits_MW: torch.Tensor = net(packed, read_M)
            return logits_MW.float()
        inputs = self._padded(texts, second_lens_B)
        starts_B = np.arange(len(texts)) * inputs["input_ids"].shape[1]
        read_M = torch.from_numpy(np.repeat(starts_B, num_places) + np.concatenate(places)).to(self.device)
        with self._precision():
            padded_MW: torch.Tensor = net(inputs, read_M)
        return padded_MW.float()


def error_of_mean(values_V: np.ndarray, groups_V: np.ndarray) -> float:
    """Standard error of the mean of values that come in groups, as tokens of one text do; infinite of one group.

    Args:
        values_V: float [V].
        groups_V: int [V], the group of each value. Where each has its own it is the plain standard error.

    Source: Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference" (section II), of a mean.
    """
    _, group_V = np.unique(groups_V, return_inverse=True)
    sums_G = np.bincount(group_V, weights=values_V - values_V.mean())
    if len(sums_G) < 2:
        return float("inf")
    return float(np.sqrt(len(sums_G) / (len(sums_G) - 1) * (sums_G**2).sum()) / len(values_V))


# --- loading ---------------------------------------------------------------------------------------------------------


def load_classifier(
    folder: Path, labels: tuple[str, ...], training: Optimization, *, bf16: bool, device: str
) -> PreTrainedModel:
    """Model with a classification head for `labels`; dropout on attention weights only when asked for.

    A head that knows these very classes, in whatever order, is kept; its rows are put into the order of `labels`. A
    multi-label or regression head is replaced.

    Raises:
        ConfigError: the folder lacks weights that the encoder has, or has them in other sizes.
    """
    import torch

    before = _known_classes(folder)

    def change(config: Any) -> None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        config.problem_type = "single_label_classification"

    model = _loaded("SequenceClassification", folder, training, change, bf16=bf16, device=device)
    encoder = f"{model.base_model_prefix}."
    if before is None:
        for name, module in model.named_modules():
            if not f"{name}.".startswith(encoder):
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False  # else it is left as it is
                if name:
                    model._init_weights(module)
    elif before != labels and sorted(before) == sorted(labels):
        order = torch.tensor([before.index(label) for label in labels])
        for name, parameter in model.named_parameters():
            if not name.startswith(encoder) and len(parameter) == len(labels):
                parameter.data = parameter.data[order]
    return model


def _known_classes(folder: Path) -> tuple[str, ...] | None:
    """Classes of the head of a folder in id order; None where it is of another kind, and no start for a classifier."""
    try:
        return single_label_classes(read_json(folder / "config.json", str(folder)), str(folder))
    except ConfigError:
        return None


def _loaded(
    kind: str, folder: Path, training: Optimization, change: Callable[[Any], None], *, bf16: bool, device: str
) -> PreTrainedModel:
    """Attention is torch's fused one where the architecture has it and it is fast, else plain matrix products."""

    def change_all(config: Any) -> None:
        change(config)
        if not training.attention_dropout:
            for name in ("attention_probs_dropout_prob", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, 0.0)

    # On CPU the bf16 kernel of fused attention has a backward several times slower than plain matrix products.
    attention = "eager" if device == "cpu" and bf16 else "sdpa"
    model, _ = load_for_training(kind, folder, change_all, attention=attention)
    return model


def _use_bf16(precision: str, device: str) -> bool:
    import torch

    from bertray.model.engine import choose_dtype

    return choose_dtype(precision, torch.device(device)) == torch.bfloat16
