"""`bertray embed`: committed vectors of new review files."""

from __future__ import annotations

from bertray.commands.score import show_end, show_run
from bertray.config import EmbedConfig
from bertray.console import say
from bertray.runs.embedding import embed


def run_embed(config: EmbedConfig) -> int:
    """Embed what is new; each run of a slot is shown when it is committed."""
    result = embed(config, show_run)
    show_end(result)
    if result.vectors is not None:
        say(f"vectors  {result.vectors}")
    return 0
