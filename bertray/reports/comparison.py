"""The page on two models: evidence, power, differences, calibration, and the reviews whose label changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from bertray.evaluation.answered import AnsweredDisagreements
from bertray.evaluation.intervals import Estimate
from bertray.evaluation.paired import PairedComparison, p_in_words
from bertray.evaluation.seeds import SeededGain
from bertray.evaluation.summary import Evaluation
from bertray.evaluation.verdicts import Finding
from bertray.reports.charts import Charts
from bertray.reports.evaluation import COLUMN_TITLES
from bertray.reports.html import render
from bertray.reports.plain import Mark, marked_excerpt

FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "log_loss": "log loss",
    "ece": "calibration error (ECE)",
}


@dataclass(frozen=True)
class ComparedModel:
    """One of the two models on the page.

    Args:
        name: A or B.
        model, model_version: as given, and its digest.
        metrics: on the compared rows; empty without labels.
        rows_per_s: reviews per second while it was at work.
        evaluation: for the calibration chart.
    """

    name: str
    model: str
    model_version: str
    metrics: Mapping[str, Estimate]
    rows_per_s: float | None = None
    evaluation: Evaluation | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "model_version": self.model_version,
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "rows_per_s": self.rows_per_s,
        }


class ShownText(NamedTuple):
    """A review as a model reads it, or both.

    Args:
        marks: words that decided.
        explained: kinds of marks that were looked for.
    """

    text: str
    marks: Sequence[Mark] = ()
    explained: Sequence[str] = ()


@dataclass(frozen=True)
class Flips:
    """Reviews to which the two models give different labels.

    Args:
        rows: number of them.
        a_right, b_right, both_wrong: of those with a label.
        changes: (label of A, label of B) -> rows, the most frequent first.
        shown: id, label, label_a, label_b, score_a, score_b and `texts`, a `ShownText` for each way of reading the
            review; the most confident first.
        table: all of them, the content of flips.parquet.
    """

    rows: int
    a_right: int
    b_right: int
    both_wrong: int
    changes: Mapping[tuple[str, str], int]
    shown: Sequence[Mapping[str, Any]] = ()
    table: pa.Table | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "a_right": self.a_right,
            "b_right": self.b_right,
            "both_wrong": self.both_wrong,
            "changes": [{"label_a": a, "label_b": b, "rows": rows} for (a, b), rows in self.changes.items()],
        }


@dataclass(frozen=True)
class ComparisonReport:
    """Two models on the same reviews, as plain data.

    Args:
        comparison: None where no row has a label, or disagreements alone.
        answered: labels of disagreements, in place of `comparison`.
        seeded: of two trainings with several seeds each.
        gate: sentences of the release gate, where it judged.
        passed: its decision.
    """

    title: str
    rows: int
    a: ComparedModel
    b: ComparedModel
    comparison: PairedComparison | None
    flips: Flips
    answered: AnsweredDisagreements | None = None
    seeded: SeededGain | None = None
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    config: str = ""
    created: str = ""
    gate: Sequence[str] = ()
    passed: bool | None = None
    ordered: Mapping[str, str] = field(default_factory=dict)  # figures of ordered classes and their titles

    @property
    def headline(self) -> str:
        """The evidence in a sentence; without labels, how many reviews change theirs."""
        if self.comparison is not None:
            return self.comparison.sentence
        if self.answered is not None:
            return self.answered.sentence
        share = 100 * self.flips.rows / self.rows
        return (
            f"A and B give different labels to {self.flips.rows:,} of {self.rows:,} reviews ({share:.1f} %). "
            "Without labels nothing can be said of which is better."
        )

    @property
    def verdict(self) -> str:
        found = self.comparison or self.answered
        return found.verdict if found is not None else "no labels"

    @property
    def power_sentence(self) -> str | None:
        """Gains that these labels could have found."""
        found = self.comparison or self.answered
        return found.power_sentence if found is not None else None

    def to_json(self) -> dict[str, Any]:
        """The content of comparison.json."""
        empty: dict[str, Any] = {
            "difference": {},
            "mcnemar_p": None,
            "per_class": {},
            "slices": {},
            "verdict": self.verdict,
        }
        return {
            "schema_version": 1,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            **(self.comparison.to_json() if self.comparison is not None else empty),
            **({"seeds": self.seeded.to_json()} if self.seeded is not None else {}),
            **(self._answers_json(self.answered) if self.answered is not None else {}),
            "rows": self.rows,
            "flips": self.flips.to_json(),
            "sentence": self.headline,
            "notes": list(self.notes),
        }

    @staticmethod
    def _answers_json(answered: AnsweredDisagreements) -> dict[str, Any]:
        return {
            "difference": {"accuracy": answered.gain.to_json()},
            "mcnemar_p": answered.mcnemar_p,
            "power_sentence": answered.power_sentence,
            "answers": answered.to_json(),
        }

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        charts = Charts()
        calibration = [
            (model, charts.reliability(model.evaluation.curves.reliability))
            for model in (self.a, self.b)
            if model.evaluation is not None and model.model_version
        ]
        slices = self.comparison.slices if self.comparison is not None else {}
        return render(
            "comparison.html.j2",
            report=self,
            title=self.title,
            intervals=self.comparison is not None or self.answered is not None,
            figures={**FIGURES, **self.ordered},
            calibration=calibration,
            p_value=p_in_words(self.comparison.mcnemar_p) if self.comparison is not None else "",
            column_titles={column: COLUMN_TITLES.get(column, column) for column in slices},
            shown=[_shown(flip) for flip in self.flips.shown],
            explained=any(text.marks for flip in self.flips.shown for text in flip["texts"]),
        )


OF_A, OF_B = "of-a", "of-b"  # kinds of marks


def _shown(flip: Mapping[str, Any]) -> dict[str, Any]:
    """A flip with its texts masked and cut, in parts by marks, and the words that decided by model."""
    texts: Sequence[ShownText] = flip["texts"]
    excerpts = [marked_excerpt(text.text, text.marks) for text in texts]
    words = {
        name: [word for word in excerpt.words if word.kind == kind]
        for text, excerpt in zip(texts, excerpts, strict=True)
        for name, kind in (("A", OF_A), ("B", OF_B))
        if kind in text.explained
    }
    return {**flip, "excerpts": [excerpt.parts for excerpt in excerpts], "words": words}
