"""Names of a registry: their history, and a pointer moved back."""

from __future__ import annotations

from dataclasses import dataclass

from bertray.config import RegistryConfig, RollbackConfig
from bertray.errors import ConfigError
from bertray.trust.registry import HistoryEntry, Registry, check_name, current, new_entry, rollback_target


@dataclass(frozen=True)
class RegisteredName:
    """A name and its history.

    Args:
        name: of the model.
        version: that the name stands for; None before the first promotion.
        model: path of the version, as `model` takes it; None without one.
        history: entries, the oldest first.
    """

    name: str
    version: str | None
    model: str | None
    history: tuple[HistoryEntry, ...]


def list_names(config: RegistryConfig) -> list[RegisteredName]:
    """Names of a registry, or the one that the config asks for.

    Raises:
        ConfigError: there is no such registry or name.
    """
    registry = Registry(config.registry)
    if config.name is not None:
        registry.known(config.name)
    return [_named(registry, name) for name in (registry.names() if config.name is None else [config.name])]


def roll_back(config: RollbackConfig) -> RegisteredName:
    """Move a pointer to an earlier version by one entry of the history; unchanged where it stands there already.

    Raises:
        ConfigError: no such registry, name or version.
        ConflictError: there is no earlier version, or another entry came first.
    """
    registry, name = Registry(config.registry), check_name(config.name)
    history = registry.known(name)
    pointer = current(history)
    assert pointer is not None
    version = rollback_target(name, history, config.to)
    if not registry.has_version(name, version):
        raise ConfigError(
            f"{registry.version_path(name, version)}: the version is no longer there.",
            "Restore it from a copy, or name another with `to=VERSION`.",
        )
    if version != pointer.version:
        registry.append(name, new_entry("rollback", history, version, reason=config.reason or ""))
    return _named(registry, name)


def _named(registry: Registry, name: str) -> RegisteredName:
    history = registry.history(name)
    pointer = current(history)
    if pointer is None:
        return RegisteredName(name, None, None, tuple(history))
    return RegisteredName(name, pointer.version, registry.version_path(name, pointer.version), tuple(history))
