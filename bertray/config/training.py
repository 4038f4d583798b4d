"""Sections of `train`, `pretrain` and `tune`; each frozen, each key described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bertray.config.values import MOMENT_PATTERN, AutoCount, AutoRate, AutoShare, Paths, Section, Text
from bertray.settings import BestMetric, ClassWeights, GradientCompression, HeadKind, Pooling, Precision, SamplerKind


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

    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW; biases and norms have none")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping: largest norm of the gradient of a step")
    max_tokens_per_microbatch: int | None = Field(
        None,
        ge=16,
        description="tokens, padding included, of one forward and backward pass; a larger step accumulates gradients. "
        "By default 8192 on a CPU, on a GPU by its memory and the model, up to 65536. Lower it when memory runs out",
    )
    gradient_compression: GradientCompression = Field(
        "none",
        description="format in which several workers exchange gradients; bf16 halves what travels, for machines on a "
        "network of 25 Gbit/s and less",
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
        "auto",
        description="number format of training; auto: bf16 where the hardware computes in it, fp16 (the loss scaled) "
        "on older GPUs, else fp32; of workers on unlike GPUs the one that all compute in",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="lost Ray workers that are replaced before the run ends; counted anew once a later checkpoint was "
        "written",
    )


class Lora(Section):
    """Low-rank adapters: a few weights are learned beside frozen ones, and merged into them at the end."""

    rank: int | None = Field(
        None,
        ge=1,
        description="rank of the adapters, such as 8; by default there are none and all weights are learned. Saves "
        "memory of gradients and optimizer for large encoders",
    )
    alpha: float | None = Field(
        None, gt=0, description="scale of the adapters, divided by the rank; by default twice the rank"
    )
    targets: tuple[str, ...] = Field(
        (),
        description="names of the linear layers that get adapters, such as [query, key, value]; by default the query "
        "and value projections",
    )

    @model_validator(mode="after")
    def _has_a_rank(self) -> Lora:
        if self.rank is None and (self.alpha is not None or self.targets):
            raise ValueError("lora.alpha and lora.targets need lora.rank, such as 8")
        return self


KEYS_OF_METHOD = {  # keys that do not apply to every value of training.method
    "auto": ("match_shares", "class_bias", "max_feature_rows", "lora", "freeze_layers", "layer_decay"),
    "finetune": ("match_shares", "class_bias", "lora", "freeze_layers", "layer_decay"),
    "features": ("head", "pooling", "max_feature_rows"),
    "stack": ("encoder_weight", "max_feature_rows"),
    "contrast": ("steps",),
    "distill": ("teacher", "keep_layers", "softness"),
}


def keys_of_other_methods(method: str) -> list[str]:
    """Keys of `training` that do not apply to a method."""
    names = dict.fromkeys(name for of_one in KEYS_OF_METHOD.values() for name in of_one)
    return [name for name in names if name not in KEYS_OF_METHOD[method]]


class Training(Optimization):
    """Method of training and its settings."""

    epochs: AutoCount = Field(
        "auto",
        description="passes over the train split; auto: 150 optimizer steps for two or three classes "
        "and 300 for more, but at least 3 epochs and at most 20",
    )
    learning_rate: AutoRate = Field(
        "auto",
        description="peak learning rate of AdamW, after warm-up and before linear decay; auto: by hidden size and "
        "number of classes, 1e-4 or 3e-4 for the bundled encoder, 5e-5 or 1e-4 for BERT-base; ten times "
        "that with lora",
    )
    batch_size: AutoCount = Field(
        "auto", description="examples per optimizer step, over all workers and accumulation steps; auto: 16"
    )
    warmup_ratio: AutoShare = Field(
        "auto",
        description="share of all steps during which the learning rate rises, from 0 to 1; auto: 0.1",
    )
    method: Literal["auto", "finetune", "features", "stack", "contrast", "distill"] = Field(
        "auto",
        description="auto: chosen by the number of rows and classes, by cut texts and by what the encoder can read, "
        "and beside TF-IDF where there are rows to choose by; finetune where epochs, learning_rate or another key of "
        "it is given. finetune: train all weights; features: fit a linear head on embeddings of the frozen encoder "
        "(fast, for small data); stack: one logistic regression on these embeddings and TF-IDF of the whole text (as "
        "fast, better on few rows or long reviews); contrast: the encoder learns which reviews have one label, then a "
        "linear head is fitted (for fewer than about 150 rows); distill: train a smaller student on the probabilities "
        "of a teacher",
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
        description="method=features and stack: maximum train rows that the head is fitted on, a random sample; "
        "bounds memory",
    )
    encoder_weight: float | None = Field(
        None,
        ge=0,
        description="method=stack: weight of the encoder beside TF-IDF; by default 1, or 0.5 where max_length cuts "
        "more than half of the reviews. 0 leaves the encoder out, and computes nothing with it: "
        "for a language that it cannot read",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="method=contrast: optimizer steps, each on batch_size reviews of balanced classes; by default 30, "
        "from 64 train rows 40, from 256 rows 60",
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
    seeds: tuple[int, ...] = Field(
        (),
        description="train once with each of these seeds on the same splits, report mean and spread, keep the model "
        "that is best on validation rows, such as [0, 1, 2]; by default once with `seed`",
    )
    class_weights: ClassWeights = Field(
        "none", description="balanced: weigh classes in the loss by inverse frequency, so that rare classes count more"
    )
    match_shares: bool = Field(
        False,
        description="prior correction: shift the logits so that the predicted label shares on validation match the "
        "true ones. For data where the model predicts the frequent class too often",
    )
    class_bias: bool = Field(
        False,
        description="calibrate a fine-tuned model by an offset per class beside the temperature, fitted on validation "
        "rows by log loss. For data.validation of recent reviews with other class shares than the train split",
    )
    best_metric: BestMetric = Field("loss", description="validation metric that picks the best epoch")
    lora: Lora = Lora()
    freeze_layers: int = Field(
        0,
        ge=0,
        description="layers of the encoder, from the first on, that are not learned, with the embeddings; 0: all are "
        "learned. For few rows, or to save memory",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from each layer to the one below it, such as 0.9; 1: one rate for all",
    )

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"names a seed twice: {list(seeds)}")
        if any(not 0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"a seed is from 0 to {2**32 - 1}: {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _has_luck(self) -> Training:
        if self.seeds and self.method in ("features", "stack"):
            raise ValueError(f"training.seeds: method={self.method} has one solution; seeds change nothing of it")
        return self

    @model_validator(mode="after")
    def _learns_of_layers_or_adapters(self) -> Training:
        if self.lora.rank is not None and (self.freeze_layers or self.layer_decay != 1):
            raise ValueError(
                "training.lora freezes every layer, and learns adapters: leave freeze_layers and layer_decay out"
            )
        return self

    @model_validator(mode="after")
    def _corrects_once(self) -> Training:
        if self.class_bias and self.match_shares:
            raise ValueError("training.class_bias and training.match_shares both move the decision; give one")
        return self

    @model_validator(mode="after")
    def _has_keys_of_its_method_alone(self) -> Training:
        for name in keys_of_other_methods(self.method):
            if getattr(self, name) != type(self).model_fields[name].default:
                methods = " and ".join(method for method, names in KEYS_OF_METHOD.items() if name in names)
                raise ValueError(f"training.{name} applies to training.method={methods}, not to {self.method}")
        if self.method == "contrast" and self.epochs != "auto":
            raise ValueError("training.epochs: training.method=contrast counts steps; set training.steps instead")
        return self


class Review(Section):
    """Choice of the score below which a row needs review, on validation rows; stored in the bundle."""

    precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of right labels among the rows that need no review, such as 0.95, with 95 % confidence: the "
        "lowest such score is chosen. Without enough validation rows there is none, and the report says so",
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of rows that people can look at, such as 0.05: those with the lowest scores",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Review:
        if self.precision is not None and self.share is not None:
            raise ValueError("review.precision and review.share each choose the score; give one")
        return self


class Pretraining(Optimization):
    """Masked language modelling and its settings."""

    epochs: int = Field(3, ge=1, description="passes over the texts. Raise it for small data")
    learning_rate: float = Field(
        5e-5,
        gt=0,
        description="peak learning rate of AdamW, after warm-up and before linear decay; 1e-5 to 1e-4 is usual",
    )
    batch_size: int = Field(
        32, ge=1, description="examples per optimizer step, over all workers and accumulation steps"
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="share of all steps during which the learning rate rises, from 0 to 1"
    )

    mask_ratio: float = Field(
        0.15, gt=0, lt=1, description="share of the tokens of a text that are masked and predicted, from 0 to 1"
    )
    whole_words: bool = Field(True, description="mask all pieces of a word together, or none")
    held_out_tokens: int = Field(
        1000,
        ge=2,
        description="tokens scored one at a time for pseudo-perplexity after each epoch; more: a finer figure, slower",
    )


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
