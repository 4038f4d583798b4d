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


def _two_names_at_least(labels: Any) -> Any:
    if labels is None:
        return None
    names = list(labels) if isinstance(labels, tuple) else [name for name in labels.values() if name is not None]
    if len(set(names)) < 2:
        raise ValueError(f"needs at least two class names, found {sorted(set(names))}")
    if isinstance(labels, tuple) and len(set(names)) < len(names):
        raise ValueError(f"names a class twice: {list(names)}")
    return labels


class Common(Section):
    """Keys that mean the same in every command."""

    model: Text = Field(
        "bundled",
        min_length=1,
        description="model: hub id (`name@revision`), folder, `<run>/model`, `registry:NAME`, or bundled "
        "(all-MiniLM-L6-v2, English, no network)",
    )
    registry: Text | None = Field(
        None,
        min_length=1,
        description="folder, or prefix (s3://, gs://, az://), of the models that `registry:NAME` stands for",
    )
    output: Text = Field(..., min_length=1, description="folder, or prefix (s3://, gs://, az://), for all results")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    labels: Labels = Field(
        None,
        description="class names: a list in id order, or {value: name} with null for values to leave out; by default "
        "the sorted values of the label column",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of every random choice; the same seed and data give the same result"
    )
    workers: Workers = Workers()
    price_per_hour: float | None = Field(
        None, ge=0, description="price of all machines per hour, for the cost in `bertray plan` and in reports"
    )

    _labels = field_validator("labels")(_two_names_at_least)


_LABELS_ORDERED: Any = Field(
    False,
    description="the classes have an order, that of their ids (stars, negative < neutral < positive): report the mean "
    "absolute error, quadratic weighted kappa and the share off by more than one class",
)


class TrainConfig(Common):
    """`bertray train`: labelled reviews to a model bundle and a report."""

    data: TrainData = TrainData()
    training: Training = Training()
    labels_ordered: bool = _LABELS_ORDERED
    max_length: int = Field(
        128,
        ge=8,
        description="maximum tokens per review, special tokens included; longer reviews are handled as `long_text` "
        "says. Raise it for long reviews; time grows with it",
    )
    long_text: LongText = Field(
        "head",
        description="tokens kept of a review longer than max_length: head (first), tail (last), head_tail (both "
        "ends), or windows (all, in overlapping windows whose probabilities are averaged)",
    )
    max_chars: int = Field(
        20_000,
        ge=100,
        description="characters kept of a text before tokenization, and a flag on the row; bounds the time that one "
        "huge text can take",
    )
    cleaning: Cleaning = Cleaning()
    report: TrainReportOptions = TrainReportOptions()

    @model_validator(mode="after")
    def _needs_train(self) -> TrainConfig:
        if not self.data.train:
            raise ValueError("data.train is missing: labelled reviews to learn from")
        if self.training.method == "distill":
            self._check_distill()
        return self

    def _check_distill(self) -> None:
        if self.training.teacher is None:
            raise ValueError("training.teacher is missing: the bundle that training.method=distill learns from")
        if self.data.test is None:
            raise ValueError("data.test is missing: labelled reviews on which student and teacher are evaluated")
        if self.data.validation is not None or self.data.test_from is not None:
            raise ValueError("training.method=distill holds out a share of data.train; leave the other keys out")
        if self.columns.text_pair is not None:
            raise ValueError("columns.text_pair: training.method=distill reads one text")
        if self.training.class_weights != "none":
            raise ValueError("training.class_weights: training.method=distill reads no labels to weigh")


class PretrainConfig(Common):
    """`bertray pretrain`: unlabelled reviews to an encoder, by masked language modelling."""

    input: Paths = Field(..., description="reviews: file, folder, glob or list; labels are not read")
    from_scratch: bool = Field(
        False,
        description="train a new vocabulary and encoder in place of adapting `model`; for a language without a model",
    )
    encoder: NewEncoder = NewEncoder()
    vocabulary: NewVocabulary = NewVocabulary()
    held_out_fraction: float = Field(
        0.05, gt=0, lt=1, description="share of the texts held out to judge the epochs, from 0 to 1"
    )
    training: Pretraining = Pretraining()
    max_length: int = Field(
        128,
        ge=8,
        description="maximum tokens per review, special tokens included; longer reviews are handled as `long_text` "
        "says. Raise it for long reviews; time grows with it",
    )
    long_text: Literal["head", "tail", "head_tail"] = Field(
        "head",
        description="tokens kept of a review longer than max_length: head (first), tail (last), head_tail (both ends)",
    )
    max_chars: int = Field(
        20_000,
        ge=100,
        description="characters kept of a text before tokenization, and a flag on the row; bounds the time that one "
        "huge text can take",
    )
    cleaning: Cleaning = Cleaning()

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainConfig:
        if self.labels is not None:
            raise ValueError("labels: pretrain reads none; leave the key out")
        if self.columns.text_pair is not None:
            raise ValueError("columns.text_pair: pretrain reads one text; leave the key out")
        if self.from_scratch and self.model != type(self).model_fields["model"].default:
            raise ValueError(f"model={self.model}: from_scratch=true trains a new model; leave one of the two out")
        if not self.from_scratch and (self.encoder, self.vocabulary) != (NewEncoder(), NewVocabulary()):
            raise ValueError("encoder, vocabulary: settings of a new encoder; add from_scratch=true or leave them out")
        return self


class TuneConfig(TrainConfig):
    """`bertray tune`: hyperparameter search over train, judged on validation rows."""

    search: Search = Search()


_SCORING_PRECISION: Any = Field(
    "auto",
    description="number format of the forward pass; auto: bf16 where the hardware computes in it, else fp32; "
    "int8: faster on CPUs without bf16, and some labels change",
)


class EvaluateConfig(Common):
    """`bertray evaluate`: a model on labelled reviews."""

    input: Paths = Field(..., description="labelled reviews: file, folder, glob or list")
    labels_ordered: bool = _LABELS_ORDERED
    max_length: int | None = Field(
        None,
        ge=8,
        description="maximum tokens per review; by default the bundle's, which is right unless you compare lengths",
    )
    long_text: LongText | None = Field(
        None, description="tokens kept of a longer review: head, tail, head_tail or windows; by default the bundle's"
    )
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
    """Keys that score and embed share: new review files to committed rows, run after run."""

    verb: ClassVar[str]

    input: Paths = Field(
        ..., description="review files: file, folder, glob or list; files that were scored before are left out"
    )
    slot: Text | None = Field(
        None,
        description="partition of the output that receives the rows; by default dt=<UTC date>, where a later run of "
        "the day becomes run=2",
    )
    keep_columns: tuple[Text, ...] = Field((), description="input columns to copy to the output")
    max_length: int | None = Field(
        None,
        ge=8,
        description="maximum tokens per review; by default the bundle's, which is right unless you compare lengths",
    )
    long_text: LongText | None = Field(
        None, description="tokens kept of a longer review: head, tail, head_tail or windows; by default the bundle's"
    )
    ids: Ids = Ids()
    on_bad_file: Literal["fail", "quarantine"] = Field(
        "fail", description="a file that cannot be read at all: fail the run (exit 6), or quarantine the file and go on"
    )
    max_quarantine_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of quarantined rows above which nothing is committed (exit 6), once there are more than "
        "100 of them; below 1, a run that scores no row is refused too",
    )
    on_changed_file: Literal["refuse", "replace"] = Field(
        "refuse",
        description="a scored file whose content changed: refuse the run (exit 4), or replace its slot by a new "
        "version in one run",
    )
    rescore: Literal["never", "replace"] = Field(
        "never", description="slots that another model scored: never touch them, or replace each by a new version"
    )
    replace: bool = Field(
        False,
        description="replace `slot` by a new version that holds exactly the listed files (those of no other slot)",
    )
    takeover: bool = Field(
        False,
        description="take over a slot although another run seems to work on it; for a run on a machine that is lost",
    )
    allow_empty: bool = Field(False, description="treat an input without files as success, and commit an empty slot")
    single_writer: bool = Field(
        False, description="accept a store without put-if-absent: you ensure that one run at a time writes"
    )
    rows_per_shard: int | None = Field(
        None, ge=1, description="rows per shard, the unit of work and of resume; by default 4096, more for huge inputs"
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
        """Configurable parts of the report."""
        return ReportOptions()


class ScoreConfig(NightConfig):
    """`bertray score`: review files to committed scored rows."""

    verb: ClassVar[str] = "score"

    needs_review_below: float | None = Field(
        None,
        gt=0,
        le=1,
        description="score below which a row gets needs_review=true, from 0 to 1; by default there is no such column",
    )
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

    pooling: EmbeddingKind = Field(
        "mean",
        description="vectors to write: mean over all tokens, cls (the first token), or tokens (one vector per token)",
    )
    normalize: bool = Field(
        False, description="scale each vector to length 1, so that a dot product is the cosine similarity"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="number format of the written vectors; float16 halves the size"
    )
    rescore: Literal["never"] = Field("never", description="vectors of another model belong in another output")
    cleaning: Cleaning | None = Field(
        None, description="cleaning before the tokenizer; by default the bundle's, for an encoder the defaults of train"
    )
    max_chars: int | None = Field(
        None,
        ge=100,
        description="characters kept of a text; by default the bundle's, for an encoder the default of train",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> EmbedConfig:
        if self.labels is not None:
            raise ValueError("labels: embed reads none; leave the key out")
        return self


class TopicsConfig(Common):
    """`bertray topics`: scored or raw reviews to topics, their words, their sentiment and a map."""

    input: Paths | None = Field(
        None, description="raw reviews: file, folder, glob or list; beside `scored` it supplies the texts"
    )
    scored: Text | None = Field(
        None,
        min_length=1,
        description="output of score whose committed rows get topics; their texts come from keep_columns or from "
        "`input`",
    )
    slot: Text | None = Field(None, description="read only this slot of `scored`")
    keep_columns: tuple[Text, ...] = Field((), description="input columns to copy to assignments.parquet")
    pooling: Pooling = Field(
        "mean",
        description="pooling of the encoder's token vectors into one per review: mean over all tokens, or cls (the "
        "first token)",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="maximum tokens per review; by default the bundle's, for an encoder the default of train",
    )
    long_text: LongText | None = Field(
        None,
        description="tokens kept of a longer review: head, tail, head_tail or windows; by default the bundle's, for "
        "an encoder the default of train",
    )
    cleaning: Cleaning | None = Field(
        None, description="cleaning before the tokenizer; by default the bundle's, for an encoder the defaults of train"
    )
    max_chars: int | None = Field(
        None,
        ge=100,
        description="characters kept of a text; by default the bundle's, for an encoder the default of train",
    )
    topics: TopicOptions = TopicOptions()
    replace: bool = Field(
        False, description="replace the topics of this output by those of other settings; vectors are reused"
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
    """`bertray audit`: faults of labelled reviews, before a model learns from them."""

    model: Text = Field(
        "bundled",
        min_length=1,
        description="model whose tokenizer measures text lengths, and whose embeddings label_errors.by=embeddings uses",
    )
    data: AuditData = AuditData()
    max_length: int = Field(
        128, ge=8, description="maximum tokens per review of the model you will train: longer reviews are counted"
    )
    max_chars: int = Field(
        20_000, ge=100, description="characters of a text that are compared; bounds the time of huge texts"
    )
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


_OF_EVALUATE: Any = EvaluateConfig.model_fields  # keys that mean the same


class CompareConfig(Section):
    """`bertray compare`: model B beside model A on the same reviews, or two outputs joined by id."""

    a: Text = Field(..., min_length=1, description="model in use, or an output of score, evaluate or train")
    b: Text = Field(..., min_length=1, description="candidate, of the same kind as `a`; gains are b minus a")
    registry: Text | None = _OF_EVALUATE["registry"]
    input: Paths | None = Field(
        None, description="labelled reviews: file, folder, glob or list; beside two scored outputs, their labels by id"
    )
    output: Text = _OF_EVALUATE["output"]
    rows: Literal["all", "disagreements"] = Field(
        "all",
        description="disagreements: of reviews without labels, write those where the models differ to queue.csv; their "
        "labels decide with about a tenth of the labels",
    )
    budget: int = Field(200, ge=1, description="most reviews in queue.csv, a random sample of the disagreements")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    labels: Labels = _OF_EVALUATE["labels"]
    labels_ordered: bool = _LABELS_ORDERED
    seed: int = _OF_EVALUATE["seed"]
    workers: Workers = Workers()
    max_length: int | None = _OF_EVALUATE["max_length"]
    long_text: LongText | None = _OF_EVALUATE["long_text"]
    precision: ScoringPrecision = _SCORING_PRECISION
    report: ReportOptions = ReportOptions()

    _labels = field_validator("labels")(_two_names_at_least)

    @model_validator(mode="after")
    def _fits_together(self) -> CompareConfig:
        _check_precision(self.precision, self.workers)
        if self.rows == "disagreements" and not self.input:
            raise ValueError("input is missing: the reviews without labels for rows=disagreements")
        return self

    def evaluation_of(self, model: str) -> EvaluateConfig:
        """Config of an evaluation of one of the two models on the same reviews."""
        shared = {name: getattr(self, name) for name in EvaluateConfig.model_fields if name in type(self).model_fields}
        return EvaluateConfig(**{**shared, "model": model})


class PromoteConfig(EvaluateConfig):
    """`bertray promote NAME`: a candidate becomes the model that NAME stands for, if it passes the release gate."""

    name: Text = Field(..., min_length=1, description="name in the registry, such as reviews")
    registry: Text = Field(..., min_length=1, description="folder, or s3:// or gs:// prefix, of the registry")
    output: Text | None = Field(  # type: ignore[assignment]  # the registry receives everything
        None, min_length=1, description="folder, or s3:// or gs:// prefix, that receives a copy of the comparison"
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="fraction of accuracy that the candidate may lose (0.01: no worse than one point); 0: it is better",
    )
    protect: tuple[Text, ...] = Field(
        (),
        description="input columns; no value of them with 100 rows or more may get worse, such as [language, product]",
    )
    force: bool = Field(False, description="promote whatever the gate says; needs `reason`")
    reason: Text | None = Field(None, min_length=1, description="reason for the history")

    @model_validator(mode="after")
    def _says_why(self) -> PromoteConfig:
        if self.force and self.reason is None:
            raise ValueError("force=true needs reason=...: it is kept in the history")
        return self


class RollbackConfig(Section):
    """`bertray rollback NAME`: NAME stands for an earlier version again."""

    name: Text = Field(..., min_length=1, description="name in the registry")
    registry: Text = Field(..., min_length=1, description="folder, or s3:// or gs:// prefix, of the registry")
    to: Text | None = Field(None, min_length=1, description="model version; by default the one before the current one")
    reason: Text | None = Field(None, min_length=1, description="reason for the history")


class RegistryConfig(Section):
    """`bertray registry`: names, versions, who let them in, and when."""

    registry: Text = Field(..., min_length=1, description="folder, or s3:// or gs:// prefix, of the registry")
    name: Text | None = Field(None, min_length=1, description="list only this name")


class FilesConfig(Section):
    """`bertray files`: the committed part files of an output, one a line, for exact readers."""

    output: Text = Field(..., min_length=1, description="output of score or embed")
    slot: Text | None = Field(None, description="list only this slot")


class GcConfig(Section):
    """`bertray gc`: files that an output no longer needs; listed, and removed on request."""

    output: Text = Field(..., min_length=1, description="output of score or embed")
    delete: bool = Field(False, description="remove what is listed")
    grace_days: float = Field(7, ge=0, description="days for which replaced versions and unfinished runs are kept")


class DemoConfig(Section):
    """`bertray demo`: the whole path on bundled reviews."""

    output: Text = Field("demo-run", min_length=1, description="folder that receives all results")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every random choice")


class BenchmarkConfig(Section):
    """`bertray benchmark`: throughput on this machine, beside what people use instead and the machine's limit."""

    model: Text = Field(
        "bundled",
        min_length=1,
        description="classifier, encoder (with a random head), or untrained-bert-base (random weights of that size)",
    )
    input: Paths | None = Field(None, description="reviews: file, folder, glob or list; by default the bundled ones")
    output: Text = Field("benchmark-run", min_length=1, description="local folder that receives benchmark.json")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    max_length: int = Field(128, ge=8, description="maximum tokens per review, special tokens included")
    rows: int = Field(2048, ge=1, description="reviews that bertray scores, a random sample of the input")
    rival_rows: int = Field(256, ge=1, description="reviews of that sample that the slower contestants score")
    rounds: int = Field(3, ge=1, description="runs of each contestant, in turn; the median counts")
    beside: tuple[Literal["pipeline", "ray", "ray_spread", "padded", "openvino", "int8"], ...] = Field(
        ("pipeline", "ray", "padded"),
        description="contestants: pipeline (transformers), ray (Ray's documented recipe), ray_spread (the same, rows "
        "dealt out to all actors), padded (batches sorted by length); on CPU openvino, and int8 (our "
        "engine in int8)",
    )
    training: bool = Field(False, description="measure training too, beside the loop of the tutorials")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the sample")
    workers: Workers = Workers()
    price_per_hour: float | None = Field(
        None, ge=0, description="price of all machines per hour, for the cost of a million reviews"
    )

    @model_validator(mode="after")
    def _on_cpu(self) -> BenchmarkConfig:
        if self.workers.use_gpu and {"openvino", "int8"} & set(self.beside):
            raise ValueError("beside: openvino and int8 are for CPUs; leave them out with workers.use_gpu=true")
        return self


class DoctorConfig(Section):
    """`bertray doctor`: checks of this machine."""

    model: Text = Field("bundled", min_length=1, description="model whose loading is checked")
    output: Text | None = Field(None, description="storage to check; by default a temporary folder")


class InitConfig(Section):
    """`bertray init DATA`: a commented config that works on the data."""

    data: Paths = Field(..., description="file, folder or glob to inspect")
    verb: Literal["train", "score"] | None = Field(
        None,
        description="command that the config is for; by default train, or score where no column looks like a label",
    )
    output: Text | None = Field(
        None, min_length=1, description="file for the config, written whole or not at all; by default it is printed"
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
    "compare": CompareConfig,
    "promote": PromoteConfig,
    "rollback": RollbackConfig,
    "registry": RegistryConfig,
    "files": FilesConfig,
    "gc": GcConfig,
    "demo": DemoConfig,
    "benchmark": BenchmarkConfig,
    "doctor": DoctorConfig,
    "init": InitConfig,
}
