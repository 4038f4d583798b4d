"""Tables and page of `topics`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import bertray
from bertray import schema as s
from bertray.config import TopicsConfig, to_yaml
from bertray.console import timed
from bertray.evaluation.groups import compare_groupings, tfidf_kmeans
from bertray.io.store import Store
from bertray.io.tables import one_chunk, parquet_bytes
from bertray.reports.html import created_now, data_title, model_title
from bertray.reports.topics import GroupComparison, Topic, TopicsReport, name_of
from bertray.reviews.labels import canonical
from bertray.topic_models.clustering import OUTLIER
from bertray.topic_models.discovery import Found
from bertray.topic_models.rows import (
    EmbeddedRows,
)
from bertray.topic_models.source import Source, kept_schema_of
from bertray.wording import duration


def topics_report(
    config: TopicsConfig, source: Source, embedded: EmbeddedRows, found: Found, rows: pa.Table, seconds: float
) -> TopicsReport:
    """Topics as plain data for the page.

    Args:
        rows: of `all_rows`.
        seconds: from the start of the command.
    """
    options = config.topics
    topic_N = rows[s.TOPIC].to_numpy()
    notes = list(source.notes)
    if options.num_topics is not None and found.topics.num_topics < options.num_topics:
        notes.append(
            f"{options.num_topics} topics were asked for and {found.topics.num_found} found; topics are merged, never "
            "split. A smaller topics.min_topic_size finds more."
        )
    label_ids_N = None
    if source.labels is not None:
        label_ids_N = _ids(source, rows)
        unlabelled = int((label_ids_N < 0).sum())
        if unlabelled:
            notes.append(f"{unlabelled:,} reviews have no label; they are in no share.")
    texts = dict(zip(found.sampled.tolist(), found.texts, strict=True))
    topics = [
        _topic(config, source, found, rows, topic_N, label_ids_N, texts, number)
        for number in (*range(found.topics.num_topics), OUTLIER)
    ]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(embedded.reasons.items()))
    facts = {
        "model": config.model,
        "model version": source.info.model_version,
        "rows read": f"{source.inputs.num_rows:,}",
        "rows left out": left_out or "none",
        "tokens read": f"up to {source.info.max_length} of each review, {embedded.truncated:,} had more",
        "reviews that topics were found on": f"{len(found.sampled):,}",
        "smallest topic": f"{source.min_topic_size} of them",
        "topics found": f"{found.topics.num_found}"
        + (f", merged to {found.topics.num_topics}" if found.topics.num_topics < found.topics.num_found else ""),
        "words": found.words.described,
        "seed": f"{config.seed}",
        "time of finding them": f"{duration(found.seconds)}, for UMAP, HDBSCAN, c-TF-IDF and the map",
        "time from start to report": duration(seconds),
        "bertray": bertray.__version__,
    }
    named = [config.scored] if config.scored is not None else config.input or ("reviews",)
    with timed("comparison"):
        comparisons = _comparisons(config, source, found, rows)
    return TopicsReport(
        title=f"Topics of {data_title(named)}, model {model_title(config.model)}",
        rows=len(topic_N),
        rows_refused=sum(embedded.reasons.values()),
        sampled=len(found.sampled),
        topics=topics[:-1],
        outliers=topics[-1],
        labels=() if source.labels is None else source.labels.names,
        label_source="predicted" if source.with_score else "given",
        agreement=found.topics.agreement,
        comparisons=comparisons,
        points=_points(config, found),
        facts=facts,
        notes=notes,
        config=to_yaml(config),
        created=created_now(),
    )


def _ids(source: Source, rows: pa.Table) -> np.ndarray:
    """Label id of each row, -1 without a label."""
    assert source.labels is not None
    names = pa.array(source.labels.names, pa.string())
    ids_N: np.ndarray = pc.fill_null(pc.index_in(rows[s.LABEL], value_set=names), -1).to_numpy()
    return ids_N


def _topic(
    config: TopicsConfig,
    source: Source,
    found: Found,
    rows: pa.Table,
    topic_N: np.ndarray,
    label_ids_N: np.ndarray | None,
    texts: dict[int, str],
    number: int,
) -> Topic:
    members = np.flatnonzero(topic_N == number)
    words = found.topics.words[number] if number != OUTLIER else []
    shown: list[int] = []
    if number != OUTLIER:
        # Of the sample, for their texts are at hand; each text once.
        mine = members[rows[s.SAMPLED].to_numpy(zero_copy_only=False)[members]]
        seen: set[str] = set()
        for row in mine[np.argsort(-rows[s.SIMILARITY].to_numpy()[mine], kind="stable")].tolist():
            if texts[row] not in seen and len(shown) < config.topics.num_representatives:
                seen.add(texts[row])
                shown.append(row)
    counts = {}
    mean_score = None
    if source.labels is not None and label_ids_N is not None:
        ids = label_ids_N[members]
        found_C = np.bincount(ids[ids >= 0], minlength=len(source.labels.names))
        counts = dict(zip(source.labels.names, found_C.tolist(), strict=True))
        if source.with_score and len(members):
            mean = pc.mean(rows[s.SCORE].take(pa.array(members))).as_py()
            mean_score = None if mean is None else float(mean)
    return Topic(
        number=number,
        name="outliers" if number == OUTLIER else name_of(words),
        words=words,
        size=len(members),
        share=len(members) / len(topic_N),
        label_counts=counts,
        mean_score=mean_score,
        representatives=[{"id": rows[s.ID][row].as_py(), "text": texts[row]} for row in shown],
    )


def _comparisons(config: TopicsConfig, source: Source, found: Found, rows: pa.Table) -> list[GroupComparison]:
    """Topics against known groups on the sampled rows that have one, with outliers as a group of their own and without.

    The baseline is fitted on all sampled rows and judged on the same ones.
    """
    if source.compare_with is None:
        return []
    values = one_chunk(canonical(one_chunk(rows[s.KEEP_PREFIX + source.compare_with].take(pa.array(found.sampled)))))
    known_N = values.is_valid().to_numpy(zero_copy_only=False)
    groups_N = pc.fill_null(values.dictionary_encode().indices, 0).to_numpy()
    if len(np.unique(groups_N[known_N])) < 2:
        return []
    topic_N = found.topics.topic_N
    clusters_N = tfidf_kmeans(found.texts, found.topics.num_topics, found.words.vectorizer_arguments(), config.seed)
    made = []
    for which, mask_N in (("all", known_N), ("without outliers", known_N & (topic_N != OUTLIER))):
        if mask_N.any() and (which == "all" or not mask_N[known_N].all()):
            agreed = compare_groupings(groups_N[mask_N], topic_N[mask_N], clusters_N[mask_N], config.seed)
            made.append(GroupComparison(source.compare_with, which, agreed))
    return made


def _points(config: TopicsConfig, found: Found) -> list[tuple[float, float, int]]:
    """(x, y, topic) of the sampled rows on the map."""
    if found.topics.position_N2 is None:
        return []
    order = np.random.default_rng(config.seed).permutation(len(found.sampled))
    drawn = np.sort(order[: config.topics.map_rows])
    places, topics = found.topics.position_N2[drawn].tolist(), found.topics.topic_N[drawn].tolist()
    return [(x, y, topic) for (x, y), topic in zip(places, topics, strict=True)]


def write_topics(config: TopicsConfig, source: Source, store: Store, report: TopicsReport, rows: pa.Table) -> None:
    """`assignments.parquet`, `topics.parquet`, `report.json` and the page."""
    has_label = source.labels is not None
    schema = s.assignments_schema(kept_schema_of(config, source), with_label=has_label, with_score=source.with_score)
    names = [name for name in rows.column_names if not name.startswith(s.KEEP_PREFIX)]
    kept = [rows[s.KEEP_PREFIX + name] for name in config.keep_columns]
    assignments = pa.table([*(rows[name] for name in names), *kept], schema=schema)
    store.put("assignments.parquet", parquet_bytes(assignments))
    store.put("topics.parquet", parquet_bytes(_topics_table(report, source.with_score)))
    store.put("report.json", json.dumps(report.to_json(), indent=1, ensure_ascii=False).encode())
    store.put("report.html", report.to_html().encode())


def _topics_table(report: TopicsReport, with_score: bool) -> pa.Table:
    """A row a topic, the outliers last."""
    rows = []
    for topic in [*report.topics, report.outliers]:
        row: dict[str, Any] = {
            s.TOPIC: topic.number,
            "name": topic.name,
            "words": [{"word": word, "weight": weight} for word, weight in topic.words],
            "size": topic.size,
            "share": topic.share,
            "mean_score": topic.mean_score,
            "representative_ids": [shown["id"] for shown in topic.representatives],
        }
        row |= {f"{s.SHARE_PREFIX}{label}": topic.label_share(label) for label in report.labels}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=s.topics_schema(report.labels, with_score=with_score))
