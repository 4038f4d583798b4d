"""Runs on an MLflow tracking server: parameters, metrics, page and bundle; needs the extra `mlflow`."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertray.config import CompareConfig, EvaluateConfig, ScoreConfig, TrainConfig, identity_of
from bertray.errors import ConfigError
from bertray.evaluation.intervals import Estimate
from bertray.io.digests import cache_key
from bertray.io.store import open_store
from bertray.runs.night_results import CommittedRun
from bertray.runs.results import EvaluationResult, TrainResult

log = logging.getLogger(__name__)

EXPERIMENT = "bertray"
KEY = "bertray.key"  # tag by which a run is found again, so that it is logged once
_MAX_PARAM_CHARS = 500
_NO_NAME = re.compile(r"[^\w ./-]")  # characters that a name of MLflow may not have
Tracked = TrainConfig | EvaluateConfig | CompareConfig | ScoreConfig


def check_tracking(config: Tracked) -> None:
    """Whether runs can be tracked, before any work.

    Raises:
        ConfigError: the package is not there.
    """
    if config.mlflow is None:
        return
    try:
        import mlflow  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ConfigError(
            f"mlflow: the package cannot be imported ({error}).", "Install the extra: pip install 'bertray[mlflow]'."
        ) from error


def track_evaluation(config: TrainConfig | EvaluateConfig, result: EvaluationResult) -> None:
    """Figures of `train` or `evaluate`, with the page and, of `train`, the bundle."""
    folders = ["model"] if isinstance(result, TrainResult) else []
    metrics = {"rows": float(result.figures.rows), **_of_estimates(result.metrics)}
    verb = "train" if folders else "evaluate"
    _track(config, verb, result.output, metrics, ["report.html", "metrics.json", "config.yaml"], folders)


def track_comparison(config: CompareConfig, output: str, figures: Mapping[str, Any]) -> None:
    """Differences of B and A, with the page.

    Args:
        figures: of `comparison.json`.
    """
    differences = {
        name: Estimate(**value)
        for name, value in figures.get("difference", {}).items()
        if isinstance(value, Mapping) and value.keys() == {"value", "low", "high"}
    }
    metrics = {"rows": float(figures["rows"]), **_of_estimates(differences)}
    _track(config, "compare", output, metrics, ["report.html", "comparison.json"], [])


def track_nights(config: ScoreConfig, output: str, runs: Sequence[CommittedRun]) -> None:
    """Counts of each committed run, whether it drifts, and its accuracy where it has labels; with the page."""
    for run in runs:
        metrics = {
            "rows_in": float(run.rows_in),
            "rows_scored": float(run.rows_done),
            "rows_quarantined": float(run.rows_quarantined),
            "rows_per_s": run.rows_per_s,
            "drift": float(run.drift == "alarm"),
            **{f"share/{label}": rows / max(run.rows_done, 1) for label, rows in run.label_counts.items()},
            **({} if run.figures is None else _of_estimates(run.figures.metrics)),
        }
        folder = f"reports/{run.slot}/run={run.run}"
        files = [f"{folder}/{name}" for name in ("report.html", "report.json", "metrics.json")]
        _track(config, "score", output, metrics, files, [], title=run.title)


def _of_estimates(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Each figure with the ends of its interval."""
    return {
        name + suffix: float(getattr(estimate, end))
        for name, estimate in estimates.items()
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
        if getattr(estimate, end) is not None
    }


def _track(
    config: Tracked,
    verb: str,
    output: str,
    metrics: Mapping[str, float],
    files: Sequence[str],
    folders: Sequence[str],
    *,
    title: str = "",
) -> None:
    """Log a run, unless it is there; a server that fails is logged, for the work is done, and the command may be rerun.

    Args:
        files: keys of the output; those that are not there are left out.
        folders: of the output, with all files.
        title: of one of several runs of an output.
    """
    if config.mlflow is None:
        return
    key = cache_key({"verb": verb, "output": output, "title": title, "config": identity_of(config)})
    try:
        _log(config, key, f"{verb} {title or Path(output).name}", metrics, _Files(output, files, folders))
    except Exception as error:  # of any kind: it must not undo what was done
        log.warning(
            "mlflow: the run could not be logged (%s: %s); run the same command again", type(error).__name__, error
        )


def _log(config: Tracked, key: str, name: str, metrics: Mapping[str, float], files: _Files) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    client = MlflowClient(config.mlflow)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    found = f"tags.`{KEY}` = '{key}' and attributes.status = 'FINISHED'"
    if client.search_runs([experiment], found, max_results=1):
        return
    run = client.create_run(experiment, tags={KEY: key, "bertray.output": files.output}, run_name=name).info.run_id
    now = get_current_time_millis()
    values = [Metric(_NO_NAME.sub("_", name), value, now, 0) for name, value in metrics.items()]
    params = [Param(name, value[:_MAX_PARAM_CHARS]) for name, value in flat(config.model_dump(mode="json")).items()]
    for start in range(0, max(len(values), len(params)), 100):  # at most so many a request
        client.log_batch(run, metrics=values[start : start + 100], params=params[start : start + 100])
    with files.in_folder() as folder:
        client.log_artifacts(run, str(folder))
    client.set_terminated(run)


class _Files:
    """Files of an output, local or not."""

    def __init__(self, output: str, files: Sequence[str], folders: Sequence[str]) -> None:
        self.output = output
        self._files, self._folders = files, folders

    @contextmanager
    def in_folder(self) -> Iterator[Path]:
        """A folder with copies of them, for as long as it is used; reports of a slot lie at its top."""
        store = open_store(self.output)
        keys = {key: key.rpartition("/")[2] for key in self._files if store.exists(key)}
        keys |= {key: key for folder in self._folders for key in store.keys(folder)}
        with tempfile.TemporaryDirectory() as name:
            for key, place in keys.items():
                target = Path(name) / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(store.get(key))
            yield Path(name)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Config as dotted keys; what is not set is left out, and so is where it is logged to."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif value is not None and name != "mlflow":
            found[_NO_NAME.sub("_", name)] = str(value)
    return found
