"""The space of a hyperparameter search, and the next point of it by Optuna, knowing what came before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bertray.io.digests import cache_key
from bertray.settings import SamplerKind

Point: TypeAlias = dict[str, Any]  # config key -> value

MOST_REPEATS = 200  # points in a row that were tried before; then a search ends


@dataclass(frozen=True)
class Range:
    """Every number from `low` to `high`; whole ones where both are whole.

    Args:
        low, high: ends, both included.
        log: sample log-uniformly, for learning rates and the like.
    """

    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the range holds whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class SearchSpace:
    """Choices of a search by key, and how they are drawn.

    Args:
        choices: key of a config: a range, or a tuple of values.
        trials: points that are tried at most.
        sampler: `tpe` and `random` by Optuna; `grid`: every combination of listed values.
    """

    choices: Mapping[str, Range | tuple[Any, ...]]
    trials: int
    sampler: SamplerKind


def name_of(point: Mapping[str, Any]) -> str:
    """A name of a point that a later run finds again."""
    return cache_key({"point": dict(point)})


@dataclass(frozen=True)
class Tried:
    """A point with what came of it; `value` is better when larger, None when training failed."""

    point: Point
    value: float | None


class Sampler:
    """Asks Optuna for points, each once. The same seed and the same past give the same next points.

    Args:
        space: choices, and the way to draw from them.
        seed: of the sampler.
        tried: what is known already.
        first: points to try before Optuna is asked.
    """

    def __init__(self, space: SearchSpace, seed: int, tried: Sequence[Tried], first: Sequence[Point]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions = {key: _distribution(choices) for key, choices in space.choices.items()}
        # With what was tried, so that a search that goes on does not draw the same numbers again.
        seed += len(tried)
        sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        if space.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._open: dict[str, Any] = {}
        self._worth: dict[str, float | None] = {}  # by name of point; None: under way, or failed
        for past in tried:
            self._worth[name_of(past.point)] = past.value
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=past.point,
                    distributions=self._distributions,
                    value=past.value,
                    state=optuna.trial.TrialState.COMPLETE if past.value is not None else optuna.trial.TrialState.FAIL,
                )
            )
        if space.sampler == "grid":
            known = {*self._worth, *map(name_of, first)}
            first = [*first, *(point for point in every_point(space) if name_of(point) not in known)]
        for point in first:
            self._study.enqueue_trial(point)

    def next(self, trial: str) -> Point | None:
        """The point that a trial of this name shall try; None when nothing new comes."""
        for _ in range(MOST_REPEATS):
            asked = self._study.ask(self._distributions)
            point = dict(asked.params)
            name = name_of(point)
            if name not in self._worth:
                self._open[trial], self._worth[name] = asked, None
                return point
            self._finish(asked, self._worth[name])  # worth what it was worth; Optuna goes on from there
        return None

    def tell(self, trial: str, value: float | None) -> None:
        """Note the value of a trial; None: it failed."""
        asked = self._open.pop(trial)
        self._worth[name_of(dict(asked.params))] = value
        self._finish(asked, value)

    def _finish(self, asked: Any, value: float | None) -> None:
        import optuna

        if value is None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)


def _distribution(choices: Range | tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(choices, tuple):
        return CategoricalDistribution(choices)
    if choices.is_whole:
        return IntDistribution(int(choices.low), int(choices.high), log=choices.log)
    return FloatDistribution(float(choices.low), float(choices.high), log=choices.log)


def every_point(space: SearchSpace) -> list[Point]:
    """Every combination of listed values; the first key varies slowest."""
    listed = {key: choices for key, choices in space.choices.items() if isinstance(choices, tuple)}
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


def num_trials(space: SearchSpace) -> int:
    """Trials of the whole search: as many as asked for, or as the space has points."""
    listed = [len(set(choices)) for choices in space.choices.values() if isinstance(choices, tuple)]
    return min(space.trials, math.prod(listed)) if len(listed) == len(space.choices) else space.trials
