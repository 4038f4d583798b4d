"""`bertray tune`: Ray Tune runs trials of the training loop, Optuna says what to try; the best becomes a config.

Every trial is a file of the output (`control/trials/<point>.json`), and checkpoints lie beside it. A run that was
killed reads what came of finished trials, tells Optuna, and takes the unfinished ones up again first.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from bertray.config import TuneConfig, to_yaml
from bertray.console import Ticker
from bertray.errors import BertrayError, ConfigError, Diverged, InfrastructureError
from bertray.evaluation.intervals import Estimate, mean_estimate
from bertray.evaluation.metrics import EPS, confusion_matrix, matrix_metrics
from bertray.evaluation.validation_profile import check_reading
from bertray.execution.executor import Executor
from bertray.execution.on_demand import Executors, executors_of
from bertray.execution.ray_tune import Report, Trials, run_trials
from bertray.execution.stalls import StallWatch
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import resolve_model, weights_digest
from bertray.model.tokenization import ReviewTokenizer
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder, told_when_finished
from bertray.reports.html import created_now, data_title, model_title
from bertray.reports.plain import plain
from bertray.reports.search import SearchReport, shown
from bertray.runs.fit import searched_config as searched
from bertray.runs.fit.labelled_data import TOKENS, check_splits, open_data, tokenize
from bertray.runs.fit.scheduled import Task
from bertray.runs.fit.training import check_train, run_key_of
from bertray.runs.results import TuneResult
from bertray.settings import settings_of
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.loop import run_loop
from bertray.training.objectives import AspectClassification, Classification
from bertray.training.search_space import Point, Sampler, Tried, name_of, num_trials
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import duration

log = logging.getLogger(__name__)

TRIALS = "control/trials"
BEST = "best.yaml"
WORST = -1e9  # value of a trial that failed
METRICS = ("loss", "accuracy", "macro_f1", "mcc")
FIGURES = tuple(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high"))
IMPORTS = ("ray.data", "ray.tune", "optuna", "transformers")
INSTEAD = {  # of a search, by training.method
    "features": "A features run tries its regularisation by itself: `bertray train training.method=features`.",
    "stack": "A stack has nothing to search for: `bertray train training.method=stack`.",
    "contrast": "Contrast is for few rows, of which a search learns nothing: `bertray train training.method=contrast`.",
    "distill": "Search with training.method=finetune, train the best, then distill that: `bertray train "
    "training.method=distill training.teacher=<its output>/model`.",
}


@dataclass(frozen=True)
class Trial:
    """A point of the space and what came of it, epoch by epoch."""

    number: int
    point: Point
    status: str  # running, finished, stopped (it was behind), failed
    epochs: list[dict[str, float]]
    why: str = ""

    @property
    def name(self) -> str:
        return name_of(self.point)

    def best(self, metric: str) -> dict[str, float]:
        """The epoch that counts."""
        return max(self.epochs, key=lambda epoch: value_of(epoch, metric))

    def value(self, metric: str) -> float | None:
        """Better when larger; None where it failed."""
        return None if self.status == "failed" or not self.epochs else value_of(self.best(metric), metric)

    def estimate(self, metric: str) -> Estimate:
        """The metric at the best epoch, with its interval over the validation rows."""
        best = self.best(metric)
        return Estimate(best[metric], best[f"{metric}_low"], best[f"{metric}_high"])


@dataclass(frozen=True)
class _TrialJob:
    """Job of a trial's process, without its point of the space."""

    config: TuneConfig
    task: Task
    data: TokenizedData
    run_key: str
    device: str
    threads: int


def tune(config: TuneConfig, executors: Executors | None = None) -> TuneResult:
    """Search; the same run again resumes, or gives back what it had found."""
    with executors_of(config.workers, executors, imports=IMPORTS) as opened:
        return _run(config, opened)


def _run(config: TuneConfig, executors: Executors) -> TuneResult:
    started = time.monotonic()
    if config.training.method not in ("auto", "finetune"):
        raise ConfigError(
            f"training.method={config.training.method}: tune searches over fine-tuning.",
            INSTEAD[config.training.method],
        )
    _check_installed()
    config = searched.check_space(config)
    model_folder = check_train(config)
    data = open_data(config, executors.for_bytes)
    run_key = run_key_of(config, data, model_folder)
    store = open_store(config.output)
    if finished_run(store, "tune", run_key):
        return _result(store, already_done=True)
    with claimed_output(store, "tune", run_key, to_yaml(config), TRIALS):
        data.keep_scans(store)
        with executors.session(None) as executor:
            tokenized = tokenize(config, data, weights_digest(model_folder), store, executor)
            examples = tokenized.examples()
            check_splits(examples, data)
            check_reading(examples, config.model)
            task = Task.of(len(examples.train), len(data.labels.names), model_folder)
            job = _TrialJob(config, task, tokenized, run_key, executor.resources.device, executor.resources.threads)
            trials = _search(job, store, executor)
        metric = config.training.best_metric
        done = [trial for trial in trials if trial.value(metric) is not None]
        if not done:
            raise Diverged(
                f"tune: all {len(trials)} trials failed, the last one so: {trials[-1].why}",
                "Narrow `search.space`, in a new output.",
            )
        best = max(done, key=lambda trial: value_of(trial.best(metric), metric))
        rows = _rows(trials, metric)
        report = SearchReport(
            title=f"Hyperparameter search: {model_title(config.model)} on {data_title(config.data.train or ())}",
            metric=metric,
            rows=rows,
            keys=tuple(config.search.space),
            facts=_facts(config, data.train.num_rows, examples, time.monotonic() - started),
            config=to_yaml(config),
            best=best.number,
            has_test=_has_test(config),
            created=created_now(),
        )
        store.put("trials.parquet", parquet_bytes(pa.table({name: [row[name] for row in rows] for name in rows[0]})))
        store.put(BEST, _best_yaml(config, best, metric).encode())
        store.put("report.html", report.to_html().encode())
        told = {"headline": report.headline, "metric": metric, "keys": report.keys, "trials": report.ranked}
        mark_finished(store, plain(told))
        for folder in (TOKENS, "control/ray_tune"):
            remove_folder(store, folder)
        log.info("searched in %s", duration(time.monotonic() - started))
    return _result(store, already_done=False)


def _result(store: Store, *, already_done: bool) -> TuneResult:
    told = told_when_finished(store)
    return TuneResult(
        store.root,
        sentence=told.get("headline", ""),
        metric=told.get("metric", ""),
        keys=tuple(told.get("keys", ())),
        trials=tuple(told.get("trials", ())),
        already_done=already_done,
    )


def _check_installed() -> None:
    try:
        for name in ("optuna", "ray.tune"):
            import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"tune: {error.name or error} is not installed.", "Run `pip install 'bertray[tune]'`."
        ) from error


def value_of(epoch: Mapping[str, float], metric: str) -> float:
    """Better when larger."""
    return -epoch[metric] if metric == "loss" else epoch[metric]


# --- the search ------------------------------------------------------------------------------------------------------


def _search(job: _TrialJob, store: Store, executor: Executor) -> list[Trial]:
    """Every trial there is to be, those of earlier runs included, by number."""
    config = job.config
    earlier = stored_trials(store)
    finished = {trial.name: trial for trial in earlier if trial.status != "running"}
    unfinished = [trial.point for trial in earlier if trial.status == "running"]
    space = searched.space_of(config)
    wanted = num_trials(space)
    if len(finished) >= wanted:
        return sorted(finished.values(), key=lambda trial: trial.number)
    if earlier:
        log.info("%d trials are done, %d are taken up again", len(finished), len(unfinished))
    start = searched.start_of(job.task.numbers(config))
    metric = config.training.best_metric
    tried = [Tried(trial.point, trial.value(metric)) for trial in finished.values()]
    sampler = Sampler(space, config.seed, tried, unfinished or ([start] if start and not finished else []))
    epochs = searched.most_epochs(config, job.task)
    trials = Trials(
        name=f"{job.run_key}-{time.time_ns():x}",
        storage=store.uri("control/ray_tune"),
        count=wanted - len(finished),
        max_failures=config.training.max_failures,
        max_epochs=epochs if config.search.stop_early and epochs > 1 else None,
    )
    with Ticker("searching", wanted, "trials") as ticker:
        book = _Book(store, earlier, ticker, config, job.task, sampler)
        with book.watch:
            run_trials(partial(_train_trial, job), book, trials, executor.resources)
    if book.fatal is not None:
        raise book.fatal
    return sorted(book.finished.values(), key=lambda trial: trial.number)


class _Book:
    """The search on the driver: points from a sampler, and trials of which every change is written down."""

    def __init__(
        self, store: Store, earlier: Sequence[Trial], ticker: Ticker, config: TuneConfig, task: Task, sampler: Sampler
    ) -> None:
        self.fatal: BertrayError | None = None  # what ends the search, its trial unfinished
        self.finished = {trial.name: trial for trial in earlier if trial.status != "running"}
        self._numbers = {trial.name: trial.number for trial in earlier}
        self._running: dict[str, Trial] = {}
        self._store, self._ticker, self._config, self._sampler = store, ticker, config, sampler
        self._task = task
        self.watch = StallWatch("searching", self._in_progress)

    def _in_progress(self) -> str:
        """The trials that run, in words."""
        return "trials that run: " + ("; ".join(_in_words(trial.point) for trial in self._running.values()) or "none")

    @property
    def is_over(self) -> bool:
        """An error has come that says nothing of a point."""
        return self.fatal is not None

    def suggest(self, trial_id: str) -> Point | None:
        """The next point, its trial begun."""
        point = self._sampler.next(trial_id)
        if point is not None:
            self.begin(point)
        return point

    def reported(self, point: Point, report: Mapping[str, Any]) -> None:
        """An epoch of a trial, or the error that ends the search."""
        if "error" in report:
            self.fatal = report["error"]
        elif "loss" in report:
            self.epoch(point, report)

    def completed(self, trial_id: str, point: Point, report: Mapping[str, Any], *, lost: bool) -> None:
        """The sampler learns the value of a trial that has ended."""
        if lost and self.fatal is None:
            self.fatal = InfrastructureError(
                f"tune: the process of a trial ended again and again ({_in_words(point)}).",
                "Look for a lost machine or too little memory, then run the same command again.",
            )
        if self.fatal is None:
            self._sampler.tell(trial_id, self.end(point, why=str(report.get("diverged", ""))))

    def begin(self, point: Point) -> None:
        """A trial starts, or is taken up again."""
        name = name_of(point)
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        self._running[name] = Trial(number, point, "running", [])
        self._write(self._running[name])

    def epoch(self, point: Point, row: Mapping[str, Any]) -> None:
        """An epoch of it is done."""
        trial = self._running[name_of(point)]
        kept = {key: float(row[key]) for key in ("epoch", "train_loss", "seconds", *FIGURES)}
        before = [epoch for epoch in trial.epochs if epoch["epoch"] < kept["epoch"]]  # a process that died tells again
        self._running[trial.name] = replace(trial, epochs=[*before, kept])
        self._write(self._running[trial.name])

    def end(self, point: Point, *, why: str = "") -> float | None:
        """It has ended; returns what it is worth."""
        trial = self._running.pop(name_of(point))
        training, metric = self._config.training, self._config.training.best_metric
        epochs = self._task.schedule(searched.at(self._config, point)).epochs
        whole = len(trial.epochs) >= epochs
        patience = training.early_stopping_patience
        if patience is not None and trial.epochs:  # it may have ended by itself
            whole = whole or len(trial.epochs) - trial.best(metric)["epoch"] >= patience
        status = "failed" if why or not trial.epochs else "finished" if whole else "stopped"
        trial = replace(trial, status=status, why=why)
        self.finished[trial.name] = trial
        self._write(trial)
        remove_folder(self._store, f"{TRIALS}/{trial.name}")  # its checkpoints
        value = trial.value(metric)
        told = f"{metric} {_with_interval(trial.estimate(metric))}" if value is not None else "failed"
        self._ticker.update(len(self.finished), f"trial {trial.number}: {_in_words(trial.point)}: {told} ({status})")
        return value

    def _write(self, trial: Trial) -> None:
        self.watch.progressed()
        self._store.put(f"{TRIALS}/{trial.name}.json", json.dumps(asdict(trial)).encode())


class _Judged(Classification):
    """Figures with the ends of their 95 % intervals, of every epoch: a trial that is behind never gets to its end."""

    def figures(self, rows_VK: np.ndarray) -> dict[str, float]:
        from scipy.special import log_softmax

        figures = super().figures(rows_VK)
        if not np.isfinite(figures["loss"]):  # the loop ends such a trial
            return figures
        label_ids_V, seed = self.examples.label_ids_N[self.examples.validation], self.settings.seed
        losses_V = -log_softmax(rows_VK, axis=1)[np.arange(len(rows_VK)), label_ids_V]
        matrix_CC = confusion_matrix(label_ids_V, self.predicted(rows_VK), self.width)
        estimates = matrix_metrics(matrix_CC, seed)
        estimates["loss"] = mean_estimate(losses_V, seed, bounds=(0.0, -float(np.log(EPS))))
        return {f"{name}{end}": x for name in METRICS for end, x in _ends(estimates[name]).items()}


class _JudgedByAspect(_Judged, AspectClassification):
    """The same of a classifier with `head=attention`."""


def _ends(found: Estimate) -> dict[str, float]:
    return {"": found.value, "_low": found.low, "_high": found.high}


def _train_trial(job: _TrialJob, point: Point, report: Report) -> None:
    """Train at one point and report each epoch."""

    config = job.task.numbers(searched.at(job.config, point))
    metric, folder = job.config.training.best_metric, resolve_model(job.config.model)
    name = name_of(point)

    def on_epoch(row: dict[str, Any]) -> None:
        report({**row, "epoch": int(row["epoch"]), "value": value_of(row, metric)})

    nothing = {"epoch": config.training.epochs, "value": WORST}
    try:
        run_loop(
            # The split is that of the search, whatever seed a trial has: all are judged on the same rows.
            job.data.examples(),
            folder,
            ReviewTokenizer(folder, 16).pad_id,
            LoopSettings(
                job.data.classes,
                settings_of(TrainingSettings, config.training),
                config.seed,
                f"{job.run_key}-{name}",
                job.threads,
            ),
            open_store(f"{job.data.output.rstrip('/')}/{TRIALS}/{name}"),
            objective=_JudgedByAspect if config.head == "attention" else _Judged,
            device=job.device,
            on_epoch=on_epoch,
        )
    except Diverged as error:  # an answer, too: this point is no good
        report({**nothing, "diverged": error.message})
    except BertrayError as error:  # says nothing of the point
        report({**nothing, "error": error})


def stored_trials(store: Store) -> list[Trial]:
    """Trials that earlier runs stored, by number."""
    keys = [key for key in store.keys(TRIALS) if key.endswith(".json") and key.count("/") == TRIALS.count("/") + 1]
    found = [Trial(**json.loads(store.get(key))) for key in keys]
    return sorted(found, key=lambda trial: trial.number)


# --- telling ---------------------------------------------------------------------------------------------------------


def _rows(trials: Sequence[Trial], metric: str) -> list[dict[str, Any]]:
    """A row a trial: number, status, the searched keys, and the figures of its best epoch with their intervals."""
    rows = []
    for trial in trials:
        best = trial.best(metric) if trial.epochs else {}
        seconds = trial.epochs[-1]["seconds"] if trial.epochs else 0.0
        figures = {name: best.get(name) for name in FIGURES}
        told = {"trial": trial.number, "status": trial.status, "epochs": len(trial.epochs), "seconds": seconds}
        rows.append({**told, "best_epoch": best.get("epoch"), **figures, **trial.point, "why": trial.why})
    return rows


def _best_yaml(config: TuneConfig, best: Trial, metric: str) -> str:
    """A config that `train` takes; `output` is left to the command line."""
    seeded, words = "seed" in best.point and config.data.validation is None, ["output=runs/best"]
    head = (
        f"# The best of a search: trial {best.number}, {metric} {_with_interval(best.estimate(metric))} on validation "
        f"after epoch {best.best(metric)['epoch']:.0f}.\n"
    )
    if seeded:
        head += "# Its seed also decides which rows are validation, unless data.validation names them.\n"
    if not _has_test(config):
        head += "# Without data.test the report would be on the very rows that chose it.\n"
        words = ["data.test=<labelled reviews>", *words]
    head += f"#\n#   bertray train -c best.yaml {' '.join(words)}\n\n"
    return head + to_yaml(searched.at(config, best.point), exclude=["output"])


def _has_test(config: TuneConfig) -> bool:
    return config.data.test is not None or config.data.test_from is not None


def _facts(config: TuneConfig, num_rows: int, examples: Examples, seconds: float) -> dict[str, str]:
    return {
        "base model": config.model,
        "rows given": f"{num_rows:,}",
        "train examples": f"{len(examples.train):,}",
        "validation examples": f"{len(examples.validation):,}",
        "sampler": config.search.sampler,
        "trials that are behind": "are ended after an epoch" if config.search.stop_early else "run to their end",
        "time from start to report": duration(seconds),
    }


def _with_interval(found: Estimate | None) -> str:
    return "" if found is None else str(found)


def _in_words(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('training.')} {shown(value)}" for key, value in point.items())
