"""Workers and tasks laid out over the CPUs and GPUs of a cluster, so that tasks always have room beside the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bertray.errors import ConfigError, InfrastructureError
from bertray.runtime import num_cpus

if TYPE_CHECKING:
    from bertray.config import Workers

READER_CPUS = 0.5  # of a task that reads and tokenizes; nothing but these and the workers takes a CPU


@dataclass(frozen=True)
class Resources:
    """Layout of workers over the CPUs and GPUs of a cluster, or of this process.

    Args:
        num_workers: actors that hold a model, or ranks of a training.
        threads: torch threads of a worker on CPU.
        cpus_per_worker: CPU share that Ray counts for each.
        gpus_per_worker: 0 or 1.
        stall_timeout_s: seconds without a finished item after which a run ends.
        in_process_rows: reviews up to which no actor is started.
        actor_env: environment of actors that compute, where they do not inherit it.
        reader_cpus: CPU share of a task that reads and tokenizes.
    """

    num_workers: int
    threads: int
    cpus_per_worker: float
    gpus_per_worker: int
    stall_timeout_s: float = 3600.0
    in_process_rows: int = 0
    actor_env: Mapping[str, str] = field(default_factory=dict)
    reader_cpus: float = READER_CPUS

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """Ray's argument of that name for actors that compute; None on one machine, whose processes inherit theirs."""
        return {"env_vars": dict(self.actor_env)} if self.actor_env else None

    def together(self) -> Resources:
        """One worker with the threads of all."""
        return replace(self, num_workers=1, threads=self.threads * self.num_workers)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_worker else "cpu"


class Machine(NamedTuple):
    """CPUs and GPUs of one machine of a cluster."""

    cpus: float
    gpus: float = 0.0


def plan_resources(
    workers: Workers,
    machines: Sequence[Machine],
    *,
    local: bool,
    growing: bool = False,
    most_gpus: float | None = None,
) -> Resources:
    """Fit the workers onto machines so that, wherever Ray places them, one reading task still has room.

    A worker takes `threads` CPUs, or a little less: on the largest machine (M CPUs) the most workers whose threads fit,
    k = floor(M / threads), leave READER_CPUS to a reading task if each takes (M - READER_CPUS) / k. Every other machine
    holds at least the workers whose threads fit it. To leave no room anywhere, Ray would have to place k + 1 workers on
    the largest machine, and on each other one as many as its threads allow or more: one more than there may be.

    Args:
        machines: of the cluster.
        local: Ray runs for this command alone.
        growing: more machines may join, each large enough for one worker.
        most_gpus: GPUs of such a cluster at its largest; None: not known.

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
            f"{cpus_in_words(machines)} CPUs.",
            "Start machines with CPUs (`ray start --address=... --num-cpus=...`), then run the same command again.",
        )
    if workers.use_gpu:
        _check_gpus(workers, machines, local=local, growing=growing, most_gpus=most_gpus)
        return _on_gpus(workers, machines, stall_s=stall_s)
    if local:
        threads = workers.threads or max(1, num_cpus() // workers.num_workers)
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
        f"workers: {_wanted(workers)} are needed, the cluster has {cpus_in_words(machines)} CPUs.",
        "Lower `workers.num_workers` or `workers.threads`, or use a cluster with more CPUs.",
    )


def _check_gpus(
    workers: Workers, machines: Sequence[Machine], *, local: bool, growing: bool, most_gpus: float | None
) -> None:
    """Refuse more GPU workers than there can ever be."""
    gpus = num_gpus(machines)
    if growing:
        short = most_gpus is not None and max(most_gpus, gpus) < workers.num_workers
        there = f"this cluster can have at most {most_gpus or 0:g}"
    else:
        short = gpus < workers.num_workers
        there = f"this {'machine' if local else 'cluster'} has {gpus}"
    if short:
        raise ConfigError(
            f"workers: {workers.num_workers} GPUs asked for, {there}.",
            "Set `workers.use_gpu=false` or fewer `workers.num_workers`.",
        )


def _on_gpus(workers: Workers, machines: Sequence[Machine], *, stall_s: float) -> Resources:
    """One GPU for each worker, and READER_CPUS of the CPUs beside it, or less where these are few.

    A reading task gets a whole CPU where there is one: it is to feed a GPU, and twice as many tasks as cores would only
    take them from each other.
    """
    with_gpus = [machine for machine in machines if machine.gpus >= 1]
    shares = [(machine.cpus - READER_CPUS) / int(machine.gpus) for machine in with_gpus]
    cpus = _rounded(max(0.0, min([READER_CPUS, *shares])))
    free = [machine.cpus - int(machine.gpus) * cpus for machine in machines]
    reader_cpus = 1.0 if max(free, default=1.0) >= 1.0 else READER_CPUS
    return Resources(workers.num_workers, workers.threads or 1, cpus, 1, stall_s, reader_cpus=reader_cpus)


def num_gpus(machines: Sequence[Machine]) -> int:
    """Whole GPUs of all machines."""
    return sum(int(machine.gpus) for machine in machines)


def missing(resources: Resources, machines: Sequence[Machine]) -> str:
    """Sentence on the workers that machines have no room for; empty where all have room."""
    if resources.gpus_per_worker:
        there, each = num_gpus(machines), "1 GPU"
    else:
        there = sum(int(machine.cpus / resources.cpus_per_worker + 1e-6) for machine in machines)
        each = f"{resources.cpus_per_worker:g} CPUs"
    if there >= resources.num_workers:
        return ""
    return f"{resources.num_workers} workers of {each} are needed, the machines that are there hold {there}"


def _rounded(cpus: float) -> float:
    """The next smaller share of a CPU that Ray counts exactly: it keeps four digits."""
    return math.floor(cpus * 10_000 + 1e-6) / 10_000


def _wanted(workers: Workers) -> str:
    each = "1 GPU" if workers.use_gpu else f"{workers.threads or 1} CPUs"
    return f"{workers.num_workers} workers (workers.num_workers) of {each}" + (
        " (workers.threads)" if workers.threads and not workers.use_gpu else ""
    )


def cpus_in_words(machines: Sequence[Machine]) -> str:
    """`0`, `4`, or `6 (2 + 4)`: of all machines, and of each."""
    each = [machine.cpus for machine in machines if machine.cpus]
    shown = " + ".join(f"{cpus:g}" for cpus in each[:8]) + (" + ..." if len(each) > 8 else "")
    return f"{sum(each):g}" + (f" ({shown})" if len(each) > 1 else "")
