"""`bertray topics`: scored or raw reviews → topics, their words, their sentiment, a map.

Vectors are made by Ray Data and kept; BERTopic finds topics on a sample in this process; Ray Data assigns the rest.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import bertray
from bertray import schema as s
from bertray.config import Columns, EmbedConfig, TextFormat, TopicsConfig, to_yaml
from bertray.console import duration, say, table, timed
from bertray.errors import ConfigError, DataRefused, did_you_mean
from bertray.evaluation.groups import compare_groupings, tfidf_kmeans
from bertray.model.bundle import BundleInfo
from bertray.model.topics import OUTLIER, FoundTopics, TopicSettings, find_topics
from bertray.pipelines.cluster import Resources, ray_session
from bertray.pipelines.files import committed_entries
from bertray.pipelines.inputs import Inputs, inspect_inputs, open_encoder, open_inputs, read_spec
from bertray.pipelines.parts import one_chunk, parquet_bytes
from bertray.pipelines.runs import claim_output, finished_run, mark_finished, remove_folder, replace_claim
from bertray.pipelines.topic_rows import (
    FOLDER,
    ROWS_PER_SHARD,
    EmbeddedRows,
    assign_rows,
    embed_rows,
    embedding_key,
    read_sample,
    read_texts,
    vectors_of,
)
from bertray.reports.topics import GroupComparison, Topic, TopicsReport, name_of
from bertray.reviews.label_counts import count_labels
from bertray.reviews.labels import LabelMap, canonical, sorted_values
from bertray.reviews.sources import KEEP_PREFIX, InputFile, kept_schema, label_is_readable, read_shard
from bertray.reviews.words import Words, words_of
from bertray.storage import ledger
from bertray.storage.records import LedgerEntry
from bertray.storage.store import Store, open_store
from bertray.training.token_shards import FILE_NO, cache_key

log = logging.getLogger(__name__)

MIN_TOPIC_SIZE = 10
MIN_TOPIC_SHARE = 0.005
MIN_ROWS = 50
MAX_LABELS = 50  # a column with more different values is no label
GIVEN_LABEL = f"{s.INPUT_PREFIX}{s.LABEL}"  # how `score` keeps the given label


@dataclass(frozen=True)
class Source:
    """Reviews to find topics of, checked, and what is known of them besides their text.

    Args:
        inputs: where texts are read.
        info: of the encoder, and how reviews are read.
        labels: of the rows; None where there are none.
        scored: committed rows that say the label of a review that is read elsewhere, by its id.
        with_score: rows have a score beside their label.
        compare_with: column of known groups; None: there are none.
        notes: what a reader should know.
        min_topic_size: reviews of the smallest topic.
        num_sampled: reviews that topics are found on, at most.
    """

    inputs: Inputs
    info: BundleInfo
    labels: LabelMap | None
    scored: list[str] | None
    with_score: bool
    compare_with: str | None
    notes: tuple[str, ...]
    min_topic_size: int
    num_sampled: int


def run_topics(config: TopicsConfig) -> int:
    """Find topics; the same command on a finished output says so in one line."""
    started = time.monotonic()
    _check_installed()
    source = open_source(config)
    run_key = _run_key(config, source)
    store = open_store(config.output)
    if finished_run(store, "topics", run_key):
        say(f"already found: {store.uri('report.html')}")
        return 0
    if config.replace:
        replace_claim(store, "topics", run_key, to_yaml(config))
    else:
        claim_output(store, "topics", run_key, to_yaml(config))
    with ray_session(config.workers, imports=("ray.data",)) as resources:
        embedded = embed_rows(source.inputs, config.model, source.info, config.pooling, store, resources)
        _check_enough(config, source, embedded.num_rows)
        found = _find(config, source, embedded, store, resources)
        with timed("assignment"):
            rows = _all_rows(config, source, embedded, found, store, resources)
    report = _report(config, source, embedded, found, rows, time.monotonic() - started)
    _write(config, source, store, report, rows)
    mark_finished(store)
    _remove_other_embeddings(store, embedding_key(source.inputs, source.info, config.pooling))
    _print(report)
    say(f"topics       {store.uri('topics.parquet')}")
    say(f"assignments  {store.uri('assignments.parquet')}")
    say(f"report       {store.uri('report.html')}")
    return 0


def _check_installed() -> None:
    for name in ("bertopic", "umap", "hdbscan"):
        try:
            there = find_spec(name) is not None
        except ValueError:  # taken out of sys.modules
            there = False
        if not there:
            raise ConfigError(f"topics: {name} is not installed.", "Run `pip install 'bertray[topics]'`.")


def _run_key(config: TopicsConfig, source: Source) -> str:
    identity = config.model_dump(mode="json", exclude={"output", "price_per_hour", "workers", "replace"})
    files = [(file.path, file.size_bytes, file.digest, file.num_rows) for file in source.inputs.files]
    return cache_key({"config": identity, "files": files, "model": source.info.model_version, "scored": source.scored})


# --- what there is, before the cluster -------------------------------------------------------------------------------


def open_source(config: TopicsConfig) -> Source:
    """Look at everything that can be wrong before the cluster starts and the output is touched.

    Raises:
        ConfigError: a path, a column or a scored output is missing, scored rows have no text, there cannot be so many
            topics.
        DataRefused: files cannot be read, or there are too few reviews.
    """
    entries = _scored_entries(config)
    scored = None if entries is None else ledger.committed_files(open_store(config.scored or ""), entries)
    from_scored = scored is not None and not config.input
    # Rows of `score` have these columns whatever those of its input were called.
    reading = config.model_copy(
        update={
            "columns": config.columns.model_copy(update={"id": s.ID, "label": s.LABEL}),
            "reader": TextFormat(),
        }
        if from_scored
        else {}
    )
    info = open_encoder(_as_embed(reading))
    info = replace(info, max_length=config.max_length or info.max_length, long_text=config.long_text or info.long_text)
    spec = read_spec(reading, info.cleaning, info.max_chars, wants_label=False)
    key, paths = ("scored", scored) if from_scored else ("input", config.input)
    assert paths
    files = [file for file in inspect_inputs(paths, reading) if isinstance(file, InputFile)]
    text = config.columns.text
    if from_scored and any(text not in file.columns for file in files):
        raise ConfigError(
            f"scored: the rows of {config.scored} hold no column {text!r}; scoring keeps a text only where "
            "keep_columns names it.",
            f"Give the raw reviews beside it (`input=…`), or score into a new output with `keep_columns=[{text}]`.",
        )
    has_label = bool(files) and all(label_is_readable(file, reading.columns) for file in files)
    wants_label = has_label or (scored is None and config.columns.label != Columns.model_fields["label"].default)
    if scored is not None and not from_scored:
        wants_label = False  # what scoring said counts
    compare_with, kept = _known_groups(config, [file.columns for file in files], from_scored, has_label)
    if from_scored:
        kept += [s.SCORE]
    spec = replace(spec, keep_columns=tuple(dict.fromkeys([*config.keep_columns, *kept])), wants_label=wants_label)
    inputs = open_inputs(key, paths, reading, spec)
    labels, notes = _labels(config, inputs, entries)
    if labels is None and wants_label:
        inputs = replace(inputs, spec=replace(spec, wants_label=False))
        compare_with = config.topics.compare_with
    num_sampled = min(inputs.num_rows, config.topics.sample_rows)
    smallest = config.topics.min_topic_size or max(MIN_TOPIC_SIZE, round(MIN_TOPIC_SHARE * num_sampled))
    source = Source(
        inputs,
        info,
        labels,
        scored if scored is not None and not from_scored else None,
        scored is not None,
        compare_with,
        tuple(notes),
        smallest,
        num_sampled,
    )
    _check_enough(config, source, inputs.num_rows)
    s.assignments_schema(_kept_schema(config, source), with_label=labels is not None, with_score=source.with_score)
    if source.scored is not None:
        _check_ids_meet(config, source)
    return source


def _as_embed(config: TopicsConfig) -> EmbedConfig:
    """What `embed` would be told, for the checks of the encoder."""
    same = ("model", "output", "columns", "reader", "max_length", "long_text", "pooling", "cleaning", "max_chars")
    return EmbedConfig(input=config.input or (config.scored or "",), **{name: getattr(config, name) for name in same})


def _scored_entries(config: TopicsConfig) -> list[LedgerEntry] | None:
    if config.scored is None:
        return None
    store = open_store(config.scored)
    entries = committed_entries(store, config.slot)
    if any("pooling" in entry.settings for entry in entries):
        raise ConfigError(
            f"scored: {config.scored} holds vectors of `embed`, not rows of `score`.", "Give the output of a score run."
        )
    if not any(entry.rows_scored for entry in ledger.current(entries)):
        raise DataRefused(f"scored: {config.scored} holds no scored row.", "Score some reviews first.")
    return entries


def _known_groups(
    config: TopicsConfig, columns: Sequence[dict[str, str]], from_scored: bool, has_label: bool
) -> tuple[str | None, list[str]]:
    """Column of known groups, or None; and columns to read for it."""
    wanted = config.topics.compare_with
    if wanted is not None:
        missing = next((held for held in columns if wanted not in held), None)
        if missing is not None:
            raise ConfigError(
                f"topics.compare_with: expected a column {wanted!r}, found {', '.join(map(repr, list(missing)[:20]))}."
                f"{did_you_mean(wanted, missing)}",
                "Set it to the column of known groups, or leave it out.",
            )
        return wanted, [wanted]
    if from_scored:
        given = GIVEN_LABEL if all(GIVEN_LABEL in held for held in columns) else None
        return given, [given] if given else []
    if has_label:
        return config.columns.label, [config.columns.label]
    return None, []


def _labels(
    config: TopicsConfig, inputs: Inputs, entries: Sequence[LedgerEntry] | None
) -> tuple[LabelMap | None, list[str]]:
    """Classes of the rows' labels in their order, and notes."""
    if entries is not None:
        names = dict.fromkeys(name for entry in ledger.current(entries) for name in entry.labels)
        return LabelMap(tuple(names), {name: name for name in names}), []
    if not inputs.spec.wants_label:
        return None, []
    seen = count_labels(inputs.files, inputs.spec)
    if config.labels is not None:
        labels = LabelMap.from_config(config.labels)
        labels.check(seen, "input", needs_all_classes=False)
        return labels, []
    if not seen or len(seen) > MAX_LABELS:
        note = f"The column {config.columns.label!r} has {len(seen):,} different values, too many for labels; "
        return None, [note + "no sentiment is shown."] if seen else []
    names = dict.fromkeys(sorted_values(seen))
    return LabelMap(tuple(names), {name: name for name in names}), []


def _check_enough(config: TopicsConfig, source: Source, num_rows: int) -> None:
    """Raises DataRefused for too few reviews, ConfigError for more topics than they can make."""
    smallest, sampled = source.min_topic_size, min(num_rows, source.num_sampled)
    needed = max(MIN_ROWS, 3 * smallest)
    if sampled < needed:
        small_sample = num_rows > sampled
        raise DataRefused(
            f"topics: expected at least {needed} {'sampled ' if small_sample else ''}reviews for topics of {smallest} "
            f"and more, found {sampled}.",
            "Raise topics.sample_rows." if small_sample else "Give more reviews, or lower topics.min_topic_size.",
        )
    wanted = config.topics.num_topics
    if wanted is not None and wanted * smallest > sampled:
        raise ConfigError(
            f"topics.num_topics={wanted}: {sampled:,} reviews in topics of at least {smallest} make at most "
            f"{sampled // smallest}.",
            "Set fewer topics.num_topics, or a smaller topics.min_topic_size.",
        )


def _check_ids_meet(config: TopicsConfig, source: Source) -> None:
    """Raises DataRefused where raw reviews and scored rows are not of each other: told before anything is embedded."""
    known = _scored_rows(source.scored or [])[s.ID]
    for shard in source.inputs.shards(ROWS_PER_SHARD):
        ids = read_shard(shard, replace(source.inputs.spec, keep_columns=())).kept[s.ID]
        if pc.any(pc.is_in(ids, value_set=one_chunk(known))).as_py():
            return
    raise DataRefused(
        f"input: none of its ids stands in the rows of {config.scored}.",
        "Give the reviews that were scored; `columns.id` has to be the one of scoring.",
    )


# --- find ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What was found on the sample."""

    topics: FoundTopics
    sampled: np.ndarray  # row numbers, ascending
    sample: pa.Table
    texts: list[str]
    words: Words
    seconds: float


def _find(config: TopicsConfig, source: Source, embedded: EmbeddedRows, store: Store, resources: Resources) -> Found:
    options = config.topics
    order = np.random.default_rng(config.seed).permutation(embedded.num_rows)
    sampled = np.sort(order[: source.num_sampled])
    sample = read_sample(embedded, sampled, store, resources)
    texts = read_texts(source.inputs, sample[FILE_NO].to_numpy(), sample[s.ROW_NO].to_numpy(), resources)
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
    except ValueError as error:
        if "no word" not in str(error):
            raise
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


def _all_rows(
    config: TopicsConfig,
    source: Source,
    embedded: EmbeddedRows,
    found: Found,
    store: Store,
    resources: Resources,
) -> pa.Table:
    """`assignments.parquet`, with the columns to compare with; sampled rows have the topic that was found on them."""
    rows = assign_rows(embedded, found.topics.assigner, store, resources)
    topic_N, similarity_N = rows[s.TOPIC].to_numpy().copy(), rows[s.SIMILARITY].to_numpy().copy()
    topic_N[found.sampled] = found.topics.topic_N
    similarity_N[found.sampled] = found.topics.assigner.similarity(vectors_of(found.sample), found.topics.topic_N)
    is_sampled_N = np.zeros(len(topic_N), bool)
    is_sampled_N[found.sampled] = True
    columns: dict[str, Any] = {
        s.ID: rows[s.ID],
        s.TOPIC: pa.array(topic_N),
        s.NEAREST_TOPIC: rows[s.NEAREST_TOPIC],
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
    return pa.table(columns | {n: rows[n] for n in rows.column_names if n.startswith(KEEP_PREFIX)})


def _class_names(labels: LabelMap, values: pa.Array) -> pa.Array:
    ids_N = labels.ids(values)
    return pa.array(np.array([*labels.names, None], object)[np.maximum(ids_N, -1)], pa.string())


def _labels_and_scores(source: Source, rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Label and score of each row: its own, or those of the scored row with its id."""
    if source.scored is None:
        score = rows[KEEP_PREFIX + s.SCORE].cast(pa.float32()) if source.with_score else None
        return one_chunk(rows[s.LABEL]), score
    known = _scored_rows(source.scored)
    where = pc.index_in(rows[s.ID], value_set=one_chunk(known[s.ID]))
    return one_chunk(known[s.LABEL].take(where)), one_chunk(known[s.SCORE].take(where))


def _scored_rows(files: Sequence[str]) -> pa.Table:
    """`id`, `label`, `score` of committed rows; ids that stand several times are ambiguous and left out."""
    from pyarrow import fs

    tables = []
    for path in files:
        filesystem, inner = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
        tables.append(pq.read_table(inner, columns=[s.ID, s.LABEL, s.SCORE], filesystem=filesystem))
    rows = pa.concat_tables(tables).combine_chunks()
    counts = pc.value_counts(rows[s.ID])
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return rows.filter(pc.invert(pc.is_in(rows[s.ID], value_set=twice))) if len(twice) else rows


def _kept_schema(config: TopicsConfig, source: Source) -> pa.Schema:
    return kept_schema(source.inputs.files, replace(source.inputs.spec, keep_columns=config.keep_columns))


# --- tell ------------------------------------------------------------------------------------------------------------


def _report(
    config: TopicsConfig, source: Source, embedded: EmbeddedRows, found: Found, rows: pa.Table, seconds: float
) -> TopicsReport:
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
    with timed("comparison"):
        comparisons = _comparisons(config, source, found, rows)
    return TopicsReport(
        title=f"Topics of {_named(config)}",
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
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _named(config: TopicsConfig) -> str:
    """What the reviews are called: their folder or file, by the last part of its path."""
    first, *others = [config.scored] if config.scored is not None else config.input or ("reviews",)
    return Path(first.rstrip("/")).name + (f" and {len(others)} more" if others else "")


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
        nearest = mine[np.argsort(-rows[s.SIMILARITY].to_numpy()[mine], kind="stable")].tolist()
        different = {texts[row]: row for row in reversed(nearest)}
        shown = sorted(different.values(), key=nearest.index)[: config.topics.num_representatives]
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
    values = one_chunk(canonical(one_chunk(rows[KEEP_PREFIX + source.compare_with].take(pa.array(found.sampled)))))
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


def _write(config: TopicsConfig, source: Source, store: Store, report: TopicsReport, rows: pa.Table) -> None:
    has_label = source.labels is not None
    schema = s.assignments_schema(_kept_schema(config, source), with_label=has_label, with_score=source.with_score)
    names = [name for name in rows.column_names if not name.startswith(KEEP_PREFIX)]
    kept = [rows[KEEP_PREFIX + name] for name in config.keep_columns]
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


def _remove_other_embeddings(store: Store, key: str) -> None:
    """Vectors of earlier settings that this output will not need again."""
    others = {stored.removeprefix(f"{FOLDER}/").partition("/")[0] for stored in store.keys(FOLDER)} - {key}
    for other in others:
        remove_folder(store, f"{FOLDER}/{other}")


def _print(report: TopicsReport) -> None:
    say(report.headline)
    rows = []
    for topic in report.topics[:10]:
        words = ", ".join(word for word, _ in topic.words[:6])
        rows.append([f"{topic.number}", f"{topic.size:,}", f"{100 * topic.share:.1f} %", words])
    table("largest topics", ["", "rows", "share", "words"], rows)
    for comparison in report.comparisons:
        say(comparison.sentence)
