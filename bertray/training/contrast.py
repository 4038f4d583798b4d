"""`training.method=contrast`: an encoder learns to put texts of one class together and those of others apart.

The idea is that of SetFit (Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts", arXiv:2209.11055):
squared error of cosines against 1 for texts of one class and 0 for texts of two. It draws pairs; here all pairs of a
batch of balanced classes count, which learns more from as many texts where there are several classes.

Shape letters: N train examples, E embedded ones, B examples of a step, S those of one rank, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.model.heads import normalized
from bertray.model.pretrained.files import calling
from bertray.training.examples import Optimization
from bertray.training.loading import loaded_for_training
from bertray.training.objectives import Objective
from bertray.training.order import rank_share

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BATCH_SIZE = 32  # texts of a step
RATE = 1e-4  # for hidden size 384, as measured; more classes and enough rows of each bear HIGH_RATE
HIGH_RATE, MANY_CLASSES, ENOUGH_A_CLASS = 3e-4, 4, 24  # measured with 8 and 32 rows a class
MOST_EMBEDDED = 20_000  # train examples that the head is fitted on
_MOST_PAIRED = 1000  # validation examples of which all pairs are judged


@dataclass(frozen=True)
class ContrastSettings(Optimization):
    """Settings of learning by contrast; there is one epoch.

    Args:
        steps: optimizer steps, each on a batch of balanced classes.
    """

    steps: int = 40


def steps_for(num_rows: int) -> int:
    """Optimizer steps for so many train rows."""
    return 30 if num_rows < 64 else 40 if num_rows < 256 else 60


def rate_for(num_rows: int, num_classes: int) -> float:
    """Peak learning rate for so many train rows of so many classes."""
    return HIGH_RATE if num_classes >= MANY_CLASSES and num_rows >= ENOUGH_A_CLASS * num_classes else RATE


class Contrast(Objective):
    """Squared error of the cosines of all pairs of a step; pairs of one class and of two weigh alike.

    What `validate` gives are embeddings of length 1, of the validation split and then of train examples (`embedded`):
    a head is fitted on these.
    """

    def _load(self, folder: Path) -> PreTrainedModel:
        return loaded_for_training("", folder, self.load_settings, lambda _: None)

    def _padded_net(self) -> torch.nn.Module:
        from bertray.training.padded import PaddedEncoder

        return PaddedEncoder(self.model)

    def _prepare(self) -> None:
        training, examples = self.settings.training, self.examples
        assert isinstance(training, ContrastSettings)
        self._num_steps = training.steps
        self._embedded_E = embedded(examples.validation, examples.train, self.settings.seed)
        self.validation_lens_V = examples.shards.lens_N[self._embedded_E]
        # A pooler's weights, say: DDP would wait for their gradients.
        with calling(self.folder):
            vectors_BD = self._vectors(self.net, self._embedded_E[:1])
            self.freeze_unread(vectors_BD.sum())
        self.width = int(vectors_BD.shape[1])

    @property
    def steps_per_epoch(self) -> int:
        return self._num_steps

    def members_of_steps(self, epoch: int) -> list[np.ndarray]:
        examples, settings = self.examples, self.settings
        train = examples.train
        steps = balanced_steps(
            examples.label_ids_N[train], self._num_steps, settings.training.batch_size, [settings.seed, epoch]
        )
        lens_N = examples.shards.lens_N
        return [train[step][np.argsort(-lens_N[train[step]], kind="stable")] for step in steps]

    def microbatches(self, lens_B: np.ndarray) -> list[np.ndarray]:
        """All of the share: pairs reach over it."""
        return [np.arange(len(lens_B))]

    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        self._members_B = members
        return 1.0  # the pairs of a step have weights that add up to 1

    def inputs(self, batch: np.ndarray) -> Any:
        """Inputs of the model; wanted cosine and weight of each pair of a text with one of the step, rank after rank.

        Made here, on the host and ahead of time, so that nothing waits for a GPU.
        """
        import torch

        rank, shares = self._shares(self._members_B)
        step_B, labels_N = np.concatenate(shares), self.examples.label_ids_N
        same_SB = labels_N[batch][:, None] == labels_N[step_B]
        weights_SB = pair_weights(batch, step_B, labels_N)
        pairs = [torch.from_numpy(pairs_SB.astype(np.float32)) for pairs_SB in (same_SB, weights_SB)]
        return self.net_inputs_of(batch), *pairs, rank, [len(share) for share in shares]

    def loss(self, net: torch.nn.Module, inputs: Any) -> torch.Tensor:
        import torch

        net_inputs, same_SB, weights_SB, rank, sizes = inputs
        own_SD = torch.nn.functional.normalize(self._means(net, net_inputs), dim=1)
        parts = self._gathered(own_SD, rank, sizes)
        errors_SB = (own_SD @ torch.cat(parts).T - same_SB).square() * weights_SB
        by_rank = torch.split_with_sizes(errors_SB, sizes, dim=1)
        within: torch.Tensor = by_rank[rank].sum()
        across = within.new_zeros(())
        for number, errors in enumerate(by_rank):
            if number != rank:
                across = across + errors.sum()
        # A pair across ranks counts on both of them, but its gradient reaches this one's vectors here alone.
        return within + 2 * across - across.detach()

    def _shares(self, members_B: np.ndarray) -> tuple[int, list[np.ndarray]]:
        """This rank, and the examples of a step that each rank computes; the first has most."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return 0, [members_B]
        world_size = dist.get_world_size()
        return dist.get_rank(), [
            rank_share(members_B, rank=number, world_size=world_size) for number in range(world_size)
        ]

    def _gathered(self, own_SD: torch.Tensor, rank: int, sizes: list[int]) -> list[torch.Tensor]:
        """Vectors of a step, those of each rank; only those of this one have a gradient."""
        import torch
        import torch.distributed as dist

        own_SD = own_SD[: sizes[rank]]  # an idle rank has none
        if len(sizes) == 1:
            return [own_SD]
        padded_SD = own_SD.new_zeros(sizes[0], own_SD.shape[1])
        padded_SD[: len(own_SD)] = own_SD.detach()
        given = [torch.empty_like(padded_SD) for _ in sizes]
        dist.all_gather(given, padded_SD)
        parts = [part[:size] for part, size in zip(given, sizes, strict=True)]
        parts[rank] = own_SD
        return parts

    def _vectors(self, net: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        """Means of the last hidden states, fp32 [B, D]."""
        return self._means(net, self.on_device(self.net_inputs_of(batch)))

    def _means(self, net: torch.nn.Module, net_inputs: Any) -> torch.Tensor:
        with self._precision():
            vectors_BD: torch.Tensor = net(net_inputs)
        return vectors_BD.float()

    def validate(self, numbers: np.ndarray) -> np.ndarray:
        vectors_BD = self._vectors(self.net, self._embedded_E[numbers])
        return normalized(vectors_BD.cpu().numpy()).astype(np.float64)

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        """Loss of the pairs of validation rows, and how many of these are nearest to the mean of their class."""
        num_validation, labels_E = len(self.examples.validation), self.examples.label_ids_N[self._embedded_E]
        if not num_validation:
            return {}
        rows_VD, train_ND = rows_VK[:num_validation], rows_VK[num_validation:]
        labels_V, labels_N = labels_E[:num_validation], labels_E[num_validation:]
        classes = np.unique(labels_N)
        means_CD = normalized(np.stack([train_ND[labels_N == label].mean(axis=0) for label in classes]))
        nearest_V = classes[(rows_VD @ means_CD.T).argmax(axis=1)]
        loss = pair_loss(rows_VD[:_MOST_PAIRED], labels_V[:_MOST_PAIRED])
        return {"loss": loss, "accuracy": float((nearest_V == labels_V).mean())}


def pair_weights(own_S: np.ndarray, all_B: np.ndarray, label_ids_N: np.ndarray) -> np.ndarray:
    """Weights of ordered pairs of two different examples, float64 [S, B]; those of all B rows add up to 1.

    Pairs of one class have half of the weight, those of two classes the other half; all of it where there are no
    others.

    Args:
        own_S, all_B: example numbers.
        label_ids_N: of all examples.
    """
    counts_C = np.bincount(label_ids_N[all_B])
    num_same = int((counts_C * (counts_C - 1)).sum())
    num_other = len(all_B) * (len(all_B) - 1) - num_same
    share = 0.5 if num_same and num_other else 1.0
    same_SB = label_ids_N[own_S][:, None] == label_ids_N[all_B]
    weights_SB = np.where(same_SB, share / max(num_same, 1), share / max(num_other, 1))
    return np.where(own_S[:, None] == all_B, 0.0, weights_SB)


def pair_loss(vectors_VD: np.ndarray, label_ids_V: np.ndarray) -> float:
    """Weighted squared error of the cosines of all pairs of some examples, whose vectors have length 1."""
    rows_V = np.arange(len(label_ids_V))
    same_VV = label_ids_V[:, None] == label_ids_V
    return float((np.square(vectors_VD @ vectors_VD.T - same_VV) * pair_weights(rows_V, rows_V, label_ids_V)).sum())


def embedded(validation: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """Examples that are embedded when all is learned: the validation split, then at most MOST_EMBEDDED of train."""
    sample = np.random.default_rng(seed).permutation(len(train))[:MOST_EMBEDDED]
    return np.concatenate([validation, train[np.sort(sample)]]).astype(np.int64)


def balanced_steps(label_ids_N: np.ndarray, num_steps: int, batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Rows of each step, as many of each class as of any other, give or take one.

    A step has at least two rows of a class, or none: with more than batch_size / 2 classes it has a random choice of
    them. The rows of a class come in turn, in a new order when all have been.

    Args:
        label_ids_N: int.
        num_steps: so many.
        batch_size: rows of a step, fewer where there are fewer in all.
        seed: of everything random.

    Returns:
        int64 [B] each: row numbers, each at most once in a step.
    """
    random = np.random.default_rng(seed)
    classes, counts = np.unique(label_ids_N, return_counts=True)
    rows = {label: np.flatnonzero(label_ids_N == label) for label in classes.tolist()}
    waiting: dict[int, list[int]] = {label: [] for label in rows}
    steps = []
    for _ in range(num_steps):
        chosen = random.permutation(len(classes))[: max(batch_size // 2, 1)]
        step: list[int] = []
        for place, number in enumerate(chosen.tolist()):
            label = int(classes[number])
            wanted = batch_size // len(chosen) + (place < batch_size % len(chosen))
            taken: list[int] = []
            while len(taken) < min(wanted, counts[number]):
                if not waiting[label]:  # those of this step come last in the next turn
                    others = np.setdiff1d(rows[label], taken)
                    waiting[label] = [*random.permutation(taken).tolist(), *random.permutation(others).tolist()]
                taken.append(waiting[label].pop())
            step += taken
        steps.append(np.array(step, np.int64))
    return steps
