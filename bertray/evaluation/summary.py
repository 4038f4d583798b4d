"""One call from labelled rows and probabilities to everything that metrics.json and the report hold.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertray.evaluation.baselines import TITLES
from bertray.evaluation.comparison import Comparison, compare
from bertray.evaluation.curves import Curves, curves
from bertray.evaluation.intervals import Estimate
from bertray.evaluation.leakage import Leakage
from bertray.evaluation.metrics import ClassMetrics, all_metrics, check_rows, class_metrics, confusion_matrix
from bertray.evaluation.slices import SliceMetrics, Values, slice_metrics
from bertray.evaluation.verdicts import Finding, PageKind, judge, worst_first
from bertray.schema import SCHEMA_VERSION


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model on labelled rows, as plain data."""

    split: str
    rows: int
    labels: tuple[str, ...]
    metrics: dict[str, Estimate]
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]  # row = given label
    slices: dict[str, dict[str, SliceMetrics]]
    baselines: dict[str, dict[str, Estimate]]
    comparisons: dict[str, Comparison]  # the model beside each baseline
    curves: Curves
    kind: PageKind = "evaluation"
    model_name: str = "the model"  # as sentences call it
    speedup: float | None = None  # of a distilled student over its teacher
    leakage: Leakage | None = None  # rows that the model has seen in training; None: not known
    ordered: dict[str, Estimate] = field(default_factory=dict)  # figures of classes in an order, see `ordered.TITLES`
    on_rows: tuple[Finding, ...] = ()  # rows that the model cannot make sense of, and texts that it learned from

    @property
    def findings(self) -> list[Finding]:
        """Verdicts on the rows and on the model, the worst first."""
        columns = zip(*self.confusion_matrix, strict=True)
        on_model = judge(
            self.metrics,
            self.comparisons,
            given={label: row.support for label, row in self.per_class.items()},
            predicted={label: sum(column) for label, column in zip(self.labels, columns, strict=True)},
            kind=self.kind,
            name=self.model_name,
            speedup=self.speedup,
        )
        return worst_first([*self.on_rows, *(self.leakage.findings if self.leakage else []), *on_model])

    def to_json(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "split": self.split,
            "rows": self.rows,
            "labels": list(self.labels),
            "metrics": _plain({**self.metrics, **self.ordered}),
            "per_class": {label: figures.to_json() for label, figures in self.per_class.items()},
            "confusion_matrix": self.confusion_matrix,
            "slices": {
                column: {value: figures.to_json() for value, figures in values.items()}
                for column, values in self.slices.items()
            },
            "baselines": {name: _plain(figures) for name, figures in self.baselines.items()},
            **({"leakage": self.leakage.to_json()} if self.leakage else {}),
        }


def evaluate_predictions(
    label_ids_N: np.ndarray,
    probs_NC: np.ndarray,
    labels: Sequence[str],
    *,
    split: str,
    seed: int,
    slices: Mapping[str, Values] | None = None,
    baselines: Mapping[str, np.ndarray] | None = None,
    model_name: str = "the model",
    kind: PageKind = "evaluation",
    best_metric: str = "loss",
    speedup: float | None = None,
) -> Evaluation:
    """Evaluate a classifier; every interval follows from `seed`.

    Args:
        label_ids_N: given labels, int [N] in 0..C-1, N >= 1.
        probs_NC: float [N, C]; a tie between classes goes to the lower id.
        split: what the rows are, for example `test`.
        seed: of all resampling.
        slices: column -> its N values.
        baselines: name (see `baselines.TITLES`) -> probabilities [N, C] on the same rows.
        model_name: of the model in sentences.
        kind: page that the evaluation is for.
        best_metric: value of `training.best_metric`, which decides comparisons.
        speedup: rows per second of a student, those of its teacher being 1.

    Raises:
        ValueError: rows that cannot be evaluated (see `check_rows`).
    """
    check_rows(label_ids_N, probs_NC, labels)
    predictions_N = probs_NC.argmax(axis=1)
    matrix_CC = confusion_matrix(label_ids_N, predictions_N, len(labels))
    baseline_metrics, comparisons = {}, {}
    for name, baseline_probs_NC in (baselines or {}).items():
        check_rows(label_ids_N, baseline_probs_NC, labels)
        baseline_N = baseline_probs_NC.argmax(axis=1)
        baseline_matrix_CC = confusion_matrix(label_ids_N, baseline_N, len(labels))
        baseline_metrics[name] = all_metrics(baseline_matrix_CC, label_ids_N, baseline_probs_NC, seed)
        comparisons[name] = compare(
            label_ids_N,
            predictions_N,
            baseline_N,
            len(labels),
            name_a=model_name,
            name_b=TITLES.get(name, name),
            seed=seed,
            best_metric=best_metric,
        )
    return Evaluation(
        split=split,
        rows=len(label_ids_N),
        labels=tuple(labels),
        metrics=all_metrics(matrix_CC, label_ids_N, probs_NC, seed),
        per_class=dict(zip(labels, class_metrics(matrix_CC), strict=True)),
        confusion_matrix=matrix_CC.tolist(),
        slices={
            column: slice_metrics(label_ids_N, predictions_N, values, len(labels), seed)
            for column, values in (slices or {}).items()
        },
        baselines=baseline_metrics,
        comparisons=comparisons,
        curves=curves(label_ids_N, probs_NC, labels),
        kind=kind,
        model_name=model_name,
        speedup=speedup,
    )


def _plain(figures: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: figure.to_json() for name, figure in figures.items()}
