"""Runs on an MLflow tracking server: parameters, metrics, page and bundle; needs the extra `mlflow`."""

from __future__ import annotations

import json
import logging
import os
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
from bertray.io.store import Store, open_store
from bertray.outputs import ledger
from bertray.outputs.ledger import Ledger
from bertray.runs.night_report import read_report, report_folder
from bertray.runs.results import EvaluationResult, Figures, TrainResult

log = logging.getLogger(__name__)

EXPERIMENT = "bertray"
KEY, OUTPUT = "bertray.key", "bertray.output"  # tags by which a run is found again, so that it is logged once
LOOKED_BACK = 31  # newest runs of an output that are logged where they are not yet
_SECRET = ("mlflow", "notify")  # addresses that may hold one
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


def track_nights(config: ScoreConfig, store: Store, known: Ledger) -> None:
    """Counts of each night, whether it drifts, and its accuracy where it has labels; with the page.

    Of the newest runs those that the server does not have, so that one that could not be reached gets them later.

    Args:
        store: the output.
        known: its committed runs.
    """
    if config.mlflow is None:
        return
    with _warned():
        server = _Server(config.mlflow)
        logged = server.keys(store.root)
        for run in ledger.current(known)[-LOOKED_BACK:]:
            key = cache_key({"verb": "score", "output": store.root, "run": run.run_id})
            if key in logged:
                continue
            try:
                content = read_report(store, run)
            except FileNotFoundError:  # a run beside us is about to write it
                continue
            files = [f"{report_folder(run)}/{name}" for name in ("report.html", "report.json", "metrics.json")]
            settings = json.loads(content["config"] or "{}")
            server.log(key, f"score {run.title}", _of_night(content), settings, _Files(store.root, files, []))


def _of_night(content: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a report.json."""
    figures = {name: float(content[name]) for name in ("rows_in", "rows_scored", "rows_quarantined", "rows_per_s")}
    figures["drift"] = float((content["drift"] or {}).get("state") == "alarm")
    scored = max(content["rows_scored"], 1)
    figures |= {f"share/{label}": rows / scored for label, rows in content["label_counts"].items()}
    if content["evaluation"]:
        figures |= _of_estimates(Figures.from_json(content["evaluation"]["metrics"]).metrics)
    return figures


def _of_estimates(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Each figure with the ends of its interval."""
    return {
        name + suffix: float(getattr(estimate, end))
        for name, estimate in estimates.items()
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
        if getattr(estimate, end) is not None
    }


def _track(
    config: TrainConfig | EvaluateConfig | CompareConfig,
    verb: str,
    output: str,
    metrics: Mapping[str, float],
    files: Sequence[str],
    folders: Sequence[str],
) -> None:
    """Log a run, unless it is there.

    Args:
        files: keys of the output; those that are not there are left out.
        folders: of the output, with all files.
    """
    if config.mlflow is None:
        return
    key = cache_key({"verb": verb, "output": output, "title": "", "config": identity_of(config)})
    with _warned():
        server = _Server(config.mlflow)
        if key not in server.keys(output):
            params = config.model_dump(mode="json")
            server.log(key, f"{verb} {Path(output).name}", metrics, params, _Files(output, files, folders))


@contextmanager
def _warned() -> Iterator[None]:
    """A server that fails is logged, for the work is done, and the command may be run again."""
    try:
        yield
    except Exception as error:  # of any kind: it must not undo what was done
        log.warning(
            "mlflow: the run could not be logged (%s: %s); run the same command again", type(error).__name__, error
        )


class _Server:
    """A tracking server, and the experiment on it."""

    def __init__(self, address: str) -> None:
        # Its own patience of minutes would hold up the end of a night.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        self._client = MlflowClient(address)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        self._experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)

    def keys(self, output: str) -> set[str]:
        """Keys of the finished runs of an output."""
        quoted = output.replace("'", "''")
        wanted = f"tags.`{OUTPUT}` = '{quoted}' and attributes.status = 'FINISHED'"
        found: set[str] = set()
        token = None
        while True:
            page = self._client.search_runs([self._experiment], wanted, max_results=1000, page_token=token)
            found |= {run.data.tags.get(KEY, "") for run in page}
            if not (token := page.token):
                return found

    def log(
        self, key: str, name: str, metrics: Mapping[str, float], settings: Mapping[str, Any], files: _Files
    ) -> None:
        """Log a run with its parameters, figures and files; it is there once it is finished."""
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        client, now = self._client, get_current_time_millis()
        tags = {KEY: key, OUTPUT: files.output}
        run = client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
        values = [Metric(_NO_NAME.sub("_", name), value, now, 0) for name, value in metrics.items()]
        params = [Param(name, value[:_MAX_PARAM_CHARS]) for name, value in flat(settings).items()]
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
    """Config as dotted keys; what is not set is left out, and so are addresses that may hold a secret."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif value is not None and name not in _SECRET:
            found[_NO_NAME.sub("_", name)] = str(value)
    return found
