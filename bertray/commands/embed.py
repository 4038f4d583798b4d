"""`bertray embed`: committed vectors of new review files."""

from __future__ import annotations

from bertray.commands.score import show_end, show_run
from bertray.config import EmbedConfig
from bertray.runs.embedding import embed


def run_embed(config: EmbedConfig) -> int:
    """Embed what is new; each run of a slot is shown when it is committed."""
    show_end(embed(config, show_run))
    return 0
