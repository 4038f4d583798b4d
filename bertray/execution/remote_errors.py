"""Errors of Ray itself (a dead process, a lost machine, missing code) as errors of the package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bertray import errors
from bertray.errors import BertrayError, ConfigError, InfrastructureError

# An error while Ray unpickles a function or an actor is told as text alone.
_CODE_MISSING = re.compile(
    r"^.*?((?:ModuleNotFoundError|ImportError): .+|Can't get attribute .+ on <module .+"
    r"|Failed to set up runtime env.*)$",
    re.MULTILINE,
)

# Attributes with what was wrapped: of Ray's tasks, then of Ray Train's workers, controller and health checks.
_WRAPPED = ("cause", "_base_exc", "controller_failure", "health_check_failure")


def known_error(error: BaseException) -> BertrayError | None:
    """The error as one of the package, also where Ray has wrapped it; None: a bug."""
    if (known := errors.known(error)) is None and "ray" in sys.modules:
        return as_known(error)
    return known


@contextmanager
def translated() -> Iterator[None]:
    """Let errors of Ray's pass as errors of ours; those of ours, and bugs, pass as they are."""
    try:
        yield
    except Exception as error:
        known = as_known(error)
        if known is None or known is error:
            raise
        raise known from error


def as_known(error: BaseException) -> BertrayError | None:
    """An error of ours that Ray wrapped, or what Ray reports as one of ours; None: a bug."""
    import ray.exceptions
    from ray.data.exceptions import ExecutionTimeoutError

    chain = list(_chain(error))
    for inner in chain:
        if isinstance(inner, BertrayError):
            return inner
    if found := _CODE_MISSING.findall(str(error)):
        return _other_code(found[-1])
    crashed = (
        ExecutionTimeoutError,
        ray.exceptions.GetTimeoutError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.RayActorError,
        ray.exceptions.RaySystemError,
        ray.exceptions.WorkerCrashedError,
    )
    for inner in chain:
        if isinstance(inner, ray.exceptions.RayActorError) and inner.actor_init_failed:
            continue  # by an exception, which the next start would meet again
        if known := errors.known(inner):
            return known
        if isinstance(inner, crashed):
            return InfrastructureError(f"Ray: {_words(inner)}", "Run the same command again.")
    return next((known for inner in chain if (known := _of_ray_train(inner))), None)


def _of_ray_train(error: BaseException) -> BertrayError | None:
    """An error of Ray Train itself, about a group of workers; None for one that it wraps, of a worker."""
    train = sys.modules.get("ray.train.v2._internal.exceptions")
    if train is None or not isinstance(error, train.RayTrainError):
        return None
    if isinstance(error, train.InsufficientClusterResourcesError):
        return ConfigError(
            f"workers: {_words(error)}",
            "Lower `workers.num_workers`, or let the cluster have more machines.",
        )
    wrapped = any(hasattr(error, name) for name in (*_WRAPPED, "worker_failures"))
    return None if wrapped else InfrastructureError(f"Ray Train: {_words(error)}", "Run the same command again.")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def code_missing(error: BaseException) -> ConfigError | None:
    """Message of a worker that lacks a module; None for any other error."""
    return _other_code(f"{type(error).__name__}: {error}") if isinstance(error, ImportError) else None


def _other_code(words: str) -> ConfigError:
    return ConfigError(
        f"Ray: a worker cannot load what it needs: {words[:300]}.",
        "Install the same bertray, with the same extras, on every machine of the cluster.",
    )


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
        pending += [current.__cause__, current.__context__]
        pending += [getattr(current, name, None) for name in _WRAPPED]
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            pending += list(failures.values())
