"""The page of a search: every trial, best first, what each setting did, and how much of it is luck of the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from bertray.evaluation.intervals import Estimate
from bertray.evaluation.metrics import FIGURES
from bertray.reports.charts import Charts
from bertray.reports.html import render, value_range
from bertray.wording import decimal

WORDS = {"loss": "loss", **FIGURES}


@dataclass(frozen=True)
class OverSeeds:
    """The searched figure over trials that differ in their seed alone."""

    setting: str
    num_seeds: int  # that ran to their end
    mean: float
    deviation: float  # of the sample
    left_out: int  # behind or failed: where those ended is no figure of the setting


@dataclass(frozen=True)
class SearchReport:
    """A search as plain data.

    Args:
        metric: what was searched for, on validation rows.
        rows: a trial each: `trial`, `status`, `epochs`, `seconds`, `best_epoch`, the metrics with `<metric>_low` and
            `_high`, the ends of their 95 % intervals, `why`, and the keys.
        keys: of the config that were varied.
        best: number of the best trial.
        has_test: whether its config names test rows.
    """

    title: str
    metric: str
    rows: Sequence[Mapping[str, Any]]
    keys: tuple[str, ...]
    best: int
    has_test: bool = False
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
        """Number of trials and the best one, in one line."""
        counts = {status: sum(row["status"] == status for row in self.rows) for status in ("stopped", "failed")}
        said = f"{len(self.rows)} trials"
        if counts["stopped"]:
            they = "it was" if counts["stopped"] == 1 else "they were"
            said += f", {counts['stopped']} ended early because {they} behind"
        if counts["failed"]:
            said += f", {counts['failed']} failed"
        found = self.estimate(self.winner, self.metric)
        assert found is not None  # the best of all has not failed
        return (
            f"{said}. Best: trial {self.best} ({_setting(self.winner, self.keys)}), {WORDS[self.metric]} "
            f"{decimal(found.value)} (95 % interval {value_range(found)})."
        )

    def estimate(self, row: Mapping[str, Any], metric: str) -> Estimate | None:
        """A figure of a trial with its interval over the validation rows; None where the trial has none."""
        return None if row[metric] is None else Estimate(*(row[f"{metric}{end}"] for end in ("", "_low", "_high")))

    @property
    def over_seeds(self) -> list[OverSeeds]:
        """Each setting of which at least two seeds ran to their end, best mean first."""
        if "seed" not in self.keys:
            return []
        others = [key for key in self.keys if key != "seed"]
        alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in self.rows:
            alike.setdefault(tuple(row[key] for key in others), []).append(row)
        found = []
        for rows in alike.values():
            values = [row[self.metric] for row in rows if row["status"] == "finished"]
            if len(values) > 1:
                setting = _setting(rows[0], others) or "as the config has it"
                found.append(OverSeeds(setting, len(values), mean(values), stdev(values), len(rows) - len(values)))
        sign = 1 if self.metric == "loss" else -1
        return sorted(found, key=lambda over: sign * over.mean)

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
            intervals=True,
            ranked=ranked,
            names={key: name(key) for key in self.keys},
            shown=shown,
            charts=drawn,
            words=WORDS,
        )


def _setting(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{name(key)} {shown(row[key])}" for key in keys)


def name(key: str) -> str:
    """`training.learning_rate` in words."""
    return key.removeprefix("training.").replace("_", " ")


def shown(value: Any) -> str:
    """A setting in its shortest form."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
