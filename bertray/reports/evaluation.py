"""The page on how good a model is: for `train` and `evaluate`, and inside a labelled night of `score`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertray.evaluation.baselines import MAJORITY, TEACHER, TITLES
from bertray.evaluation.calibrated import Calibration
from bertray.evaluation.comparison import capital
from bertray.evaluation.curves import Curve
from bertray.evaluation.learning import losses_by_epoch, overfitting_note, seconds_by_epoch
from bertray.evaluation.metrics import FIGURES
from bertray.evaluation.ordered import TITLES as TITLES_OF_ORDER
from bertray.evaluation.slices import SMALL_ROWS
from bertray.evaluation.summary import Evaluation
from bertray.evaluation.verdicts import kept_sentence, worst
from bertray.reports.charts import MAX_SERIES, Charts
from bertray.reports.html import render
from bertray.reports.plain import marked_excerpt, plain
from bertray.schema import SCHEMA_VERSION
from bertray.wording import counted

MAX_MATRIX_CLASSES = 30
MAX_CONFUSIONS = 10
COLUMN_TITLES = {"length": "length in tokens", "script": "language script"}
BASELINE_ROWS = {"tfidf_logreg": "TF-IDF + logistic regression", "teacher": "Teacher"}


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation and what surrounds it, as plain data."""

    title: str
    evaluation: Evaluation
    facts: Mapping[str, object] = field(default_factory=dict)  # run and data, in the order to show
    config: str = ""  # the resolved config as YAML
    history: Sequence[Mapping[str, Any]] = ()  # rows of history.parquet
    mistakes: Sequence[Mapping[str, Any]] = ()  # id, text, label, prediction, score, marks; the most confident first
    notes: Sequence[str] = ()  # what a reader should know, in sentences
    created: str = ""  # when, as text
    calibration: Calibration | None = None  # of a training run, on held-out rows

    def metrics_json(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return self.evaluation.to_json()

    def to_json(self) -> dict[str, Any]:
        """Everything on the page as plain data; texts masked and cut as they are there."""
        content: dict[str, Any] = plain(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "evaluation",
                "title": self.title,
                "model": self.evaluation.model_name,
                "created": self.created,
                "headline": self.headline,
                "findings": self.evaluation.findings,
                "notes": self.all_notes,
                "metrics": self.metrics_json(),
                "comparisons": {name: c.to_json() for name, c in self.evaluation.comparisons.items()},
                "curves": self.evaluation.curves.to_json(),
                "history": self.history,
                "mistakes": [
                    {name: value for name, value in mistake.items() if name != "parts"}
                    | {"words": [{"word": word.word, "change": word.change} for word in mistake["words"] or ()]}
                    for mistake in self.shown_mistakes
                ],
                "facts": self.facts,
                "config": self.config,
            }
        )
        return content

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        return render("evaluation.html.j2", report=self, title=self.title, intervals=True, part=self.part(Charts()))

    @property
    def headline(self) -> str:
        """Model, rows and accuracy in one line; for a student, first its share of the teacher's accuracy."""
        accuracy = self.evaluation.metrics["accuracy"]
        rows, name = self.evaluation.rows, self.evaluation.model_name
        right = (
            f"On {counted(rows, self.split_words)}, {name} is right on "
            f"{100 * accuracy.value:.1f} % (95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %)."
        )
        beside_teacher = self.evaluation.comparisons.get(TEACHER)
        if beside_teacher is None:
            return right
        return f"{kept_sentence(beside_teacher, self.evaluation.speedup)} {right}"

    @property
    def split_words(self) -> str:
        words = {"test": "test review", "validation": "validation review", "cross-validation": "cross-validated review"}
        return words.get(self.evaluation.split, "labelled review")

    @property
    def all_notes(self) -> list[str]:
        overfitting = overfitting_note(*losses_by_epoch(self.history))
        return [*self.notes, *([overfitting] if overfitting else [])]

    @property
    def shown_mistakes(self) -> list[dict[str, Any]]:
        """Errors with their texts masked and cut, in parts by marks, and the words that decided, or None."""
        shown = []
        for mistake in self.mistakes:
            marks = mistake.get("marks")
            marked = marked_excerpt(str(mistake["text"]), marks or ())
            told = {name: value for name, value in mistake.items() if name != "marks"}
            words = None if marks is None else marked.words
            shown.append({**told, "text": marked.text, "parts": marked.parts, "words": words})
        return shown

    @property
    def explained(self) -> bool:
        """Whether words of an error are marked."""
        return any(mistake.get("marks") for mistake in self.mistakes)

    def _baseline_title(self, name: str) -> str:
        if name == MAJORITY:
            return f"Majority class of {'the training rows' if self.evaluation.kind == 'training' else 'these rows'}"
        return BASELINE_ROWS.get(name, TITLES.get(name, name))

    def _calibration_charts(self, charts: Charts) -> list[tuple[str, Any, Any]]:
        """(before or after, reliability on held-out rows, its chart)."""
        told = self.calibration
        if told is None or told.before is None or told.after is None:
            return []
        return [
            (name, of, charts.reliability(of.bins)) for name, of in (("Before", told.before), ("After", told.after))
        ]

    def part(self, charts: Charts) -> dict[str, Any]:
        """Values of this evaluation for the templates; `charts` belongs to the whole page."""
        evaluation = self.evaluation
        curves = evaluation.curves
        ranked = sorted(curves.roc, key=lambda label: curves.roc[label].area)
        drawn = [label for label in curves.roc if label in ranked[:MAX_SERIES]]
        right, wrong = curves.scores_right, curves.scores_wrong
        return {
            "report": self,
            "evaluation": evaluation,
            "severity": worst(evaluation.findings),
            "model_title": capital(evaluation.model_name),
            "baseline_rows": {name: self._baseline_title(name) for name in evaluation.baselines},
            "column_titles": {column: COLUMN_TITLES.get(column, column) for column in evaluation.slices},
            "ordered": {TITLES_OF_ORDER[name]: estimate for name, estimate in evaluation.ordered.items()},
            "small_rows": SMALL_ROWS,
            "confusions": _confusions(evaluation),
            "show_matrix": len(evaluation.labels) <= MAX_MATRIX_CLASSES,
            "drawn": drawn,
            "reliability_chart": charts.reliability(curves.reliability),
            "scores_chart": charts.scores(right, wrong),
            "calibration_charts": self._calibration_charts(charts),
            "roc_chart": charts.roc(_of(curves.roc, drawn)) if drawn else None,
            "precision_recall_chart": charts.precision_recall(_of(curves.precision_recall, drawn)) if drawn else None,
            **_learning_charts(self.history, charts),
        }


def _of(curves: Mapping[str, Curve], labels: Sequence[str]) -> list[Curve]:
    return [curves[label] for label in labels]


def _confusions(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The most frequent mistakes as (given, predicted, rows, share of the given class)."""
    pairs = [
        (rows, given, predicted, rows / sum(row))
        for given, row in zip(evaluation.labels, evaluation.confusion_matrix, strict=True)
        for predicted, rows in zip(evaluation.labels, row, strict=True)
        if rows and given != predicted
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [
        {"given": given, "predicted": predicted, "rows": rows, "share": share}
        for rows, given, predicted, share in pairs[:MAX_CONFUSIONS]
    ]


def _learning_charts(history: Sequence[Mapping[str, Any]], charts: Charts) -> dict[str, Any]:
    evals = [row for row in history if row["kind"] == "eval"]
    steps = [(float(row["epoch"]), float(row["loss"])) for row in history if row["kind"] == "step"]
    epochs = [float(row["epoch"]) for row in evals]
    train_loss, validation_loss = losses_by_epoch(history)
    judged = [point for point in zip(epochs, validation_loss, strict=True) if not math.isnan(point[1])]
    figures = [name for name in FIGURES if evals and all(row.get(name) is not None for row in evals)]
    seconds = seconds_by_epoch(history)
    series = [[(float(row["epoch"]), float(row[name])) for row in evals] for name in figures]
    return {
        "losses_chart": charts.losses(steps, list(zip(epochs, train_loss, strict=True)), judged) if history else None,
        "validation_chart": charts.validation(series) if series and len(evals) > 1 else None,
        "validation_figures": [FIGURES[name] for name in figures],
        "with_seconds": seconds is not None,
        "judged": bool(judged),
        "evals": [
            {
                "epoch": row["epoch"],
                "train_loss": train,
                "loss": validation,
                "figures": [row[name] for name in figures],
                "seconds": spent,
            }
            for row, train, validation, spent in zip(
                evals, train_loss, validation_loss, seconds or [0.0] * len(evals), strict=True
            )
        ],
    }
