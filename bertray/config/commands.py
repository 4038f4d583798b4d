"""One frozen, checked model per command, and how files and `key.sub=value` overrides become one.

Sources are applied in order: `-c a.yaml`, `-c b.yaml`, then the overrides. Mappings merge key by key, except
`labels` and `columns` as a whole: those, and every list, replace what an earlier source said.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bertray.errors import ConfigError, did_you_mean
from bertray.paths import local_path
from bertray.wording import counted, setting

MAX_CONFIG_BYTES = 1 << 20
SLOT_PATTERN = re.compile(r"^(?!\.+$)[A-Za-z0-9_.=-]{1,128}$")
MOMENT_PATTERN = re.compile(r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?)?$")
LongText = Literal["head", "tail", "head_tail", "windows"]
Pooling = Literal["mean", "cls"]
EmbeddingKind = Literal["mean", "cls", "tokens"]
HeadKind = Literal["logreg", "svm"]


def _as_text(value: Any) -> Any:
    """Keep numbers and dates that a person wrote for a name (`columns.label=1`) as the text they wrote."""
    if isinstance(value, bool) or value is None:
        return value
    return str(value) if isinstance(value, int | float | date) else value


def _path_list(value: Any) -> Any:
    """One path is a list of one. An empty one is refused: it would name the working directory."""
    paths = (value,) if isinstance(value, str | int | float) else value
    if isinstance(paths, list | tuple) and any(path == "" for path in paths):
        raise ValueError("an empty path; is a variable unset?")
    return paths


Text = Annotated[str, BeforeValidator(_as_text)]
_PATH_LIST = BeforeValidator(_path_list)  # also what tells a key of paths from others
Paths = Annotated[tuple[Text, ...], _PATH_LIST]
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
    normalize: Literal["NFC", "NFKC", "none"] = Field("NFC", description="Unicode normal form")


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
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
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
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: rare classes weigh more")
    match_shares: bool = Field(
        False, description="move the decision until classes are said of validation rows as often as they occur there"
    )
    best_metric: Literal["loss", "accuracy", "macro_f1", "mcc"] = Field(
        "loss", description="validation figure that picks the best epoch"
    )

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
        written = {True: "yes, on or true", False: "no, off or false", None: "null or nothing"}[value]
        quoted = {True: '"yes"', False: '"no"', None: '"null"'}[value]
        raise ValueError(f"YAML reads a class name as {value!r} ({written}); write it in quotes, like {quoted}")
    return _as_text(value)


Labels = Annotated[tuple[str, ...] | dict[str, str | None] | None, BeforeValidator(_labels)]


class Common(Section):
    """Keys that mean the same in every command."""

    model: Text = Field("bundled", min_length=1, description="hub id[@revision], folder, <run>/model, bundled")
    output: Text = Field(..., min_length=1, description="folder or s3://, gs:// prefix that receives everything")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    labels: Labels = Field(None, description="names in id order, or value: name (null leaves the value out)")
    seed: int = Field(0, ge=0, lt=2**32, description="every random choice follows from it")
    workers: Workers = Workers()
    price_per_hour: float | None = Field(None, ge=0, description="what the machines cost, for the forecast")

    @field_validator("labels")
    @classmethod
    def _two_names_at_least(cls, labels: Any) -> Any:
        if labels is None:
            return None
        names = list(labels) if isinstance(labels, tuple) else [name for name in labels.values() if name is not None]
        if len(set(names)) < 2:
            raise ValueError(f"needs at least two class names, found {sorted(set(names))}")
        if isinstance(labels, tuple) and len(set(names)) < len(names):
            raise ValueError(f"names a class twice: {list(names)}")
        return labels


class TrainConfig(Common):
    """`bertray train`: labelled reviews to a model bundle and a report."""

    data: TrainData = TrainData()
    training: Training = Training()
    max_length: int = Field(128, ge=8, description="tokens of a review that the model sees, special tokens included")
    long_text: LongText = Field("head", description="which part of a longer review it sees")
    max_chars: int = Field(20_000, ge=100, description="longer texts are cut to this before tokenizing, and flagged")
    cleaning: Cleaning = Cleaning()
    report: TrainReportOptions = TrainReportOptions()

    @model_validator(mode="after")
    def _needs_train(self) -> TrainConfig:
        if not self.data.train:
            raise ValueError("data.train is missing: the reviews to learn from")
        if self.training.method == "distill":
            self._check_distill()
        return self

    def _check_distill(self) -> None:
        if self.training.teacher is None:
            raise ValueError("training.teacher is missing: the bundle that training.method=distill learns from")
        if self.data.test is None:
            raise ValueError("data.test is missing: labelled reviews that judge the student and its teacher")
        if self.data.validation is not None or self.data.test_from is not None:
            raise ValueError("with training.method=distill a share of data.train is held out; leave the other keys out")
        if self.columns.text_pair is not None:
            raise ValueError("columns.text_pair: training.method=distill reads one text")
        if self.training.class_weights != "none":
            raise ValueError("training.class_weights: training.method=distill reads no labels to weigh")


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


class PretrainConfig(Common):
    """`bertray pretrain`: unlabelled reviews to an encoder, by masked language modelling."""

    input: Paths = Field(..., description="reviews: file, folder, glob or list; labels are not read")
    from_scratch: bool = Field(False, description="a new encoder and word pieces instead of those of `model`")
    encoder: NewEncoder = NewEncoder()
    vocabulary: NewVocabulary = NewVocabulary()
    held_out_fraction: float = Field(0.05, gt=0, lt=1, description="share of the texts that judges the epochs")
    training: Pretraining = Pretraining()
    max_length: int = Field(128, ge=8, description="tokens of a review that the model sees, special tokens included")
    long_text: Literal["head", "tail", "head_tail"] = Field("head", description="which part of a longer review it sees")
    max_chars: int = Field(20_000, ge=100, description="longer texts are cut to this before tokenizing, and flagged")
    cleaning: Cleaning = Cleaning()

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainConfig:
        if self.labels is not None:
            raise ValueError("labels: pretrain reads none; leave the key out")
        if self.columns.text_pair is not None:
            raise ValueError("columns.text_pair: pretrain reads one text; leave the key out")
        if self.from_scratch and self.model != type(self).model_fields["model"].default:
            raise ValueError(f"model={self.model}: from_scratch=true makes a new one; leave one of the two out")
        if not self.from_scratch and (self.encoder, self.vocabulary) != (NewEncoder(), NewVocabulary()):
            raise ValueError("encoder, vocabulary: of a new encoder; add from_scratch=true or leave them out")
        return self


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
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="how the next point is chosen (Optuna); grid: every combination of listed values"
    )
    stop_early: bool = Field(True, description="end trials that are behind after an epoch (asynchronous halving)")


class TuneConfig(TrainConfig):
    """`bertray tune`: a search over the settings of train, judged on validation rows."""

    search: Search = Search()


ScoringPrecision = Literal["auto", "fp32", "bf16", "int8"]
_SCORING_PRECISION: Any = Field(
    "auto", description="bf16 where the hardware has it; int8: on a CPU without bf16 faster, and some labels change"
)


class EvaluateConfig(Common):
    """`bertray evaluate`: a model on labelled reviews."""

    input: Paths = Field(..., description="labelled reviews: file, folder, glob or list")
    max_length: int | None = Field(None, ge=8, description="by default the bundle's")
    long_text: LongText | None = Field(None, description="by default the bundle's")
    precision: ScoringPrecision = _SCORING_PRECISION
    report: ReportOptions = ReportOptions()

    @model_validator(mode="after")
    def _computes_so(self) -> EvaluateConfig:
        _check_precision(self.precision, self.workers)
        return self


def _check_precision(precision: ScoringPrecision, workers: Workers) -> None:
    if precision == "int8" and workers.use_gpu:
        raise ValueError("precision=int8 is for CPUs; leave it out with workers.use_gpu=true")


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"names a column twice: {', '.join(map(repr, twice))}")
    return names


class NightConfig(Common):
    """What the commands have in common that turn new review files into committed rows, night after night."""

    verb: ClassVar[str]

    input: Paths = Field(..., description="review files: file, folder, glob or list")
    slot: Text | None = Field(
        None, description="name of the partition; by default dt=<UTC date>, to which a later run of the day adds run=2"
    )
    keep_columns: tuple[Text, ...] = Field((), description="input columns copied to the output")
    max_length: int | None = Field(None, ge=8, description="by default the bundle's")
    long_text: LongText | None = Field(None, description="by default the bundle's")
    ids: Ids = Ids()
    on_bad_file: Literal["fail", "quarantine"] = Field("fail", description="a file that cannot be read at all")
    max_quarantine_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="refuse above it, once 100 rows are quarantined; below 1, also a night of which nothing was scored",
    )
    on_changed_file: Literal["refuse", "replace"] = Field(
        "refuse", description="a scored file that changed; replace: its slot gets a new version, in one run"
    )
    rescore: Literal["never", "replace"] = Field(
        "never", description="slots scored with another model; replace: each gets a new version"
    )
    replace: bool = Field(
        False, description="`slot` becomes exactly the listed files of no other slot, as a new version"
    )
    takeover: bool = Field(False, description="work on a slot even if another run seems to be at work on it")
    allow_empty: bool = Field(False, description="no input file at all is success, with an empty slot")
    single_writer: bool = Field(False, description="accept a store whose put-if-absent does not hold")
    rows_per_shard: int | None = Field(
        None, ge=1, description="rows of one unit of work and one part file; by default 4,096, more for a huge input"
    )

    @field_validator("keep_columns")
    @classmethod
    def _each_column_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _once(names)

    @field_validator("slot")
    @classmethod
    def _slot_is_one_level(cls, slot: str | None) -> str | None:
        if slot is not None and (not SLOT_PATTERN.match(slot) or ".." in slot):
            raise ValueError(f"{slot!r} is not a slot name: 1 to 128 letters, digits and _ . = - , no '..'")
        return slot

    @property
    def report_options(self) -> ReportOptions:
        """What of the report is configurable."""
        return ReportOptions()


class ScoreConfig(NightConfig):
    """`bertray score`: review files to committed scored rows."""

    verb: ClassVar[str] = "score"

    needs_review_below: float | None = Field(None, gt=0, le=1, description="scores below it get needs_review=true")
    precision: ScoringPrecision = _SCORING_PRECISION
    report: ReportOptions = ReportOptions()

    @model_validator(mode="after")
    def _computes_so(self) -> ScoreConfig:
        _check_precision(self.precision, self.workers)
        return self

    @property
    def report_options(self) -> ReportOptions:
        return self.report


class EmbedConfig(NightConfig):
    """`bertray embed`: review files to committed vectors."""

    verb: ClassVar[str] = "embed"

    pooling: EmbeddingKind = Field("mean", description="of all tokens; cls: the first one; tokens: a vector of each")
    normalize: bool = Field(False, description="scale each vector to length 1")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the numbers that are written")
    rescore: Literal["never"] = Field("never", description="vectors of another model go into another output")
    cleaning: Cleaning | None = Field(None, description="by default the bundle's, or that of training")
    max_chars: int | None = Field(None, ge=100, description="by default the bundle's, or that of training")

    @model_validator(mode="after")
    def _fits_together(self) -> EmbedConfig:
        if self.labels is not None:
            raise ValueError("labels: embed reads none; leave the key out")
        return self


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


class TopicsConfig(Common):
    """`bertray topics`: scored or raw reviews to topics, their words, their sentiment and a map."""

    input: Paths | None = Field(None, description="raw reviews: file, folder, glob or list; also beside `scored`")
    scored: Text | None = Field(
        None, min_length=1, description="output of score: its committed rows, with text by keep_columns or from `input`"
    )
    slot: Text | None = Field(None, description="only this slot of `scored`")
    keep_columns: tuple[Text, ...] = Field((), description="input columns copied to assignments.parquet")
    pooling: Pooling = Field("mean", description="of all tokens; cls: the first one")
    max_length: int | None = Field(None, ge=8, description="by default the bundle's, or that of training")
    long_text: LongText | None = Field(None, description="by default the bundle's, or that of training")
    cleaning: Cleaning | None = Field(None, description="by default the bundle's, or that of training")
    max_chars: int | None = Field(None, ge=100, description="by default the bundle's, or that of training")
    topics: TopicOptions = TopicOptions()
    replace: bool = Field(
        False, description="make the topics of this output anew with other settings; nothing is embedded twice"
    )

    @field_validator("keep_columns")
    @classmethod
    def _each_column_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _once(names)

    @model_validator(mode="after")
    def _has_reviews(self) -> TopicsConfig:
        if not self.input and self.scored is None:
            raise ValueError("input or scored is missing: raw reviews, or an output of score")
        if self.slot is not None and self.scored is None:
            raise ValueError("slot: names a slot of `scored`, which is not given")
        if self.labels is not None and self.scored is not None:
            raise ValueError("labels: scored rows have those of their model; leave the key out")
        return self


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


class AuditConfig(Common):
    """`bertray audit`: what is wrong with reviews, before somebody learns from them."""

    model: Text = Field("bundled", min_length=1, description="whose tokenizer measures lengths, and label_errors.by")
    data: AuditData = AuditData()
    max_length: int = Field(128, ge=8, description="tokens of a review that a model would see: longer ones are counted")
    max_chars: int = Field(20_000, ge=100, description="longer texts are compared by so many characters")
    cleaning: Cleaning = Cleaning()
    near_duplicates: NearDuplicates = NearDuplicates()
    label_errors: LabelErrors = LabelErrors()
    report: AuditReportOptions = AuditReportOptions()

    @model_validator(mode="after")
    def _needs_data(self) -> AuditConfig:
        if not self.splits:
            raise ValueError("no data given: `bertray audit reviews.csv`, or data.train, data.validation, data.test")
        return self

    @property
    def splits(self) -> dict[str, tuple[str, ...]]:
        """The paths of each split that is given, in the order in which they are compared."""
        given = {name: getattr(self.data, name) for name in AuditData.model_fields}
        return {name: paths for name, paths in given.items() if paths}


class FilesConfig(Section):
    """`bertray files`: the committed part files of an output, one a line, for exact readers."""

    output: Text = Field(..., min_length=1, description="a scored output")
    slot: Text | None = Field(None, description="only this slot")


class GcConfig(Section):
    """`bertray gc`: what an output no longer needs; shown, and removed on request."""

    output: Text = Field(..., min_length=1, description="a scored output")
    delete: bool = Field(False, description="remove what is shown")
    grace_days: float = Field(7, ge=0, description="how long replaced versions and unfinished runs are kept")


class DemoConfig(Section):
    """`bertray demo`: the whole path on bundled reviews."""

    output: Text = Field("demo-run", min_length=1, description="folder that receives everything")
    seed: int = Field(0, ge=0, lt=2**32, description="every random choice follows from it")


class BenchmarkConfig(Section):
    """`bertray benchmark`: rows a second here, beside what people use instead and the machine's own limit."""

    model: Text = Field(
        "bundled",
        min_length=1,
        description="classifier, encoder (with a random head), or `untrained-bert-base`: random weights of that size",
    )
    input: Paths | None = Field(None, description="reviews: file, folder, glob or list; by default the bundled ones")
    output: Text = Field("benchmark-run", min_length=1, description="local folder that receives benchmark.json")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    max_length: int = Field(128, ge=8, description="tokens of a review that the model sees, special tokens included")
    rows: int = Field(2048, ge=1, description="reviews that bertray scores, a random sample of the input")
    rival_rows: int = Field(256, ge=1, description="of these, how many the slower ways get")
    rounds: int = Field(3, ge=1, description="runs of each, in turn; the median counts")
    beside: tuple[Literal["pipeline", "ray", "ray_spread", "padded", "openvino", "int8"], ...] = Field(
        ("pipeline", "ray", "padded"),
        description="transformers' pipeline, Ray's recipe, the same with rows dealt out to its actors (ray_spread), "
        "sorted batches; on CPU openvino, and int8: our engine in it",
    )
    training: bool = Field(False, description="also the training loop, beside that of the tutorials")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sample")
    workers: Workers = Workers()
    price_per_hour: float | None = Field(None, ge=0, description="what the machines cost, for a million reviews")

    @model_validator(mode="after")
    def _on_cpu(self) -> BenchmarkConfig:
        if self.workers.use_gpu and {"openvino", "int8"} & set(self.beside):
            raise ValueError("beside: openvino and int8 are for CPUs; leave them out with workers.use_gpu=true")
        return self


class DoctorConfig(Section):
    """`bertray doctor`: is this machine ready?"""

    model: Text = Field("bundled", min_length=1, description="model whose loading is tried")
    output: Text | None = Field(None, description="storage to try; by default a temporary folder")


class InitConfig(Section):
    """`bertray init DATA`: a commented config that works on the data."""

    data: Paths = Field(..., description="file, folder or glob to look at")
    verb: Literal["train", "score"] | None = Field(
        None, description="command that the config is for; by default train, and score where no column is a label"
    )
    output: Text | None = Field(
        None, min_length=1, description="file that receives the config, whole or not at all; by default it is printed"
    )
    reader: TextFormat = TextFormat()


CONFIGS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "pretrain": PretrainConfig,
    "tune": TuneConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "embed": EmbedConfig,
    "topics": TopicsConfig,
    "audit": AuditConfig,
    "files": FilesConfig,
    "gc": GcConfig,
    "demo": DemoConfig,
    "benchmark": BenchmarkConfig,
    "doctor": DoctorConfig,
    "init": InitConfig,
}


# --- from files and overrides to a plain mapping ---------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which dates stay text and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                problem = f"expected a word as key, found a {type(key).__name__}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 5e-5 as text; people mean the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 0x_ is no number; a thousand brackets
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise ConfigError(f"{where}{line}: expected YAML, found: {problem}.", "Correct the syntax.") from error


def _read_file(path: str) -> dict[str, Any]:
    file = local_path(path)
    if not file.is_file():
        found, near = "expected a file, found a folder" if file.is_dir() else "no such file", ""
        with contextlib.suppress(OSError):
            near = "" if file.is_dir() else did_you_mean(file.name, [other.name for other in file.parent.iterdir()])
        raise ConfigError(f"-c {path}: {found}.{near}", "`bertray init DATA output=train.yaml` writes a config.")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"-c {path}: larger than {MAX_CONFIG_BYTES} bytes.", "A config is a page of YAML.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"-c {path}: expected UTF-8 text, found other bytes.", "Save it as UTF-8.") from error
    data = _parse_yaml(text, path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else "text" if isinstance(data, str) else f"a {type(data).__name__}"
        raise ConfigError(f"-c {path}: expected YAML of keys and values, found {found}.", "Write `key: value`.")
    return data


def _keeps_raw_text(field_type: Any) -> bool:
    """True for keys whose override is text whatever it looks like (paths, slots, models)."""
    members = get_args(field_type) if get_origin(field_type) in (Union, UnionType) else (field_type,)
    members = tuple(get_args(m)[0] if get_origin(m) is Annotated else m for m in members)
    return any(m is str for m in members) and not any(m in (int, float, bool) for m in members)


def _field(config: type[Section], dotted: str) -> FieldInfo | None:
    model: Any = config
    field: FieldInfo | None = None
    for part in dotted.split("."):
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Section) else None
        if field is None:
            return None
        model = field.annotation
    return field


def _is_paths(field: FieldInfo) -> bool:
    members = get_args(field.annotation)  # of `Paths | None`
    return any(_PATH_LIST in metadata for metadata in (field.metadata, *(get_args(member) for member in members)))


def _override(config: type[Section], word: str) -> tuple[list[str], Any]:
    key, equals, raw = word.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"{word!r}: expected key=value, found no {'key' if equals else '='}.", _as_key(config, word))
    field = _field(config, key)
    if field is None:
        return key.split("."), _parse_yaml(raw, key)
    if _is_paths(field) and (items := _list_items(raw)) is not None:
        return key.split("."), [_list_item(item, key) for item in items]
    # `*.csv`, `@x`, `[ab]*.csv` and a folder called 2026 are paths, not what YAML makes of them.
    if _is_paths(field) or _keeps_raw_text(field.annotation):
        return key.split("."), None if raw in ("null", "~") else _unquote(raw)
    return key.split("."), _parse_yaml(raw, key)


def _as_key(config: type[Section], word: str) -> str:
    """The remedy for a word of a command line that is no `key=value`."""
    if _field(config, word) is not None:
        return f"Write `{word}=VALUE`, without spaces around the equals sign."
    if word.endswith((".yaml", ".yml")) and local_path(word).is_file():
        return f"Name a config by its flag: `-c {shlex.quote(word)}`."
    key = next((key for key in ("data.train", "input", "data") if _field(config, key) is not None), None)
    if key is not None and local_path(word).exists():
        return f"Name the data by its key: `{setting(key, word)}`."
    return "Settings are keys, for example `output=FOLDER`; the only flags are -c, -v, --help and --version."


def flag_as_key(verb: str, flag: str) -> str:
    """` Did you mean 'training.epochs'?` for `--epochs`, or an empty string."""
    where = flag.lstrip("-").partition("=")[0].replace("-", "_").split(".")
    config = CONFIGS[verb]
    full = ".".join(where)
    return f" Did you mean {full!r}?" if full in keys(config) else _suggest(config, where)


def _unquote(raw: str) -> str:
    return raw[1:-1] if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "\"'" else raw


_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'""")


def _list_items(raw: str) -> list[str] | None:
    """Items of `[a, b]`, as they were written; None where the brackets belong to a path (`[ab]*.[ch]`).

    A comma inside quotes, brackets or braces separates nothing.
    """
    if not (raw.startswith("[") and raw.endswith("]")):
        return None
    inside, at, depth, items = raw[1:-1], 0, 0, [""]
    while at < len(inside):
        quoted = None if items[-1].strip() else _QUOTED.match(inside, at)
        piece = quoted.group() if quoted else inside[at]
        at += len(piece)
        if piece == "," and depth == 0:
            items.append("")
            continue
        items[-1] += piece
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece, 0)
        if depth < 0:
            return None
    if not items[-1].strip():  # `[]` and `[a, ]`
        items.pop()
    return [item.strip() for item in items] if depth == 0 else None


def _list_item(item: str, key: str) -> str:
    if not item.startswith(('"', "'")):
        return item
    value = _parse_yaml(item, key)
    if not isinstance(value, str):
        raise ConfigError(f"{key}: expected a quoted path, found {item}.", "Put quotes around the whole of it.")
    return value


def _merge(base: dict[str, Any], new: Mapping[str, Any], top: bool = True) -> dict[str, Any]:
    merged = dict(base)
    for key, value in new.items():
        replaces = top and key in ("labels", "columns")
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and not replaces:
            merged[key] = _merge(merged[key], value, top=False)
        else:
            merged[key] = value
    return merged


def _set_key(data: dict[str, Any], path: list[str], value: Any, word: str) -> None:
    for part in path[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{word!r}: {part!r} already has the value {inner!r}, so it has no key below it.")
        data[part] = inner = dict(inner)
        data = inner
    data[path[-1]] = value


def _interpolated(data: dict[str, Any]) -> dict[str, Any]:
    """Resolve `${oc.env:BUCKET}` and `${key}` references."""
    if "${" not in str(data):
        return data
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"config: a ${{...}} reference does not resolve: {first_line}.") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def load_config(verb: str, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Section:
    """Resolve one command's config.

    Args:
        verb: a key of `CONFIGS`.
        files: YAML files in order; later ones win.
        overrides: `key.sub=value` words in order, after the files.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has another type.
    """
    config = CONFIGS[verb]
    data: dict[str, Any] = {}
    for path in files:
        data = _merge(data, _read_file(path))
    for word in overrides:
        path_parts, value = _override(config, word)
        if len(path_parts) == 1 and isinstance(value, Mapping):
            data = _merge(data, {path_parts[0]: value})
        else:
            _set_key(data, path_parts, value, word)
    return build_config(verb, _interpolated(data))


def build_config(verb: str, data: Mapping[str, Any]) -> Section:
    """Check a plain mapping against the command's config.

    Raises:
        ConfigError: names every wrong key, one a line, each with what was expected.
    """
    config = CONFIGS[verb]
    try:
        return config.model_validate(data)
    except ValidationError as error:
        lines = [_explain(config, item) for item in error.errors()]
        raise ConfigError(
            f"{verb} config: " + "\n  ".join(lines),
            f"`bertray config schema {verb}` lists every key.",
        ) from error


def _explain(config: type[Section], item: Any) -> str:
    where = [str(part) for part in item["loc"] if part not in ("tuple[str, ...]", "dict[str,nullable[str]]")]
    key = ".".join(where)
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        return f"{key}: no such key.{_suggest(config, where)}"
    if item["type"] == "missing":
        return f"{key}: missing, and it has no default ({_description(config, where)})."
    message = _expected(item, f"{key}.{next(iter(fields_at(config, where)), 'key')}")
    if not where:
        return f"{message}."
    found = "" if isinstance(value, Mapping) else f", found {'nothing' if value in (None, '') else repr(value)}"
    return f"{key}: {message}{found}."


def _expected(item: Any, key_below: str) -> str:
    """`expected a whole number`, of what pydantic says of a value."""
    limits = item.get("ctx", {})
    words = {
        "int_parsing": "a whole number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "model_type": f"keys below it, such as {key_below}",
        "dict_type": "keys and values",
        "string_too_short": "a value",
        "literal_error": str(limits.get("expected")),
        "greater_than_equal": f"{limits.get('ge')} or more",
        "greater_than": f"more than {limits.get('gt')}",
        "less_than_equal": f"{limits.get('le')} or less",
        "less_than": f"less than {limits.get('lt')}",
        "string_too_long": f"at most {counted(limits.get('max_length', 0), 'character')}",
    }.get(item["type"])
    return f"expected {words}" if words else str(item["msg"]).removeprefix("Value error, ")


def fields_at(config: type[Section], path: Sequence[str]) -> dict[str, FieldInfo]:
    """Keys of a section of a config with their fields; none where there is no such section."""
    section: Any = config
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        section = field and field.annotation
    return dict(getattr(section, "model_fields", {}))


# Names that other tools give to our keys, and usual short forms; the first key that the verb has is suggested.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("training.learning_rate",),
    "bs": ("training.batch_size",),
    "train_batch_size": ("training.batch_size",),
    "num_train_epochs": ("training.epochs",),
    "per_device_train_batch_size": ("training.batch_size",),
    "dropout": ("training.attention_dropout",),
    "patience": ("training.early_stopping_patience",),
    "warmup": ("training.warmup_ratio",),
    "warmup_steps": ("training.warmup_ratio",),
    "wd": ("training.weight_decay",),
    "max_len": ("max_length",),
    "max_seq_length": ("max_length",),
    "model_name_or_path": ("model",),
    "train_file": ("data.train",),
    "val": ("data.validation",),
    "dev": ("data.validation",),
    "eval": ("data.validation",),
    "eval_file": ("data.validation",),
    "validation_file": ("data.validation",),
    "test_file": ("data.test",),
    "data": ("input",),
    "input": ("data.train",),
    "input_path": ("input", "data.train"),
    "out": ("output",),
    "text_column": ("columns.text",),
    "label_column": ("columns.label",),
    "id_column": ("columns.id",),
    "gpu": ("workers.use_gpu",),
    "gpus": ("workers.use_gpu",),
    "num_gpus": ("workers.use_gpu",),
    "device": ("workers.use_gpu",),
    "fp16": ("precision", "training.precision"),
    "bf16": ("precision", "training.precision"),
    "int8": ("precision",),
    "quantize": ("precision",),
    "sep": ("reader.delimiter",),
    "threshold": ("needs_review_below",),
    "keep": ("keep_columns",),
}
_ALIKE, _ALIKE_ELSEWHERE = 0.6, 0.75  # ratios of difflib; in the section where the key was looked for, and in others


def _suggest(config: type[Section], where: list[str]) -> str:
    """` Did you mean 'training.learning_rate'?` for a key that is not there, or an empty string.

    The key that other tools call so, else the likest one, of this section sooner than of another.
    """
    *section, word = where
    full, prefix = keys(config), ".".join([*section, ""])
    known = [key for key in _SYNONYMS.get(word.lower(), ()) if key in full]
    if not known:
        here = {f"{prefix if section else ''}{name}" for name in fields_at(config, section)}
        likeness = {}
        for key in dict.fromkeys([*here, *full]):
            ratio = difflib.SequenceMatcher(None, word, key.split(".")[-1]).ratio()
            if ratio >= (_ALIKE if key in here else _ALIKE_ELSEWHERE):
                likeness[key] = ratio + (0.1 if section else 0.05) * (key in here)
        known = sorted(likeness, key=lambda key: (-likeness[key], key))
    return f" Did you mean {known[0]!r}?" if known else ""


def _description(config: type[Section], where: list[str]) -> str:
    field = fields_at(config, where[:-1]).get(where[-1])
    return (field and field.description) or "required"


def guess_verb(files: Sequence[str], overrides: Sequence[str]) -> str:
    """Which config `plan` is about: that of train where data.* is set, that of score where input is.

    Raises:
        ConfigError: neither is set, or both are.
    """
    for word in overrides:
        if "=" not in word:
            _override(TrainConfig, word)  # which refuses it
    named = {key for path in files for key in _read_file(path)} | {re.split(r"[.=]", word)[0] for word in overrides}
    if ("data" in named or "training" in named) == ("input" in named):
        raise ConfigError(
            "plan: expected a train config (data.train) or a score config (input), found "
            + ("both." if "input" in named else "neither."),
            "Give the config of the command that you want to plan, such as `data.train=reviews.csv output=runs/first`.",
        )
    return "score" if "input" in named else "train"


def keys(config: type[Section], prefix: str = "") -> list[str]:
    """Every dotted key of a config, in the order of its definition."""
    found: list[str] = []
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += keys(field.annotation, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def key_help(config: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, description) of every key, for `--help`."""
    rows: list[tuple[str, str, str]] = []
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += key_help(field.annotation, f"{prefix}{name}.")
            continue
        default = field.get_default()
        shown = "required" if default is PydanticUndefined else _yaml_word(default)
        rows.append((f"{prefix}{name}", shown, field.description or ""))
    return rows


def _yaml_word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, float) and value and not math.isinf(value) and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return str(value)


def to_yaml(config: Section) -> str:
    """The fully resolved config as YAML that `-c` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def json_schema(verb: str) -> dict[str, Any]:
    """JSON schema of one command's config, for editors."""
    return CONFIGS[verb].model_json_schema()
