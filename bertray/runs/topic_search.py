"""A search for topics: scored or raw reviews → topics, their words, their sentiment, a map.

Vectors are made by Ray Data and kept; BERTopic finds topics on a sample in this process; Ray Data assigns the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from bertray.config import TopicsConfig, identity_of, to_yaml
from bertray.console import timed
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.outputs.claims import claimed_output, finished_run, mark_finished, remove_folder, told_when_finished
from bertray.runs.results import TopicsResult, TopicSummary
from bertray.runs.topics_content import topics_report, write_topics
from bertray.runtime import check_installed
from bertray.topic_models.clustering import OUTLIER
from bertray.topic_models.discovery import all_rows, find_on_sample
from bertray.topic_models.rows import (
    FOLDER,
    embed_rows,
    embedding_key,
)
from bertray.topic_models.source import Source, check_enough, open_source


def search_topics(config: TopicsConfig, executors: Executors | None = None) -> TopicsResult:
    """Find topics; the same run again gives back what it had found."""
    with executors_of(config.workers, executors, imports=("ray.data",)) as opened:
        return _run(config, opened)


def _run(config: TopicsConfig, executors: Executors) -> TopicsResult:
    started = time.monotonic()
    check_installed("topics", ("bertopic", "umap", "hdbscan"))
    source = open_source(config, executors.for_bytes)
    run_key = _run_key(config, source)
    store = open_store(config.output)
    if finished_run(store, "topics", run_key):
        return _result(store, json.loads(store.get("report.json")), already_done=True)
    with claimed_output(store, "topics", run_key, to_yaml(config), FOLDER, replace=config.replace):
        source.inputs.keep_scan(store)
        with executors.session(source.inputs.num_rows) as executor:
            embedded = embed_rows(source.inputs, config.model, source.info, config.pooling, store, executor)
            check_enough(config, source, embedded.num_rows)
            found = find_on_sample(config, source, embedded, store, executor)
            with timed("assignment"):
                found, rows = all_rows(config, source, embedded, found, store, executor)
        report = topics_report(config, source, embedded, found, rows, time.monotonic() - started)
        write_topics(config, source, store, report, rows)
        mark_finished(store, {"comparisons": [comparison.sentence for comparison in report.comparisons]})
        _remove_other_embeddings(store, embedding_key(source.inputs, source.info, config.pooling))
    return _result(store, report.to_json(), already_done=False)


def _result(store: Store, content: Mapping[str, Any], *, already_done: bool) -> TopicsResult:
    """The result of the content of `report.json`."""
    topics = tuple(
        TopicSummary(
            number=topic["topic"],
            name=topic["name"],
            words=tuple((word["word"], word["weight"]) for word in topic["words"]),
            size=topic["size"],
            share=topic["share"],
        )
        for topic in content["topics"]
        if topic["topic"] != OUTLIER
    )
    return TopicsResult(
        store.root,
        tuple(content["notes"]),
        sentence=content["headline"],
        topics=topics,
        comparisons=tuple(told_when_finished(store).get("comparisons", ())),
        already_done=already_done,
    )


def _run_key(config: TopicsConfig, source: Source) -> str:
    files, model = source.inputs.identity, source.info.model_version
    identity = identity_of(config, ["replace"])
    return cache_key({"config": identity, "files": files, "model": model, "scored": source.scored})


def _remove_other_embeddings(store: Store, key: str) -> None:
    """Vectors of earlier settings that this output will not need again."""
    others = {stored.removeprefix(f"{FOLDER}/").partition("/")[0] for stored in store.keys(FOLDER)} - {key}
    for other in others:
        remove_folder(store, f"{FOLDER}/{other}")
