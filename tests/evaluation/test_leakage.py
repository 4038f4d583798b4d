"""Rows seen in training: counted, judged, and figures without them."""

from __future__ import annotations

import numpy as np
import pytest

from bertray.evaluation.leakage import find_leakage, judge_validation
from bertray.evaluation.verdicts import Finding
from bertray.model.training_texts import TrainingTexts

LABELS = ("neg", "pos")


def leakage(num_rows: int, num_seen: int):
    """Right on the rows that were seen, wrong on every other one."""
    hashes_N = np.arange(num_rows, dtype=np.uint64)
    given_N = hashes_N.astype(int) // 2 % 2
    right_N = (np.arange(num_rows) < num_seen) | (np.arange(num_rows) % 2 == 0)
    probs_NC = np.eye(2)[np.where(right_N, given_N, 1 - given_N)] * 0.8 + 0.1
    texts = TrainingTexts.of(np.arange(num_seen, dtype=np.uint64))
    return find_leakage(texts, hashes_N, given_N, probs_NC, LABELS, seed=0)


@pytest.mark.parametrize(
    ("rows", "seen", "severity"),
    [(1000, 0, None), (1000, 5, "note"), (1000, 10, "note"), (1000, 30, "warning"), (1000, 101, "bad")],
)
def test_severity_by_share(rows, seen, severity):
    found = leakage(rows, seen)
    assert (found.rows, found.known, found.seen) == (rows, rows, seen)
    assert [finding.severity for finding in found.findings] == ([] if severity is None else [severity])


def test_figures_without_the_rows_that_were_seen():
    found = leakage(100, 40)
    assert found.unseen_metrics["accuracy"].value == 0.5
    assert list(found.unseen_metrics) == ["accuracy", "macro_f1", "mcc"]
    assert found.sentence.startswith("40 of 100 rows were seen in training (40.0 %); on the 60 others: accuracy 0.5")
    assert found.to_json()["unseen_metrics"]["accuracy"]["value"] == 0.5


def test_where_all_rows_were_seen_nothing_is_left():
    found = leakage(60, 60)
    assert found.findings == [
        Finding(
            "bad",
            "60 of 60 rows were seen in training (100.0 %): the figures say nothing about other reviews. Evaluate on "
            "rows that the model has not seen.",
        )
    ]
    assert found.unseen_metrics == {}


def test_a_model_whose_training_texts_are_not_known():
    assert find_leakage(None, np.arange(2, dtype=np.uint64), np.arange(2), np.eye(2), LABELS, seed=0) is None


def test_of_a_very_large_training_set_a_sample_is_known():
    texts = TrainingTexts(np.arange(0, 50, 2, dtype=np.uint64), below=50)
    found = find_leakage(
        texts, np.arange(100, dtype=np.uint64), np.arange(100) % 2, np.eye(2)[np.arange(100) % 2], LABELS, 0
    )
    assert (found.rows, found.known, found.seen, found.share) == (100, 50, 25, 0.5)
    assert found.sentence.startswith("25 of 50 rows (a sample of the 100: its training set is very large) were seen")


@pytest.mark.parametrize(("straddling", "severity"), [(0, []), (1, ["note"]), (2, ["warning"]), (11, ["bad"])])
def test_validation_rows_in_train(straddling, severity):
    assert [finding.severity for finding in judge_validation(straddling, 100)] == severity
