"""`bertray embed`: new review files → vectors, committed as scored rows are."""

from __future__ import annotations

from bertray.config import EmbedConfig
from bertray.errors import ConflictError
from bertray.io.store import open_store
from bertray.model.bundle import BundleInfo
from bertray.outputs import ledger
from bertray.outputs.claims import check_claim
from bertray.runs import night as nights
from bertray.scoring.decide import night_settings
from bertray.scoring.models import open_encoder

# Of the settings of a night, those that may differ between vectors that are compared.
_FREE = ("columns", "reader", "keep_columns", "unique_ids")


def run_embed(config: EmbedConfig) -> int:
    """Embed what is new; the same command again is always safe."""
    info = open_encoder(config)
    check_comparable(config, info)
    return nights.run_night(config, info, lambda: nights.open_cluster(config.workers))


def check_comparable(config: EmbedConfig, info: BundleInfo) -> None:
    """Vectors of one output are meant to be compared with each other.

    Raises:
        ConflictError: those that are there were made in another way or by another model.
    """
    store = open_store(config.output)
    entries = ledger.read_ledger(store)
    check_claim(store, config.verb, config.verb)
    wanted = night_settings(config, info)
    for entry in ledger.current(entries):
        for name in wanted:
            held = entry.settings.get(name)
            if name not in _FREE and held != wanted[name]:
                raise ConflictError(
                    f"{config.output}: holds vectors with {name}={held}, not {wanted[name]}.",
                    "Choose another `output`; vectors of two kinds cannot be compared.",
                )
        if entry.model_version != info.model_version:
            raise ConflictError(
                f"{config.output}: holds vectors of model version {entry.model_version}, not {info.model_version}.",
                "Choose another `output`; vectors of two models cannot be compared.",
            )
