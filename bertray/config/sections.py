"""Sections of configs: types of values, and groups of keys that commands share; each frozen, each key described."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

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
PATH_LIST = BeforeValidator(_path_list)  # also what tells a key of paths from others
Paths = Annotated[tuple[Text, ...], PATH_LIST]
Delimiter = Annotated[
    str, Field(min_length=1, max_length=1), BeforeValidator(lambda v: "\t" if v in ("\\t", "tab") else v)
]

Escape = Annotated[str, Field(max_length=1)]


class Section(BaseModel):
    """Base of every part of a config: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Which input column plays which part. Without a header, columns are named "0", "1", ... by position."""

    id: Text = Field("id", description="unique row id; absent in the data: `<relative path>:<row>`")
    text: Text = Field("text", description="the review")
    text_pair: Text | None = Field(None, description="a second text, for example the aspect")
    label: Text = Field("label", description="the given label")


class TextFormat(Section):
    """How delimited text files are written (Parquet and JSON Lines need nothing)."""

    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "acl_imdb"] = Field(
        "auto", description="file format; auto goes by the file name"
    )
    delimiter: Delimiter | None = Field(
        None, description=r"field separator (a tab: \t or tab); by default ',' for .csv and a tab for .tsv"
    )
    header: bool = Field(True, description="the first row holds the column names")
    skip_lines: int = Field(0, ge=0, description="lines above the header or first row, such as the title of a report")
    quoting: bool | None = Field(
        None,
        description='double quotes enclose fields; false reads every " as a character; by default what the first rows '
        "of each file show, and for tabs false unless they enclose fields",
    )
    escape: Escape | None = Field(
        None,
        description=r"character that takes away the meaning of a quote, a delimiter or itself behind it, as Spark's "
        r"and MySQL's \ does; '' for none; by default what the first rows of each file show",
    )
    encoding: str = Field("utf-8", description="text encoding of CSV, TSV, JSON Lines and folder files")


class Cleaning(Section):
    """What is done to a text before the tokenizer; stored in the bundle and repeated when scoring."""

    version: Literal[1] = 1
    fix_text: bool = Field(True, description="repair mojibake and terminal escapes (ftfy)")
    strip_html: bool = Field(True, description="line-break tags to spaces, other tags removed, entities decoded")
    normalize: NormalForm = Field("NFC", description="Unicode normal form")


class Ids(Section):
    unique: Literal["file", "slot", "off"] = Field("file", description="where a repeated id is quarantined")


class Workers(Section):
    """Compute. On one machine one worker uses all cores; more workers are for more machines or GPUs."""

    num_workers: int = Field(1, ge=1, description="training workers, and scoring actors")
    use_gpu: bool = Field(False, description="one GPU for each worker")
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads of a CPU worker; by default its share of cores; on a cluster 2, or else 1",
    )
    stall_timeout_s: float | None = Field(
        None, gt=0, description="end when no shard is finished for so long; by default 1 h, on a cluster 6 h"
    )
    in_process_rows: int = Field(
        2500,
        ge=0,
        description="on one machine without a GPU, so many reviews and fewer, all splits together, are worked on in "
        "the command's own process, which is sooner than with Ray (tune and benchmark start it all the same); 0: never",
    )


class TrainData(Section):
    train: Paths | None = Field(None, description="labelled reviews: file, folder, glob or list")
    validation: Paths | None = Field(None, description="by default 10 % of train, whole groups, stratified")
    test: Paths | None = Field(None, description="for the report; by default the report is on validation")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="share of train held out without data.validation")
    group: Text | None = Field(None, description="column whose equal values stay in one split; by default the text")
    time: Text | None = Field(None, description="column that says when a review was written, for data.test_from")
    test_from: Text | None = Field(
        None, description="instead of data.test: rows of data.train from this moment on, 2026-11-01, by data.time"
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
            raise ValueError("data.time and data.test_from belong together: a column, and a moment such as 2026-11-01")
        if self.test_from is not None and self.test is not None:
            raise ValueError("data.test and data.test_from are two ways of saying the same; give one")
        return self


class Optimization(Section):
    """How weights are learned, whatever they are to do."""

    epochs: int = Field(3, ge=1, description="passes over the train split")
    learning_rate: float = Field(5e-5, gt=0, description="peak of the schedule")
    batch_size: int = Field(32, ge=1, description="examples per optimizer step over all workers and accumulation steps")
    weight_decay: float = Field(0.01, ge=0, description="AdamW; none on biases and norms")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of all steps with rising learning rate")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    max_tokens_per_microbatch: int = Field(
        8192, ge=16, description="padded tokens of one forward pass; larger batches accumulate"
    )
    attention_dropout: bool = Field(
        False, description="keep the model's dropout on attention weights; off trains about twice as fast on CPU"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better validation score"
    )
    checkpoint_every_s: float = Field(300, gt=0, description="seconds between checkpoints, besides one each epoch")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")
    max_failures: int = Field(3, ge=0, description="lost workers of Ray that are replaced before the run ends")


KEYS_OF_METHOD = {  # of training.method, and of no other
    "finetune": ("match_shares",),
    "features": ("head", "pooling", "max_feature_rows"),
    "distill": ("teacher", "keep_layers", "softness"),
}


class Training(Optimization):
    method: Literal["finetune", "features", "distill"] = Field("finetune", description="what is trained")
    head: HeadKind = Field("logreg", description="classifier that method=features fits on embeddings")
    pooling: Pooling = Field("mean", description="of method=features: what an embedding is")
    max_feature_rows: int = Field(200_000, ge=1, description="of method=features: train rows that a head sees at most")
    teacher: Text | None = Field(None, description="of method=distill: the bundle whose probabilities are learned")
    keep_layers: int | None = Field(
        None, ge=1, description="of method=distill: layers of `model` that the student keeps"
    )
    softness: float = Field(2.0, ge=1, description="of method=distill: temperature at which probabilities are compared")
    class_weights: ClassWeights = Field("none", description="balanced: rare classes weigh more")
    match_shares: bool = Field(
        False, description="move the decision until classes are said of validation rows as often as they occur there"
    )
    best_metric: BestMetric = Field("loss", description="validation figure that picks the best epoch")

    @model_validator(mode="after")
    def _has_keys_of_its_method_alone(self) -> Training:
        for method, names in KEYS_OF_METHOD.items():
            for name in names if method != self.method else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"training.{name} is of training.method={method}, not of {self.method}")
        return self


class Pretraining(Optimization):
    mask_ratio: float = Field(0.15, gt=0, lt=1, description="share of the tokens of a text that is to be guessed")
    whole_words: bool = Field(True, description="mask all pieces of a word or none")
    held_out_tokens: int = Field(1000, ge=2, description="tokens that judge an epoch, each guessed by itself")


class ReportOptions(Section):
    slices: tuple[Text, ...] = Field((), description="input columns to break the metrics down by")
    num_mistakes: int = Field(20, ge=0, description="most confident mistakes shown, with their text")


class TrainReportOptions(ReportOptions):
    baselines: bool = Field(True, description="majority class and TF-IDF + logistic regression on the same rows")
    baseline_rows: int = Field(50_000, ge=1, description="train rows the TF-IDF baseline sees at most")


_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)\.0+")


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
    """A value of the data in the form in which labels are compared (`reviews.labels.canonical`): 1.0 is "1"."""
    if isinstance(value, float):
        return str(int(value)) if value == value // 1 and abs(value) < 2**53 else str(value)
    text = _class_name(value)
    whole = _WHOLE_NUMBER.fullmatch(text) if isinstance(text, str) else None
    return whole[1] if whole else text


def _class_name(value: Any) -> Any:
    name = _label_word(value)
    if not isinstance(name, str):
        return name
    if not name.strip():
        raise ValueError("an empty label; rows without a label are left out anyway")
    return name.strip()


def _label_word(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        word = "null" if value is None else str(value).lower()
        found = "null, ~ or nothing" if value is None else word
        raise ValueError(f'YAML reads a class name as {value!r} ({found}); write it in quotes, like "{word}"')
    return _as_text(value)


Labels = Annotated[tuple[str, ...] | dict[str, str | None] | None, BeforeValidator(_labels)]


class NewEncoder(Section):
    """The shape of an encoder that starts from nothing."""

    num_layers: int = Field(4, ge=1, description="of the transformer")
    hidden_size: int = Field(256, ge=8, description="numbers of a token's vector")
    num_heads: int = Field(4, ge=1, description="of attention; hidden_size is a multiple of it")
    feed_forward_size: int | None = Field(None, ge=8, description="by default four times hidden_size")

    @model_validator(mode="after")
    def _heads_divide(self) -> NewEncoder:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is no multiple of num_heads={self.num_heads}")
        return self


class NewVocabulary(Section):
    """The word pieces of an encoder that starts from nothing."""

    size: int = Field(16_000, ge=16, description="word pieces, special tokens included")
    lowercase: bool = Field(True, description="before cutting into pieces")
    strip_accents: bool = Field(False, description="é is e; never for Korean, whose syllables would fall apart")
    min_frequency: int = Field(2, ge=1, description="of a piece in the sample")
    sample_rows: int = Field(100_000, ge=1, description="reviews that the pieces are learned from at most")


class SearchRange(Section):
    """Every number from `low` to `high`; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="even in the logarithm: for what is told apart by its factor")

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
    """What `bertray tune` varies, and how."""

    space: Annotated[dict[str, Choices], BeforeValidator(_flat_space)] = Field(
        {
            "training.learning_rate": SearchRange(low=1e-5, high=3e-4, log=True),
            "training.batch_size": (16, 32),
        },
        min_length=1,
        description="key of train: a list of values, or {low, high, log}; keys under training., and seed",
    )
    trials: int = Field(12, ge=1, description="points of the space that are tried")
    sampler: SamplerKind = Field(
        "tpe", description="how the next point is chosen (Optuna); grid: every combination of listed values"
    )
    stop_early: bool = Field(True, description="end trials that are behind after an epoch (asynchronous halving)")


class TopicOptions(Section):
    """How topics are found and told."""

    sample_rows: int = Field(
        20_000, ge=1, description="reviews that topics are found on, a random sample; the others are assigned to them"
    )
    num_topics: int | None = Field(
        None, ge=2, description="the most alike are merged until so many are left; by default as many as are found"
    )
    min_topic_size: int | None = Field(
        None, ge=2, description="sampled reviews in the smallest topic; by default 0.5 % of them, at least 10"
    )
    num_neighbors: int = Field(15, ge=2, description="of a review, for UMAP: more show the large, fewer the small")
    words: int = Field(10, ge=1, le=100, description="words of a topic")
    stop_words: Literal["auto", "english", "none"] | tuple[Text, ...] = Field(
        "auto", description="words that name no topic: a list, english, none; auto: english where the reviews are"
    )
    max_features: int = Field(20_000, ge=1, description="most frequent words among which those of a topic are chosen")
    num_representatives: int = Field(3, ge=0, description="reviews shown of each topic, those next to its centre")
    map_rows: int = Field(4000, ge=0, description="sampled reviews drawn on the map; 0: no map")
    compare_with: Text | None = Field(
        None, description="column of known groups to compare topics with; labels of sentiment are none"
    )


class AuditData(Section):
    train: Paths | None = Field(None, description="reviews to look at: file, folder, glob or list")
    validation: Paths | None = Field(None, description="of another split: rows that stand in both are leaks")
    test: Paths | None = Field(None, description="of another split, as data.validation")


class NearDuplicates(Section):
    find: bool = Field(True, description="look for texts that are nearly the same, within a split and across")
    threshold: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="share of common character n-grams (Jaccard) from which on texts are the same",
    )


class LabelErrors(Section):
    find: bool = Field(True, description="look for labels that are probably wrong")
    by: Literal["tfidf", "embeddings"] = Field(
        "tfidf", description="whose doubts count: logistic regression on TF-IDF terms, or on embeddings of `model`"
    )
    folds: int = Field(5, ge=2, le=20, description="each is judged by a model that learned from the others")
    max_rows: int = Field(50_000, ge=100, description="labelled rows that are judged at most, a random sample")
    pooling: Pooling = Field("mean", description="of by=embeddings: what an embedding is")


class AuditReportOptions(Section):
    examples: int = Field(20, ge=0, description="of each finding, shown on the page with their text")
