"""The space of a search as a config says it: its keys and values checked against `train`, and its points as configs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, get_args, get_origin

from bertray.config import (
    SearchRange,
    TrainConfig,
    TuneConfig,
    build_config,
    fields_at,
    keys,
    keys_of_other_methods,
)
from bertray.errors import ConfigError, did_you_mean
from bertray.runs.fit.scheduled import Task
from bertray.settings import settings_of
from bertray.training.search_space import Point, Range, SearchSpace

# Of `training`, what a search is not about: where and how safely it runs, what is better, and what other methods have.
_FIXED = {
    "method",
    *keys_of_other_methods("finetune"),
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
    # Of `int | None`, of Literal["none", "balanced"], of what may be `auto`.
    kinds = [get_args(one)[0] if get_origin(one) is Annotated else one for one in get_args(kind) or (kind,)]
    found = f"found low={choices.low} and high={choices.high}."
    if int not in kinds and float not in kinds:
        values = "false, true" if bool in kinds else ", ".join(map(str, kinds))
        raise ConfigError(f"search.space: {key} takes no numbers, {found}", f"List the values: {{{key}: [{values}]}}.")
    whole = float not in kinds
    if choices.is_whole != whole:
        wanted = "whole numbers" if whole else "numbers with a point, such as 1.0"
        raise ConfigError(f"search.space: {key} takes {wanted}, {found}", "Write both ends so, or list the values.")


def _held(config: TuneConfig, key: str, value: Any) -> Any:
    """Value of the space as the config of `train` holds it.

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


def space_of(config: TuneConfig) -> SearchSpace:
    """The space that a sampler draws from."""
    choices = {
        key: settings_of(Range, found) if isinstance(found, SearchRange) else found
        for key, found in config.search.space.items()
    }
    return SearchSpace(choices, config.search.trials, config.search.sampler)


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


def most_epochs(config: TuneConfig, task: Task) -> int:
    """Largest number of epochs of any point of the space."""
    names = ("training.epochs", "training.batch_size")
    choices = [config.search.space.get(name) for name in names]
    tried = [found if isinstance(found, tuple) else (found.high,) if found else (None,) for found in choices]
    points = [{name: value for name, value in zip(names, values, strict=True) if value} for values in product(*tried)]
    return max(task.schedule(at(config, point)).epochs for point in points)
