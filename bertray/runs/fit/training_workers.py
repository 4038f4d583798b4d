"""The training loop on the workers of an executor, and the progress that the command shows meanwhile."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from bertray.console import Ticker
from bertray.errors import BertrayError
from bertray.execution.executor import Executor, Training
from bertray.execution.stalls import StallWatch
from bertray.io.store import LocalStore, Store
from bertray.training.checkpoint import checkpoint_folders
from bertray.training.examples import Examples
from bertray.training.loop import Outcome
from bertray.training.rank import PROGRESS, TrainJob, train_rank

log = logging.getLogger(__name__)

IMPORTS_AFTER_TRAINING = (  # for the bundle, the baselines and the charts
    "transformers.modeling_utils",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "matplotlib.figure",
)


def run_workers(job: TrainJob, examples: Examples, store: Store, executor: Executor) -> Outcome:
    """Run the training loop on the workers of an executor; returns what rank 0 returned.

    Raises:
        BertrayError: what a worker refused.
    """
    where = executor.training_workers
    log.info("training on %d examples, validating on %d, %s", len(examples.train), len(examples.validation), where)
    training = Training(
        name=f"{job.loop.run_key}-{uuid.uuid4().hex[:8]}",
        storage=store.uri("control/ray_train"),
        max_failures=job.max_failures,
        progress=lambda: checkpoint_folders(store)[-1:],
        imports=IMPORTS_AFTER_TRAINING,
    )
    returned = _followed(lambda: executor.train(partial(train_rank, job), training), store)
    job.data.forget_copies()
    if isinstance(returned, BertrayError):
        raise returned
    outcome: Outcome = returned
    return outcome


def history_table(history: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> pa.Table:
    """`history.parquet`: one row a log point, `kind` step or eval; then `step`, `epoch` and these numbers."""
    types = {"kind": pa.string(), "step": pa.int64()}
    names = ("kind", "step", "epoch", *numbers)
    return pa.table(
        {name: pa.array([row.get(name) for row in history], types.get(name, pa.float64())) for name in names}
    )


def _followed(fit: Callable[[], Any], store: Store) -> Any:
    """Run the training and follow `control/progress.json`: a bar on a terminal, log lines elsewhere.

    The training has this thread, since Ray must not be shut down while another one waits for an answer of it.
    """
    store.delete(PROGRESS)
    interval_s = 0.5 if isinstance(store, LocalStore) else 5.0
    ended = threading.Event()
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
        finally:
            ended.set()
            follower.join()
            _show_progress(store, ticker, shown)


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
