"""Connect to Ray: the cluster of the job we run in, or one started on this machine for this command."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertray import errors
from bertray.config import Workers
from bertray.console import stderr_without
from bertray.errors import BertrayError, ConfigError, InfrastructureError
from bertray.execution.machines import machines_of_cluster
from bertray.execution.resources import READER_CPUS, Machine, Resources, cpus_in_words, plan_resources
from bertray.io.processes import is_alive, process_namespace
from bertray.runtime import COMPUTE_ENV, THREADS_ENV, import_all, num_cpus, unless_chosen
from bertray.yaml_text import read_yaml

if TYPE_CHECKING:
    from bertray.execution.ray_data import RayData

log = logging.getLogger(__name__)

WAIT_FOR_MACHINES_S = 20.0  # until a cluster that is too small for the workers is refused: machines may be joining

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves its configuration on the head

# A machine that has to be started takes minutes, of which Ray Train waits one before it withdraws its demand.
CLUSTER_TRAIN_ENV = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800"}

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


def inside_cluster() -> bool:
    """Tells whether there is a cluster to join: this is a submitted job, or RAY_ADDRESS is set."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def has_other_machines() -> bool:
    """Whether others than this machine may compute: those of the Ray at hand, or of a cluster to join."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return len(machines_of_cluster()) > 1
    return inside_cluster()


def without_ray(workers: Workers, num_rows: int, *, ranks: bool = False) -> Resources | None:
    """This process alone, where that is all that so many reviews need; None: Ray is needed, or is at hand anyway.

    Args:
        num_rows: reviews of all splits.
        ranks: several workers would share the steps of a training; who asks for several gets them.
    """
    if num_rows > workers.in_process_rows or not on_these_cpus(workers) or (ranks and workers.num_workers > 1):
        return None
    return Resources(1, workers.threads or num_cpus(), 1.0, 0, in_process_rows=workers.in_process_rows)


def on_these_cpus(workers: Workers) -> bool:
    """Tells whether the CPUs of this machine do the work: no GPU is asked for, and no Ray is at hand."""
    running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return not (workers.use_gpu or inside_cluster() or running)


@contextmanager
def ray_session(workers: Workers, *, imports: Sequence[str] = ()) -> Iterator[RayData]:
    """A Ray connection for one command, and the executor on it; one that exists already is used and left running.

    Args:
        imports: modules that this process will need later; imported while Ray's own processes start.

    Raises:
        ConfigError: more GPUs are asked for than this machine has.
        InfrastructureError: Ray does not start or the cluster does not answer.
    """
    is_ours = _CONNECTION.open(imports)
    try:
        resources = _planned(workers)
        if is_ours and not inside_cluster() and not workers.use_gpu:
            resources = replace(resources, in_process_rows=workers.in_process_rows)
        if inside_cluster() and not workers.use_gpu:
            resources = replace(resources, actor_env=unless_chosen(COMPUTE_ENV))
        from bertray.execution.ray_data import RayData

        yield RayData(resources)
    finally:
        if is_ours:
            _CONNECTION.close()


class _Connection:
    """The Ray that runs of this process have opened; runs of several threads share it, and the last one ends it."""

    def __init__(self) -> None:
        self._lock, self._runs = threading.Lock(), 0
        self._environment: dict[str, str] = {}
        self._temporary: str | None = None

    def open(self, imports: Sequence[str]) -> bool:
        """Join it, or open it; False: there is one already that somebody else has opened, and will end."""
        import ray

        with self._lock:
            if not self._runs:
                self._environment, self._temporary = dict(os.environ), None
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
                if not log.isEnabledFor(logging.DEBUG):
                    # Its core prints an error for every actor pool about arguments that Ray itself put in its store.
                    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
                # It gives its workers the lowest priority by default; beside any other process they would then starve.
                os.environ.setdefault("RAY_worker_niceness", "0")
                if ray.is_initialized():
                    return False
                self._start(imports)
            self._runs += 1
            return True

    def _start(self, imports: Sequence[str]) -> None:
        if not inside_cluster():
            self._temporary = _temporary_folder()
        warm_up = threading.Thread(target=import_all, args=(imports,), name="imports", daemon=True)
        warm_up.start()
        try:
            try:
                _connect(self._temporary)
            finally:
                warm_up.join()  # a thread that still imports may crash a process that leaves
        except BaseException:
            _disconnect(self._environment, self._temporary)  # what has been started by then
            raise

    def close(self) -> None:
        """Leave it."""
        with self._lock:
            self._runs -= 1
            if not self._runs:
                _disconnect(self._environment, self._temporary)


_CONNECTION = _Connection()


def _temporary_folder() -> str:
    """Makes the folder of this process for Ray's own files, and removes those of processes that were killed."""
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
                os.environ.update(unless_chosen(CLUSTER_TRAIN_ENV))
                # What a job gives itself is among what the user chose; Ray would refuse to have it given twice.
                os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
                ray.init(runtime_env={"env_vars": unless_chosen(THREADS_ENV)}, **common)
            else:
                # Through the environment, which the processes that Ray starts ahead of need inherit: a runtime_env
                # would have it start others.
                os.environ.update(unless_chosen(COMPUTE_ENV | LOCAL_TRAIN_ENV) | NO_API_SERVER)
                _provide_token()
                # At least two logical CPUs: an actor pool that holds all of them would starve the reading tasks.
                cpus = max(2, num_cpus())
                ray.init(address="local", include_dashboard=False, num_cpus=cpus, _temp_dir=temporary, **common)
    except SystemExit:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from None
    except Exception as error:
        # Where its processes do not come up in time, Ray raises an Exception of no further type.
        if type(error) is not Exception and not isinstance(
            error, OSError | RuntimeError | ValueError | AuthenticationError
        ):
            raise
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
                most = _most_gpus() if workers.use_gpu else None
                planned = plan_resources(workers, machines_of_cluster(), local=False, growing=True, most_gpus=most)
                log.warning("%s Waiting for the machines that the cluster may start.", error.message)
                return planned
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
            cpus_in_words(free),
            resources.num_workers,
            resources.cpus_per_worker,
            READER_CPUS,
        )
        return resources


def _grows() -> bool | None:
    """Tells whether an autoscaler adds machines; None: it has not said, and may keep its status elsewhere.

    One that only watches names the type of each machine after the machine.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    status = _internal_kv_get("__autoscaling_status")  # as `ray status` reads it
    types = json.loads(status).get("autoscaler_report", {}).get("active_nodes") if status else None
    return any(not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in types) if types else None


def _most_gpus() -> float | None:
    """GPUs of this cluster at its largest, by what its autoscaler was given; None where that cannot be known here.

    KubeRay reports its groups to the head. `ray up` leaves its configuration, with the resources of each type of
    machine filled in, as a file on the head, where the driver of a job runs.
    """
    from ray._private.state import state

    largest = state.get_max_resources_from_cluster_config()
    if largest is not None:
        return float(largest.get("GPU", 0))
    try:
        given = read_yaml(BOOTSTRAP_CONFIG.expanduser().read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):  # not the head, no home, or no YAML
        return None
    types = given.get("available_node_types") if isinstance(given, dict) else None
    if not isinstance(types, dict):
        return None
    groups = [(kind.get("max_workers", 0), (kind.get("resources") or {}).get("GPU", 0)) for kind in types.values()]
    return float(sum(count * gpus for count, gpus in groups))


def check_ray() -> dict[str, float]:
    """Run one task; returns what the cluster has, by the name of the resource.

    Raises:
        InfrastructureError: the task gives a wrong answer.
    """
    import ray

    double = ray.remote(num_cpus=READER_CPUS)(lambda value: value * 2)
    if ray.get(double.remote(21), timeout=120) != 42:
        raise InfrastructureError("Ray: a task gave a wrong answer.", "Install Ray again.")
    total: dict[str, float] = ray.cluster_resources()
    return total


def resources_without_start(workers: Workers) -> Resources:
    """Layout of the workers that `ray_session` would find: on the cluster that can be joined, or on this machine."""
    if inside_cluster():
        with ray_session(workers) as executor:
            return executor.resources
    machine = Machine(max(2, num_cpus()), workers.num_workers)
    return plan_resources(workers, [machine], local=True)
