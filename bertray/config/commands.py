"""One frozen, checked model per command."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bertray.config.sections import (
    AuditData,
    AuditReportOptions,
    Cleaning,
    Columns,
    Drift,
    Ids,
    LabelErrors,
    NearDuplicates,
    ReportOptions,
    TextFormat,
    TopicOptions,
    TrainReportOptions,
    Workers,
)
from bertray.config.training import NewEncoder, NewVocabulary, Pretraining, Review, Search, TrainData, Training
from bertray.config.values import SLOT_PATTERN, AspectNames, Labels, Paths, Section, Text
from bertray.settings import (
    AspectHead,
    EmbeddingKind,
    LongText,
    Pooling,
    ScoringPrecision,
    VectorFormat,
    VocabularyUnit,
)


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


# Keys of several commands that mean the same in each.
_MAX_LENGTH: Any = Field(
    128,
    ge=8,
    description="maximum tokens per review, special tokens included; longer reviews are handled as `long_text` says. "
    "Raise it for long reviews; time grows with it",
)
_MAX_CHARS: Any = Field(
    20_000,
    ge=100,
    description="characters kept of a text before tokenization, and a flag on the row; bounds the time that one huge "
    "text can take",
)
_LENGTH_OF_BUNDLE: Any = Field(
    None,
    ge=8,
    description="maximum tokens per review; by default the bundle's, which is right unless you compare lengths",
)
_LONG_TEXT_OF_BUNDLE: Any = Field(
    None,
    description="tokens kept of a longer review: head, tail, head_tail, windows or select (sentences nearest to the "
    "aspect); by default the bundle's",
)
_CLEANING_OF_ENCODER: Any = Field(
    None, description="cleaning before the tokenizer; by default the bundle's, for an encoder the defaults of train"
)
_CHARS_OF_ENCODER: Any = Field(
    None,
    ge=100,
    description="characters kept of a text; by default the bundle's, for an encoder the default of train",
)
_REGISTRY: Any = Field(..., min_length=1, description="folder, or s3://, gs:// or az:// prefix, of the registry")
_NAME: Any = Field(..., min_length=1, description="name in the registry, such as reviews")
_REASON: Any = Field(None, min_length=1, description="reason for the history")
_OUTPUT_OF_SCORE: Any = Field(..., min_length=1, description="output of score or embed")

_EXPECT_EVERY: Any = Field(
    None,
    gt=0,
    description="hours within which a new night is expected, such as 26: `bertray files` and reports/index.html say "
    "when it is missing",
)
_NOTIFY: Any = Field(
    None,
    min_length=1,
    description="target of the headline of a night: an http(s) address that takes JSON, or a command that reads it on "
    "its standard input; it holds no text of reviews",
)
_MLFLOW: Any = Field(
    None,
    min_length=1,
    description="tracking URI of MLflow, such as http://tracking:5000, that receives parameters, metrics, the page and "
    "the bundle of the run (extra `mlflow`)",
)
_LABELS_ORDERED: Any = Field(
    False,
    description="the classes have an order, that of their ids (stars, negative < neutral < positive): report the mean "
    "absolute error, quadratic weighted kappa and the share off by more than one class",
)


def _aspects_field(otherwise: str) -> Any:
    return Field(
        None,
        description="aspects that each review is read for, such as [food, service]: each is a row of its own, with the "
        "id `<id>#<aspect>`; its label stands in the column of its name, or write {food: COLUMN, service: COLUMN}. "
        f"{otherwise}",
    )


_ASPECTS_OF_BUNDLE: Any = _aspects_field("By default those that the model was trained for")


def _check_aspects(config: Any) -> None:
    """One source of aspects, and of their labels."""
    if config.aspects is None:
        return
    for name in ("text_pair", "aspects"):
        if getattr(config.columns, name) is not None:
            raise ValueError(f"aspects and columns.{name} exclude each other; leave one of the two out")
    if config.columns.label != Columns.model_fields["label"].default:
        raise ValueError("columns.label: each aspect has a label column of its own; write aspects={ASPECT: COLUMN}")


def _second_texts(config: Any) -> list[str]:
    """Keys that are given, of those that put a second text beside a review."""
    values = {"aspects": config.aspects}
    values |= {f"columns.{name}": getattr(config.columns, name) for name in ("aspects", "text_pair")}
    return [key for key, value in values.items() if value is not None]


def _check_select(config: Any) -> None:
    if config.long_text == "select" and not _second_texts(config):
        raise ValueError(
            "long_text=select keeps the sentences that concern an aspect; give aspects, columns.aspects or "
            "columns.text_pair"
        )


def _check_no_aspects(config: Any, verb: str) -> None:
    if config.columns.aspects is not None:
        raise ValueError(f"columns.aspects: {verb} reads a review once; leave the key out")


def _check_one_text(config: Any, verb: str) -> None:
    if len(config.columns.texts) > 1:
        raise ValueError(f"columns.text: {verb} reads one column; name that of the review")


class TrainConfig(Common):
    """`bertray train`: labelled reviews to a model bundle and a report."""

    data: TrainData = TrainData()
    training: Training = Training()
    mlflow: Text | None = _MLFLOW
    labels_ordered: bool = _LABELS_ORDERED
    aspects: AspectNames = _aspects_field("Scoring with the model then needs no key")
    head: AspectHead = Field(
        "classifier",
        description="classifier: the architecture's own head on the first token; attention: a head that pools the "
        "tokens of a review with a learned query of its aspect (needs aspects or columns.text_pair, and an encoder "
        "with token types, such as BERT)",
    )
    max_length: int = _MAX_LENGTH
    long_text: LongText = Field(
        "head",
        description="tokens kept of a review longer than max_length: head (first), tail (last), head_tail (both "
        "ends), windows (all, in overlapping windows whose probabilities are averaged), or select (the sentences "
        "nearest to the aspect; needs one)",
    )
    max_chars: int = _MAX_CHARS
    cleaning: Cleaning = Cleaning()
    review: Review = Review()
    report: TrainReportOptions = TrainReportOptions()

    @model_validator(mode="after")
    def _needs_train(self) -> TrainConfig:
        if not self.data.train:
            raise ValueError("data.train is missing: labelled reviews to learn from")
        _check_precision(self.training.precision, self.workers, "training.precision")
        _check_aspects(self)
        _check_select(self)
        self._check_head()
        if self.training.method == "distill":
            self._check_distill()
        return self

    def _check_head(self) -> None:
        if self.head == "classifier":
            return
        if not _second_texts(self):
            raise ValueError("head=attention pools by an aspect; give aspects, columns.aspects or columns.text_pair")
        if self.training.lora.rank is not None:
            raise ValueError("training.lora: head=attention learns all weights; leave one of the two out")
        if self.training.method not in ("auto", "finetune"):
            raise ValueError(f"head=attention applies to training.method=finetune, not to {self.training.method}")

    def _check_distill(self) -> None:
        if self.training.teacher is None:
            raise ValueError("training.teacher is missing: the bundle that training.method=distill learns from")
        if self.data.test is None:
            raise ValueError("data.test is missing: labelled reviews on which student and teacher are evaluated")
        if self.data.validation is not None or self.data.test_from is not None:
            raise ValueError("training.method=distill holds out a share of data.train; leave the other keys out")
        for key in _second_texts(self):
            raise ValueError(f"{key}: training.method=distill reads a review once; leave the key out")
        if self.review != Review():
            raise ValueError("review: training.method=distill reads no labels to tell right rows by")
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
    max_length: int = _MAX_LENGTH
    long_text: Literal["head", "tail", "head_tail"] = Field(
        "head",
        description="tokens kept of a review longer than max_length: head (first), tail (last), head_tail (both ends)",
    )
    max_chars: int = _MAX_CHARS
    cleaning: Cleaning = Cleaning()

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainConfig:
        if self.labels is not None:
            raise ValueError("labels: pretrain reads none; leave the key out")
        _check_precision(self.training.precision, self.workers, "training.precision")
        if self.columns.text_pair is not None:
            raise ValueError("columns.text_pair: pretrain reads one text; leave the key out")
        _check_no_aspects(self, "pretrain")
        if self.from_scratch and self.model != type(self).model_fields["model"].default:
            raise ValueError(f"model={self.model}: from_scratch=true trains a new model; leave one of the two out")
        if not self.from_scratch and (self.encoder, self.vocabulary) != (NewEncoder(), NewVocabulary()):
            raise ValueError("encoder, vocabulary: settings of a new encoder; add from_scratch=true or leave them out")
        return self


class TuneConfig(TrainConfig):
    """`bertray tune`: hyperparameter search over train, judged on validation rows."""

    search: Search = Search()

    @model_validator(mode="after")
    def _one_seed_a_trial(self) -> TuneConfig:
        if self.mlflow is not None:
            raise ValueError("mlflow: trials are not logged; `train` with the best settings is")
        if self.training.seeds:
            raise ValueError("training.seeds: a trial has one seed; vary `seed` in search.space to see its luck")
        return self


_SCORING_PRECISION: Any = Field(
    "auto",
    description="number format of the forward pass; auto: bf16 where the hardware computes in it, fp16 on older GPUs, "
    "else fp32; int8: faster on CPUs with VNNI or AMX; reviews whose two best labels are close are computed again in "
    "full precision",
)


class EvaluateConfig(Common):
    """`bertray evaluate`: a model on labelled reviews."""

    input: Paths = Field(..., description="labelled reviews: file, folder, glob or list")
    mlflow: Text | None = _MLFLOW
    labels_ordered: bool = _LABELS_ORDERED
    aspects: AspectNames = _ASPECTS_OF_BUNDLE
    max_length: int | None = _LENGTH_OF_BUNDLE
    long_text: LongText | None = _LONG_TEXT_OF_BUNDLE
    precision: ScoringPrecision = _SCORING_PRECISION
    report: ReportOptions = ReportOptions()

    @model_validator(mode="after")
    def _computes_so(self) -> EvaluateConfig:
        _check_precision(self.precision, self.workers)
        _check_aspects(self)
        return self


def _check_precision(precision: ScoringPrecision, workers: Workers, key: str = "precision") -> None:
    if precision == "int8" and workers.use_gpu:
        raise ValueError(f"{key}=int8 is for CPUs; leave it out with workers.use_gpu=true")
    if precision == "fp16" and not workers.use_gpu:
        raise ValueError(f"{key}=fp16 is for GPUs; leave it out, or set workers.use_gpu=true")


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
    aspects: AspectNames = _ASPECTS_OF_BUNDLE
    max_length: int | None = _LENGTH_OF_BUNDLE
    long_text: LongText | None = _LONG_TEXT_OF_BUNDLE
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
    expect_every: float | None = _EXPECT_EVERY
    notify: Text | None = _NOTIFY
    single_writer: bool = Field(
        False, description="accept a store without put-if-absent: you ensure that one run at a time writes"
    )
    rows_per_shard: int | None = Field(
        None,
        ge=1,
        description="rows per shard, the unit of work and of resume; by default 4096, more on GPUs (up to 32768) and "
        "for huge inputs",
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

    @model_validator(mode="after")
    def _aspects_from_one_place(self) -> NightConfig:
        _check_aspects(self)
        return self

    @property
    def report_options(self) -> ReportOptions:
        """Configurable parts of the report."""
        return ReportOptions()


class ScoreConfig(NightConfig):
    """`bertray score`: review files to committed scored rows."""

    verb: ClassVar[str] = "score"

    mlflow: Text | None = _MLFLOW
    needs_review_below: float | None = Field(
        None,
        gt=0,
        le=1,
        description="score below which a row gets needs_review=true, from 0 to 1; by default that of the bundle (see "
        "review of train), and without one there is no such column",
    )
    precision: ScoringPrecision = _SCORING_PRECISION
    input: Paths = Field(
        (), description="review files: file, folder, glob or list; files that were scored before are left out"
    )
    truth: Paths | None = Field(
        None,
        description="files of labels that came later, with the columns of ids and labels alone: compared with the rows "
        "of every slot, they show how often estimates were right, and give later ones their intervals; needs no input",
    )
    drift: Drift = Drift()
    on_drift: Literal["report", "fail"] = Field(
        "report",
        description="a night that drifts: say so on its page and in the log, or also end with exit 8, for an "
        "orchestrator; its rows are committed all the same",
    )
    report: ReportOptions = ReportOptions()

    @model_validator(mode="after")
    def _has_something_to_do(self) -> ScoreConfig:
        if not self.input and self.drift.accept is None and not self.truth:
            raise ValueError("input is missing: the review files to score")
        return self

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
        description="vectors to write: mean over all tokens, cls (the first token), tokens (one vector per token), or "
        "vocabulary (one vector for each distinct character, token or word of all reviews, in vectors.parquet)",
    )
    unit: VocabularyUnit | None = Field(
        None,
        description="pooling=vocabulary: a vector for each character (the default), token of the encoder, or word: "
        "the mean over all its occurrences",
    )
    format: VectorFormat | None = Field(
        None,
        description="pooling=vocabulary: parquet (the default), or word2vec, which writes vectors.txt in that format "
        "beside vectors.parquet",
    )
    normalize: bool = Field(
        False, description="scale each vector to length 1, so that a dot product is the cosine similarity"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="number format of the written vectors; float16 halves the size"
    )
    rescore: Literal["never"] = Field("never", description="vectors of another model belong in another output")
    cleaning: Cleaning | None = _CLEANING_OF_ENCODER
    max_chars: int | None = _CHARS_OF_ENCODER

    @model_validator(mode="after")
    def _fits_together(self) -> EmbedConfig:
        if self.labels is not None:
            raise ValueError("labels: embed reads none; leave the key out")
        if self.pooling == "vocabulary":
            self._check_vocabulary()
            return self
        for key in ("unit", "format"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: only for pooling=vocabulary; set that, or leave the key out")
        return self

    @property
    def vocabulary_unit(self) -> VocabularyUnit | None:
        """Unit of `pooling=vocabulary`; None: another pooling."""
        return (self.unit or "character") if self.pooling == "vocabulary" else None

    def _check_vocabulary(self) -> None:
        """A vector is of all reviews: nothing of a single one can stand beside it."""
        if self.keep_columns:
            raise ValueError("keep_columns: pooling=vocabulary writes no row of a review; leave the key out")
        for key in _second_texts(self):
            raise ValueError(f"{key}: pooling=vocabulary reads each text once and alone; leave the key out")
        if self.long_text in ("windows", "select"):
            raise ValueError(
                f"long_text={self.long_text}: pooling=vocabulary counts each token once; set long_text=head, tail or "
                "head_tail"
            )


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
    cleaning: Cleaning | None = _CLEANING_OF_ENCODER
    max_chars: int | None = _CHARS_OF_ENCODER
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
        _check_no_aspects(self, "topics")
        _check_one_text(self, "topics")
        if self.long_text == "select" and self.columns.text_pair is None:
            raise ValueError("long_text=select keeps the sentences that concern an aspect; give columns.text_pair")
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
        _check_no_aspects(self, "audit")
        _check_one_text(self, "audit")
        return self

    @property
    def splits(self) -> dict[str, tuple[str, ...]]:
        """The paths of each split that is given, in the order in which they are compared."""
        given = {name: getattr(self.data, name) for name in AuditData.model_fields}
        return {name: paths for name, paths in given.items() if paths}


OF_SHARES = ("label", "rows", "counted", "share", "low", "high", "method", "labelled_rows")
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
    mlflow: Text | None = _MLFLOW
    rows: Literal["all", "disagreements"] = Field(
        "all",
        description="disagreements: of reviews without labels, write those where the models differ to queue.csv; their "
        "labels decide with about a tenth of the labels",
    )
    answers: Text | None = Field(
        None,
        min_length=1,
        description="with rows=disagreements: queue.csv of the same models and reviews, its column label filled in; "
        "the gain on all reviews is estimated from it",
    )
    budget: int = Field(200, ge=1, description="most reviews in queue.csv, a random sample of the disagreements")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    labels: Labels = _OF_EVALUATE["labels"]
    labels_ordered: bool = _LABELS_ORDERED
    aspects: AspectNames = _ASPECTS_OF_BUNDLE
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
        _check_aspects(self)
        if self.rows == "disagreements" and not self.input:
            raise ValueError("input is missing: the reviews without labels for rows=disagreements")
        if self.answers is not None and self.rows != "disagreements":
            raise ValueError("answers: labels of disagreements; add rows=disagreements")
        return self

    def evaluation_of(self, model: str) -> EvaluateConfig:
        """Config of an evaluation of one of the two models on the same reviews."""
        shared = {name: getattr(self, name) for name in EvaluateConfig.model_fields if name in type(self).model_fields}
        return EvaluateConfig(**{**shared, "model": model})


class PromoteConfig(EvaluateConfig):
    """`bertray promote NAME`: a candidate becomes the model that NAME stands for, if it passes the release gate."""

    name: Text = _NAME
    registry: Text = _REGISTRY
    output: Text | None = Field(  # type: ignore[assignment]  # the registry receives everything
        None,
        min_length=1,
        description="folder, or s3://, gs:// or az:// prefix, that receives a copy of the comparison",
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
    reason: Text | None = _REASON

    @model_validator(mode="after")
    def _says_why(self) -> PromoteConfig:
        if self.mlflow is not None:
            raise ValueError("mlflow: the registry keeps what a promotion was judged by; `compare` logs to MLflow")
        if self.force and self.reason is None:
            raise ValueError("force=true needs reason=...: it is kept in the history")
        return self


class RollbackConfig(Section):
    """`bertray rollback NAME`: NAME stands for an earlier version again."""

    name: Text = _NAME
    registry: Text = _REGISTRY
    to: Text | None = Field(None, min_length=1, description="model version; by default the one before the current one")
    reason: Text | None = _REASON


class RegistryConfig(Section):
    """`bertray registry`: names, versions, who let them in, and when."""

    registry: Text = _REGISTRY
    name: Text | None = Field(None, min_length=1, description="list only this name")


class FilesConfig(Section):
    """`bertray files`: the committed part files of an output, one a line, for exact readers."""

    output: Text = _OUTPUT_OF_SCORE
    slot: Text | None = Field(None, description="list only this slot")
    expect_every: float | None = _EXPECT_EVERY
    notify: Text | None = _NOTIFY


class GcConfig(Section):
    """`bertray gc`: files that an output no longer needs; listed, and removed on request."""

    output: Text = _OUTPUT_OF_SCORE
    delete: bool = Field(False, description="remove what is listed")
    grace_days: float = Field(7, ge=0, description="days for which replaced versions and unfinished runs are kept")


class SharesConfig(Section):
    """`bertray shares`: share of each label per group, corrected for the errors of the model, with intervals."""

    scored: Text = Field(..., min_length=1, description="output of score")
    slot: Text | None = Field(None, description="read only this slot")
    by: tuple[Text, ...] = Field(
        (),
        description="columns of the scored rows whose values are groups, such as [product, week]; slot, day, week and "
        "month are those of the slot's date; by default all rows are one group",
    )
    answers: Text | None = Field(
        None,
        min_length=1,
        description="output of `bertray answers`: rows with a known probability of being drawn correct the shares",
    )
    truth: Paths | None = Field(
        None,
        description="files of labels by id: groups with 300 labelled rows of their own are corrected by what the model "
        "confuses there",
    )
    output: Text = _OF_EVALUATE["output"]
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    labels: Labels = _OF_EVALUATE["labels"]
    workers: Workers = Workers()

    @field_validator("by")
    @classmethod
    def _each_column_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        taken = [name for name in names if name in OF_SHARES]
        if taken:
            raise ValueError(f"{taken[0]!r} is a column of shares.parquet itself; rename it in the data")
        return _once(names)


class QueueConfig(Section):
    """`bertray queue`: the reviews worth a person's minutes."""

    scored: Text = Field(..., min_length=1, description="output of score")
    slot: Text | None = Field(None, description="ask about this slot; by default the newest one")
    budget: int = Field(
        100,
        ge=2,
        description="reviews to ask about: half drawn with known probabilities, which tell of all the others, half "
        "those the model is least sure of, which teach it most",
    )
    output: Text = _OF_EVALUATE["output"]
    seed: int = _OF_EVALUATE["seed"]
    workers: Workers = Workers()


class AnswersConfig(Section):
    """`bertray answers`: filled-in queues back, versioned."""

    answers: Paths = Field(
        ..., description="queue.csv or queue.parquet, the column label filled in: file, folder, glob or list"
    )
    queue: Text = Field(..., min_length=1, description="output of `bertray queue` that they were made from")
    output: Text = Field(
        ..., min_length=1, description="folder, or s3://, gs:// or az:// prefix, that gathers answers of any queues"
    )
    who: Text | None = Field(
        None, min_length=1, description="person who answered, where the files have no column who; by default the user"
    )
    labels: Labels = _OF_EVALUATE["labels"]

    @field_validator("answers")
    @classmethod
    def _has_a_file(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        if not paths:
            raise ValueError("expected a file, found an empty list")
        return paths


class FetchConfig(Section):
    """`bertray fetch MODEL`: a model with its tokenizer into a folder that needs no network."""

    model: Text = Field(
        ..., min_length=1, description="model: hub id (`name@revision`), folder, `<run>/model`, s3:// prefix or bundled"
    )
    output: Text = Field(
        ...,
        min_length=1,
        description="folder, or prefix (s3://, gs://, az://), for the model; `model=` of other commands",
    )


class PredictConfig(Section):
    """`bertray predict MODEL TEXT ...`: labels and probabilities of texts typed on the command line."""

    model: Text = Field(
        ..., min_length=1, description="model: folder, `<run>/model`, hub id of a classifier, or `registry:NAME`"
    )
    texts: tuple[Text, ...] = Field(..., min_length=1, description="texts to label")
    registry: Text | None = Field(
        None,
        min_length=1,
        description="folder, or prefix (s3://, gs://, az://), of the models that `registry:NAME` stands for",
    )


class DemoConfig(Section):
    """`bertray demo`: the whole path on bundled reviews."""

    output: Text = Field("demo-run", min_length=1, description="folder that receives all results")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every random choice")


class BenchmarkConfig(Section):
    """`bertray benchmark`: throughput on this machine, beside what people use instead and the machine's limit."""

    model: Text = Field(
        "bundled",
        min_length=1,
        description="classifier, encoder (with a random head), or random weights of a known size: untrained-bert-base, "
        "untrained-minilm",
    )
    input: Paths | None = Field(None, description="reviews: file, folder, glob or list; by default the bundled ones")
    output: Text = Field("benchmark-run", min_length=1, description="local folder that receives benchmark.json")
    columns: Columns = Columns()
    reader: TextFormat = TextFormat()
    max_length: int = Field(128, ge=8, description="maximum tokens per review, special tokens included")
    rows: int = Field(2048, ge=1, description="reviews that bertray scores, a random sample of the input")
    rival_rows: int = Field(256, ge=1, description="reviews of that sample that the slower contestants score")
    rounds: int = Field(3, ge=1, description="runs of each contestant, in turn; the median counts")
    beside: tuple[
        Literal["pipeline", "ray", "ray_spread", "padded", "openvino", "openvino_int8", "onnx_int8", "int8"], ...
    ] = Field(
        ("pipeline", "ray", "padded"),
        description="contestants: pipeline (transformers), ray (Ray's documented recipe), ray_spread (the same, rows "
        "dealt out to all actors), padded (batches sorted by length); on CPU openvino, openvino_int8 (quantized by "
        "NNCF), onnx_int8 (ONNX Runtime, quantized), and int8 (our engine in int8)",
    )
    training: bool = Field(False, description="measure training too, beside the loop of the tutorials")
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="cuda: each worker has a GPU, as with workers.use_gpu=true; by default as that key says"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the sample")
    workers: Workers = Workers()
    price_per_hour: float | None = Field(
        None, ge=0, description="price of all machines per hour, for the cost of a million reviews"
    )

    @model_validator(mode="after")
    def _on_cpu(self) -> BenchmarkConfig:
        _check_no_aspects(self, "benchmark")
        if self.device == "cpu" and self.workers.use_gpu:
            raise ValueError("device=cpu and workers.use_gpu=true exclude each other; leave one of the two out")
        if self.uses_gpu and (for_cpus := {"openvino", "openvino_int8", "onnx_int8", "int8"} & set(self.beside)):
            raise ValueError(f"beside: for CPUs are {', '.join(sorted(for_cpus))}; leave them out on a GPU")
        return self

    @property
    def uses_gpu(self) -> bool:
        """Whether each worker has a GPU."""
        return self.workers.use_gpu or self.device == "cuda"


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
    "shares": SharesConfig,
    "queue": QueueConfig,
    "answers": AnswersConfig,
    "files": FilesConfig,
    "gc": GcConfig,
    "fetch": FetchConfig,
    "predict": PredictConfig,
    "demo": DemoConfig,
    "benchmark": BenchmarkConfig,
    "doctor": DoctorConfig,
    "init": InitConfig,
}
