"""What a recipe of docs/recipes.md is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIGS = "jobs/configs"
EVERYTHING = 0  # rows of a sample that is the whole file


@dataclass(frozen=True)
class Rows:
    """A file of the data folder, or so many random rows of it."""

    path: str
    rows: int = EVERYTHING


@dataclass(frozen=True)
class Run:
    """One command of a recipe, and how its row of the table reads.

    Args:
        name: of its folder; unique.
        verb: of bertray.
        words: config files and overrides; `{name}` stands for the output of an earlier run.
        data: key -> file; more words.
        metric: of metrics.json; none: the run has no line of its own.
        settings: what sets it apart from the other runs of its recipe, in words.
        published: the figure that data/README.md gives, and of what.
        learned: what the model of an evaluation was trained on.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    data: dict[str, Rows | tuple[Rows, ...]]
    metric: str
    settings: str
    published: str = ""
    learned: Rows | None = None

    @property
    def told_settings(self) -> str:
        return self.settings or "as the config says"


@dataclass(frozen=True)
class Recipe:
    """Runs that are told together."""

    title: str
    runs: tuple[Run, ...]
    remark: Callable[[list[Result]], str] | None = None
    model: str = "`bundled`"


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    run: Run
    output: Path
    minutes: float
    train_rows: int
    metrics: dict[str, Any] = field(default_factory=dict)

    def value(self, metric: str, of: str = "") -> dict[str, float]:
        found: dict[str, Any] = self.metrics["baselines"][of] if of else self.metrics
        scores: dict[str, dict[str, float]] = found.get("metrics", found)
        return scores[metric]


def config(name: str) -> tuple[str, str]:
    return "-c", f"{CONFIGS}/{name}.yaml"
