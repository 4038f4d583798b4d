"""One frozen, checked model per command."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bertray.config.sections import (
    SLOT_PATTERN,
    AuditData,
    AuditReportOptions,
    Cleaning,
    Columns,
    Ids,
    LabelErrors,
    Labels,
    NearDuplicates,
    NewEncoder,
    NewVocabulary,
    Paths,
    Pretraining,
    ReportOptions,
    Search,
    Section,
    Text,
    TextFormat,
    TopicOptions,
    TrainData,
    Training,
    TrainReportOptions,
    Workers,
)
from bertray.settings import EmbeddingKind, LongText, Pooling, ScoringPrecision


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


class TuneConfig(TrainConfig):
    """`bertray tune`: a search over the settings of train, judged on validation rows."""

    search: Search = Search()


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
