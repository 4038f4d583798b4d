"""Connect to Ray: the cluster of the job we run in, or one started on this machine for this command."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bertray import errors
from bertray.config import Workers
from bertray.console import stderr_without
from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.execution.stalls import Pending, StallWatch
from bertray.outputs.heartbeat import is_alive, process_namespace
from bertray.runtime import COMPUTE_ENV, THREADS_ENV, unless_chosen, without_collection

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

READER_CPUS = 0.5  # of a task that reads and tokenizes; nothing but these and the workers takes a CPU
WAIT_FOR_MACHINES_S = 20.0  # until a cluster that is too small for the workers is refused: machines may be joining
MAX_ITEMS = 20_000  # Ray Data keeps bookkeeping for each block; beyond this many, one block carries several items

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
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


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
        resources = _planned(workers)
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
        raise ConfigError(
            f"{base}: too long a path for Ray's files: the sockets below it may have 107 bytes.",
            f"Set RAY_TMPDIR to a folder whose path has at most {room} characters.",
        )
    try:
        base.mkdir(parents=True, exist_ok=True)
        for left in base.glob(f"{machine}*"):
            pid = left.name.removeprefix(machine).partition("-")[0]
            if pid.isdigit() and not is_alive(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
        for number in range(10):  # another user's, or one whose files a process of Ray still writes
            folder = base / f"{machine}{os.getpid()}-{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return str(folder)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        kind = InfrastructureError if errors.is_disk_full(error) else ConfigError
        raise kind(
            f"{base}: no folder for Ray's files can be made here: {error.strerror}.", "Set RAY_TMPDIR to one that can."
        ) from error


def _machine() -> int:
    """16 bits that tell machines and containers apart that share a folder: their process numbers mean others."""
    return zlib.crc32(f"{socket.gethostname()} {process_namespace()}".encode()) & 0xFFFF


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


def _without_driver_folders() -> Any:
    """A job config with which Ray leaves the path of its workers alone.

    By default it puts the folders of the driver first on it, where a file `statistics.py` of the user's would be taken
    for Python's own module; it does not where a job has a working folder of its own, which this config says.
    """
    from ray.job_config import JobConfig

    class WithoutDriverFolders(JobConfig):  # type: ignore[misc]  # Ray publishes no types
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return WithoutDriverFolders()


def _check_answers(address: str) -> None:
    """Refuse an address at which nobody answers: Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InfrastructureError(
            f"Ray: nobody answers at RAY_ADDRESS={address} ({error}).",
            "Start the cluster or set RAY_ADDRESS to its head, then run the same command again.",
        ) from error


@functools.cache
def _token() -> str:
    """One token for all the clusters that this process starts: Ray reads it once."""
    return secrets.token_hex(32)


def _provide_token() -> None:
    """Give Ray the token that protects a cluster of ours where it could not write one into the home folder."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        usable = os.access(folder, os.W_OK) or (folder / "auth_token").is_file()
    except (OSError, RuntimeError):  # no home, or none that can be written
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = _token()


def _connect(temporary: str | None) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    common: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": log.isEnabledFor(logging.DEBUG),
        "job_config": _without_driver_folders(),
    }
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with stderr_without("Set ray log level from environment variable"):
            if inside_cluster():
                _check_answers(os.environ["RAY_ADDRESS"])
                # What a job gives itself is among what the user chose; Ray would refuse to have it given twice.
                os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
                ray.init(runtime_env={"env_vars": unless_chosen(THREADS_ENV)}, **common)
            else:
                # Through the environment, which the processes that Ray starts ahead of need inherit: a runtime_env
                # would have it start others.
                os.environ.update(unless_chosen(COMPUTE_ENV | LOCAL_TRAIN_ENV) | NO_API_SERVER)
                _provide_token()
                # At least two logical CPUs: an actor pool that holds all of them would starve the reading tasks.
                cpus = max(2, os.cpu_count() or 2)
                ray.init(address="local", include_dashboard=False, num_cpus=cpus, _temp_dir=temporary, **common)
    except SystemExit:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from None
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        # A wrong address or version, a folder that may not be written: it would be so again.
        lasting = isinstance(error, ValueError | AuthenticationError | FileNotFoundError | PermissionError)
        kind = ConfigError if lasting or "ersion mismatch" in str(error) else InfrastructureError
        words = " ".join(str(error).split())[:300]
        raise kind(
            f"Ray: does not start or answer: {words}", "Run `bertray doctor`; on a cluster check RAY_ADDRESS."
        ) from error
    finally:
        if in_main_thread:  # Ray's own handler prints a native stack trace
            signal.signal(signal.SIGTERM, on_sigterm)


class Machine(NamedTuple):
    """CPUs and GPUs of one machine of a cluster."""

    cpus: float
    gpus: float = 0.0


def machines_of_cluster(*, free: bool = False) -> list[Machine]:
    """Machines of the cluster, with all that they have or with what nobody uses right now."""
    import ray
    from ray._private.state import available_resources_per_node

    if free:
        found = available_resources_per_node().values()
    else:
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in found]


def _planned(workers: Workers) -> Resources:
    """The workers laid out over the cluster at hand; waits a little for machines that are joining.

    Raises:
        ConfigError: the workers can never fit.
        InfrastructureError: the cluster has no CPU.
    """
    if not inside_cluster():
        return plan_resources(workers, machines_of_cluster(), local=True)
    resources = None
    deadline = time.monotonic() + WAIT_FOR_MACHINES_S
    told = False
    while resources is None:
        try:
            resources = plan_resources(workers, machines_of_cluster(), local=False)
        except BertrayError as error:
            late, grows = time.monotonic() > deadline, _grows()
            if grows or (late and grows is None):
                log.warning("%s Waiting for the machines that the cluster may start.", error.message)
                return plan_resources(workers, machines_of_cluster(), local=False, growing=True)
            if late:
                raise
            if not told:
                log.warning("%s Waiting %.0f s for machines to join.", error.message, WAIT_FOR_MACHINES_S)
                told = True
            time.sleep(0.5)
    free = machines_of_cluster(free=True)
    try:
        return plan_resources(workers, free, local=False)
    except BertrayError:
        log.warning(
            "Ray: %s CPUs are free; waiting for other jobs, or for what this job itself holds "
            "(--entrypoint-num-cpus), to give room to %d workers of %g CPUs and to reading tasks of %g",
            _cpus_in_words(free),
            resources.num_workers,
            resources.cpus_per_worker,
            READER_CPUS,
        )
        return resources


def _grows() -> bool | None:
    """Whether an autoscaler adds machines; None: it has not said, and may keep its status elsewhere.

    One that only watches names the type of each machine after the machine.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    status = _internal_kv_get("__autoscaling_status")  # as `ray status` reads it
    types = json.loads(status).get("autoscaler_report", {}).get("active_nodes") if status else None
    return any(not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in types) if types else None


def plan_resources(workers: Workers, machines: Sequence[Machine], *, local: bool, growing: bool = False) -> Resources:
    """Fit the workers onto machines so that, wherever Ray places them, one reading task still has room.

    A worker takes `threads` CPUs, or a little less: on the largest machine (M CPUs) the most workers whose threads fit,
    k = floor(M / threads), leave READER_CPUS to a reading task if each takes (M - READER_CPUS) / k. Every other machine
    holds at least the workers whose threads fit it. To leave no room anywhere, Ray would have to place k + 1 workers on
    the largest machine, and on each other one as many as its threads allow or more: one more than there may be.

    Args:
        workers: what the config asks for.
        machines: of the cluster.
        local: Ray runs for this command alone.
        growing: more machines may join, each large enough for one worker.

    Raises:
        ConfigError: the workers do not fit, now or ever.
        InfrastructureError: no machine has a CPU.
    """
    largest = max((machine.cpus for machine in machines), default=0.0)
    # A shard is minutes of work for a large model on a CPU; a cluster may have to start machines first.
    stall_s = workers.stall_timeout_s or (3600.0 if local else 6 * 3600.0)
    if largest <= READER_CPUS and not growing:
        raise InfrastructureError(
            f"Ray: {_wanted(workers)} and {READER_CPUS:g} CPUs for tasks that read are needed, the cluster has "
            f"{_cpus_in_words(machines)} CPUs.",
            "Start machines with CPUs (`ray start --address=... --num-cpus=...`), then run the same command again.",
        )
    if workers.use_gpu:
        return _on_gpus(workers, machines, local=local, growing=growing, stall_s=stall_s)
    if local:
        threads = workers.threads or max(1, (os.cpu_count() or 2) // workers.num_workers)
        spare = min(1.0, max(READER_CPUS, largest / 2))
        return Resources(workers.num_workers, threads, _rounded((largest - spare) / workers.num_workers), 0, stall_s)
    choices = [workers.threads] if workers.threads else [2, 1]
    for threads in choices:
        if growing:
            largest = max(largest, float(threads))
        # A single thread may have a machine of less than one CPU.
        nominal = min(float(threads), largest) if threads == 1 else float(threads)
        room = sum(int(machine.cpus / nominal) for machine in machines)
        if growing or workers.num_workers <= room:
            cpus = min(nominal, (largest - READER_CPUS) / int(largest / nominal))
            return Resources(workers.num_workers, threads, _rounded(cpus), 0, stall_s)
    raise ConfigError(
        f"workers: {_wanted(workers)} are needed, the cluster has {_cpus_in_words(machines)} CPUs.",
        "Lower `workers.num_workers` or `workers.threads`, or use a cluster with more CPUs.",
    )


def _on_gpus(workers: Workers, machines: Sequence[Machine], *, local: bool, growing: bool, stall_s: float) -> Resources:
    """One GPU for each worker, and READER_CPUS of the CPUs beside it, or less where these are few."""
    with_gpus = [machine for machine in machines if machine.gpus >= 1]
    gpus = sum(int(machine.gpus) for machine in with_gpus)
    if gpus < workers.num_workers and not growing:
        raise ConfigError(
            f"workers: {workers.num_workers} GPUs asked for, this {'machine' if local else 'cluster'} has {gpus}.",
            "Set `workers.use_gpu=false` or fewer `workers.num_workers`.",
        )
    shares = [(machine.cpus - READER_CPUS) / int(machine.gpus) for machine in with_gpus]
    return Resources(
        workers.num_workers, workers.threads or 1, _rounded(max(0.0, min([READER_CPUS, *shares]))), 1, stall_s
    )


def _rounded(cpus: float) -> float:
    """The next smaller share of a CPU that Ray counts exactly: it keeps four digits."""
    return math.floor(cpus * 10_000 + 1e-6) / 10_000


def _wanted(workers: Workers) -> str:
    each = "1 GPU" if workers.use_gpu else f"{workers.threads or 1} CPUs"
    return f"{workers.num_workers} workers (workers.num_workers) of {each}" + (
        " (workers.threads)" if workers.threads and not workers.use_gpu else ""
    )


def _cpus_in_words(machines: Sequence[Machine]) -> str:
    """`0`, `4`, or `6 (2 + 4)`: of all machines, and of each."""
    each = [machine.cpus for machine in machines if machine.cpus]
    shown = " + ".join(f"{cpus:g}" for cpus in each[:8]) + (" + ..." if len(each) > 8 else "")
    return f"{sum(each):g}" + (f" ({shown})" if len(each) > 1 else "")


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


def numbers(count: int, resources: Resources) -> Any:
    """A data set of the numbers of some items, column `id`, a block each.

    The blocks are made by this process: tasks that made them (`ray.data.range`) would each need a whole CPU, and
    workers that fill their machines leave only READER_CPUS.
    """
    import ray.data

    configure_data(resources.stall_timeout_s)
    return ray.data.from_items([{"id": number} for number in range(count)], override_num_blocks=min(count, MAX_ITEMS))


def blocks_of(dataset: Any, stage: str, pending: Pending, resources: Resources) -> Iterator[pa.Table]:
    """The blocks of a data set of Ray's, each as soon as it is made; while none is, the log tells what waits.

    By default Ray hands one out when the next one has been made: what was done would be told a shard late.

    Args:
        stage: what the data set does, for the log: `scoring`.
        pending: items that it works on; a column `id` of its blocks says which have arrived.
        resources: how the work is laid out.

    Raises:
        InfrastructureError: nothing arrived for `Resources.stall_timeout_s`.
    """
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        with StallWatch(stage, lambda: str(pending)) as watch:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                watch.progressed()
                if "id" in block.column_names:
                    for number in set(block["id"].to_pylist()):
                        pending.arrived(number)
                yield block
    except ExecutionTimeoutError as error:
        raise InfrastructureError(
            f"{stage}: nothing was finished for {resources.stall_timeout_s:,.0f} s; {pending}.",
            "Look for a worker that hangs (`ray list actors`), then run the same command again; a slow model needs a "
            "longer workers.stall_timeout_s.",
        ) from error


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


_NO_CODE = re.compile(
    r"^.*?((?:ModuleNotFoundError|ImportError): .+|Can't get attribute .+ on <module .+"
    r"|Failed to set up runtime env.*)$",
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
    if no_room := _NO_ROOM.findall(text):
        return InfrastructureError(f"Ray: {no_room[-1][:300]}", "Run the same command again.")
    if no_code := _NO_CODE.findall(text):
        return ConfigError(
            f"Ray: a worker cannot load what it needs: {no_code[-1][:300]}.",
            "Install the same bertray, with the same extras, on every machine of the cluster.",
        )
    return None


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
        if isinstance(inner, ray.exceptions.RayActorError) and inner.actor_init_failed:
            continue  # by an exception of ours, which the next start would meet again
        if isinstance(inner, crashed) or errors.is_out_of_memory(inner) or errors.is_disk_full(inner):
            words = " ".join(str(inner).split())[:300] or type(inner).__name__
            return InfrastructureError(f"Ray: {words}", "Run the same command again.")
    return None
