"""The whole job beside what people use instead, in turn, in one run: reviews → figures of each way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from bertray import schema as s
from bertray.benchmark import measure
from bertray.benchmark.contestants import pipeline_classifier
from bertray.benchmark.measure import Runs, Trial
from bertray.config import BenchmarkConfig, Columns, ScoreConfig, TextFormat, build_config
from bertray.console import Ticker
from bertray.errors import ConflictError
from bertray.execution.executor import DEFAULT, Progress, Stage
from bertray.execution.machines import machines_of_cluster
from bertray.execution.on_demand import Always, in_this_process
from bertray.execution.ray_data import RayData, configure_data
from bertray.execution.resources import Resources
from bertray.execution.session import ray_session
from bertray.model.bundle import read_info
from bertray.model.engine import choose_dtype
from bertray.outputs.control_files import Receipt
from bertray.paths import local_path
from bertray.reviews.corpus import open_inputs
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import ReadSpec
from bertray.runs.night import run_night
from bertray.runtime import check_installed, environment_of_user, num_cpus
from bertray.scoring.models import check_length

FIGURES = "benchmark.json"
_PACKAGES = {
    "openvino": ["openvino"],
    "openvino_int8": ["openvino", "nncf"],
    "onnx_int8": ["onnx", "onnxruntime"],
}  # of a contestant's extra, whose name is its own


def benchmark(config: BenchmarkConfig, paths: Sequence[str]) -> dict[str, Any]:
    """Measure; every way starts from the same Parquet, and they take turns.

    Args:
        config: what is compared, and where the figures go.
        paths: of the reviews.

    Returns:
        The content of `benchmark.json`.
    """
    environment = environment_of_user()  # before Ray and we add to it
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"use_gpu": config.uses_gpu})})
    for name, packages in _PACKAGES.items():
        if name in config.beside:
            check_installed(name, packages)
    if "int8" in config.beside:
        choose_dtype("int8", torch.device("cpu"))  # says so where this CPU has none
    check_length(config.max_length, config.model, measure.tokenizer_folder(config.model))
    texts = _sample(config, paths)
    root = _fresh_folder(local_path(config.output))
    with ray_session(config.workers, imports=("ray.data",)) as executor:
        resources = executor.resources
        trial = measure.open_trial(
            root,
            config.model,
            texts,
            max_length=config.max_length,
            few_rows=config.rival_rows,
            device=resources.device,
            environment=environment,
            seed=config.seed,
        )
        job = replace(resources, in_process_rows=0)  # however few: the job of a cluster is measured
        recipe = partial(_documented_recipe, trial, job)
        in_ray: dict[str, Callable[[int, Runs], None]] = {
            "bertray": partial(_score, config, trial, job),
            "ray": recipe,
            "ray_spread": partial(recipe, spread=True),
        }
        ways = {name: in_ray.get(name) for name in ("bertray", "engine", *config.beside)}
        measured = _in_turn(trial, ways, config.rounds, resources.num_workers)
    if config.training:  # when Ray has given the machine back
        measured |= _in_turn(trial, dict.fromkeys(measure.TRAINING), config.rounds)
    content = measure.to_json(trial, config.model, config.rounds, measured, config.price_per_hour)
    (root / FIGURES).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _fresh_folder(root: Path) -> Path:
    if root.exists() and any(root.iterdir()) and not (root / FIGURES).is_file():
        raise ConflictError(f"{root}: not empty, and not a former benchmark.", "Give another `output`.")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / FIGURES).write_text("{}\n", encoding="utf-8")
    return root


def _sample(config: BenchmarkConfig, paths: Sequence[str]) -> pa.Array:
    """Cleaned texts of random rows, each once: what comes again is computed once, which would flatter the job.

    Of a large input they are taken from random pieces, so that it need not be read whole.
    """
    score = _score_config(config, config.output, paths, config.columns, config.reader)
    spec = ReadSpec(score.columns, score.reader, unique_ids=False)
    inputs = open_inputs("input", paths, score, spec, in_this_process)
    random = np.random.default_rng(config.seed)
    shards = inputs.shards(measure.WINDOW_ROWS)
    chunks: list[pa.Array] = []
    for number in random.permutation(len(shards)):
        chunks += read_shard(shards[number], inputs.spec).kept[s.TEXT].chunks
        if sum(map(len, chunks)) >= 4 * config.rows:
            break
    texts = pa.chunked_array(chunks, pa.string()).unique()
    return texts.take(pa.array(random.permutation(len(texts))[: config.rows]))


def _score_config(
    config: BenchmarkConfig, output: str, paths: Sequence[str], columns: Columns, reader: TextFormat
) -> ScoreConfig:
    keys = {
        "model": config.model,
        "input": list(paths),
        "output": output,
        "max_length": config.max_length,
        "columns": columns.model_copy(update={"text_pair": None}).model_dump(),
        "reader": reader.model_dump(),
        "workers": config.workers.model_dump(),
    }
    score = build_config("score", keys)
    assert isinstance(score, ScoreConfig)
    return score


def _in_turn(trial: Trial, ways: Mapping[str, measure.Way | None], rounds: int, num_gpus: int = 1) -> dict[str, Runs]:
    done = 0
    with Ticker("benchmark", rounds * len(ways), "runs") as ticker:

        def tell(name: str) -> None:
            nonlocal done
            done += 1
            ticker.update(done, measure.TITLES[name])

        return measure.in_turn(trial, ways, rounds, tell, num_gpus)


@dataclass(frozen=True)
class _TimedRayData(RayData):
    """The executor of `bertray score`, and when its actors began to compute each part."""

    began: list[float] = field(default_factory=list)

    def run(self, items: Iterable[Any], stages: Sequence[Stage], progress: Progress = DEFAULT) -> Iterator[Any]:
        for result in super().run(items, stages, progress):
            if isinstance(result, list):  # of a work unit, the receipt of each model
                now = time.monotonic()
                self.began.extend(now - receipt.seconds for receipt in result if isinstance(receipt, Receipt))
            yield result


def _score(config: BenchmarkConfig, trial: Trial, resources: Resources, number: int, runs: Runs) -> None:
    """`bertray score`: read, cleaned, scored, committed, published, reported.

    Time counts from the moment at which a model is first at work.
    """
    executor = _TimedRayData(resources)
    output = str(trial.folder / f"scored-{number}")
    written = config.model_copy(update={"model": str(trial.model)})
    score = _score_config(written, output, [str(trial.all_reviews)], Columns(), TextFormat())
    info = replace(read_info(trial.model), max_length=trial.max_length, long_text="head")

    start = time.monotonic()
    run_night(score, info, Always(executor))
    end = time.monotonic()
    began = min(executor.began)
    runs.start_up_s.append(began - start)
    runs.seconds.append(end - began)


class _DocumentedRecipe:
    """The recipe's actor: a class that holds a pipeline."""

    def __init__(self, model: str, max_length: int, device: str, began: str) -> None:
        self._classify = pipeline_classifier(model, max_length, device, batch_size=1)
        self._began = Path(began)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._began.exists():
            self._began.write_text(str(time.time()), encoding="utf-8")
        results = self._classify(batch["text"].tolist())
        batch["label"] = np.array([result["label"] for result in results])
        batch["score"] = np.array([result["score"] for result in results], np.float32)
        return batch


def _documented_recipe(trial: Trial, resources: Resources, number: int, runs: Runs, *, spread: bool = False) -> None:
    """`read_parquet`, `map_batches` over actors that hold a pipeline, `write_parquet`.

    Args:
        trial: the model and the reviews.
        resources: workers and their devices.
        number: of the run.
        runs: receives what it took.
        spread: the rows are first dealt out, as the recipe does not: one small file keeps one actor busy else.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    configure_data(resources.stall_timeout_s)
    began = trial.folder / f"ray-began-{number}-{spread}"
    on_gpu = trial.device.startswith("cuda")
    # On CPU an actor a core, of one thread; a CPU is left for reading and writing, without which the recipe stalls.
    num_actors = resources.num_workers if on_gpu else num_cpus()
    largest = max(machine.cpus for machine in machines_of_cluster())
    cpus_per_actor = 1.0 if on_gpu else max(largest - 1, 0.0) / num_actors
    start = time.time()
    reviews = ray.data.read_parquet(str(trial.few_reviews))
    if spread:
        reviews = reviews.repartition(2 * num_actors)
    reviews.map_batches(
        _DocumentedRecipe,
        fn_constructor_args=(str(trial.model), trial.max_length, trial.device, str(began)),
        compute=ActorPoolStrategy(size=num_actors),
        num_cpus=cpus_per_actor,
        num_gpus=1 if on_gpu else None,
        batch_size=32,
    ).write_parquet(str(trial.folder / f"ray-{number}-{spread}"))
    end = time.time()
    first = float(began.read_text(encoding="utf-8"))
    runs.start_up_s.append(first - start)
    runs.seconds.append(end - first)
