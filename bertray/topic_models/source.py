"""Reviews that `topics` reads; faults of the input are found before the cluster starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bertray import schema as s
from bertray.config import Columns, EmbedConfig, TextFormat, TopicsConfig
from bertray.errors import ConfigError, DataRefused, did_you_mean
from bertray.execution.executor import Task
from bertray.execution.on_demand import ExecutorFor
from bertray.io.store import open_store
from bertray.io.tables import one_chunk
from bertray.model.bundle import BundleInfo
from bertray.outputs import ledger
from bertray.outputs.control_files import LedgerRun
from bertray.outputs.publish import committed_files
from bertray.reviews.corpus import Inputs, read_spec, scan_inputs
from bertray.reviews.file_access import open_random_access, reading
from bertray.reviews.labels import LabelMap, sorted_values
from bertray.reviews.reader import kept_schema, label_is_readable, read_shard
from bertray.reviews.rows import ROWS_PER_SHARD, InputFile, ReadSpec, Shard
from bertray.reviews.scan import ScanSettings
from bertray.scoring.models import check_reads_once, open_encoder
from bertray.wording import setting

MIN_TOPIC_SIZE = 10
MIN_TOPIC_SHARE = 0.005
MIN_ROWS = 50
MAX_LABELS = 50  # a column with more different values is no label


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


def open_source(config: TopicsConfig, executor_for: ExecutorFor) -> Source:
    """Look at everything that can be wrong before the output is touched.

    Raises:
        ConfigError: a path, a column or a scored output is missing, scored rows have no text, there cannot be so many
            topics.
        DataRefused: files cannot be read, or there are too few reviews.
    """
    entries = _scored_entries(config)
    scored = None if entries is None else committed_files(open_store(config.scored or ""), entries)
    from_scored = scored is not None and not config.input
    # Rows of `score` have these columns, under any names in its input.
    reading = config.model_copy(
        update={
            "columns": config.columns.model_copy(update={"id": s.ID, "label": s.LABEL}),
            "reader": TextFormat(),
        }
        if from_scored
        else {}
    )
    info = open_encoder(_as_embed(reading))
    check_reads_once(reading, info)
    info = replace(info, max_length=config.max_length or info.max_length, long_text=config.long_text or info.long_text)
    spec = read_spec(reading, info.cleaning, info.max_chars, wants_label=False)
    key, paths = ("scored", scored) if from_scored else ("input", config.input)
    assert paths
    settings = ScanSettings(reading.reader, reading.columns, labels=True)
    scanned = scan_inputs(key, paths, reading, settings, executor_for)
    files = scanned.files
    text = config.columns.text_name
    if from_scored and any(text not in file.columns for file in files):
        raise ConfigError(
            f"scored: the rows of {config.scored} hold no column {text!r}; scoring keeps a text only where "
            "keep_columns names it.",
            f"Give the raw reviews beside it, `input=FOLDER`, or score into a new output with "
            f"`{setting('keep_columns', [text])}`.",
        )
    has_label = bool(files) and all(label_is_readable(file, reading.columns) for file in files)
    wants_label = has_label or (scored is None and config.columns.label != Columns.model_fields["label"].default)
    if scored is not None and not from_scored:
        wants_label = False  # what scoring said counts
    _check_known_groups(config, files)
    compare_with = config.topics.compare_with
    kept = [*([compare_with] if compare_with else []), *([s.SCORE] if from_scored else [])]
    spec = replace(spec, keep_columns=tuple(dict.fromkeys([*config.keep_columns, *kept])), wants_label=wants_label)
    scanned.refuse_bad()
    inputs = scanned.inputs(spec)
    labels, notes = _labels(config, inputs, entries)
    if labels is None and wants_label:
        inputs = replace(inputs, spec=replace(spec, wants_label=False))
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
    check_enough(config, source, inputs.num_rows)
    s.assignments_schema(kept_schema_of(config, source), with_label=labels is not None, with_score=source.with_score)
    if source.scored is not None:
        _check_ids_meet(config, source, executor_for)
    return source


def _as_embed(config: TopicsConfig) -> EmbedConfig:
    """Config of `embed` with the same settings, for the checks of the encoder."""
    same = ("model", "output", "columns", "reader", "max_length", "long_text", "pooling", "cleaning", "max_chars")
    return EmbedConfig(input=config.input or (config.scored or "",), **{name: getattr(config, name) for name in same})


def _scored_entries(config: TopicsConfig) -> Sequence[LedgerRun] | None:
    """Entries of the scored output; None where none is given."""
    if config.scored is None:
        return None
    store = open_store(config.scored)
    entries = ledger.committed_entries(store, config.slot)
    if any("pooling" in entry.settings for entry in entries):
        raise ConfigError(
            f"scored: {config.scored} holds vectors of `embed`, not rows of `score`.", "Give the output of a score run."
        )
    if not any(entry.rows_scored for entry in ledger.current(entries)):
        raise DataRefused(f"scored: {config.scored} holds no scored row.", "Score some reviews first.")
    return entries


def _check_known_groups(config: TopicsConfig, files: Sequence[InputFile]) -> None:
    """Raises ConfigError where the files have no such column, or one that cannot name a group."""
    wanted, columns = config.topics.compare_with, [file.columns for file in files]
    if wanted is None:
        return
    missing = next((held for held in columns if wanted not in held), None)
    if missing is not None:
        raise ConfigError(
            f"topics.compare_with: expected a column {wanted!r}, found {', '.join(map(repr, list(missing)[:20]))}."
            f"{did_you_mean(wanted, missing)}",
            "Set it to the column of known groups, or leave it out.",
        )
    as_label = config.columns.model_copy(update={"label": wanted})
    odd = next((file for file in files if not label_is_readable(file, as_label)), None)
    if odd is not None:
        raise ConfigError(
            f"topics.compare_with: expected text, numbers or true/false in the column {wanted!r}, found "
            f"{odd.columns[wanted]} in {odd.path}.",
            "Set it to a column that names a group.",
        )


def _labels(
    config: TopicsConfig, inputs: Inputs, entries: Sequence[LedgerRun] | None
) -> tuple[LabelMap | None, list[str]]:
    """Classes of the rows' labels in their order, and notes."""
    if entries is not None:
        names = dict.fromkeys(name for entry in ledger.current(entries) for name in entry.labels)
        return LabelMap(tuple(names), {name: name for name in names}), []
    if not inputs.spec.wants_label:
        return None, []
    seen = inputs.label_counts
    if config.labels is not None:
        labels = LabelMap.from_config(config.labels)
        labels.check(seen, "input", needs_all_classes=False)
        return labels, []
    if not seen or len(seen) > MAX_LABELS:
        note = f"The column {config.columns.label!r} has {len(seen):,} different values, too many for labels; "
        return None, [note + "no sentiment is shown."] if seen else []
    names = dict.fromkeys(sorted_values(seen))
    return LabelMap(tuple(names), {name: name for name in names}), []


def check_enough(config: TopicsConfig, source: Source, num_rows: int) -> None:
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


def _check_ids_meet(config: TopicsConfig, source: Source, executor_for: ExecutorFor) -> None:
    """Refuses raw reviews and scored rows that do not belong together, before anything is embedded (DataRefused)."""
    known = one_chunk(scored_rows(source.scored or [])[s.ID])
    spec = replace(source.inputs.spec, keep_columns=())
    executor = executor_for(sum(file.size_bytes for file in source.inputs.files))
    shards = source.inputs.shards(ROWS_PER_SHARD)
    if not any(executor.run(shards, [Task(partial(_has_known_id, spec=spec, known=known))])):
        raise DataRefused(
            f"input: none of its ids stands in the rows of {config.scored}.",
            "Give the reviews that were scored; `columns.id` has to be the one of scoring.",
        )


def _has_known_id(shard: Shard, spec: ReadSpec, known: pa.Array) -> bool:
    return bool(pc.any(pc.is_in(read_shard(shard, spec).kept[s.ID], value_set=known)).as_py())


def scored_rows(files: Sequence[str]) -> pa.Table:
    """`id`, `label`, `score` of committed rows; ids that stand several times are ambiguous and left out."""
    tables = []
    for path in files:
        with reading(path), open_random_access(path) as source:
            tables.append(pq.read_table(source, columns=[s.ID, s.LABEL, s.SCORE]))
    rows = pa.concat_tables(tables).combine_chunks()
    counts = pc.value_counts(rows[s.ID])
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return rows.filter(pc.invert(pc.is_in(rows[s.ID], value_set=twice))) if len(twice) else rows


def kept_schema_of(config: TopicsConfig, source: Source) -> pa.Schema:
    """Columns of the input that `assignments.parquet` keeps."""
    return kept_schema(source.inputs.files, replace(source.inputs.spec, keep_columns=config.keep_columns))
