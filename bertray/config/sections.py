"""Sections of configs: types of values, and groups of keys that commands share; each frozen, each key described."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from bertray.label_text import label_text
from bertray.settings import BestMetric, ClassWeights, HeadKind, NormalForm, Pooling, Precision, SamplerKind
from bertray.yaml_text import WrittenFloat

SLOT_PATTERN = re.compile(r"^(?!\.+$)[A-Za-z0-9_.=-]{1,128}$")
MOMENT_PATTERN = re.compile(r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?)?$")


def _as_text(value: Any) -> Any:
    """Keep numbers and dates that a person wrote for a name (`columns.label=1`) as the text they wrote."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, WrittenFloat):
        return value.text
    return str(value) if isinstance(value, int | float | date) else value


def _path_list(value: Any) -> Any:
    """One path is a list of one. An empty one is refused: it would name the working directory."""
    paths = (value,) if isinstance(value, str | int | float) else value
    if isinstance(paths, list | tuple) and any(path == "" for path in paths):
        raise ValueError("an empty path; is a variable unset?")
    return paths


Text = Annotated[str, BeforeValidator(_as_text)]
PATH_LIST = BeforeValidator(_path_list)  # marks a key of paths
Paths = Annotated[tuple[Text, ...], PATH_LIST]
Delimiter = Annotated[
    str, Field(min_length=1, max_length=1), BeforeValidator(lambda v: "\t" if v in ("\\t", "tab") else v)
]

Escape = Annotated[str, Field(max_length=1)]


class Section(BaseModel):
    """Base of every part of a config: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Input columns by role. Without a header, columns are named "0", "1", ... by position."""

    id: Text = Field(
        "id", description="column of unique row ids; without such a column ids are `<relative path>:<row>`"
    )
    text: Text = Field("text", description="column with the review")
    text_pair: Text | None = Field(
        None, description="column with a second text, for example the aspect that the label is about"
    )
    label: Text = Field("label", description="column with the label")


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


class TrainData(Section):
    """Reviews of each split, and how splits are drawn."""

    train: Paths | None = Field(None, description="labelled reviews to learn from: file, folder, glob or list")
    validation: Paths | None = Field(
        None,
        description="labelled reviews that pick the best epoch: file, folder, glob or list; by default "
        "validation_fraction of train is held out, by groups, stratified by label",
    )
    test: Paths | None = Field(
        None,
        description="labelled reviews for the report: file, folder, glob or list; by default the report is on "
        "validation and says so",
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of train held out for validation, from 0 to 1, without data.validation"
    )
    group: Text | None = Field(
        None,
        description="column whose equal values stay in one split, such as a customer or product; by default the text "
        "itself",
    )
    time: Text | None = Field(None, description="column with the date of a review, for data.test_from")
    test_from: Text | None = Field(
        None,
        description="first day or moment of the test split, such as 2026-11-01, by data.time: learns from the past, "
        "tests on what came later. In place of data.test",
    )

    @field_validator("test_from")
    @classmethod
    def _is_a_moment(cls, moment: str | None) -> str | None:
        if moment is not None and not MOMENT_PATTERN.match(moment):
            raise ValueError("expected a day or a time in ISO form, such as 2026-11-01 or 2026-11-01T12:00:00")
        return moment

    @model_validator(mode="after")
    def _either_a_moment_or_a_file(self) -> TrainData:
        if (self.time is None) != (self.test_from is None):
            raise ValueError("data.time and data.test_from need each other: a date column, a day such as 2026-11-01")
        if self.test_from is not None and self.test is not None:
            raise ValueError("data.test and data.test_from exclude each other; give one")
        return self


class Optimization(Section):
    """Optimizer, schedule and checkpoints of any training."""

    epochs: int = Field(3, ge=1, description="passes over the train split. Raise it for small data")
    learning_rate: float = Field(
        5e-5,
        gt=0,
        description="peak learning rate of AdamW, after warm-up and before linear decay; 1e-5 to 1e-4 is usual",
    )
    batch_size: int = Field(
        32, ge=1, description="examples per optimizer step, over all workers and accumulation steps"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW; biases and norms have none")
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="share of all steps during which the learning rate rises, from 0 to 1"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping: largest norm of the gradient of a step")
    max_tokens_per_microbatch: int = Field(
        8192,
        ge=16,
        description="tokens, padding included, of one forward and backward pass; a larger step accumulates gradients. "
        "Lower it when memory runs out",
    )
    attention_dropout: bool = Field(
        False,
        description="keep the model's dropout on attention weights. Off, training is about twice as fast on a CPU",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a better validation score after which training stops; by default it never stops "
        "early",
    )
    checkpoint_every_s: float = Field(
        300,
        gt=0,
        description="seconds between checkpoints, beside the one of each epoch: a killed run repeats at most this much",
    )
    precision: Precision = Field(
        "auto", description="number format of training; auto: bf16 where the hardware computes in it, else fp32"
    )
    max_failures: int = Field(3, ge=0, description="lost Ray workers that are replaced before the run ends")


KEYS_OF_METHOD = {  # of training.method, and of no other
    "finetune": ("match_shares",),
    "features": ("head", "pooling", "max_feature_rows"),
    "distill": ("teacher", "keep_layers", "softness"),
}


class Training(Optimization):
    """Method of training and its settings."""

    method: Literal["finetune", "features", "distill"] = Field(
        "finetune",
        description="finetune: train all weights; features: fit a linear head on embeddings of the frozen encoder "
        "(fast, for small data); distill: train a smaller student on the probabilities of a teacher",
    )
    head: HeadKind = Field("logreg", description="linear head of method=features: logistic regression or linear SVM")
    pooling: Pooling = Field(
        "mean",
        description="method=features: pooling of the encoder's token vectors into one per review: mean over all "
        "tokens, or cls (the first token)",
    )
    max_feature_rows: int = Field(
        200_000,
        ge=1,
        description="method=features: maximum train rows that the head is fitted on, a random sample; bounds memory",
    )
    teacher: Text | None = Field(None, description="method=distill: bundle whose probabilities the student learns")
    keep_layers: int | None = Field(
        None,
        ge=1,
        description="method=distill: layers of `model` that the student keeps, evenly spaced; by default all",
    )
    softness: float = Field(
        2.0,
        ge=1,
        description="method=distill: softmax temperature at which the probabilities of student and teacher are "
        "compared",
    )
    class_weights: ClassWeights = Field(
        "none", description="balanced: weigh classes in the loss by inverse frequency, so that rare classes count more"
    )
    match_shares: bool = Field(
        False,
        description="prior correction: shift the logits so that the predicted label shares on validation match the "
        "true ones. For data where the model predicts the frequent class too often",
    )
    best_metric: BestMetric = Field("loss", description="validation metric that picks the best epoch")

    @model_validator(mode="after")
    def _has_keys_of_its_method_alone(self) -> Training:
        for method, names in KEYS_OF_METHOD.items():
            for name in names if method != self.method else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"training.{name} applies to training.method={method}, not to {self.method}")
        return self


class Pretraining(Optimization):
    """Masked language modelling and its settings."""

    mask_ratio: float = Field(
        0.15, gt=0, lt=1, description="share of the tokens of a text that are masked and predicted, from 0 to 1"
    )
    whole_words: bool = Field(True, description="mask all pieces of a word together, or none")
    held_out_tokens: int = Field(
        1000,
        ge=2,
        description="tokens scored one at a time for pseudo-perplexity after each epoch; more: a finer figure, slower",
    )


class ReportOptions(Section):
    """Contents of a report."""

    slices: tuple[Text, ...] = Field(
        (), description="input columns by whose values the metrics are also reported, such as [product, country]"
    )
    num_mistakes: int = Field(
        20, ge=0, description="wrong predictions shown in the report with their text, the most confident first"
    )


class TrainReportOptions(ReportOptions):
    """Contents of the report of a training run."""

    baselines: bool = Field(
        True, description="report the majority class and TF-IDF with logistic regression on the same rows"
    )
    baseline_rows: int = Field(
        50_000, ge=1, description="maximum train rows of the TF-IDF baseline, a random sample; bounds time and memory"
    )


def _labels(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError("expected a list of class names, or value: name pairs, such as [negative, positive]")
    if isinstance(value, Mapping):
        names: dict[Any, Any] = {}
        for written, name in value.items():
            key, name = _label_value(written), None if name is None else _class_name(name)
            if names.setdefault(key, name) != name:
                raise ValueError(f"gives the value {key!r} two names: {names[key]!r} and {name!r}")
        return names
    return tuple(_label_value(v) for v in value)


def _label_value(value: Any) -> Any:
    """A value of the data in the form in which labels are compared."""
    _label_word(value)
    return _not_empty(label_text(value))


def _class_name(value: Any) -> Any:
    name = _label_word(value)
    return _not_empty(name.strip()) if isinstance(name, str) else name


def _not_empty(text: str | None) -> str:
    if not text:
        raise ValueError("an empty label; rows without a label are left out anyway")
    return text


def _label_word(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        word = "null" if value is None else str(value).lower()
        found = "null, ~ or nothing" if value is None else word
        raise ValueError(f'YAML reads a class name as {value!r} ({found}); write it in quotes, like "{word}"')
    return _as_text(value)


Labels = Annotated[tuple[str, ...] | dict[str, str | None] | None, BeforeValidator(_labels)]


class NewEncoder(Section):
    """Architecture of an encoder that is trained from scratch."""

    num_layers: int = Field(4, ge=1, description="transformer layers")
    hidden_size: int = Field(256, ge=8, description="size of a token's hidden state")
    num_heads: int = Field(4, ge=1, description="attention heads; hidden_size must be a multiple of it")
    feed_forward_size: int | None = Field(
        None, ge=8, description="size of the feed-forward layers; by default four times hidden_size"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> NewEncoder:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")
        return self


class NewVocabulary(Section):
    """Word pieces of an encoder that is trained from scratch."""

    size: int = Field(16_000, ge=16, description="word pieces in the vocabulary, special tokens included")
    lowercase: bool = Field(True, description="lowercase texts before they are split into pieces")
    strip_accents: bool = Field(
        False, description="remove accents (é becomes e). Never for Korean: its syllables would be decomposed"
    )
    min_frequency: int = Field(2, ge=1, description="occurrences in the sample that a piece needs")
    sample_rows: int = Field(
        100_000, ge=1, description="maximum reviews that the vocabulary is learned from, a random sample"
    )


class SearchRange(Section):
    """Range of numbers from `low` to `high`; integers where both are integers."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="sample log-uniformly (for learning rates and the like)")

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _is_a_range(self) -> SearchRange:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, found {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log=true needs numbers above 0, found low={self.low}")
        return self


def _flat_space(value: Any) -> Any:
    """`{training: {seed: [...]}}` means the same as `{training.seed: [...]}`."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[Any, Any] = {}
    for key, choices in value.items():
        nested = isinstance(choices, Mapping) and not set(choices) & set(SearchRange.model_fields)
        flat |= {f"{key}.{name}": inner for name, inner in choices.items()} if nested else {key: choices}
    return flat


def _choices(value: Any) -> Any:
    if isinstance(value, SearchRange):
        return value
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in SearchRange.model_fields]
        if unknown or not {"low", "high"} <= set(value):
            raise ValueError("expected {low: ..., high: ..., log: true} or a list of values")
        return SearchRange.model_validate(dict(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError("an empty list of values")
        return tuple(value)
    raise ValueError(f"expected a list of values or {{low: ..., high: ..., log: true}}, found {value!r}")


Choices = Annotated[SearchRange | tuple[bool | int | float | str | None, ...], BeforeValidator(_choices)]


class Search(Section):
    """Search space of `bertray tune`, and how it is searched."""

    space: Annotated[dict[str, Choices], BeforeValidator(_flat_space)] = Field(
        {
            "training.learning_rate": SearchRange(low=1e-5, high=3e-4, log=True),
            "training.batch_size": (16, 32),
        },
        min_length=1,
        description="values to try, by key: a list, or {low, high, log}. Keys of `training.` and `seed`",
    )
    trials: int = Field(12, ge=1, description="number of trials; grid: at most this many combinations")
    sampler: SamplerKind = Field(
        "tpe",
        description="choice of the next trial: tpe (Optuna, from the results so far), random, or grid (every "
        "combination of listed values)",
    )
    stop_early: bool = Field(
        True, description="end trials that fall behind after an epoch (asynchronous successive halving)"
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
