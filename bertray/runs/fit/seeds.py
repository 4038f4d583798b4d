"""Several seeds as one training: a run for each seed, mean and spread, and the model that is best on validation rows.

Each seed is a training run of its own below `seeds/<seed>/`, resumed like any other; the output itself holds what a run
of one seed would, of the best.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import bertray
from bertray.config import TrainConfig, to_yaml
from bertray.evaluation.intervals import Estimate
from bertray.io.store import Store, open_store
from bertray.outputs.claims import claimed_output, finished_run, mark_finished
from bertray.reports.html import created_now, data_title, model_title
from bertray.reports.plain import json_bytes
from bertray.reports.seeds import TITLES, SeedRow, SeedsReport
from bertray.runs.results import METRICS, PAGE, TrainResult, finished_result

log = logging.getLogger(__name__)

SEEDS = "seeds"
COPIED = ("predictions.parquet", "mistakes.parquet", "history.parquet")
TrainOne = Callable[[TrainConfig], TrainResult]


def train_seeds(config: TrainConfig, key: str, train_one: TrainOne) -> TrainResult:
    """Train with each of `training.seeds`, and keep the best by `training.best_metric` on validation rows.

    Args:
        key: of the settings that decide the result.
        train_one: trains one of them; the same run again gives back what it had found.
    """
    store = open_store(config.output)
    if finished_run(store, "train", key):
        train_one(_of_seed(config, store, config.training.seeds[0]))  # refuses data that have changed
        return finished_result(TrainResult, store)
    with claimed_output(store, "train", key, to_yaml(config), SEEDS):
        rows, results = [], {}
        for number, seed in enumerate(config.training.seeds, start=1):
            log.info("seed %d (%d of %d)", seed, number, len(config.training.seeds))
            results[seed] = train_one(_of_seed(config, store, seed))
            rows.append(_row(store, seed, config.training.best_metric))
        report = _report(config, rows)
        best = f"{SEEDS}/{report.best.seed}"
        for name in COPIED:
            store.put(name, store.get(f"{best}/{name}"))
        _copy_model(store, f"{best}/model")
        store.put(PAGE, report.to_html().encode())
        figures = json.loads(store.get(f"{best}/{METRICS}")) | {"seeds": report.to_json()}
        store.put(METRICS, json_bytes(figures))
        kept = results[report.best.seed]
        result = replace(kept, output=store.root, notes=(report.headline, *kept.notes), already_done=False)
        result = replace(result, summary=(report.headline, *kept.summary))
        mark_finished(store, result.told)
    return result


def _of_seed(config: TrainConfig, store: Store, seed: int) -> TrainConfig:
    """The training of one seed, with an output of its own."""
    training = config.training.model_copy(update={"seeds": (seed,)})
    return config.model_copy(update={"training": training, "output": store.uri(f"{SEEDS}/{seed}")})


def _row(store: Store, seed: int, best_metric: str) -> SeedRow:
    found = json.loads(store.get(f"{SEEDS}/{seed}/{METRICS}"))
    figures = {name: Estimate(**found["metrics"][name]) for name in TITLES}
    return SeedRow(seed, found["split"], found["rows"], float(found["calibration"]["validation"][best_metric]), figures)


def _report(config: TrainConfig, rows: Sequence[SeedRow]) -> SeedsReport:
    return SeedsReport(
        title=f"{len(rows)} seeds of {model_title(config.model)} on {data_title(config.data.train or ())}",
        metric=config.training.best_metric,
        rows=tuple(rows),
        config=to_yaml(config),
        created=created_now(),
        facts={"base model": config.model, "bertray": bertray.__version__},
    )


def _copy_model(store: Store, source: str) -> None:
    """The bundle of the best seed in its place, its config last: without it there is no model."""
    files = sorted(store.keys(source), key=lambda key: key.endswith("/config.json"))
    for key in files:
        store.put(f"model/{key.removeprefix(f'{source}/')}", store.get(key))
