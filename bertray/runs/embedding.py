"""`bertray embed`: new review files → vectors, committed as scored rows are."""

from __future__ import annotations

from bertray.config import EmbedConfig
from bertray.runs import night as nights
from bertray.scoring.models import open_encoder


def run_embed(config: EmbedConfig) -> int:
    """Embed what is new; the same command again is always safe."""
    info = open_encoder(config)
    return nights.run_night(config, info, lambda: nights.open_cluster(config.workers))
