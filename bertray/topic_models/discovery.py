"""Topics of a sample, found in this process, and the topic of every other review, assigned in tasks."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bertray import schema as s
from bertray.config import TopicsConfig
from bertray.errors import DataRefused
from bertray.execution.executor import Executor
from bertray.io.store import Store
from bertray.io.tables import one_chunk
from bertray.reviews.fetch import fetch_texts, shard_rows
from bertray.reviews.labels import LabelMap
from bertray.reviews.rows import ROWS_PER_SHARD
from bertray.topic_models.clustering import FoundTopics, NoWords, TopicSettings, find_topics, new_numbers
from bertray.topic_models.rows import (
    EmbeddedRows,
    assign_rows,
    read_sample,
    vectors_of,
)
from bertray.topic_models.source import Source, scored_rows
from bertray.topic_models.word_pattern import Words, words_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Topics and assignments of the sample."""

    topics: FoundTopics
    sampled: np.ndarray  # row numbers, ascending
    sample: pa.Table
    texts: list[str]
    words: Words
    seconds: float


def find_on_sample(
    config: TopicsConfig, source: Source, embedded: EmbeddedRows, store: Store, executor: Executor
) -> Found:
    """Topics of a random sample.

    Raises:
        DataRefused: there is none, or no word that could name one.
    """
    options = config.topics
    order = np.random.default_rng(config.seed).permutation(embedded.num_rows)
    sampled = np.sort(order[: source.num_sampled])
    sample = read_sample(embedded, sampled, store, executor)
    units = shard_rows(source.inputs.shards(ROWS_PER_SHARD), source.inputs.spec)
    texts = fetch_texts(executor, units, sample[s.FILE_NO].to_numpy(), sample[s.ROW_NO].to_numpy())
    words = words_of(texts, options.stop_words)
    log.info("looking for topics in %d reviews", len(texts))
    started = time.monotonic()
    settings = TopicSettings(
        min_topic_size=source.min_topic_size,
        num_topics=options.num_topics,
        num_neighbors=options.num_neighbors,
        num_words=options.words,
        max_features=options.max_features,
        vectorizer=words.vectorizer_arguments(),
        weigh_down_frequent=not words.stop_words,
        with_map=options.map_rows > 0,
    )
    try:
        topics = find_topics(vectors_of(sample), texts, settings, config.seed)
    except NoWords as error:
        raise DataRefused(
            f"topics: no word in {len(texts)} reviews that could name a topic.",
            "Look at the text, or give fewer topics.stop_words.",
        ) from error
    if topics is None:
        raise DataRefused(
            f"topics: none found; no {source.min_topic_size} of {len(texts)} reviews stand out from the others.",
            "Set a smaller topics.min_topic_size, or give more reviews.",
        )
    return Found(topics, sampled, sample, texts, words, time.monotonic() - started)


def all_rows(
    config: TopicsConfig,
    source: Source,
    embedded: EmbeddedRows,
    found: Found,
    store: Store,
    executor: Executor,
) -> tuple[Found, pa.Table]:
    """Topics numbered by size over all rows, and `assignments.parquet` with the columns to compare with.

    Sampled rows have the topic that was found on them.
    """
    rows = assign_rows(embedded, found.topics.assigner, store, executor)
    topic_N, similarity_N = rows[s.TOPIC].to_numpy().copy(), rows[s.SIMILARITY].to_numpy().copy()
    topic_N[found.sampled] = found.topics.topic_N
    similarity_N[found.sampled] = found.topics.assigner.similarity(vectors_of(found.sample), found.topics.topic_N)
    sizes_K = np.bincount(topic_N[topic_N >= 0], minlength=found.topics.num_topics)
    order_K = np.argsort(-sizes_K, kind="stable")
    found = replace(found, topics=found.topics.renumbered(order_K))
    topic_N, nearest_N = (new_numbers(numbers, order_K) for numbers in (topic_N, rows[s.NEAREST_TOPIC].to_numpy()))
    is_sampled_N = np.zeros(len(topic_N), bool)
    is_sampled_N[found.sampled] = True
    columns: dict[str, Any] = {
        s.ID: rows[s.ID],
        s.TOPIC: pa.array(topic_N),
        s.NEAREST_TOPIC: pa.array(nearest_N),
        s.SIMILARITY: pa.array(similarity_N),
        s.SAMPLED: pa.array(is_sampled_N),
    }
    for axis, name in enumerate((s.MAP_X, s.MAP_Y)):
        values_N = np.full(len(topic_N), np.nan, np.float32)
        if found.topics.position_N2 is not None:
            values_N[found.sampled] = found.topics.position_N2[:, axis]
        columns[name] = pa.array(values_N, mask=np.isnan(values_N))
    if source.labels is not None:
        label, score = _labels_and_scores(source, rows)
        columns[s.LABEL] = _class_names(source.labels, label)
        if source.with_score:
            columns[s.SCORE] = score
    return found, pa.table(columns | {n: rows[n] for n in rows.column_names if n.startswith(s.KEEP_PREFIX)})


def _class_names(labels: LabelMap, values: pa.Array) -> pa.Array:
    ids_N = labels.ids(values)
    return pa.array(np.array([*labels.names, None], object)[np.maximum(ids_N, -1)], pa.string())


def _labels_and_scores(source: Source, rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Label and score of each row: its own, or those of the scored row with its id."""
    if source.scored is None:
        score = rows[s.KEEP_PREFIX + s.SCORE].cast(pa.float32()) if source.with_score else None
        return one_chunk(rows[s.LABEL]), score
    known = scored_rows(source.scored)
    where = pc.index_in(rows[s.ID], value_set=one_chunk(known[s.ID]))
    return one_chunk(known[s.LABEL].take(where)), one_chunk(known[s.SCORE].take(where))
