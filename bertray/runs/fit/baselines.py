"""Baselines of a training run: fitted on rows of its train split, judged on the rows that the model is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from bertray.evaluation.baselines import MAJORITY, TFIDF_LOGREG, TfidfLogreg, fit_tfidf_logreg, majority
from bertray.execution.executor import Executor
from bertray.reviews.fetch import fetch_rows, whole_texts
from bertray.reviews.kept_rows import KeptRows
from bertray.runs.evaluated import EvaluatedRows


@dataclass(frozen=True)
class Baselines:
    """Probabilities of baselines that were fitted on rows of the same train split.

    Args:
        probs: float [N, C] of the evaluated rows, by name.
        train_rows: rows of the train split.
        rows_used: of these, the ones that TF-IDF has seen.
    """

    probs: Mapping[str, np.ndarray]
    train_rows: int
    rows_used: int

    @property
    def notes(self) -> list[str]:
        """Sentence on a sample."""
        if self.rows_used == self.train_rows:
            return []
        return [f"TF-IDF learned from {self.rows_used:,} of {self.train_rows:,} train rows."]


def train_baselines(
    texts: Sequence[str],
    text_label_ids: np.ndarray,
    train_label_ids: np.ndarray,
    rows: EvaluatedRows,
    judged: KeptRows,
    *,
    seed: int,
    executor: Executor,
) -> Baselines:
    """Fit the baselines on rows of the train split; those to evaluate are scored by tasks.

    Args:
        texts: of a sample of the train split.
        text_label_ids: what the model learned of these: given labels, or those of a teacher.
        train_label_ids: the same of all train rows.
        rows: to evaluate.
        judged: their texts.
    """
    num_classes = rows.probs_NC.shape[1]
    tfidf = fit_tfidf_logreg(texts, text_label_ids, num_classes, seed)
    tfidf_NC = np.empty((rows.num_rows, num_classes))
    score = partial(_tfidf_probs, tfidf)
    for positions_W, probs_WC in fetch_rows(executor, judged.units, rows.file_no_N, rows.row_no_N, score):
        tfidf_NC[positions_W] = probs_WC
    probs = {MAJORITY: majority(train_label_ids, num_classes, rows.num_rows), TFIDF_LOGREG: tfidf_NC}
    return Baselines(probs, len(train_label_ids), len(texts))


def _tfidf_probs(tfidf: TfidfLogreg, kept: pa.Table) -> np.ndarray:
    return tfidf.probs(whole_texts(kept))
