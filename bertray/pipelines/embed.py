"""`bertray embed`: new review files → vectors, committed as scored rows are."""

from __future__ import annotations

from bertray.config import EmbedConfig
from bertray.errors import ConflictError
from bertray.model.bundle import BundleInfo
from bertray.pipelines import nights
from bertray.pipelines.inputs import open_encoder
from bertray.storage import ledger
from bertray.storage.store import open_store

_OF_ONE_OUTPUT = ("pooling", "normalize", "dtype")


def run_embed(config: EmbedConfig) -> int:
    """Embed what is new; the same command again is always safe."""
    info = open_encoder(config)
    _check_comparable(config, info)
    return nights.run_night(config, info, lambda: nights.ray_worker(config.workers))


def _check_comparable(config: EmbedConfig, info: BundleInfo) -> None:
    """Vectors of one output are meant to be compared with each other.

    Raises:
        ConflictError: those that are there were made in another way, or by another model and would stay.
    """
    for entry in ledger.current(ledger.read_ledger(open_store(config.output))):
        for name in _OF_ONE_OUTPUT:
            if (held := entry.settings.get(name)) != getattr(config, name):
                raise ConflictError(
                    f"{config.output}: holds vectors with {name}={held}, not {getattr(config, name)}.",
                    "Choose another `output`; vectors of two kinds cannot be compared.",
                )
        if entry.model_version != info.model_version and config.rescore == "never":
            raise ConflictError(
                f"{config.output}: holds vectors of model version {entry.model_version}, not {info.model_version}.",
                "Choose another `output`, or set rescore=replace; vectors of two models cannot be compared.",
            )
