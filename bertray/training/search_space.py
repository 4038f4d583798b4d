"""What a search tries: the space as the config says it, and the next point by Optuna, knowing what came before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

from bertray.config import KEYS_OF_METHOD, Search, SearchRange, TrainConfig, TuneConfig, build_config, fields_at, keys
from bertray.errors import ConfigError, did_you_mean
from bertray.io.digests import cache_key

Point: TypeAlias = dict[str, Any]  # config key -> value

MOST_REPEATS = 200  # points in a row that were tried before; then a search ends

# Of `training`, what a search is not about: where and how safely it runs, what is better, and what other methods have.
_FIXED = {
    "method",
    *KEYS_OF_METHOD["features"],
    *KEYS_OF_METHOD["distill"],
    "best_metric",
    "checkpoint_every_s",
    "max_failures",
    "precision",
}


def searchable_keys() -> list[str]:
    """Keys that a search may vary: those that the token shards do not depend on."""
    return ["seed", *(f"training.{name}" for name in fields_at(TrainConfig, ["training"]) if name not in _FIXED)]


def check_space(config: TuneConfig) -> TuneConfig:
    """Refuse a space with a key that cannot be varied, or a value that `train` would refuse.

    Returns:
        The config with listed values as `train` has them ("1e-4" is 1e-4, of epochs 2.0 is 2), each once: what is
        computed, written and compared from here on has the type of its key.

    Raises:
        ConfigError: names the key, what it holds and what would be right.
    """
    names, search, space = searchable_keys(), config.search, {}
    for key, choices in search.space.items():
        if key not in names:
            near = "" if key in keys(TrainConfig) else did_you_mean(key, names)  # a key of train is no slip
            raise ConfigError(
                f"search.space: {key!r} cannot be searched.{near}",
                f"Search among {', '.join(names)}; any other key is the same in all trials, so compare its values by "
                "runs of their own.",
            )
        if isinstance(choices, SearchRange):
            _check_range(key, choices)
        tried = choices if isinstance(choices, tuple) else (choices.low, choices.high)
        held = tuple(_held(config, key, value) for value in tried)
        space[key] = choices if isinstance(choices, SearchRange) else tuple(dict.fromkeys(held))
    if search.sampler == "grid":
        ranges = [key for key, choices in search.space.items() if isinstance(choices, SearchRange)]
        if ranges:
            raise ConfigError(
                f"search.sampler=grid: {', '.join(ranges)} is a range, of which there is no end.",
                f"List its values: `{{{ranges[0]}: [...]}}`, or use `search.sampler=tpe` or `search.sampler=random`.",
            )
    return config.model_copy(update={"search": search.model_copy(update={"space": space})})


def _check_range(key: str, choices: SearchRange) -> None:
    """Raises:
    ConfigError: the key takes no numbers, or the ends of the range are not of its kind.
    """
    *sections, name = key.split(".")
    kind = fields_at(TrainConfig, sections)[name].annotation
    kinds = get_args(kind) or (kind,)  # of `int | None`, of Literal["none", "balanced"]
    found = f"found low={choices.low} and high={choices.high}."
    if int not in kinds and float not in kinds:
        values = "false, true" if bool in kinds else ", ".join(map(str, kinds))
        raise ConfigError(f"search.space: {key} takes no numbers, {found}", f"List the values: {{{key}: [{values}]}}.")
    whole = float not in kinds
    if choices.is_whole != whole:
        wanted = "whole numbers" if whole else "numbers with a point, such as 1.0"
        raise ConfigError(f"search.space: {key} takes {wanted}, {found}", "Write both ends so, or list the values.")


def _held(config: TuneConfig, key: str, value: Any) -> Any:
    """What `train` makes of a value of the space.

    Raises:
        ConfigError: it refuses the value.
    """
    try:
        found: Any = at(config, {key: value})
    except ConfigError as error:
        raise ConfigError(f"search.space: {key}={value!r}: {error.message}", error.remedy) from error
    for part in key.split("."):
        found = getattr(found, part)
    return found


def at(config: TuneConfig, point: Mapping[str, Any]) -> TrainConfig:
    """The config of `train` at a point of the space.

    Raises:
        ConfigError: a value that `train` refuses.
    """
    data = config.model_dump(mode="json", exclude={"search"})
    for key, value in point.items():
        *sections, name = key.split(".")
        target = data
        for section in sections:
            target = target[section]
        target[name] = value
    found = build_config("train", data)
    assert isinstance(found, TrainConfig)
    return found


def start_of(config: TuneConfig) -> Point:
    """The point that the config stands at; it is tried first where it lies in the space."""
    data = config.model_dump(mode="json")
    point = {}
    for key, choices in config.search.space.items():
        value: Any = data
        for part in key.split("."):
            value = value[part]
        if isinstance(choices, tuple):
            inside = value in choices
        else:
            inside = isinstance(value, int | float) and choices.low <= value <= choices.high
        if not inside:
            return {}
        point[key] = value
    return point


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
        search: space, sampler.
        seed: of the sampler.
        tried: what is known already.
        first: points to try before Optuna is asked.
    """

    def __init__(self, search: Search, seed: int, tried: Sequence[Tried], first: Sequence[Point]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions = {key: _distribution(choices) for key, choices in search.space.items()}
        # With what was tried, so that a search that goes on does not draw the same numbers again.
        seed += len(tried)
        sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        if search.sampler == "tpe":
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
        if search.sampler == "grid":
            known = {*self._worth, *map(name_of, first)}
            first = [*first, *(point for point in every_point(search) if name_of(point) not in known)]
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
        """What came of a trial; None: it failed."""
        asked = self._open.pop(trial)
        self._worth[name_of(dict(asked.params))] = value
        self._finish(asked, value)

    def _finish(self, asked: Any, value: float | None) -> None:
        import optuna

        if value is None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)


def _distribution(choices: SearchRange | tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(choices, tuple):
        return CategoricalDistribution(choices)
    if choices.is_whole:
        return IntDistribution(int(choices.low), int(choices.high), log=choices.log)
    return FloatDistribution(float(choices.low), float(choices.high), log=choices.log)


def every_point(search: Search) -> list[Point]:
    """Every combination of listed values; the first key varies slowest."""
    listed = {key: choices for key, choices in search.space.items() if isinstance(choices, tuple)}
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


def num_trials(search: Search) -> int:
    """Trials of the whole search: as many as asked for, or as the space has points."""
    listed = [len(set(choices)) for choices in search.space.values() if isinstance(choices, tuple)]
    return min(search.trials, math.prod(listed)) if len(listed) == len(search.space) else search.trials


def most_epochs(config: TuneConfig) -> int:
    """Of any point of the space."""
    choices = config.search.space.get("training.epochs")
    if choices is None:
        return config.training.epochs
    tried = choices if isinstance(choices, tuple) else (choices.high,)
    return max(at(config, {"training.epochs": value}).training.epochs for value in tried)
