"""Leakage: labelled rows that a model has seen in training, and its figures without them.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import FIGURES, all_metrics, confusion_matrix
from bertray.evaluation.verdicts import Finding, Severity
from bertray.model.training_texts import TrainingTexts
from bertray.wording import percent

WARNING_SHARE = 0.01  # of rows seen in training, above which figures flatter visibly
BAD_SHARE = 0.10


@dataclass(frozen=True)
class Leakage:
    """Rows seen in training.

    Args:
        rows: that were evaluated.
        known: of them, those of which the bundle can tell: all, but for very large training sets.
        seen: of the known ones.
        unseen_metrics: FIGURES on the known rows that were not seen; empty where none was seen, or all were.
    """

    rows: int
    known: int
    seen: int
    unseen_metrics: dict[str, Estimate] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of rows seen in training; of very large training sets an estimate."""
        return self.seen / self.known if self.known else 0.0

    @property
    def findings(self) -> list[Finding]:
        """Nothing where no row was seen."""
        return [Finding(_severity(self.share), self.sentence)] if self.seen else []

    @property
    def sentence(self) -> str:
        """Rows seen in training, and the figures without them."""
        of = "" if self.known == self.rows else f" (a sample of the {self.rows:,}: its training set is very large)"
        said = f"{self.seen:,} of {self.known:,} rows{of} were seen in training ({percent(self.share)})"
        if not self.seen:
            return f"{said}."
        if not self.unseen_metrics:
            return f"{said}: the figures say nothing about other reviews. Evaluate on rows that the model has not seen."
        figures = ", ".join(f"{words} {self.unseen_metrics[name]}" for name, words in FIGURES.items())
        return f"{said}; on the {self.known - self.seen:,} others: {figures}."

    def __str__(self) -> str:
        return f"{self.seen:,} of {self.known:,}"

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "rows": self.rows,
            "known": self.known,
            "seen": self.seen,
            "unseen_metrics": {name: figure.to_json() for name, figure in self.unseen_metrics.items()},
        }


def judge_validation(straddling: int, rows: int) -> list[Finding]:
    """One finding where validation rows stand in the train split, too.

    Args:
        straddling: such rows.
        rows: of the validation split.
    """
    if not straddling:
        return []
    share = straddling / rows
    return [
        Finding(
            _severity(share),
            f"{straddling:,} of {rows:,} validation rows stand in data.train, too ({percent(share)}): figures by "
            "epoch, and the choice among epochs, flatter.",
        )
    ]


def _severity(share: float) -> Severity:
    if share > BAD_SHARE:
        return "bad"
    return "warning" if share > WARNING_SHARE else "note"


def find_leakage(
    texts: TrainingTexts | None,
    input_hash_N: np.ndarray,
    label_ids_N: np.ndarray,
    probs_NC: np.ndarray,
    labels: Sequence[str],
    seed: int,
) -> Leakage | None:
    """Rows seen in training, and the figures without them; None of a model whose training texts are not known.

    Args:
        texts: of the model's bundle.
        input_hash_N: uint64 [N], `schema.INPUT_HASH` of the rows, cleaned as the bundle says.
        label_ids_N: given labels, int [N].
        probs_NC: float [N, C].
    """
    if texts is None:
        return None
    known_N, seen_N = texts.covers(input_hash_N), texts.seen(input_hash_N)
    unseen_N = known_N & ~seen_N
    figures: dict[str, Estimate] = {}
    if seen_N.any() and unseen_N.any():
        given_N, probs_NC = label_ids_N[unseen_N], probs_NC[unseen_N]
        matrix_CC = confusion_matrix(given_N, probs_NC.argmax(axis=1), len(labels))
        every = all_metrics(matrix_CC, given_N, probs_NC, seed)
        figures = {name: every[name] for name in FIGURES}
    return Leakage(len(input_hash_N), int(known_N.sum()), int(seen_N.sum()), figures)
