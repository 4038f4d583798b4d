"""Ways of labelling a file, run in turn: their measurements, and the table and sentences on them."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import bertray
from bertray.benchmark import made_up
from bertray.benchmark.contestants import Contestant, Task, rival_dtype
from bertray.benchmark.gpu import visible_gpus, watched_gpus
from bertray.benchmark.limit import ModelShape
from bertray.benchmark.memory import watched
from bertray.benchmark.silicon import products, silicon_rates
from bertray.model.bundle import BundleInfo, bundled_model, read_info, resolve_model, write_bundle
from bertray.model.engine import FORMATS, choose_dtype
from bertray.model.pretrained.weights import load_config, load_for_training
from bertray.reviews.clean import Cleaning
from bertray.runtime import COMPUTE_ENV, num_cpus, unless_chosen

TITLES = {
    "bertray": "bertray score",
    "engine": "its engine alone",
    "pipeline": "HF pipeline",
    "ray": "Ray's recipe",
    "ray_spread": "Ray's, all actors busy",
    "padded": "sorted batches",
    "openvino": "OpenVINO",
    "openvino_int8": "OpenVINO in int8",
    "onnx_int8": "ONNX Runtime in int8",
    "int8": "its engine in int8",
    "train_bertray": "bertray train",
    "train_tutorial": "tutorial loop",
}
INT8 = ("int8", "openvino_int8", "onnx_int8")
OWN_PRECISION = ("bertray", "engine", "openvino", "train_bertray")  # bf16 where the CPU has it
FAST = ("bertray", "engine", "openvino", *INT8)  # these get all reviews
TRAINING = ("train_bertray", "train_tutorial")
WINDOW_ROWS = 4096  # reviews that are sorted by length together, as many as in a shard


@dataclass
class Runs:
    """Measurements of one way, run after run, over the same reviews."""

    rows: int
    tokens: int  # padding not counted
    flops: float  # of the whole model, over these tokens
    seconds: list[float] = field(default_factory=list)  # at work; start-up is apart
    limits: list[float] = field(default_factory=list)  # FLOP/s of matrix products, the best of each round
    number_format: str = ""  # in which it multiplies: a key of what `silicon` holds
    silicon: list[dict[str, float]] = field(default_factory=list)  # of each round, as `silicon_rates` has them
    start_up_s: list[float] = field(default_factory=list)
    gpu_busy: list[float] = field(default_factory=list)  # share of these seconds, of runs of which it is known
    peak_mb: int = 0

    def faster_by(self, other: Runs) -> float:
        """Speed-up over another way in tokens/s: the median over rounds, in which both took turns.

        What slows the machine for a minute slows both, so that the ratio of a round tells more than that of medians.
        """
        ratios = (self.tokens / np.array(self.seconds)) / (other.tokens / np.array(other.seconds))
        return float(np.median(ratios))

    @property
    def rows_per_s(self) -> float:
        return float(self.rows / np.median(self.seconds))

    @property
    def tokens_per_s(self) -> float:
        return float(self.tokens / np.median(self.seconds))

    @property
    def share_of_limit(self) -> float:
        """Share of the rate of matrix products in each run's round; the median, since the machine's speed moves."""
        return float(np.median(self.flops / np.array(self.seconds) / np.array(self.limits)))

    @property
    def share_of_silicon(self) -> float | None:
        """Likewise of the rate of the CPU's widest product in this number format; None where that is not known."""
        rates = [rates[self.number_format] for rates in self.silicon if self.number_format in rates]
        return float(np.median(self.flops / np.array(self.seconds) / np.array(rates))) if rates else None


@dataclass(frozen=True)
class Trial:
    """Input of every way: the same model, and the same reviews or the first of them.

    Args:
        folder: holds the Parquet files, and receives what the ways write.
        model: folder of the classifier.
        max_length: tokens of a review that it sees.
        lens_N: tokens of each review, at most `max_length`.
        few_rows: so many reviews for the slower ways.
        environment: of the ways that are not ours.
    """

    folder: Path
    model: Path
    max_length: int
    lens_N: np.ndarray
    few_rows: int
    device: str
    environment: Mapping[str, str]

    @property
    def all_reviews(self) -> Path:
        return self.folder / "all" / "reviews.parquet"

    @property
    def few_reviews(self) -> Path:
        return self.folder / "few.parquet"

    def labelled_by(self, name: str) -> Path:
        """Output of a way in a process of its own: `label` and `score` of its reviews, in their order."""
        return self.folder / f"{name}.parquet"

    @property
    def shape(self) -> ModelShape:
        return ModelShape.of(load_config(self.model))

    def runs(self, name: str) -> Runs:
        """An empty record of a way; a backward pass counts as two forward ones."""
        lens_N = self.lens_N if name in FAST else self.lens_N[: self.few_rows]
        passes = 3.0 if name in TRAINING else 1.0
        flops = passes * self.shape.flops(lens_N)
        return Runs(len(lens_N), int(lens_N.sum()), flops, number_format=self._number_format(name))

    def _number_format(self, name: str) -> str:
        if name in INT8:
            return "int8"
        own = choose_dtype("auto", torch.device(self.device)) if name in OWN_PRECISION else rival_dtype(self.device)
        return FORMATS[own]

    def contestant(self, name: str) -> Contestant:
        """A way that runs in a process of its own; ours compute in our environment."""
        ours = name in ("engine", "int8", "train_bertray")
        task = Task(
            name=name,
            model=str(self.model),
            input=str(self.all_reviews if name in FAST else self.few_reviews),
            output=str(self.labelled_by(name)),
            max_length=self.max_length,
            device=self.device,
            window_rows=WINDOW_ROWS if name in FAST else 0,
        )
        return Contestant(task, {**(unless_chosen(COMPUTE_ENV) if ours else {}), **self.environment})


def open_trial(
    folder: Path,
    model: str,
    texts: pa.Array,
    *,
    max_length: int,
    few_rows: int,
    device: str,
    environment: Mapping[str, str],
    seed: int,
    tokenizer: Path | None = None,
) -> Trial:
    """Write the Parquet files, and a classifier where `model` is an encoder: its head is random and costs the same.

    Args:
        tokenizer: of an untrained model, where it reads made-up words.
    """
    from bertray.model.tokenization import ReviewTokenizer, sequences

    classifier = classifier_of(folder, model, max_length, seed, tokenizer)
    trial = Trial(folder, classifier, max_length, np.empty(0), few_rows, device, environment)
    trial.all_reviews.parent.mkdir(parents=True)
    reviews = pa.table({"id": pa.array([f"r{row}" for row in range(len(texts))]), "text": texts})
    pq.write_table(reviews, trial.all_reviews)
    pq.write_table(reviews.slice(0, few_rows), trial.few_reviews)
    return replace(trial, lens_N=sequences(ReviewTokenizer(trial.model, max_length).encode(texts)).lens_S)


def tokenizer_folder(model: str) -> Path:
    """Folder of a model, or of the one whose words an untrained model reads."""
    return bundled_model() if model in made_up.SIZES else resolve_model(model)


def classifier_of(folder: Path, model: str, max_length: int, seed: int, tokenizer: Path | None = None) -> Path:
    """The model itself, or below `folder` a classifier on it whose head is random."""
    found = tokenizer or tokenizer_folder(model)
    untrained = model in made_up.SIZES
    config = {} if untrained else json.loads((found / "config.json").read_text(encoding="utf-8"))
    architectures = config.get("architectures") or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        read_info(found, model=model)
        return found
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    labels = ("negative", "positive")
    if untrained:
        classifier: Any = BertForSequenceClassification(made_up.config_of(model))
    else:
        classifier, _ = load_for_training("SequenceClassification", found, _of_two_classes)
    classifier.config.id2label = dict(enumerate(labels))
    classifier.config.label2id = {label: number for number, label in enumerate(labels)}
    values: dict[str, str | None] = {label: label for label in labels}
    info = BundleInfo(labels=labels, label_values=values, max_length=max_length, long_text="head", cleaning=Cleaning())
    write_bundle(folder / "model", classifier, found, info, "An untrained head.\n")
    return folder / "model"


def _of_two_classes(config: Any) -> None:
    config.num_labels = 2


Way = Callable[[int, Runs], None]  # does run number N and notes what it took


def in_turn(
    trial: Trial, ways: Mapping[str, Way | None], rounds: int, on_run: Callable[[str], None], num_gpus: int = 1
) -> dict[str, Runs]:
    """Run the ways one after the other, again and again.

    Args:
        trial: what they are given.
        ways: by name, in order; None for one that runs in a process of its own.
        rounds: how often each runs.
        on_run: told the name after each run.
        num_gpus: that a way which is no process of its own works on, where it works on such; the others work on one.
    """
    measured = {name: trial.runs(name) for name in ways}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(trial.contestant(name)) for name, way in ways.items() if way is None}
        limit = processes["limit"] = stack.enter_context(trial.contestant("limit"))
        others = frozenset(process.pid for process in processes.values())
        gpus = visible_gpus(trial.device)
        for number in range(rounds):
            limits = []  # an ending cluster slows what is measured right after it, so that the best of a round counts
            silicon: dict[str, float] = {}
            for name, way in ways.items():
                runs = measured[name]
                limits.append(1e12 / limit.seconds())
                if trial.device == "cpu":
                    silicon = {form: max(rate, silicon.get(form, 0.0)) for form, rate in silicon_rates().items()}
                with watched_gpus(gpus[: num_gpus if way else 1]) as busy:
                    if way is None:
                        runs.seconds.append(processes[name].seconds())
                    else:
                        with watched(apart=others) as peak:
                            way(number, runs)
                        runs.peak_mb = max(runs.peak_mb, peak.mb)
                    share = busy.share_of_last(runs.seconds[-1], until=time.monotonic())
                # The timing of our training ends before its checkpoint is written, at an unknown moment.
                if share is not None and name != "train_bertray":
                    runs.gpu_busy.append(share)
                on_run(name)
            for runs in measured.values():
                runs.limits.append(max(limits))
                runs.silicon.append(silicon)
    return measured


# --- telling ---------------------------------------------------------------------------------------------------------


def to_json(
    trial: Trial, model: str, rounds: int, measured: Mapping[str, Runs], price_per_hour: float | None
) -> dict[str, Any]:
    """Everything that was measured, with the machine; rates and ratios are medians over the rounds."""
    device = torch.device(trial.device)
    own = measured.get("bertray") or measured["engine"]
    minutes = 1e6 / own.rows_per_s / 60
    ways = {}
    for name, runs in measured.items():
        ours = measured["train_bertray"] if name in TRAINING else own
        ways[name] = {
            "title": TITLES[name],
            "rows": runs.rows,
            "tokens": runs.tokens,
            "seconds": runs.seconds,
            "start_up_s": runs.start_up_s,
            "gpu_busy": runs.gpu_busy,
            "rows_per_s": runs.rows_per_s,
            "tokens_per_s": runs.tokens_per_s,
            "share_of_limit": runs.share_of_limit,
            "number_format": runs.number_format,
            "share_of_silicon": runs.share_of_silicon,
            "tflops": runs.flops / float(np.median(runs.seconds)) / 1e12,
            "bertray_is_faster_by": ours.faster_by(runs),
            "peak_mb": runs.peak_mb or None,
            "agreement": agreement(trial, name),
        }
    return {
        "schema_version": 1,
        "bertray": bertray.__version__,
        "machine": {
            "processor": processor(),
            "cores": num_cpus(),
            "device": trial.device,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "precision": str(choose_dtype("auto", device)).removeprefix("torch."),
        },
        "model": model,
        "max_length": trial.max_length,
        "rounds": rounds,
        "tokens_per_review": float(trial.lens_N.mean()),
        "limit_tflops": float(np.median(own.limits)) / 1e12,
        "limit_tflops_of_rounds": [limit / 1e12 for limit in own.limits],
        "silicon": _silicon(own),
        "ways": ways,
        "job_share_of_engine": own.faster_by(measured["engine"]),
        "minutes_per_million_reviews": minutes,
        "price_per_million_reviews": None if price_per_hour is None else minutes / 60 * price_per_hour,
    }


def _silicon(runs: Runs) -> dict[str, Any]:
    """Widest product of the CPU in each number format, and the median of its rates over the rounds."""
    return {
        form: {"product": products()[form], "tflops": float(np.median([rates[form] for rates in runs.silicon])) / 1e12}
        for form in runs.silicon[0]
    }


def agreement(trial: Trial, name: str) -> dict[str, Any] | None:
    """Labels and scores beside those of `pipeline`, which on CPU is fp32; None where one of the two is not there."""
    files = trial.labelled_by(name), trial.labelled_by("pipeline")
    if name not in FAST or not all(file.is_file() for file in files):
        return None
    found, expected = (pq.read_table(file).slice(0, trial.few_rows) for file in files)
    same_N = np.equal(found["label"].to_numpy(), expected["label"].to_numpy())
    differences_N = np.abs(found["score"].to_numpy() - expected["score"].to_numpy())[same_N]
    return {
        "rows": len(same_N),
        "same_label": int(same_N.sum()),
        "largest_difference": float(differences_N.max(initial=0.0)),
    }


def columns(content: Mapping[str, Any]) -> list[str]:
    """Names of the columns of `table_rows`."""
    if content["machine"]["gpu"]:
        return ["", "rows/s", "tokens/s", "speed-up", "limit", "start", "TFLOP/s", "GPU busy", "peak MB"]
    return ["", "rows/s", "tokens/s", "speed-up", "limit", "silicon", "start", "peak MB"]


def title(content: Mapping[str, Any]) -> str:
    """The machine and the settings, in a line."""
    machine = content["machine"]
    return (
        f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['precision']}, "
        f"{content['model']}, max_length {content['max_length']}, median of {content['rounds']}"
    )


def table_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A row for each way, under `columns`."""
    on_gpu = bool(content["machine"]["gpu"])
    return [
        [
            way["title"],
            f"{way['rows_per_s']:,.1f}",
            f"{way['tokens_per_s']:,.0f}",
            f"{way['bertray_is_faster_by']:.2f}x",
            f"{way['share_of_limit']:.0%}",
            *([] if on_gpu else [_percent(way["share_of_silicon"])]),
            f"{np.median(way['start_up_s']):.0f} s" if way["start_up_s"] else "",
            *([f"{way['tflops']:,.1f}"] if on_gpu else []),
            *([_percent(np.median(way["gpu_busy"]) if way["gpu_busy"] else None)] if on_gpu else []),
            f"{way['peak_mb']:,}" if way["peak_mb"] else "",
        ]
        for way in content["ways"].values()
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def sentences(content: Mapping[str, Any]) -> list[str]:
    """Sentences below the table: its columns, agreement of labels, time for a million reviews."""
    price = content["price_per_million_reviews"]
    cost = "" if price is None else f" and cost {price:,.2f}"
    job = []
    if "bertray" in content["ways"]:
        job = [f"the whole job runs at {content['job_share_of_engine']:.0%} of its engine alone"]
    agreed = [
        f"{way['title']}: {found['same_label']:,} of {found['rows']:,} labels as of the pipeline, "
        f"scores of these within {found['largest_difference']:.2g}"
        for way in content["ways"].values()
        if (found := way["agreement"])
    ]
    return [
        "speed-up: bertray's tokens/s over theirs, padding not counted; limit: share of "
        f"{content['limit_tflops']:.3f} TFLOP/s, what matrix products of these shapes reach here",
        *_on_silicon(content),
        *job,
        *agreed,
        f"1 million reviews like these take {content['minutes_per_million_reviews']:,.0f} minutes{cost}",
    ]


def _on_silicon(content: Mapping[str, Any]) -> list[str]:
    if content["machine"]["gpu"]:
        return []
    if not content["silicon"]:
        return ["silicon: not known, since our kernels, which measure it, are not in use"]
    named = (f"{found['tflops']:.3f} in {form} ({found['product']})" for form, found in content["silicon"].items())
    return [f"silicon: share of the CPU's widest product in each way's number format, TFLOP/s: {', '.join(named)}"]


def processor() -> str:
    """Name of this machine's processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
