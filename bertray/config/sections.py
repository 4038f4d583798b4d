"""Sections of configs: groups of keys that commands share; each frozen, each key described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from bertray.config.values import Delimiter, Escape, Paths, Section, Text, TextColumns
from bertray.settings import NormalForm, Pooling


class Columns(Section):
    """Input columns by role. Without a header, columns are named "0", "1", ... by position."""

    id: Text = Field(
        "id", description="column of unique row ids; without such a column ids are `<relative path>:<row>`"
    )
    text: TextColumns = Field(
        "text",
        description="column with the review; or several, such as [title, body], read as one text, a line each",
    )
    text_pair: Text | None = Field(
        None, description="column with a second text, for example the aspect that the label is about"
    )
    aspects: Text | None = Field(
        None,
        description="column with the list of a review's aspects, each of them a row of its own; columns.label is then "
        "the list of their labels",
    )
    label: Text = Field("label", description="column with the label")

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that hold the review."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def text_name(self) -> str:
        """Name of the one text that they are read as."""
        return " + ".join(self.texts)

    def trained_for(self, texts: Sequence[str]) -> Columns:
        """The columns with those of a bundle's texts, unless this config states its own."""
        if not texts or "text" in self.model_fields_set:
            return self
        return self.model_copy(update={"text": tuple(texts)})

    @model_serializer(mode="wrap")
    def _without_unset_aspects(self, handler: Any) -> Any:
        values = handler(self)
        if self.aspects is None:  # so that runs of before the key are what they were
            values.pop("aspects", None)
        return values

    @model_validator(mode="after")
    def _one_second_text(self) -> Columns:
        if self.aspects is not None and self.text_pair is not None:
            raise ValueError("aspects and text_pair exclude each other: a list of aspects, or one a row")
        return self


class TextFormat(Section):
    """Format of delimited text files (Parquet and JSON Lines need none of it)."""

    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "acl_imdb"] = Field(
        "auto", description="file format; auto: by the name of each file. Set it for files with unusual names"
    )
    delimiter: Delimiter | None = Field(
        None,
        description=r"field separator, one character (a tab: \t or tab); by default ',' for .csv and a tab for .tsv",
    )
    header: bool = Field(
        True, description="whether the first row holds the column names; false: columns are named 0, 1, ... by position"
    )
    skip_lines: int = Field(
        0, ge=0, description="lines above the header or the first row to skip, such as the title of a report"
    )
    quoting: bool | None = Field(
        None,
        description="whether double quotes enclose fields; false: a quote is a character like any other. By default "
        "decided from the first rows of each file",
    )
    escape: Escape | None = Field(
        None,
        description=r"character that makes the next quote or delimiter part of the text, such as the \ of Spark and "
        r"MySQL; '' for none. By default decided from the first rows of each file",
    )
    encoding: str = Field(
        "utf-8",
        description="text encoding of CSV, TSV, JSON Lines and folder files, by its Python name, such as cp1252",
    )


class Cleaning(Section):
    """Cleaning of a text before the tokenizer; stored in the bundle and repeated when scoring."""

    version: Literal[1] = Field(1, description="version of the cleaning rules; there is one")
    fix_text: bool = Field(True, description="repair mojibake and remove terminal escapes (ftfy)")
    strip_html: bool = Field(True, description="turn line-break tags into spaces, remove other tags, decode entities")
    normalize: NormalForm = Field(
        "NFC", description="Unicode normal form of the text; NFKC also unifies full-width and half-width characters"
    )


class Ids(Section):
    """Uniqueness of ids."""

    unique: Literal["file", "slot", "off"] = Field(
        "file",
        description="scope in which ids must be unique: later rows with the same id in one file, or in all files of a "
        "slot, are quarantined; off: no check",
    )


class Workers(Section):
    """Compute: workers, threads, and the limits on waiting."""

    num_workers: int = Field(
        1,
        ge=1,
        description="training workers, or scoring actors. One worker uses all cores of a machine: raise it for more "
        "machines or GPUs",
    )
    use_gpu: bool = Field(False, description="give each worker one GPU")
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads per CPU worker; by default its share of the cores, on a cluster 2 where they fit, "
        "else 1",
    )
    stall_timeout_s: float | None = Field(
        None,
        gt=0,
        description="seconds without any finished shard after which the run ends (exit 7); by default 3600, on a "
        "cluster 21600",
    )
    in_process_rows: int = Field(
        2500,
        ge=0,
        description="up to this many reviews (all splits together) run in the command's own process on a machine "
        "without GPU, since starting Ray takes longer; 0: always Ray. tune and benchmark always start Ray",
    )


class Drift(Section):
    """Comparison of a night with the nights before it."""

    by: tuple[Text, ...] = Field(
        (),
        description="input columns whose values are counted apart in the profile of a night, such as [product]: a new "
        "or vanished value shows there earlier than in the texts",
    )
    accept: Text | None = Field(
        None,
        min_length=1,
        description="slot, or FIRST..LAST, that is ordinary: ten nights or more become the reference that later nights "
        "are compared with, fewer join it; needs drift.reason, and no input",
    )
    reason: Text | None = Field(None, min_length=1, description="reason for drift.accept, kept in the output")

    @model_validator(mode="after")
    def _says_why(self) -> Drift:
        if self.accept is not None and self.reason is None:
            raise ValueError("drift.accept needs drift.reason=...: it is kept in the output")
        if self.reason is not None and self.accept is None:
            raise ValueError("drift.reason: reason for drift.accept, which is not given")
        return self


class ReportOptions(Section):
    """Contents of a report."""

    slices: tuple[Text, ...] = Field(
        (), description="input columns by whose values the metrics are also reported, such as [product, country]"
    )
    num_mistakes: int = Field(
        20, ge=0, description="wrong predictions shown in the report with their text, the most confident first"
    )
    explain: int = Field(
        20,
        ge=0,
        description="errors, label changes and queued reviews, at most so many of each, in which the words that move "
        "the probability most are marked, found by leaving words out; 0: none. A review costs some 40 forward passes",
    )


class TrainReportOptions(ReportOptions):
    """Contents of the report of a training run."""

    baselines: bool = Field(
        True, description="report the majority class and TF-IDF with logistic regression on the same rows"
    )
    baseline_rows: int = Field(
        50_000, ge=1, description="maximum train rows of the TF-IDF baseline, a random sample; bounds time and memory"
    )


class TopicOptions(Section):
    """Settings of topics: clustering, words, map."""

    sample_rows: int = Field(
        20_000,
        ge=1,
        description="reviews on which topics are found, a random sample; all others are assigned to these topics",
    )
    num_topics: int | None = Field(
        None,
        ge=2,
        description="number of topics: the most similar are merged until this many are left; by default as many as "
        "clustering finds",
    )
    min_topic_size: int | None = Field(
        None,
        ge=2,
        description="sampled reviews in the smallest topic; by default 0.5 % of the sample, at least 10. Raise it for "
        "fewer, broader topics",
    )
    num_neighbors: int = Field(
        15, ge=2, description="neighbours per review in UMAP: more favours broad topics, fewer favours narrow ones"
    )
    words: int = Field(10, ge=1, le=100, description="words that describe a topic")
    stop_words: Literal["auto", "english", "none"] | tuple[Text, ...] = Field(
        "auto",
        description="words that never describe a topic: a list, english, none; auto: english where the reviews are "
        "English",
    )
    max_features: int = Field(
        20_000,
        ge=1,
        description="size of the vocabulary that topic words are chosen from, the most frequent words first",
    )
    num_representatives: int = Field(3, ge=0, description="reviews shown per topic, the nearest to its centre")
    map_rows: int = Field(4000, ge=0, description="sampled reviews drawn on the map; 0: no map")
    compare_with: Text | None = Field(
        None, description="column of known groups to compare topics with (NMI, ARI); not the sentiment label"
    )


class AuditData(Section):
    """Reviews of each split to audit."""

    train: Paths | None = Field(None, description="reviews to audit: file, folder, glob or list")
    validation: Paths | None = Field(
        None, description="reviews of another split: rows that also stand in train are reported as leakage"
    )
    test: Paths | None = Field(None, description="reviews of another split, as data.validation")


class NearDuplicates(Section):
    """Search for nearly identical texts."""

    find: bool = Field(True, description="find nearly identical texts, within a split and across splits")
    threshold: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="Jaccard similarity of character n-grams from which two texts are near-duplicates, 0.5 to 1",
    )


class LabelErrors(Section):
    """Search for labels that are probably wrong."""

    find: bool = Field(True, description="find labels that are probably wrong")
    by: Literal["tfidf", "embeddings"] = Field(
        "tfidf", description="features of the classifier that finds label errors: TF-IDF or embeddings of `model`"
    )
    folds: int = Field(
        5, ge=2, le=20, description="cross-validation folds: each row is judged by a classifier that has not seen it"
    )
    max_rows: int = Field(
        50_000, ge=100, description="maximum labelled rows that are judged, a random sample; bounds time and memory"
    )
    pooling: Pooling = Field(
        "mean",
        description="label_errors.by=embeddings: pooling of the encoder's token vectors into one per "
        "review: mean over all tokens, or cls (the first token)",
    )


class AuditReportOptions(Section):
    """Contents of the audit page."""

    examples: int = Field(20, ge=0, description="rows shown per finding on the page, with their text")
