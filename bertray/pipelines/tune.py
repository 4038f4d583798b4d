"""`bertray tune`: Ray Tune runs trials of the training loop, Optuna says what to try; the best becomes a config.

Every trial is a file of the output (`control/trials/<point>.json`), and checkpoints lie beside it. A run that was
killed reads what came of finished trials, tells Optuna, and takes the unfinished ones up again first.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from bertray.config import TuneConfig, to_yaml
from bertray.console import Ticker, duration, say, table
from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.model.bundle import resolve_model, weights_digest
from bertray.pipelines.cluster import Resources, ray_session
from bertray.pipelines.examples import TokenizedData, check_splits, open_data, tokenize
from bertray.pipelines.parts import parquet_bytes
from bertray.pipelines.runs import claim_output, finished_run, mark_finished
from bertray.pipelines.train import check_train, run_key_of
from bertray.reports.search import SearchReport
from bertray.storage.store import LocalStore, Store, open_store
from bertray.training import search as searching
from bertray.training.loop import LoopSettings
from bertray.training.search import Point, Sampler, Tried

log = logging.getLogger(__name__)

TRIALS = "control/trials"
BEST = "best.yaml"
WORST = -1e9  # value of a trial that failed
METRICS = ("loss", "accuracy", "macro_f1", "mcc")
IMPORTS = ("ray.data", "ray.tune", "optuna", "transformers")


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
        return searching.name_of(self.point)

    def best(self, metric: str) -> dict[str, float]:
        """The epoch that counts."""
        return max(self.epochs, key=lambda epoch: value_of(epoch, metric))


@dataclass(frozen=True)
class _TrialJob:
    """What the process of a trial needs besides its point."""

    config: TuneConfig
    data: TokenizedData
    run_key: str
    device: str
    threads: int


def run_tune(config: TuneConfig) -> int:
    """Search; the same command again resumes, or says that the search is done."""
    started = time.monotonic()
    if config.training.method != "finetune":
        raise ConfigError(
            f"training.method={config.training.method}: tune searches over fine-tuning.",
            "A features run tries its regularisation by itself: `bertray train training.method=features`.",
        )
    _check_installed()
    searching.check_space(config)
    model_folder = check_train(config)
    data = open_data(config)
    run_key = run_key_of(config, data, model_folder)
    store = open_store(config.output)
    if finished_run(store, "tune", run_key):
        say(f"already searched: {store.uri('report.html')}")
        return 0
    claim_output(store, "tune", run_key, to_yaml(config))
    with ray_session(config.workers, imports=IMPORTS) as resources:
        tokenized = tokenize(config, data, weights_digest(model_folder), store, resources)
        check_splits(tokenized.examples(), data.labels)
        job = _TrialJob(config, tokenized, run_key, resources.device, resources.threads)
        trials = _search(job, store, resources)
    metric = config.training.best_metric
    done = [trial for trial in trials if trial.epochs and trial.status != "failed"]
    if not done:
        raise InfrastructureError(
            f"tune: all {len(trials)} trials failed, the last one so: {trials[-1].why}",
            "Narrow `search.space`, in a new output.",
        )
    best = max(done, key=lambda trial: value_of(trial.best(metric), metric))
    store.put("trials.parquet", parquet_bytes(_table(trials, metric)))
    store.put(BEST, _best_yaml(config, best, metric).encode())
    report = SearchReport(
        title=f"Search {Path(config.output).name}",
        metric=metric,
        rows=_rows(trials, metric),
        keys=tuple(config.search.space),
        facts=_facts(config, data.train.num_rows, tokenized, time.monotonic() - started),
        config=to_yaml(config),
        best=best.number,
    )
    store.put("report.html", report.to_html().encode())
    mark_finished(store)
    _clean_up(store)
    _print(trials, best, metric, config)
    say(f"config   {store.uri(BEST)}")
    say(f"report   {store.uri('report.html')}")
    log.info("searched in %s", duration(time.monotonic() - started))
    return 0


def _check_installed() -> None:
    try:
        import optuna  # noqa: F401
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tune: {error.name or error} is not installed.", "Run `pip install 'bertray[tune]'`."
        ) from error


def value_of(epoch: Mapping[str, float], metric: str) -> float:
    """Better when larger."""
    return -epoch[metric] if metric == "loss" else epoch[metric]


# --- the search ------------------------------------------------------------------------------------------------------


def _search(job: _TrialJob, store: Store, resources: Resources) -> list[Trial]:
    """Every trial there is to be, those of earlier runs included, by number."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    config, metric = job.config, job.config.training.best_metric
    earlier = stored_trials(store)
    finished = {trial.name: trial for trial in earlier if trial.status != "running"}
    unfinished = [trial for trial in earlier if trial.status == "running"]
    wanted = searching.num_trials(config.search)
    if len(finished) >= wanted:
        return sorted(finished.values(), key=lambda trial: trial.number)
    if earlier:
        log.info("%d trials are done, %d are taken up again", len(finished), len(unfinished))
    start = searching.start_of(config)
    first = [trial.point for trial in unfinished] or ([start] if start and not finished else [])
    tried = [Tried(trial.point, _value_or_none(trial, metric)) for trial in finished.values()]
    sampler = Sampler(config.search, config.seed, tried, first)
    numbers = {trial.name: trial.number for trial in earlier}
    epochs = max(searching.at(config, point).training.epochs for point in _corners(config))
    scheduler: Any = FIFOScheduler()
    if config.search.stop_early and epochs > 1:
        scheduler = AsyncHyperBandScheduler(
            time_attr="epoch", metric="value", mode="max", max_t=epochs, grace_period=1, reduction_factor=3
        )
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose banner ignores verbose=0
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the command, as everywhere
    with Ticker("searching", wanted, "trials") as ticker:
        book = _Book(store, numbers, finished, ticker, config)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_train_trial, job=job),
                {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker},
            ),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(sampler, book),
                scheduler=scheduler,
                num_samples=wanted - len(finished),
                max_concurrent_trials=resources.num_workers,
                reuse_actors=True,  # a new process imports for seconds
            ),
            run_config=tune.RunConfig(
                name=f"{job.run_key}-{time.time_ns():x}",
                storage_path=store.uri("control/ray_tune"),
                failure_config=tune.FailureConfig(max_failures=config.training.max_failures),
                callbacks=[_callback(book)],
                verbose=0,
            ),
        )
        tuner.fit()
    return sorted(book.finished.values(), key=lambda trial: trial.number)


def _corners(config: TuneConfig) -> list[Point]:
    """Points that hold each of the largest numbers of epochs."""
    choices = config.search.space.get("training.epochs")
    if choices is None:
        return [{}]
    values = choices if isinstance(choices, tuple) else (choices.high,)
    return [{"training.epochs": value} for value in values]


class _Book:
    """What the driver knows of trials; every change is written down."""

    def __init__(
        self,
        store: Store,
        numbers: dict[str, int],
        finished: dict[str, Trial],
        ticker: Ticker,
        config: TuneConfig,
    ) -> None:
        self.finished, self.metric = finished, config.training.best_metric
        self._store, self._numbers, self._ticker, self._config = store, numbers, ticker, config
        self._running: dict[str, Trial] = {}

    def begin(self, point: Point) -> None:
        """A trial starts, or is taken up again."""
        name = searching.name_of(point)
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        self._running[name] = Trial(number, point, "running", [])
        self._write(self._running[name])

    def epoch(self, point: Point, row: Mapping[str, Any]) -> None:
        """An epoch of it is done."""
        name = searching.name_of(point)
        trial = self._running[name]
        kept = {key: float(row[key]) for key in ("epoch", "train_loss", "seconds", *METRICS)}
        before = [epoch for epoch in trial.epochs if epoch["epoch"] < kept["epoch"]]  # a process that died tells again
        self._running[name] = replace(trial, epochs=[*before, kept])
        self._write(self._running[name])

    def end(self, point: Point, *, why: str = "", over: bool) -> float | None:
        """It has ended, by itself where it is `over`; returns what it is worth."""
        trial = self._running.pop(searching.name_of(point))
        epochs = searching.at(self._config, point).training.epochs
        over = over or len(trial.epochs) >= epochs
        status = "failed" if why or not trial.epochs else "finished" if over else "stopped"
        trial = replace(trial, status=status, why=why)
        self.finished[trial.name] = trial
        self._write(trial)
        value = _value_or_none(trial, self.metric)
        shown = f"{self.metric} {abs(value):.4f}" if value is not None else "failed"
        self._ticker.update(len(self.finished), f"trial {trial.number}: {_in_words(trial.point)}: {shown} ({status})")
        return value

    def _write(self, trial: Trial) -> None:
        self._store.put(f"{TRIALS}/{trial.name}.json", json.dumps(asdict(trial)).encode())


def _searcher(sampler: Sampler, book: _Book) -> Any:
    """Ray Tune's view of the sampler."""
    from ray.tune.search import Searcher

    class OptunaSearcher(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="value", mode="max")
            self._points: dict[str, Point] = {}

        def suggest(self, trial_id: str) -> Any:
            point = sampler.next(trial_id)
            known = book.finished.get(searching.name_of(point))
            self._points[trial_id] = point
            if known is None:
                book.begin(point)
            return {"point": point, "known": known is not None}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            point = self._points.pop(trial_id)
            known = book.finished.get(searching.name_of(point))
            if known is not None:  # a point of few values comes again: it is worth what it was worth
                sampler.tell(trial_id, _value_or_none(known, book.metric))
                return
            result = result or {}
            why = str(result.get("why", "")) or ("its process ended" if error else "")
            sampler.tell(trial_id, book.end(point, why=why, over=bool(result.get("over"))))

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what is known of trials lies in the output."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, as `save`."""

        def __reduce__(self) -> Any:  # Ray Tune keeps a copy of itself, for a way of resuming that is not ours
            return str, ("the searcher of another process",)

    return OptunaSearcher()


def _callback(book: _Book) -> Any:
    from ray.tune import Callback

    class Noted(Callback):  # type: ignore[misc]
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if "loss" in result:
                book.epoch(trial.config["point"], result)

        def __reduce__(self) -> Any:
            return str, ("the callback of another process",)

    return Noted()


def _train_trial(settings: dict[str, Any], *, job: _TrialJob) -> None:
    """Body of one trial: a process that trains at one point and reports each epoch."""
    from ray import tune

    from bertray.model.tokenization import ReviewTokenizer
    from bertray.training.loop import run_loop

    if settings["known"]:
        return
    config = searching.at(job.config, settings["point"])
    metric, folder = job.config.training.best_metric, resolve_model(job.config.model)
    # The split is that of the search, whatever seed a trial has: all are judged on the same rows.
    examples = job.data.examples()

    def on_epoch(row: dict[str, Any]) -> None:
        tune.report({**row, "epoch": int(row["epoch"]), "value": value_of(row, metric)})

    name = searching.name_of(settings["point"])
    try:
        outcome = run_loop(
            examples,
            folder,
            ReviewTokenizer(folder, 16).pad_id,
            LoopSettings(job.data.labels.names, config.training, config.seed, f"{job.run_key}-{name}", job.threads),
            open_store(f"{job.data.output.rstrip('/')}/{TRIALS}/{name}"),
            device=job.device,
            on_epoch=on_epoch,
        )
    except BertrayError as error:  # a rate at which the loss is not finite is an answer, too
        tune.report({"epoch": config.training.epochs, "value": WORST, "why": error.message})
        return
    last = outcome.history[-1]
    tune.report({"epoch": int(last["epoch"]), "value": value_of(last, metric), "over": True})


def stored_trials(store: Store) -> list[Trial]:
    """What earlier runs wrote down, by number."""
    keys = [key for key in store.keys(TRIALS) if key.endswith(".json") and key.count("/") == TRIALS.count("/") + 1]
    found = [Trial(**json.loads(store.get(key))) for key in keys]
    return sorted(found, key=lambda trial: trial.number)


def _value_or_none(trial: Trial, metric: str) -> float | None:
    if trial.status == "failed" or not trial.epochs:
        return None
    return value_of(trial.best(metric), metric)


# --- telling ---------------------------------------------------------------------------------------------------------


def _rows(trials: Sequence[Trial], metric: str) -> list[dict[str, Any]]:
    """A row a trial: number, status, the searched keys, and its best epoch."""
    rows = []
    for trial in trials:
        best = trial.best(metric) if trial.epochs else {}
        seconds = trial.epochs[-1]["seconds"] if trial.epochs else 0.0
        figures = {name: best.get(name) for name in METRICS}
        told = {"trial": trial.number, "status": trial.status, "epochs": len(trial.epochs), "seconds": seconds}
        rows.append({**told, "best_epoch": best.get("epoch"), **figures, **trial.point, "why": trial.why})
    return rows


def _table(trials: Sequence[Trial], metric: str) -> pa.Table:
    rows = _rows(trials, metric)
    return pa.table({name: pa.array([row[name] for row in rows]) for name in rows[0]})


def _best_yaml(config: TuneConfig, best: Trial, metric: str) -> str:
    """A config that `train` takes; `output` is left to the command line."""
    data = searching.at(config, best.point).model_dump(mode="json", exclude={"output"})
    import yaml

    epoch = best.best(metric)
    head = (
        f"# The best of a search: trial {best.number}, {metric} {epoch[metric]:.4f} on validation after epoch "
        f"{epoch['epoch']:.0f}.\n#\n#   bertray train -c best.yaml output=runs/best\n\n"
    )
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _facts(config: TuneConfig, num_rows: int, tokenized: TokenizedData, seconds: float) -> dict[str, str]:
    examples = tokenized.examples()
    return {
        "base model": config.model,
        "rows given": f"{num_rows:,}",
        "train examples": f"{len(examples.train):,}",
        "validation examples": f"{len(examples.validation):,}",
        "sampler": config.search.sampler,
        "trials that are behind": "are ended after an epoch" if config.search.stop_early else "run to their end",
        "time from start to report": duration(seconds),
    }


def _print(trials: Sequence[Trial], best: Trial, metric: str, config: TuneConfig) -> None:
    keys = list(config.search.space)
    ranked = sorted(trials, key=lambda trial: _value_or_none(trial, metric) or -1e9, reverse=True)
    rows = [
        [
            f"{trial.number}",
            *(_short(trial.point[key]) for key in keys),
            f"{trial.best(metric)[metric]:.4f}" if trial.epochs else "",
            f"{len(trial.epochs)}",
            trial.status,
        ]
        for trial in ranked
    ]
    table("trials, best first", ["", *(key.removeprefix("training.") for key in keys), metric, "epochs", ""], rows)
    say(f"best: {_in_words(best.point)}; {metric} {best.best(metric)[metric]:.4f} on validation rows, which chose it")


def _in_words(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('training.')} {_short(value)}" for key, value in point.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clean_up(store: Store) -> None:
    """What only a resume would need is removed once the search is whole."""
    import shutil

    for key in store.keys(TRIALS):
        if key.count("/") > TRIALS.count("/") + 1:
            store.delete(key)
    for key in store.keys("control/ray_tune"):
        store.delete(key)
    if isinstance(store, LocalStore):
        shutil.rmtree(store.uri("control/ray_tune"), ignore_errors=True)
        for folder in Path(store.uri(TRIALS)).glob("*/"):
            shutil.rmtree(folder, ignore_errors=True)
