"""Embedding: new review files → vectors, committed as scored rows are."""

from __future__ import annotations

from bertray.config import EmbedConfig
from bertray.execution.on_demand import OnDemand
from bertray.runs import night as nights
from bertray.runs.results import EmbedResult
from bertray.scoring.models import open_encoder


def embed(config: EmbedConfig, on_commit: nights.OnCommit = lambda run: None) -> EmbedResult:
    """Embed what is new; the same run again is always safe.

    Args:
        on_commit: called with each run as soon as its rows are published and its report is written.
    """
    info = open_encoder(config)
    with OnDemand(config.workers, imports=("ray.data",)) as executors:
        output, runs, num_listed = nights.run_night(config, info, executors, on_commit)
    return EmbedResult(output, runs=runs, num_listed=num_listed)
