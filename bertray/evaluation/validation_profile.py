"""Profile of validation rows and hashes of training texts, which a trained bundle carries."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from bertray.evaluation.plausibility import judge_training_texts
from bertray.evaluation.verdicts import Finding
from bertray.model.profile import Profile, percentiles_of, shares
from bertray.model.training_texts import TrainingTexts, with_earlier
from bertray.training.examples import Examples

log = logging.getLogger(__name__)


def validation_profile(
    examples: Examples, numbers_V: np.ndarray, probs_VC: np.ndarray, labels: Sequence[str], read_tokens: int | None
) -> Profile:
    """Profile of the validation rows, as the trained model reads and labels them.

    Args:
        examples: of the run.
        numbers_V: examples of the validation split.
        probs_VC: probabilities that the kept model gives them.
        read_tokens: of a row, special tokens included; None: all of it.
    """
    shards = examples.shards
    n_tokens_V = shards.n_tokens_N[numbers_V]
    scripts = pc.value_counts(shards.scripts.take(numbers_V).drop_null()).to_pylist()

    def by_label(ids_V: np.ndarray) -> dict[str, float]:
        counts = np.bincount(ids_V[ids_V >= 0], minlength=len(labels))
        return shares({label: int(count) for label, count in zip(labels, counts, strict=True)})

    return Profile(
        rows=len(numbers_V),
        predicted=by_label(probs_VC.argmax(axis=1)),
        given=by_label(examples.label_ids_N[numbers_V]),
        mean_score=float(probs_VC.max(axis=1).mean()),
        truncated=0.0 if read_tokens is None else float((n_tokens_V > read_tokens).mean()),
        scripts=shares({count["values"]: count["counts"] for count in scripts}),
        n_tokens=percentiles_of(n_tokens_V),
        reading=shards.reading(numbers_V),
    )


def training_texts_of(examples: Examples, *made_from: Path) -> TrainingTexts:
    """Texts that a model learned from or was chosen by, with those of the models that it was made from."""
    used = np.concatenate([examples.train, examples.validation])
    return with_earlier(TrainingTexts.of(examples.shards.input_hash_N[used]), *made_from)


def check_reading(examples: Examples, model: str, *, left_out: bool = False) -> list[Finding]:
    """Findings where the encoder cannot read what it is to learn from, logged before the first step.

    Args:
        left_out: nothing is learned from the encoder.
    """
    findings = judge_training_texts(examples.shards.reading(examples.train), model, left_out=left_out)
    log_findings(findings)
    return findings


def log_findings(findings: Iterable[Finding], where: str = "") -> None:
    """Bad ones and warnings as warnings, notes as they are."""
    for finding in findings:
        level = logging.WARNING if finding.severity in ("bad", "warning") else logging.INFO
        log.log(level, "%s%s", f"{where}: " if where else "", finding.sentence)
