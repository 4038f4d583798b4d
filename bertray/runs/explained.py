"""Words that decide, of some reviews that were scored: texts read again, the model run without one word or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.execution.executor import Actors, Executor, Progress
from bertray.model.bundle import BundleInfo, resolve_model
from bertray.model.explanations import Explanation, explain
from bertray.reports.plain import Mark
from bertray.reviews.pairs import SEPARATOR as PAIR_SEPARATOR
from bertray.settings import ScoringPrecision

SEQUENCES_PER_REVIEW = 40  # about as many a review costs
TextPair = tuple[str, str | None]


@dataclass(frozen=True)
class ScoredBy:
    """A model and how it read the reviews.

    Args:
        model: for `resolve_model`.
        max_length, long_text: as for `ReviewTokenizer`.
        temperature: of the probabilities.
        labels: classes by id.
        precision: in which it computed.
    """

    model: str
    max_length: int
    long_text: str
    temperature: float
    labels: tuple[str, ...]
    precision: ScoringPrecision = "auto"

    @classmethod
    def of(cls, model: str, info: BundleInfo, settings: Mapping[str, Any]) -> ScoredBy:
        """A bundle with settings, by name, in place of its own."""
        read = {name: settings.get(name) or getattr(info, name) for name in ("max_length", "long_text")}
        return cls(
            model,
            **read,
            temperature=info.temperature,
            labels=info.labels,
            precision=settings.get("precision") or "auto",
        )

    def explain(self, texts: Sequence[TextPair], labels: Sequence[str], executor: Executor) -> list[Explanation]:
        """Words that move the probability of a label of each review most.

        Args:
            texts: cleaned texts with their second texts.
            labels: the label of each to explain.
            executor: computes, in one place.
        """
        if not texts:
            return []
        executor = executor.for_rows(SEQUENCES_PER_REVIEW * len(texts))
        resources = executor.resources
        stage = Actors(
            partial(_Explain, self, resources.device, resources.threads),
            cpus=resources.cpus_per_worker,
            gpus=resources.gpus_per_worker,
        )
        work = [(list(texts), np.array([self.labels.index(label) for label in labels], np.int64))]
        progress = Progress("explaining", "list of reviews", lambda item: f"{len(item[0])} reviews")
        (found,) = executor.run(work, [stage], progress)
        explanations: list[Explanation] = found
        return explanations


class _Explain:
    """An actor that holds a model: (texts, label ids) in, the words of each text out, as plain data."""

    def __init__(self, scored_by: ScoredBy, device: str, threads: int) -> None:
        import torch

        from bertray.model.engine import precision_here
        from bertray.model.predictor import Predictor
        from bertray.model.tokenization import ReviewTokenizer

        if device == "cpu":
            torch.set_num_threads(threads)
        folder = resolve_model(scored_by.model)
        self._tokenizer = ReviewTokenizer(folder, scored_by.max_length, scored_by.long_text)
        self._predictor = Predictor(
            folder,
            temperature=scored_by.temperature,
            device=device,
            precision=precision_here(scored_by.precision, torch.device(device)),  # another machine may have scored
            int8_bound=0,  # a text and the same without a word are compared in one precision
        )

    def __call__(self, work: tuple[list[TextPair], np.ndarray]) -> list[Explanation]:
        texts, label_ids_N = work
        first, second = [text for text, _ in texts], [pair for _, pair in texts]
        pairs = second if any(pair is not None for pair in second) else None
        return explain(self._predictor, self._tokenizer, first, pairs, label_ids_N)


def joined(text: TextPair) -> str:
    """Both texts as a page shows them."""
    first, second = text
    return first if second is None else f"{first}{PAIR_SEPARATOR}{second}"


def marks_of(explanation: Explanation, text: TextPair, kind: str | None = None) -> list[Mark]:
    """Words by their places in `joined`; without a kind they are for or against the label."""
    offset = len(text[0]) + len(PAIR_SEPARATOR)
    return [
        Mark(
            word.start + offset * word.second,
            word.end + offset * word.second,
            word.change,
            kind or ("for" if word.change > 0 else "against"),
        )
        for word in explanation
    ]


def words_column(explanations: Sequence[Explanation | None]) -> pa.Array:
    """Column of a Parquet file; null of a review that was not explained."""
    rows = [
        None if words is None else [{s.WORD: word.text, s.CHANGE: word.change} for word in words]
        for words in explanations
    ]
    return pa.array(rows, s.WORDS)
