"""The page of a search: every trial, best first, and what each setting did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertray.reports.charts import Charts
from bertray.reports.html import render

WORDS = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC"}


@dataclass(frozen=True)
class SearchReport:
    """A search as plain data.

    Args:
        title: of the page.
        metric: what was searched for, on validation rows.
        rows: a trial each: `trial`, `status`, `epochs`, `seconds`, `best_epoch`, the metrics, `why`, and the keys.
        keys: of the config that were varied.
        best: number of the best trial.
    """

    title: str
    metric: str
    rows: Sequence[Mapping[str, Any]]
    keys: tuple[str, ...]
    best: int
    facts: Mapping[str, object] = field(default_factory=dict)
    config: str = ""
    created: str = ""

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """Best first; those that failed last."""
        sign = 1 if self.metric == "loss" else -1
        good = [row for row in self.rows if row["status"] != "failed"]
        bad = [row for row in self.rows if row["status"] == "failed"]
        return [*sorted(good, key=lambda row: sign * row[self.metric]), *bad]

    @property
    def winner(self) -> Mapping[str, Any]:
        return next(row for row in self.rows if row["trial"] == self.best)

    @property
    def headline(self) -> str:
        """How many were tried, and which was best."""
        counts = {status: sum(row["status"] == status for row in self.rows) for status in ("stopped", "failed")}
        said = f"{len(self.rows)} trials"
        if counts["stopped"]:
            they = "it was" if counts["stopped"] == 1 else "they were"
            said += f", {counts['stopped']} ended early because {they} behind"
        if counts["failed"]:
            said += f", {counts['failed']} failed"
        at = ", ".join(f"{name(key)} {shown(self.winner[key])}" for key in self.keys)
        return f"{said}. Best: trial {self.best} ({at}), {WORDS[self.metric]} {self.winner[self.metric]:.4f}."

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        charts = Charts()
        ranked = self.ranked
        drawn = []
        for key in self.keys:
            points = [(row[key], row[self.metric]) for row in ranked if row["status"] != "failed"]
            numbers = [x for x, _ in points if isinstance(x, int | float) and not isinstance(x, bool)]
            if len(set(numbers)) > 1 and len(numbers) == len(points):
                best = (self.winner[key], self.winner[self.metric])
                log = min(numbers) > 0 and max(numbers) / min(numbers) > 8
                drawn.append(charts.tried(points, best, xlabel=name(key), ylabel=WORDS[self.metric], log=log))
        return render(
            "search.html.j2",
            report=self,
            title=self.title,
            ranked=ranked,
            names={key: name(key) for key in self.keys},
            shown=shown,
            charts=drawn,
            words=WORDS,
        )


def name(key: str) -> str:
    """`training.learning_rate` in words."""
    return key.removeprefix("training.").replace("_", " ")


def shown(value: Any) -> str:
    """A setting as short as it can be told."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
