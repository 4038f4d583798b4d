"""The page of a pretraining run: how well gaps in reviews are filled, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from bertray.evaluation.learning import losses_by_epoch
from bertray.reports.charts import Charts
from bertray.reports.html import render
from bertray.wording import percent


@dataclass(frozen=True)
class PretrainingReport:
    """A pretraining run as plain data.

    Args:
        before: figures before the first step: `loss`, `accuracy`, `perplexity` with `perplexity_low` and `_high`.
        after: those of the best epoch, and its `epoch`.
        history: rows of `history.parquet`.
        num_tokens: tokens that they are of, each guessed with all others of its text in sight.
    """

    title: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    num_tokens: int
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    config: str = ""
    created: str = ""

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Before and after, a value with its 95 % interval where there is one."""
        return {
            name: {
                "loss": row["loss"],
                "accuracy": row["accuracy"],
                "perplexity": {
                    "value": row["perplexity"],
                    "low": row["perplexity_low"],
                    "high": row["perplexity_high"],
                },
            }
            for name, row in (("before", self.before), ("after", self.after))
        }

    @property
    def headline(self) -> str:
        """Pseudo-perplexity before and after, and what of the tokens was guessed."""
        before, after = (shown(row["perplexity"]) for row in (self.before, self.after))
        interval = self.interval(self.after)
        between = f" (95 % interval {interval})" if interval else ""
        guessed = f"{percent(self.before['accuracy'])} before, {percent(self.after['accuracy'])} after"
        return (
            f"Pseudo-perplexity of held-out text: {before} before, {after} after{between}. Tokens guessed: {guessed}."
        )

    @staticmethod
    def interval(row: Mapping[str, Any]) -> str:
        """The 95 % interval of a row's pseudo-perplexity; empty where all held-out tokens are of one text."""
        low, high = row["perplexity_low"], row["perplexity_high"]
        return f"{shown(low)} to {shown(high)}" if isfinite(low) and isfinite(high) else ""

    def to_html(self) -> str:
        """A page that needs nothing but itself."""
        evals = [row for row in self.history if row["kind"] == "eval"]
        trained = [row for row in self.history if not (row["kind"] == "eval" and row["step"] == 0)]
        steps = [(float(row["epoch"]), float(row["loss"])) for row in trained if row["kind"] == "step"]
        train_loss, _ = losses_by_epoch(trained)
        epochs = [float(row["epoch"]) for row in evals]
        chart = Charts().losses(
            steps,
            list(zip(epochs[1:], train_loss, strict=True)),
            [(float(row["epoch"]), float(row["loss"])) for row in evals],
        )
        return render(
            "pretraining.html.j2",
            report=self,
            title=self.title,
            intervals=any(map(self.interval, evals)),
            chart=chart,
            rows=list(zip(evals, [None, *train_loss], strict=True)),
            shown=shown,
        )


def shown(perplexity: float) -> str:
    """`8.31`, `152`, `31,204`, and `1.2e+09` where it says no more than "very many"."""
    if perplexity >= 1e6:
        return f"{perplexity:.1e}"
    return f"{perplexity:,.0f}" if perplexity >= 100 else f"{perplexity:.3g}"
