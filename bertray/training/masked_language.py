"""Masked language modelling as an objective, judged by the pseudo-perplexity of validation texts.

Shape letters: B examples of a micro-batch, V validation rows, M masked tokens, W words of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertray.training.examples import PretrainingSettings
from bertray.training.loading import loaded_for_training
from bertray.training.masking import Masked, Masker, Vocabulary, places_to_score
from bertray.training.objectives import Objective

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
        texts_V, self._places_V = places_to_score(
            shards.sequences(validation), self.vocabulary, most=training.held_out_tokens, seed=settings.seed
        )
        self._validation_V = validation[texts_V]
        self.validation_lens_V = shards.lens_N[self._validation_V]

    def _load(self, folder: Path) -> PreTrainedModel:
        return loaded_for_training("MaskedLM", folder, self.load_settings, lambda _: None)

    def _padded_net(self) -> torch.nn.Module:
        from bertray.training.padded import PaddedLanguageModel

        return PaddedLanguageModel(self.model)

    def begin_step(self, members: np.ndarray, epoch: int) -> float:
        texts = zip(members.tolist(), self.examples.shards.sequences(members), strict=True)
        self._step = {example: self._masker.mask(ids, epoch=epoch, example=example) for example, ids in texts}
        return float(max(1, sum(len(text.places_M) for text in self._step.values())))

    def inputs(self, batch: np.ndarray) -> Any:
        import torch

        masked = [self._step[int(example)] for example in batch]
        read = self._inputs_of([text.ids_T for text in masked], [text.places_M for text in masked])
        return read, torch.from_numpy(np.concatenate([text.targets_M for text in masked]))

    def loss(self, net: torch.nn.Module, inputs: Any) -> torch.Tensor:
        import torch

        read, targets_M = inputs
        return torch.nn.functional.cross_entropy(self._logits(net, read), targets_M, reduction="sum")

    def validate(self, numbers: np.ndarray) -> np.ndarray:
        """Loss of each token, and whether it is guessed right."""
        import torch

        texts = [ids.astype(np.int64) for ids in self.examples.shards.sequences(self._validation_V[numbers])]
        places = self._places_V[numbers]
        targets_B = torch.from_numpy(np.array([ids[place] for ids, place in zip(texts, places, strict=True)]))
        for ids, place in zip(texts, places, strict=True):
            ids[place] = self.vocabulary.mask_id
        read = self._inputs_of(texts, [places[row : row + 1] for row in range(len(texts))])
        logits_BW = self._logits(self.net, self.on_device(read)).cpu()
        losses_B = torch.nn.functional.cross_entropy(logits_BW, targets_B, reduction="none")
        right_B = logits_BW.argmax(dim=1) == targets_B
        return np.stack([losses_B.double().numpy(), right_B.double().numpy()], axis=1)

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        losses_V, right_V = rows_VK.T
        loss = float(losses_V.mean())
        half = 1.96 * error_of_mean(losses_V, self._validation_V)
        return {
            "loss": loss,
            "accuracy": float(right_V.mean()),
            "perplexity": float(np.exp(loss)),
            "perplexity_low": float(np.exp(loss - half)),
            "perplexity_high": float(np.exp(loss + half)),
        }

    def _inputs_of(self, texts: list[np.ndarray], places: list[np.ndarray]) -> Any:
        """Inputs of the model, and the places that are read, text after text: int64 [M]."""
        import torch

        second_lens_B = np.zeros(len(texts), np.int64)
        num_places = np.array([len(of_one) for of_one in places])
        inputs = self.net_inputs(texts, second_lens_B)
        if isinstance(inputs, dict):
            starts_B = np.arange(len(texts)) * inputs["input_ids"].shape[1]
        else:
            starts_B = inputs.first_tokens_B[inputs.places_B].numpy()
        return inputs, torch.from_numpy(np.repeat(starts_B, num_places) + np.concatenate(places))

    def _logits(self, net: torch.nn.Module, read: Any) -> torch.Tensor:
        """Logits over the vocabulary at the places that are read: fp32 [M, W]."""
        with self._precision():
            logits_MW: torch.Tensor = net(*read)
        return logits_MW.float()


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
