"""What a recipe of docs/recipes.md is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bertray.evaluation.comparison import compare
from bertray.evaluation.intervals import Estimate

CONFIGS = "jobs/configs"
EVERYTHING = 0  # rows of a sample that is the whole file


@dataclass(frozen=True)
class Rows:
    """A file of the data folder, or so many random rows of it.

    Args:
        path: in the data folder.
        rows: how many.
        after: as many come first in the same random order and are left to another sample.
        made: what is made of the whole file before rows are drawn; its name stands for it in digests.
    """

    path: str
    rows: int = EVERYTHING
    after: int = 0
    made: Callable[[pa.Table], pa.Table] | None = None

    @property
    def name(self) -> str:
        """Tells samples apart."""
        parts = [str(Path(self.path).with_suffix(""))]
        parts += [str(self.rows)] if self.rows else []
        parts += [f"after-{self.after}"] if self.after else []
        parts += [self.made.__name__] if self.made else []
        return "-".join(parts)


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
    data: Mapping[str, Rows | tuple[Rows, ...]]
    metric: str
    settings: str
    published: str = ""
    learned: Rows | None = None

    @property
    def samples(self) -> list[Rows]:
        """Everything that it reads."""
        return [one for rows in self.data.values() for one in (rows if isinstance(rows, tuple) else (rows,))]

    @property
    def told_settings(self) -> str:
        return self.settings or "as the config says"


@dataclass(frozen=True)
class Recipe:
    """Runs that are told together.

    Args:
        remark: sentences below the table.
        floors: what has to be reached: figure, what was reached, and the least.
    """

    title: str
    runs: tuple[Run, ...]
    remark: Callable[[list[Result]], str] | None = None
    model: str = "`bundled`"
    floors: Callable[[list[Result]], list[tuple[str, float, float]]] | None = None


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    run: Run
    output: Path
    minutes: float
    train_rows: int
    metrics: dict[str, Any] = field(default_factory=dict)

    def predictions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, given and predicted labels of the rows that it was tested on, by id."""
        table = pq.read_table(self.output / "predictions.parquet").sort_by("id")
        ids, given, predicted = (np.array(table[name].to_pylist()) for name in ("id", "label", "prediction"))
        return ids, given, predicted

    def against(self, other: Result) -> Estimate:
        """Its accuracy less that of another on the same rows, with the interval of the paired bootstrap."""
        ids, given, mine = self.predictions()
        same_ids, _, theirs = other.predictions()
        assert np.array_equal(ids, same_ids), f"{self.run.name} and {other.run.name} were tested on different rows"
        classes = np.unique(np.concatenate([given, mine, theirs]))
        given_N, mine_N, theirs_N = (np.searchsorted(classes, labels) for labels in (given, mine, theirs))
        names = {"name_a": self.run.name, "name_b": other.run.name}
        return compare(given_N, mine_N, theirs_N, len(classes), seed=0, **names).differences["accuracy"].difference

    def value(self, metric: str, of: str = "") -> dict[str, float]:
        found: dict[str, Any] = self.metrics["baselines"][of] if of else self.metrics
        scores: dict[str, dict[str, float]] = found.get("metrics", found)
        return scores[metric]


def in_points(difference: Estimate) -> str:
    """A difference of accuracies with its interval."""
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def config(name: str) -> tuple[str, str]:
    return "-c", f"{CONFIGS}/{name}.yaml"
