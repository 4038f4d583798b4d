"""`bertray train`: labelled reviews → token shards → fine-tuned bundle → report, resumable at every point."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import bertray
from bertray.config import TrainConfig, to_yaml
from bertray.console import Ticker, duration, say
from bertray.errors import ConfigError, InfrastructureError
from bertray.model.bundle import LINEAR_HEADS, BundleInfo, resolve_model, weights_digest, write_bundle
from bertray.pipelines import features
from bertray.pipelines.cluster import Resources, ray_session
from bertray.pipelines.evaluation import (
    EvaluatedRows,
    evaluate_shards,
    finish_report,
    train_baselines,
)
from bertray.pipelines.examples import (
    LabelledData,
    TokenizedData,
    check_splits,
    open_data,
    rows_by_file,
    tokenize,
)
from bertray.pipelines.features import FittedHead, fit_on_features
from bertray.pipelines.inputs import check_length
from bertray.pipelines.parts import parquet_bytes
from bertray.pipelines.runs import claim_output, finished_run, mark_finished
from bertray.storage.store import LocalStore, Store, open_store
from bertray.training.checkpoint import checkpoint_folders, load_step
from bertray.training.loop import Examples, LoopSettings, Outcome
from bertray.training.order import num_steps
from bertray.training.token_shards import cache_key

log = logging.getLogger(__name__)

PROGRESS = "control/progress.json"
IMPORTS = ("ray.data", "ray.train.torch", "transformers")  # what the driver needs after Ray has started


@dataclass(frozen=True)
class _TrainJob:
    """What each Ray Train worker is given; it computes everything else by arithmetic."""

    data: TokenizedData
    model: str
    loop: LoopSettings


def run_train(config: TrainConfig) -> int:
    """Train, evaluate, report; the same command again resumes, or says that the run is done."""
    started = time.monotonic()
    model_folder = check_train(config)
    data = open_data(config)
    base = weights_digest(model_folder)
    run_key = run_key_of(config, data, model_folder)
    store = open_store(config.output)
    if finished_run(store, "train", run_key):
        say(f"already trained: {store.uri('report.html')}")
        return 0
    claim_output(store, "train", run_key, to_yaml(config))
    with ray_session(config.workers, imports=IMPORTS) as resources:
        tokenized = tokenize(config, data, base, store, resources)
        examples = tokenized.examples()
        check_splits(examples, data.labels)
        outcome: Outcome | None = None
        fitted: FittedHead | None = None
        if config.training.method == "features":
            fitted = fit_on_features(config, base, tokenized.keys, examples, store, resources)
            bundle, info = _write_features_bundle(config, data, fitted, model_folder, store)
        else:
            outcome, temperature = _fit(config, tokenized, run_key, examples, store, resources)
            bundle, info = _write_bundle(config, data, run_key, outcome, temperature, model_folder, store)
        rows = _evaluate(config, data, examples, bundle, info, store, resources)
    baselines = (
        train_baselines(
            data.train,
            rows_by_file(examples, examples.train),
            data.labels,
            max_rows=config.report.baseline_rows,
            seed=config.seed,
        )
        if config.report.baselines
        else None
    )
    history = outcome.history if outcome else []
    store.put("history.parquet", parquet_bytes(_history_table(history)))
    summary = finish_report(
        store,
        rows,
        data.test or data.validation or data.train,
        info,
        split="validation" if data.test is None else "test",
        title=f"Training run {Path(config.output).name}",
        config=config,
        history=history,
        baselines=baselines,
        notes=_notes(config, data, examples, outcome, rows),
        facts={
            **_facts(config, data, examples, info, time.monotonic() - started),
            **(_training_facts(config, examples, outcome) if outcome else {}),
            **(features.in_words(fitted, config.training.head, config.training.pooling) if fitted else {}),
        },
    )
    mark_finished(store)
    _clean_up(store)
    say(summary)
    say(f"model    {store.uri('model')}")
    say(f"report   {store.uri('report.html')}")
    log.info("trained and evaluated in %s", duration(time.monotonic() - started))
    return 0


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that decides what is trained; where and how fast is left out."""
    identity = config.model_dump(mode="json", exclude={"output", "price_per_hour", "workers"})
    identity["training"].pop("checkpoint_every_s")
    identity["training"].pop("max_failures")
    if config.training.method == "finetune":
        for name in ("head", "pooling", "max_feature_rows"):
            identity["training"].pop(name)
    return identity


def check_train(config: TrainConfig) -> Path:
    """What can be told without the data; returns the folder of the base model.

    Raises:
        ConfigError: a method that is not there, a model that is not there or sees fewer tokens than `max_length`.
    """
    if config.training.method == "distill":
        raise ConfigError(
            f"training.method={config.training.method}: not in this version.",
            "Set training.method=finetune or features.",
        )
    folder = resolve_model(config.model)
    check_length(config.max_length, config.model, folder)
    return folder


def run_key_of(config: TrainConfig, data: LabelledData, model_folder: Path) -> str:
    """What makes two runs the same: data, base model and every setting that decides what is trained."""
    identity = {"config": _identity(config), "data": data.fingerprint, "base model": weights_digest(model_folder)}
    return cache_key(identity)


# --- Ray Train -------------------------------------------------------------------------------------------------------


def _fit(
    config: TrainConfig,
    tokenized: TokenizedData,
    run_key: str,
    examples: Examples,
    store: Store,
    resources: Resources,
) -> tuple[Outcome, float]:
    """Run Ray Train; returns what training left behind and the temperature fitted on validation."""
    job = _TrainJob(
        data=tokenized,
        model=config.model,
        loop=LoopSettings(tokenized.labels.names, config.training, config.seed, run_key, resources.threads),
    )
    log.info(
        "training on %d examples, validating on %d, %d worker%s",
        len(examples.train),
        len(examples.validation),
        resources.num_workers,
        "" if resources.num_workers == 1 else "s",
    )
    returned = _run_workers(job, config, store, resources)
    if "error" in returned:
        raise returned["error"]
    outcome: Outcome = returned["outcome"]
    return outcome, float(returned["temperature"])


def _run_workers(job: _TrainJob, config: TrainConfig, store: Store, resources: Resources) -> dict[str, Any]:
    """Run the loop on the workers of Ray Train; returns what the first of them returned."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": 1.0} if resources.gpus_per_worker else {})
    # Ray Train keeps its own bookkeeping under a fresh name; bertray's checkpoints are what a run resumes from.
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=config.workers.use_gpu, resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            name=f"{job.loop.run_key}-{uuid.uuid4().hex[:8]}",
            storage_path=store.uri("control/ray_train"),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
        ),
    )
    returned: dict[str, Any] = _followed(trainer.fit, store).return_value
    return returned


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Body of one Ray Train worker."""
    import ray.train
    import ray.train.torch

    return train_rank(settings["job"], ray.train.get_context().get_world_rank(), str(ray.train.torch.get_device()))


def train_rank(job: _TrainJob, rank: int, device: str) -> dict[str, Any]:
    """The share of one worker. A refusal that would only repeat comes back as a value, not as a failure."""
    from bertray.errors import BertrayError
    from bertray.model.calibration import fit_temperature
    from bertray.model.tokenization import ReviewTokenizer
    from bertray.training.loop import run_loop

    store = open_store(job.data.output)
    start = uuid.uuid4().hex
    messages: list[str] = []
    logging.getLogger("bertray").setLevel(logging.INFO)
    logging.getLogger("bertray").addHandler(_Collector(messages))
    folder = resolve_model(job.model)
    examples = job.data.examples()

    def on_progress(state: dict[str, Any]) -> None:
        store.put(PROGRESS, json.dumps({**state, "start": start, "messages": messages}).encode())

    try:
        outcome = run_loop(
            examples,
            folder,
            ReviewTokenizer(folder, 16).pad_id,
            job.loop,
            store,
            device=device,
            on_progress=on_progress if rank == 0 else None,
        )
    except BertrayError as error:
        return {"error": error}
    if rank == 0:
        with contextlib.suppress(BertrayError):  # the run is whole; only its last message is at stake
            on_progress({"step": outcome.num_steps, "total_steps": outcome.num_steps, "done": True})
    return {
        "outcome": outcome,
        "temperature": fit_temperature(outcome.validation_logits_VC, outcome.validation_label_ids_V),
    }


class _Collector(logging.Handler):
    """Keeps a worker's messages, so that the driver shows them once."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.INFO)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


def _followed(fit: Callable[[], Any], store: Store) -> Any:
    """Run Ray Train and follow `control/progress.json`: a bar on a terminal, log lines elsewhere.

    Ray Train has this thread, since Ray must not be shut down while another one waits for an answer of it. It answers
    Ctrl-C with `sys.exit(0)`, which becomes the interruption that it is.
    """
    store.delete(PROGRESS)
    interval_s = 0.5 if isinstance(store, LocalStore) else 5.0
    ended = threading.Event()
    on_sigint = signal.getsignal(signal.SIGINT)
    with Ticker("training", 1.0, "steps") as ticker:
        shown: dict[str, int] = {}

        def follow() -> None:
            while not ended.wait(interval_s):
                _show_progress(store, ticker, shown)

        follower = threading.Thread(target=follow, name="progress", daemon=True)
        follower.start()
        try:
            return fit()
        except SystemExit:
            raise KeyboardInterrupt from None
        finally:
            ended.set()
            follower.join()
            _show_progress(store, ticker, shown)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_sigint)


def _show_progress(store: Store, ticker: Ticker, shown: dict[str, int]) -> None:
    """Show where training stands; `shown` counts the messages of each start of the worker that have been shown."""
    try:
        state = json.loads(store.get(PROGRESS))
    except (FileNotFoundError, InfrastructureError):
        return
    if shown and state["start"] not in shown:
        log.warning("the training worker was lost; another one goes on from the last checkpoint")
    for message in state["messages"][shown.get(state["start"], 0) :]:
        log.info("%s", message)
    shown[state["start"]] = len(state["messages"])
    if "loss" in state:
        ticker.total = state["total_steps"]
        ticker.update(
            state["step"],
            f"epoch {state['epoch']:.2f}, loss {state['loss']:.4f}, lr {state['learning_rate']:.1e}, "
            f"{state['tokens_per_s']:,.0f} tokens/s",
        )


# --- after training --------------------------------------------------------------------------------------------------


def _write_bundle(
    config: TrainConfig,
    data: LabelledData,
    run_key: str,
    outcome: Outcome,
    temperature: float,
    model_folder: Path,
    store: Store,
) -> tuple[str, BundleInfo]:
    """The best checkpoint as a bundle; returns where it lies and its info."""
    from bertray.training.loop import load_classifier

    checkpoint = load_step(store, outcome.best_step, run_key)
    if checkpoint is None:
        raise InfrastructureError(
            f"training: the best checkpoint (step {outcome.best_step}) is damaged.", "Train again in a new output."
        )
    model = load_classifier(model_folder, data.labels.names, config.training, bf16=False, device="cpu")
    model.load_state_dict(checkpoint.model)
    info = _info(config, data, temperature)
    how = f"best after step {outcome.best_step} of {outcome.num_steps}"
    return _saved(config, data, model, model_folder, info, how, store)


def _write_features_bundle(
    config: TrainConfig, data: LabelledData, fitted: FittedHead, model_folder: Path, store: Store
) -> tuple[str, BundleInfo]:
    """The encoder as it is, with the head beside it."""
    from bertray.model.readout import PooledReadout

    model = PooledReadout(config.training.pooling).load(model_folder)
    model.config.id2label = dict(enumerate(data.labels.names))
    model.config.label2id = {name: number for number, name in enumerate(data.labels.names)}
    info = replace(_info(config, data, fitted.temperature), head=LINEAR_HEADS[config.training.pooling])
    how = "a linear head on the frozen encoder"
    return _saved(config, data, model, model_folder, info, how, store, features.to_tensors(fitted.head))


def _info(config: TrainConfig, data: LabelledData, temperature: float) -> BundleInfo:
    return BundleInfo(
        labels=data.labels.names,
        label_values=dict(data.labels.values),
        max_length=config.max_length,
        long_text=config.long_text,
        cleaning=config.cleaning,
        temperature=temperature,
        base_model=config.model,
        data_fingerprint=data.fingerprint,
        max_chars=config.max_chars,
        text_pair=config.columns.text_pair is not None,
    )


def _saved(
    config: TrainConfig,
    data: LabelledData,
    model: Any,
    model_folder: Path,
    info: BundleInfo,
    how: str,
    store: Store,
    head: bytes | None = None,
) -> tuple[str, BundleInfo]:
    """Write a bundle to the output; returns where it lies and its info."""
    from transformers import AutoTokenizer

    tokenizer, card = AutoTokenizer.from_pretrained(model_folder), _card(config, data, how)
    if isinstance(store, LocalStore):
        return store.uri("model"), write_bundle(Path(store.uri("model")), model, tokenizer, info, card, head)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "model"
        info = write_bundle(local, model, tokenizer, info, card, head)
        for path in sorted(local.iterdir(), key=lambda path: path.name == "bertray.json"):
            store.put(f"model/{path.name}", path.read_bytes())
    return store.uri("model"), info


def _card(config: TrainConfig, data: LabelledData, how: str) -> str:
    labels = "\n".join(f"- `{name}`" for name in data.labels.names)
    training = config.training
    steps = (
        f"; {training.epochs} epochs planned, learning rate {training.learning_rate}, {training.batch_size} a step"
        if training.method == "finetune"
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [bertray]
---
# Review classifier

Fine-tuned from `{config.model}` with bertray {bertray.__version__}; model version `{{model_version}}`.

Classes, in id order:
{labels}

- data: {data.train.num_rows} rows read for training, fingerprint `{data.fingerprint}`
- {how}; seed {config.seed}{steps}
- reviews are cleaned as `bertray.json` says and cut to {config.max_length} tokens (`{config.long_text}`)

How good it is, with intervals and baselines: `report.html` and `metrics.json` beside this folder.
Meant for reviews like those it was trained on; on other text its scores are not calibrated.
"""


def _evaluate(
    config: TrainConfig,
    data: LabelledData,
    examples: Examples,
    bundle: str,
    info: BundleInfo,
    store: Store,
    resources: Resources,
) -> EvaluatedRows:
    """The final evaluation: every row of the test split (else of validation), by the scoring path."""
    inputs = data.test or data.validation or data.train
    only_rows = None
    if data.test is None and data.validation is None:
        only_rows = rows_by_file(examples, examples.validation)
    return evaluate_shards(
        inputs, bundle, info, data.labels, store, resources, config.report.slices, only_rows=only_rows
    )


def _notes(
    config: TrainConfig, data: LabelledData, examples: Examples, outcome: Outcome | None, rows: EvaluatedRows
) -> list[str]:
    """What the reader of the report should know."""
    notes = []
    if data.test is None:
        notes.append(
            "No data.test was given: the figures are on validation rows, which also chose the best epoch and "
            "the temperature of the scores: they flatter."
        )
    if outcome is not None and outcome.resumed_from is not None:
        notes.append(f"The run was interrupted and resumed at step {outcome.resumed_from}.")
    text_hash_N = examples.shards.text_hash_N
    straddling = np.intersect1d(text_hash_N[examples.train], text_hash_N[examples.validation])
    if len(straddling):
        notes.append(f"{len(straddling)} texts stand in both data.train and data.validation.")
    if data.test is not None:
        known = np.isin(rows.text_hash_N, text_hash_N[examples.train])
        if known.any():
            notes.append(f"{int(known.sum())} of the test texts also stand in data.train.")
    if config.long_text == "windows":
        notes.append("Training saw the first window of a long review; scoring averages over all windows.")
    return notes


def _facts(
    config: TrainConfig, data: LabelledData, examples: Examples, info: BundleInfo, seconds: float
) -> dict[str, str]:
    lens_N = examples.shards.lens_N[examples.train]
    return {
        "base model": config.model,
        "model version": info.model_version,
        "train examples": f"{len(examples.train):,}",
        "validation examples": f"{len(examples.validation):,}",
        "mean tokens of an example": f"{lens_N.mean():.1f}",
        "reviews longer than max_length": f"{(examples.shards.n_tokens_N > config.max_length).mean():.1%}",
        "temperature": f"{info.temperature:.3f}",
        "time from start to report": duration(seconds),
        "data fingerprint": data.fingerprint,
        "bertray": bertray.__version__,
    }


def _training_facts(config: TrainConfig, examples: Examples, outcome: Outcome) -> dict[str, str]:
    return {
        "steps": f"{outcome.num_steps:,}, best after {outcome.best_step:,}",
        "training time": duration(outcome.seconds),
        "training rate": f"{_examples_per_s(config, examples, outcome):,.1f} examples/s",
    }


def _examples_per_s(config: TrainConfig, examples: Examples, outcome: Outcome) -> float:
    steps_per_epoch = num_steps(len(examples.train), config.training.batch_size)
    return len(examples.train) * outcome.num_steps / steps_per_epoch / max(outcome.seconds, 1e-9)


def _history_table(history: list[dict[str, Any]]) -> pa.Table:
    """`history.parquet`: one row a log point, `kind` step or eval."""
    names = ["kind", "step", "epoch", "loss", "learning_rate", "tokens_per_s", "seconds"]
    names += ["train_loss", "accuracy", "macro_f1", "mcc"]
    types = {"kind": pa.string(), "step": pa.int64()}
    return pa.table(
        {name: pa.array([row.get(name) for row in history], types.get(name, pa.float64())) for name in names}
    )


def _clean_up(store: Store) -> None:
    """What only a resume would need is removed once the run is whole."""
    for folder in (*checkpoint_folders(store), "control/staging"):
        for key in store.keys(folder):
            store.delete(key)
    store.delete(PROGRESS)
    if isinstance(store, LocalStore):
        for name in ("checkpoints", "control/ray_train", "control/staging"):
            shutil.rmtree(store.uri(name), ignore_errors=True)
