"""Connect to Ray: the cluster of the job we run in, or one started on this machine for this command."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertray import errors
from bertray.config import Workers
from bertray.console import stderr_without
from bertray.environment import COMPUTE_ENV, THREADS_ENV, unless_chosen
from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.loading import without_collection

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

READER_CPUS = 0.5  # of a task that reads and tokenizes

# Ray Train asks a dashboard whether its controller lives. We start none, and any other on this machine, or a tunnel to
# one, would say "unknown" and have healthy workers ended: ask where nobody answers.
NO_API_SERVER = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}

# One machine: look often whether training has ended, and watch for no machine being taken away.
LOCAL_TRAIN_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    **NO_API_SERVER,
}

# Of the 107 bytes that Linux gives the path of a socket, what Ray leaves when its session and socket are taken off:
# "/session_2026-11-21_15-53-58_458367_1234567/sockets/plasma_store".
LONGEST_FOLDER = 107 - 64


@dataclass(frozen=True)
class Resources:
    """How the work is laid out over what Ray offers, or in this process alone."""

    num_workers: int
    threads: int  # torch threads of a CPU worker
    cpus_per_worker: float
    gpus_per_worker: int
    stall_timeout_s: float = 3600.0  # without a finished shard
    in_process_rows: int = 0  # reviews up to which no actor is started
    alone: bool = False  # this process does everything, and no Ray is there
    actor_env: Mapping[str, str] = field(default_factory=dict)  # what those that compute need, if not inherited

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """Ray's argument of that name for actors that compute; None on one machine, whose processes inherit theirs."""
        return {"env_vars": dict(self.actor_env)} if self.actor_env else None

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_worker else "cpu"


def inside_cluster() -> bool:
    """Is there a cluster to join (a submitted job, or RAY_ADDRESS set by hand)?"""
    return bool(os.environ.get("RAY_ADDRESS"))


def without_ray(workers: Workers, num_rows: int, *, ranks: bool = False) -> Resources | None:
    """This process alone, where that is all that so many reviews need; None: Ray is needed, or is at hand anyway.

    Args:
        workers: what the config asks for.
        num_rows: reviews of all splits.
        ranks: several workers would share the steps of a training; who asks for several gets them.
    """
    if num_rows > workers.in_process_rows or not _on_these_cpus(workers) or (ranks and workers.num_workers > 1):
        return None
    return Resources(
        1, workers.threads or os.cpu_count() or 1, 1.0, 0, in_process_rows=workers.in_process_rows, alone=True
    )


def _on_these_cpus(workers: Workers) -> bool:
    """Whether the work is for the CPUs of this machine and no Ray is at hand that may have others."""
    running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return not (workers.use_gpu or inside_cluster() or running)


def check_precision(precision: str, workers: Workers) -> None:
    """Refuse what this machine cannot compute in, if it is the one to compute; workers of a cluster say so themselves.

    Raises:
        ConfigError: `int8` on a CPU that has nothing for it.
    """
    if precision == "int8" and _on_these_cpus(workers):
        import torch

        from bertray.model.engine import choose_dtype

        choose_dtype(precision, torch.device("cpu"))


@contextmanager
def session_for(
    workers: Workers, num_rows: int, *, ranks: bool = False, imports: Sequence[str] = ()
) -> Iterator[Resources]:
    """This process alone where that is enough (`without_ray`), else `ray_session`."""
    alone = without_ray(workers, num_rows, ranks=ranks)
    if alone is not None:
        yield alone
        return
    with ray_session(workers, imports=imports) as resources:
        yield resources


@contextmanager
def ray_session(workers: Workers, *, imports: Sequence[str] = ()) -> Iterator[Resources]:
    """A Ray connection for one command; one that exists already is used and left running.

    Args:
        workers: what the config asks for.
        imports: modules that this process will need later; imported while Ray's own processes start.

    Raises:
        ConfigError: more GPUs are asked for than this machine has.
        InfrastructureError: Ray does not start or the cluster does not answer.
    """
    import ray

    before = dict(os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    if not log.isEnabledFor(logging.DEBUG):
        # Ray's core prints an error for every actor pool about constructor arguments that it itself put in its store.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray gives its workers the lowest priority by default; beside any other process they would then starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    started = not ray.is_initialized()
    temporary = None
    if started:
        if not inside_cluster():
            temporary = _temporary_folder()
        warm_up = threading.Thread(target=import_all, args=(imports,), name="imports", daemon=True)
        warm_up.start()
        try:
            try:
                _connect(temporary)
            finally:
                warm_up.join()  # a thread that still imports may crash a process that leaves
        except BaseException:
            _disconnect(before, temporary)  # what has been started by then
            raise
    try:
        resources = plan_resources(
            workers, ray.cluster_resources(), local=not inside_cluster(), cpus_of_machines=cpus_of_machines()
        )
        if started and not inside_cluster() and not workers.use_gpu:
            resources = replace(resources, in_process_rows=workers.in_process_rows)
        if inside_cluster() and not workers.use_gpu:
            resources = replace(resources, actor_env=unless_chosen(COMPUTE_ENV))
        yield resources
    finally:
        if started:
            _disconnect(before, temporary)


def _temporary_folder() -> str:
    """For Ray's own files: a folder of this process, to leave nothing behind; those of killed processes go."""
    # Not below a long TMPDIR: the path of a socket is limited.
    base = Path(os.environ.get("RAY_TMPDIR", "/tmp"))  # noqa: S108 - made here, for this user alone, or refused
    machine = f"bertray-{_machine():04x}-"
    if len(os.fsencode(base / f"{machine}{os.getpid()}-0")) > LONGEST_FOLDER:
        room = LONGEST_FOLDER - len(machine) - len("/1234567-0")
        raise InfrastructureError(
            f"{base}: too long a path for Ray's files: the sockets below it may have 107 bytes.",
            f"Set RAY_TMPDIR to a folder whose path has at most {room} characters.",
        )
    try:
        base.mkdir(parents=True, exist_ok=True)
        for left in base.glob(f"{machine}*"):
            pid = left.name.removeprefix(machine).partition("-")[0]
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
        for number in range(10):  # another user's, or one whose files a process of Ray still writes
            folder = base / f"{machine}{os.getpid()}-{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return str(folder)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        raise InfrastructureError(
            f"{base}: no folder for Ray's files can be made here: {error.strerror}.", "Set RAY_TMPDIR to one that can."
        ) from error


def _machine() -> int:
    """16 bits that tell machines and containers apart that share a folder: their process numbers mean others."""
    try:
        processes = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        processes = 0
    return zlib.crc32(f"{socket.gethostname()} {processes}".encode()) & 0xFFFF


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _disconnect(environment: dict[str, str], temporary: str | None) -> None:
    """End the connection; leave no files, and the environment as it was: another cluster may come next here."""
    import ray

    ray.shutdown()
    if temporary and not log.isEnabledFor(logging.DEBUG):  # Ray's own logs
        shutil.rmtree(temporary, ignore_errors=True)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def import_all(names: Sequence[str]) -> None:
    with without_collection():
        for name in names:
            importlib.import_module(name)


def _connect(temporary: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": log.isEnabledFor(logging.DEBUG)}
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with stderr_without("Set ray log level from environment variable"):
            if inside_cluster():
                # What a job gives itself is among what the user chose; Ray would refuse to have it given twice.
                os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
                ray.init(runtime_env={"env_vars": unless_chosen(THREADS_ENV)}, **quiet)
            else:
                # Through the environment, which the processes that Ray starts ahead of need inherit: a runtime_env
                # would have it start others.
                os.environ.update(unless_chosen(COMPUTE_ENV | LOCAL_TRAIN_ENV) | NO_API_SERVER)
                # At least two logical CPUs: an actor pool that holds all of them would starve the reading tasks.
                cpus = max(2, os.cpu_count() or 2)
                ray.init(address="local", include_dashboard=False, num_cpus=cpus, _temp_dir=temporary, **quiet)
    except SystemExit:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from None
    except (OSError, RuntimeError, ValueError, ConnectionError) as error:
        words = " ".join(str(error).split())[:300]
        raise InfrastructureError(
            f"Ray: does not start or answer: {words}", "Run `bertray doctor`; on a cluster check RAY_ADDRESS."
        ) from error
    finally:
        if in_main_thread:  # Ray's own handler prints a native stack trace
            signal.signal(signal.SIGTERM, on_sigterm)


def cpus_of_machines() -> list[float]:
    """CPUs of each machine of the cluster that has any."""
    import ray

    return [cpus for node in ray.nodes() if node["Alive"] and (cpus := node["Resources"].get("CPU"))]


def plan_resources(
    workers: Workers, cluster: dict[str, float], *, local: bool, cpus_of_machines: Sequence[float] = ()
) -> Resources:
    """Fit the workers into the CPUs, and leave a share for reading tasks: workers on all of them would wait for ever.

    Args:
        workers: what the config asks for.
        cluster: resources of all machines together.
        local: Ray runs for this command alone.
        cpus_of_machines: of those that have any.
    """
    cpus, gpus = cluster.get("CPU", 2.0), cluster.get("GPU", 0.0)
    # A shard is minutes of work for a large model on a CPU; a cluster may have to start machines first.
    stall_s = workers.stall_timeout_s or (3600.0 if local else 6 * 3600.0)
    if workers.use_gpu:
        if local and gpus < workers.num_workers:
            raise ConfigError(
                f"workers: {workers.num_workers} GPUs asked for, this machine has {gpus:.0f}.",
                "Set workers.use_gpu=false or fewer workers.num_workers.",
            )
        return Resources(workers.num_workers, workers.threads or 1, READER_CPUS, 1, stall_s)
    if local:
        threads = workers.threads or max(1, (os.cpu_count() or 2) // workers.num_workers)
        return Resources(workers.num_workers, threads, (cpus - 1.0) / workers.num_workers, 0, stall_s)
    threads = workers.threads or 2
    # Those whose threads fill a machine leave a reader's share of it; one that is still to start may hold just one.
    machine = max(min(cpus_of_machines, default=0.0), threads)
    return Resources(workers.num_workers, threads, threads * (1 - READER_CPUS / machine), 0, stall_s)


def configure_data(stall_timeout_s: float) -> None:
    """Ray Data for many small independent shards: quiet, no silent drops, a watchdog."""
    from ray.data import DataContext

    for name in ("ray.data", "ray.data._internal"):  # Ray sets these up when it is imported, after our own set-up
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = stall_timeout_s
    context.max_errored_blocks = 0
    # A worker that was starting on a machine that went away; by default it would end the run.
    context.max_consecutive_actor_init_deaths = 3


def blocks_of(dataset: Any) -> Iterator[pa.Table]:
    """The blocks of a data set of Ray's, each as soon as it is made.

    By default Ray hands one out when the next one has been made: what was done would be told a shard late.
    """
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and everything that Ray, Ray Data and Ray Train wrapped into it."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            pending += list(failures.values())


_OURS = re.compile(r"^bertray\.errors\.(\w+): (.+)$", re.MULTILINE)
_NO_ROOM = re.compile(
    rf"^(?:[\w.]+\.)?(\w*MemoryError\b.*|RuntimeError: .*{errors.NO_MEMORY}.*|OSError: \[Errno (?:28|122)\].*"
    rf"|SafetensorError: .*{errors.NO_SPACE.pattern}.*)$",
    re.MULTILINE,
)


def _told(error: BaseException) -> BertrayError | None:
    """Our error, read off the traceback: Ray Data wraps what a function of ours raised, and the original is lost."""
    text = str(error)
    kinds = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    ours = [(kinds[name], words) for name, words in _OURS.findall(text) if name in kinds]
    if ours:
        kind, words = ours[-1]
        found: BertrayError = kind(" ".join(words.split()))
        return found
    no_room = _NO_ROOM.findall(text)
    return InfrastructureError(f"Ray: {no_room[-1][:300]}", "Run the same command again.") if no_room else None


def as_known(error: BaseException) -> BertrayError | None:
    """What went wrong, in Ray too, as one of our errors: ours unwrapped, Ray's own as infrastructure, else None."""
    import ray.data.exceptions
    import ray.exceptions

    chain = list(_chain(error))
    for inner in chain:
        if isinstance(inner, BertrayError):
            return inner
    crashed = (
        ray.exceptions.GetTimeoutError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.RayActorError,
        ray.exceptions.RaySystemError,
        ray.exceptions.WorkerCrashedError,
        *([ray.data.exceptions.ExecutionTimeoutError] if hasattr(ray.data.exceptions, "ExecutionTimeoutError") else []),
    )
    if (told := _told(error)) is not None:
        return told
    for inner in chain:
        if isinstance(inner, crashed) or errors.is_out_of_memory(inner) or errors.is_disk_full(inner):
            words = " ".join(str(inner).split())[:300] or type(inner).__name__
            return InfrastructureError(f"Ray: {words}", "Run the same command again.")
    return None
