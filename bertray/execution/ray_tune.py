"""Trials of a search by Ray Tune: processes that each train at one point and report every epoch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bertray.execution.machines import machine_watch
from bertray.execution.remote_errors import translated
from bertray.execution.resources import Resources
from bertray.runtime import work_in, working_folder

EPOCH, VALUE = "epoch", "value"  # of a report: epochs that are done, and what is compared, better when larger
Report = Callable[[dict[str, Any]], None]


class Search(Protocol):
    """The side of the driver: proposes points and keeps the outcome of trials."""

    @property
    def is_over(self) -> bool:
        """No trial is to go on."""

    def suggest(self, trial_id: str) -> Any | None:
        """The next point to try; None: no other one."""

    def reported(self, point: Any, report: dict[str, Any]) -> None:
        """A trial has reported."""

    def completed(self, trial_id: str, point: Any, report: dict[str, Any], *, lost: bool) -> None:
        """A trial has ended.

        Args:
            report: its last one.
            lost: its process died more often than it may be started again.
        """


@dataclass(frozen=True)
class Trials:
    """Settings by which trials are run.

    Args:
        name: of the run, never used before.
        storage: path or URI of a folder for bookkeeping that all machines see.
        count: trials at most.
        max_failures: how often a trial is started again after its process was lost.
        max_epochs: of a trial; those that are behind after an epoch are ended. None: every trial runs to its end.
    """

    name: str
    storage: str
    count: int
    max_failures: int
    max_epochs: int | None


def run_trials(body: Callable[[Any, Report], None], search: Search, trials: Trials, resources: Resources) -> None:
    """Run `body(point, report)` for every point that the search proposes, `Resources.num_workers` at a time."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    scheduler: Any = FIFOScheduler()
    if trials.max_epochs is not None:
        scheduler = AsyncHyperBandScheduler(
            time_attr=EPOCH, metric=VALUE, mode="max", max_t=trials.max_epochs, grace_period=1, reduction_factor=3
        )
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose banner ignores verbose=0
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the command, as everywhere
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_run_trial, body=body, folder=working_folder()),
            {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker},
        ),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(search),
            scheduler=scheduler,
            num_samples=trials.count,
            max_concurrent_trials=resources.num_workers,
            reuse_actors=True,  # a new process imports for seconds
        ),
        run_config=tune.RunConfig(
            name=trials.name,
            storage_path=trials.storage,
            failure_config=tune.FailureConfig(max_failures=trials.max_failures),
            callbacks=[_callback(search)],
            stop=_stopper(search),
            verbose=0,
        ),
    )
    with translated(), machine_watch(resources):
        tuner.fit()


def _run_trial(settings: dict[str, Any], *, body: Callable[[Any, Report], None], folder: str | None) -> None:
    """Body of the process of a trial."""
    from ray import tune

    work_in(folder)  # Ray Tune has its trials work in folders of its own
    body(settings["point"], tune.report)


# Ray Tune copies these three for its own way of resuming, which is not used: a copy is a string.


def _searcher(search: Search) -> Any:
    """Ray Tune's view of a search."""
    from ray.tune.search import Searcher

    class Proposing(Searcher):  # type: ignore[misc]  # Ray publishes no types
        def __init__(self) -> None:
            super().__init__(metric=VALUE, mode="max")
            self._points: dict[str, Any] = {}

        def suggest(self, trial_id: str) -> Any:
            point = search.suggest(trial_id)
            if point is None:
                return Searcher.FINISHED
            self._points[trial_id] = point
            return {"point": point}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            search.completed(trial_id, self._points.pop(trial_id), result or {}, lost=error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what is known of trials lies in the output."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, as `save`."""

        def __reduce__(self) -> Any:
            return str, ("searcher",)

    return Proposing()


def _callback(search: Search) -> Any:
    from ray.tune import Callback

    class Reporting(Callback):  # type: ignore[misc]  # Ray publishes no types
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            search.reported(trial.config["point"], result)

        def __reduce__(self) -> Any:
            return str, ("callback",)

    return Reporting()


def _stopper(search: Search) -> Any:
    from ray.tune import Stopper

    class WhenOver(Stopper):  # type: ignore[misc]  # Ray publishes no types
        def __call__(self, trial_id: str, result: Any) -> bool:
            return False

        def stop_all(self) -> bool:
            return search.is_over

        def __reduce__(self) -> Any:
            return str, ("stopper",)

    return WhenOver()
