"""`registry:NAME` in a config becomes the path of one version, for the whole of a run."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from bertray.config import NightConfig, Section
from bertray.io.store import open_store
from bertray.outputs import ledger
from bertray.scoring.plan import open_plans
from bertray.trust.registry import SCHEME, Registry, check_name, is_registered, resolve_registered

log = logging.getLogger(__name__)
MODEL_KEYS = ("model", "a", "b")
SectionT = TypeVar("SectionT", bound=Section)


def pinned(config: SectionT) -> SectionT:
    """The config with every `registry:NAME` as the version that the name stands for now.

    A night that a killed run has planned, and that nobody has finished, keeps the version that it was planned with.

    Raises:
        ConfigError: as `registry.resolve_registered`.
    """
    registry = getattr(config, "registry", None)
    updates: dict[str, Any] = {}
    for key in MODEL_KEYS:
        model = getattr(config, key, None)
        if isinstance(model, str) and is_registered(model):
            kept = _planned(config, model, registry) if key == "model" and isinstance(config, NightConfig) else None
            updates[key] = kept or resolve_registered(model, registry)
            log.info("%s=%s is %s%s", key, model, updates[key], " (of an unfinished run)" if kept else "")
    training = getattr(config, "training", None)
    teacher = getattr(training, "teacher", None)
    if isinstance(training, Section) and isinstance(teacher, str) and is_registered(teacher):
        updates["training"] = training.model_copy(update={"teacher": resolve_registered(teacher, registry)})
    return config.model_copy(update=updates) if updates else config


def _planned(config: NightConfig, model: str, registry: str | None) -> str | None:
    """Version that the newest plan of the output was made for, where nothing was committed since."""
    if registry is None:
        return None
    name = check_name(model.removeprefix(SCHEME))
    opened, store = Registry(registry), open_store(config.output)
    entries = ledger.read_ledger(store)
    plans = open_plans(store, entries)
    if not plans or len(entries) >= plans[-1].seq:
        return None
    version = plans[-1].model_version
    path = opened.version_path(name, version)
    return path if plans[-1].model == path and opened.has_version(name, version) else None
