"""Embedding: new review files → vectors, committed as scored rows are."""

from __future__ import annotations

from bertray.config import EmbedConfig
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.store import open_store
from bertray.runs import night as nights
from bertray.runs.night_results import EmbedResult
from bertray.runs.vocabulary import VECTORS, write_vectors
from bertray.scoring.models import open_encoder


def embed(
    config: EmbedConfig, on_commit: nights.OnCommit = lambda run: None, executors: Executors | None = None
) -> EmbedResult:
    """Embed what is new; the same run again is always safe.

    Args:
        on_commit: called with each run as soon as its rows are published and its report is written.
    """
    info = open_encoder(config)
    with executors_of(config.workers, executors, imports=("ray.data",)) as opened:
        output, runs, num_listed, _ = nights.run_night(config, info, opened, on_commit)
    vectors = None
    if config.pooling == "vocabulary":
        store = open_store(config.output)
        write_vectors(config, store)
        vectors = store.uri(VECTORS)
    return EmbedResult(output, runs=runs, num_listed=num_listed, vectors=vectors)
