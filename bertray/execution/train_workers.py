"""The training loop on the workers of Ray Train, or in this process; and what the command shows meanwhile."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from bertray.console import Ticker
from bertray.errors import BertrayError
from bertray.execution.resources import Resources
from bertray.execution.session import import_all
from bertray.execution.stalls import StallWatch
from bertray.io.store import LocalStore, Store
from bertray.training.examples import Examples
from bertray.training.loop import Outcome
from bertray.training.rank import PROGRESS, TrainJob, train_rank, train_worker

log = logging.getLogger(__name__)

IMPORTS_AFTER_TRAINING = (  # for the bundle, the baselines and the charts
    "transformers.modeling_utils",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "matplotlib.figure",
)


def run_workers(job: TrainJob, examples: Examples, store: Store, resources: Resources) -> Outcome:
    """Run the loop on the workers of Ray Train, or here where this process is alone; returns what the first returned.

    Raises:
        BertrayError: what a worker refused.
    """
    where = "in this process" if resources.alone else f"{resources.num_workers} worker"
    log.info(
        "training on %d examples, validating on %d, %s%s",
        len(examples.train),
        len(examples.validation),
        where,
        "" if resources.num_workers == 1 else "s",
    )
    if resources.alone:
        returned = _followed(lambda: train_rank(job, 0, 1, resources.device), store)
    else:
        fit = _trainer(job, store, resources).fit
        with _imported_meanwhile():
            returned = _followed(fit, store).return_value
    if isinstance(returned, BertrayError):
        raise returned
    outcome: Outcome = returned
    return outcome


def _trainer(job: TrainJob, store: Store, resources: Resources) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": 1.0} if resources.gpus_per_worker else {})
    # Ray Train keeps its own bookkeeping under a fresh name; bertray's checkpoints are what a run resumes from.
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=bool(resources.gpus_per_worker), resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            name=f"{job.loop.run_key}-{uuid.uuid4().hex[:8]}",
            storage_path=store.uri("control/ray_train"),
            failure_config=FailureConfig(max_failures=job.max_failures),
            worker_runtime_env=resources.runtime_env,
        ),
    )


def history_table(history: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> pa.Table:
    """`history.parquet`: one row a log point, `kind` step or eval; then `step`, `epoch` and these numbers."""
    types = {"kind": pa.string(), "step": pa.int64()}
    names = ("kind", "step", "epoch", *numbers)
    return pa.table(
        {name: pa.array([row.get(name) for row in history], types.get(name, pa.float64())) for name in names}
    )


@contextlib.contextmanager
def _imported_meanwhile() -> Iterator[None]:
    """This process imports what it needs after training while it has nothing to do: the workers' processes start."""
    importing = threading.Thread(target=import_all, args=(IMPORTS_AFTER_TRAINING,), name="imports", daemon=True)
    importing.start()
    try:
        yield
    finally:
        importing.join()  # a thread that still imports may crash a process that leaves


def _followed(fit: Callable[[], Any], store: Store) -> Any:
    """Run the training and follow `control/progress.json`: a bar on a terminal, log lines elsewhere.

    The training has this thread, since Ray must not be shut down while another one waits for an answer of it. Ray Train
    answers Ctrl-C with `sys.exit(0)`, which becomes the interruption that it is.
    """
    store.delete(PROGRESS)
    interval_s = 0.5 if isinstance(store, LocalStore) else 5.0
    ended = threading.Event()
    on_sigint = signal.getsignal(signal.SIGINT)
    with Ticker("training", 1.0, "steps") as ticker, StallWatch("training", lambda: _waiting(store)) as watch:
        shown: dict[str, int] = {}
        state: dict[str, Any] = {}

        def follow() -> None:
            nonlocal state
            while not ended.wait(interval_s):
                before, state = state, _show_progress(store, ticker, shown)
                if state != before:
                    watch.progressed()

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


def _waiting(store: Store) -> str:
    """Words for a training that makes no progress."""
    try:
        return f"step {json.loads(store.get(PROGRESS))['step']} is the last that a worker has reported"
    except (FileNotFoundError, BertrayError):
        return "no worker has reported a step"


def _show_progress(store: Store, ticker: Ticker, shown: dict[str, int]) -> dict[str, Any]:
    """Show where training stands, and return it.

    Args:
        shown: counts the messages of each start of the worker that have been shown.
    """
    try:
        state: dict[str, Any] = json.loads(store.get(PROGRESS))
    except (FileNotFoundError, BertrayError):
        return {}
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
    return state
