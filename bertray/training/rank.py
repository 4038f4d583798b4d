"""A rank of the training loop; imports little, since the processes of Ray Train's workers and controller import it."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bertray.errors import BertrayError, DataRefused, Diverged
from bertray.execution.executor import Rank
from bertray.io.store import check_seen, open_store
from bertray.model.bundle import resolve_model
from bertray.model.tokenization import ReviewTokenizer
from bertray.runtime import without_collection
from bertray.training.examples import LoopSettings
from bertray.training.loop import Outcome, run_loop
from bertray.training.objectives import Classification, Objective
from bertray.training.ranks import RefusedByAll
from bertray.training.tokenized_data import TokenizedData

PROGRESS = "control/progress.json"


@dataclass(frozen=True)
class TrainJob:
    """Job of each worker, which computes everything else by arithmetic."""

    data: TokenizedData
    model: str
    loop: LoopSettings
    objective: Callable[..., Objective] = Classification
    max_failures: int = 3  # lost workers that are replaced before the run ends, without a checkpoint in between


def train_rank(job: TrainJob, rank: Rank) -> Outcome | BertrayError:
    """The share of one worker.

    A refusal that every rank comes to, and would come to again, is returned: Ray Train tries a failed worker again.
    What may have befallen this one alone is raised, or the others would wait for it in vain.

    Args:
        job: what to learn from, and how.
        rank: of this worker; its messages grow while the loop runs, for the process that waits to show them.
    """
    store = open_store(job.data.output)
    start = uuid.uuid4().hex

    def on_progress(state: dict[str, Any]) -> None:
        store.put(PROGRESS, json.dumps({**state, "start": start, "messages": list(rank.messages)}).encode())

    try:
        check_seen(store, job.data.keys[0])
        with without_collection():
            import transformers.modeling_utils  # noqa: F401 - four seconds, most of what comes before the first step
        folder = resolve_model(job.model)
        outcome = run_loop(
            job.data.examples(),
            folder,
            ReviewTokenizer(folder, 16).pad_id,
            job.loop,
            store,
            objective=job.objective,
            device=rank.device,
            on_progress=on_progress if rank.number == 0 else None,
        )
    except BertrayError as error:
        if rank.world_size > 1 and not isinstance(error, Diverged | DataRefused | RefusedByAll):
            raise
        return error
    job.data.forget_copies()
    if rank.number == 0:
        with contextlib.suppress(BertrayError):  # the run is whole; only its last message is at stake
            on_progress({"step": outcome.num_steps, "total_steps": outcome.num_steps, "done": True})
    return outcome
