"""The page of a training with several seeds: mean and spread, and which of them was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import FIGURES
from bertray.evaluation.seeds import Spread
from bertray.reports.html import render
from bertray.wording import counted

TITLES = {**FIGURES, "log_loss": "log loss"}
METRICS = {**FIGURES, "loss": "log loss"}


@dataclass(frozen=True)
class SeedRow:
    """One seed.

    Args:
        split, num_rows: rows of the figures.
        validation: value of the metric that chooses, on validation rows.
        figures: of `TITLES`.
    """

    seed: int
    split: str
    num_rows: int
    validation: float
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class SeedsReport:
    """Seeds of one training, as plain data.

    Args:
        metric: value of `training.best_metric`.
        rows: in the order of `training.seeds`.
    """

    title: str
    metric: str
    rows: Sequence[SeedRow]
    config: str
    created: str
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def best(self) -> SeedRow:
        """Best on validation rows; of equal ones the first."""
        sign = 1 if self.metric == "loss" else -1
        return min(self.rows, key=lambda row: sign * row.validation)

    @property
    def spread(self) -> dict[str, Spread]:
        """Each figure over the seeds."""
        return {name: Spread.of([row.figures[name].value for row in self.rows]) for name in TITLES}

    @property
    def headline(self) -> str:
        """Mean and spread of the accuracy, and the seed that was kept."""
        accuracy, best = self.spread["accuracy"], self.best
        where = counted(best.num_rows, f"{best.split} row")
        return (
            f"Over {len(self.rows)} seeds the accuracy on {where} is {100 * accuracy.mean:.1f} % on average, with a "
            f"standard deviation of {100 * (accuracy.deviation or 0):.1f} points between seeds "
            f"({100 * min(accuracy.values):.1f} to {100 * max(accuracy.values):.1f} %). Seed {best.seed} was kept: its "
            f"{METRICS[self.metric]} on validation rows is best."
        )

    def to_json(self) -> dict[str, Any]:
        """Content of `seeds` in metrics.json."""
        return {
            "best": self.best.seed,
            "by": self.metric,
            "runs": [
                {
                    "seed": row.seed,
                    "validation": row.validation,
                    "metrics": {name: estimate.to_json() for name, estimate in row.figures.items()},
                }
                for row in self.rows
            ],
            "spread": {name: spread.to_json() for name, spread in self.spread.items()},
            "headline": self.headline,
        }

    def to_html(self) -> str:
        """A page that needs nothing but itself; it links to the page of each seed beside it."""
        return render(
            "seeds.html.j2", report=self, title=self.title, intervals=True, titles=TITLES, metric=METRICS[self.metric]
        )
