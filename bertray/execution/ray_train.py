"""Ranks of a training on the workers of Ray Train."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bertray.errors import InfrastructureError
from bertray.execution.executor import Rank, Training
from bertray.execution.machines import machine_watch
from bertray.execution.remote_errors import translated
from bertray.execution.resources import Resources
from bertray.runtime import import_all, work_in, working_folder

log = logging.getLogger(__name__)


def run_ranks(body: Callable[[Rank], Any], training: Training, resources: Resources) -> Any:
    """Run `body` on each worker of a group, started again when one is lost; returns what rank 0 returned.

    `max_failures` losses end the run only where it has not got on since the first of them: a day on spot machines has
    many.
    """
    with _interruptible(), _imported_meanwhile(training.imports), machine_watch(resources):
        number = 0
        while True:
            before = training.progress()
            try:
                with translated():
                    return _trainer(body, training, resources, f"{training.name}-{number}").fit().return_value
            except InfrastructureError as error:
                if not training.max_failures or training.progress() == before:
                    raise
                log.warning("%s Training goes on from its last checkpoint.", error.message)
            number += 1


def _trainer(body: Callable[[Rank], Any], training: Training, resources: Resources, name: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    per_worker = {"CPU": resources.cpus_per_worker} | ({"GPU": 1.0} if resources.gpus_per_worker else {})
    # Ray Train keeps its own bookkeeping under a fresh name; bertray's checkpoints are what a run resumes from.
    return TorchTrainer(
        _run_rank,
        train_loop_config={"body": body, "folder": working_folder()},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=bool(resources.gpus_per_worker), resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            name=name,
            storage_path=training.storage,
            failure_config=FailureConfig(max_failures=training.max_failures),
            worker_runtime_env=resources.runtime_env,
        ),
    )


def _run_rank(settings: dict[str, Any]) -> Any:
    """Body of one worker of Ray Train."""
    import ray.train
    import ray.train.torch

    work_in(settings["folder"])
    messages: list[str] = []
    logging.getLogger("bertray").setLevel(logging.INFO)
    logging.getLogger("bertray").addHandler(_Collector(messages))
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    return settings["body"](Rank(context.get_world_rank(), context.get_world_size(), device, messages))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train answers Ctrl-C with `sys.exit(0)`, which becomes the interruption that it is."""
    on_sigint = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_sigint)


@contextlib.contextmanager
def _imported_meanwhile(names: Sequence[str]) -> Iterator[None]:
    """This process imports what it needs after training while it has nothing to do: the workers' processes start."""
    importing = threading.Thread(target=import_all, args=(names,), name="imports", daemon=True)
    importing.start()
    try:
        yield
    finally:
        importing.join()  # a thread that still imports may crash a process that leaves


class _Collector(logging.Handler):
    """Keeps a worker's messages, so that the driver shows them once."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.INFO)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())
