"""Forecast of a train or score config, file by file; nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from bertray import schema as s
from bertray.config import Common, ScoreConfig, TrainConfig
from bertray.errors import DataRefused
from bertray.evaluation.plausibility import judge_training_texts
from bertray.execution.on_demand import ExecutorFor, OnDemand, in_this_process
from bertray.execution.resources import Resources
from bertray.execution.session import inside_cluster, resources_without_start, without_ray
from bertray.io.store import open_store
from bertray.model.bundle import resolve_model
from bertray.model.new_encoder import write_shallow
from bertray.model.profile import Reading, add_readings
from bertray.model.tokenization import ReviewTokenizer, Sequences, ranges, sequences
from bertray.outputs.claims import check_claim
from bertray.outputs.ledger import read_ledger
from bertray.reviews.corpus import Inputs
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import Aspects
from bertray.runs.fit.automatic import choice_for, folds_for
from bertray.runs.fit.labelled_data import LabelledData, open_data
from bertray.runs.fit.scheduled import Task, encoder_size, in_words, judge_steps
from bertray.runs.fit.training import check_train, run_key_of, seeds_key
from bertray.runs.results import PlannedFile, PlanResult, Table
from bertray.scoring.decide import Tonight, decide, spec_for
from bertray.scoring.models import open_model
from bertray.scoring.next_plan import target_of_new_files, unfinished_plan
from bertray.scoring.plan import open_plans
from bertray.scoring.scanned_input import scan_input
from bertray.settings import ScoringPrecision, settings_of
from bertray.training import contrast
from bertray.training.choice import Choice, TrainingRows
from bertray.training.examples import Examples, LoopSettings, TrainingSettings
from bertray.training.loop import step_seconds
from bertray.training.objectives import Classification, Distillation
from bertray.training.token_shards import TokenShards, reading_of, write_examples
from bertray.training.tokenized_data import NUM_FOLDS
from bertray.wording import counted, duration, percent

SAMPLE_ROWS = 1000
TIMED_ROWS = 64
TIMED_STEPS = 2  # after one that warms up
MAX_LINES = 30
START_UP_S = 15.0  # Ray, imports and model load, seen on two cores
_HELD_OUT = "the rows that are held out: a cross-validation would take long, or there are rows enough"
LOADING_S = 6.0  # imports and model load alone


@dataclass(frozen=True)
class Sample:
    """A few tokenized reviews and what they say of the rest."""

    tokens: pa.Table
    rows_read: int
    rows_refused: int
    reading: Reading = field(default_factory=Reading)

    @property
    def seen_tokens_N(self) -> np.ndarray:
        """Tokens that the model computes for each review."""
        lens: np.ndarray = np.array([sum(lens) for lens in self.tokens[s.SEQ_LENS].to_pylist()], np.int64)
        return lens

    @property
    def first_sequences(self) -> pa.Table:
        """The reviews as training reads them: of several windows the first; `n_tokens` are those that are left."""
        seqs = sequences(self.tokens)
        first_N = np.flatnonzero(np.diff(seqs.rows_S, prepend=-1))
        starts_S = np.cumsum(seqs.lens_S) - seqs.lens_S
        lens_N = seqs.lens_S[first_N]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lens_N)]).astype(np.int32))
        ids = pa.array(seqs.ids_T[ranges(starts_S[first_N], lens_N)])
        columns = {s.INPUT_IDS: pa.ListArray.from_arrays(offsets, ids), s.N_TOKENS: pa.array(lens_N.astype(np.int32))}
        return pa.table({**columns, s.SECOND_LEN: pa.array(seqs.second_lens_S[first_N])})


class _Page:
    """Parts of a plan in the order in which a person reads them, and its figures."""

    def __init__(self) -> None:
        self.parts: list[str | Table] = []
        self.files: tuple[PlannedFile, ...] = ()
        self.num_rows = 0
        self.seconds: float | None = None

    def say(self, line: str) -> None:
        self.parts.append(line)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.parts.append(Table(title, tuple(columns), tuple(map(tuple, rows))))


def plan(config: ScoreConfig | TrainConfig) -> PlanResult:
    """Files, rows, token lengths and time of a train or score config; nothing is written."""
    page = _Page()
    if isinstance(config, ScoreConfig):
        _plan_score(config, page)
    else:
        _plan_train(config, page)
    price = None
    if page.seconds is not None and config.price_per_hour is not None:
        price = page.seconds / 3600 * config.price_per_hour
    return PlanResult(
        open_store(config.output).root,
        parts=tuple(page.parts),
        files=page.files,
        num_rows=page.num_rows,
        seconds=page.seconds,
        price=price,
    )


@contextmanager
def _executors(config: Common) -> Iterator[ExecutorFor]:
    """A cluster that is at hand scans the files; none is started for it."""
    if not inside_cluster():
        yield in_this_process
        return
    with OnDemand(config.workers) as executors:
        yield executors.for_bytes


def _plan_score(config: ScoreConfig, page: _Page) -> None:
    info = open_model(config)
    store = open_store(config.output)
    known = read_ledger(store)
    plans = open_plans(store, known)
    with _executors(config) as executor_for:
        aspects = Aspects.of(config, info.aspects)
        scanned = scan_input(config, store, known, plans, executor_for, aspects, ids=False)
        tonight = decide(config, info, known, scanned)
    _show_files(page, tonight)
    unfinished = unfinished_plan(tonight, plans)
    if unfinished is not None:
        page.say(
            f"slot {unfinished.slot}: begun on {unfinished.created_at[:16]} UTC and not finished; it is resumed first"
        )
    for rewrite in tonight.rewrites:
        page.say(
            f"slot {rewrite.slot}: rewritten as version {rewrite.version}, "
            f"{counted(len(rewrite.files), 'file')} ({rewrite.why})"
        )
    if tonight.new_files and (target := target_of_new_files(config, tonight)):
        page.say(f"slot {target.slot}: {counted(len(tonight.new_files), 'new file')} as run {target.run}")
    to_score = [*(file for rewrite in tonight.rewrites for file in rewrite.files), *tonight.new_files]
    good = tonight.readable(to_score)
    inputs = Inputs(good, spec_for(config, info, good))
    page.num_rows = inputs.num_rows
    if not inputs.num_rows:
        page.say("nothing new to score")
        return
    max_length, long_text = config.max_length or info.max_length, config.long_text or info.long_text
    folder = resolve_model(config.model)
    try:
        sample = draw_sample(inputs, ReviewTokenizer(folder, max_length, long_text))
    except DataRefused as error:  # a night may consist of rows that go to the quarantine
        page.say(f"no forecast: {error.message}")
        return
    _show_sample(page, sample, inputs.num_rows, max_length)
    # Of a GPU nothing is measured here, least of all in a format that this CPU may not have.
    tokens_per_s = _scoring_rate(folder, sample, "auto" if config.workers.use_gpu else config.precision)
    seconds = inputs.num_rows * sample.seen_tokens_N.mean() / tokens_per_s
    basis = f"{tokens_per_s:,.0f} tokens/s measured here"
    _show_forecast(page, config, seconds, basis, without_ray(config.workers, inputs.num_rows))


def _plan_train(config: TrainConfig, page: _Page) -> None:
    folder = check_train(config)
    with _executors(config) as executor_for:
        data = open_data(config, executor_for)
    key = seeds_key(config) if len(config.training.seeds) > 1 else run_key_of(config, data, folder)
    check_claim(open_store(config.output), "train", key)
    page.num_rows = data.num_rows
    rows = [
        [key, f"{len(inputs.files):,}", f"{inputs.num_rows:,}"]
        for key, inputs in (("train", data.train), ("validation", data.validation), ("test", data.test))
        if inputs
    ]
    page.table("data", ["", "files", "rows"], rows)
    page.say(f"classes: {', '.join(data.labels.names)}")
    sample = draw_sample(data.train, ReviewTokenizer(folder, config.max_length, config.long_text))
    _show_sample(page, sample, data.train.num_rows, config.max_length)
    mean_tokens = float(sample.seen_tokens_N.mean())
    rows_trained = _rows_left(config, data)
    method: str = config.training.method
    choice = None
    if method == "auto":
        cut = float(sample.tokens[s.TRUNCATED].to_numpy(zero_copy_only=False).mean())
        rows_there = TrainingRows(data.train.num_rows, len(data.labels.names), cut, sample.reading.unread)
        choice = choice_for(config, rows_there)
        method = choice.recipe
        page.say(f"training.method=auto: {choice.name}, since {choice.why}")
    reads_encoder = choice.reads if choice else config.training.encoder_weight != 0
    for finding in judge_training_texts(sample.reading, config.model, left_out=not reads_encoder):
        page.say(f"{finding.severity}: {finding.sentence}")
    forward_per_s = _forward_rate(folder, sample) if reads_encoder else math.inf
    if not reads_encoder:
        seconds, basis = 0.0, "TF-IDF alone: no row goes through the encoder"
    elif method in ("features", "stack"):
        seconds = rows_trained * mean_tokens / forward_per_s
        basis = f"{forward_per_s:,.0f} tokens/s of the frozen encoder measured here"
    else:
        seconds, basis = _optimization(config, data, choice, folder, sample, page)
    evaluated = data.test.num_rows if data.test else data.train.num_rows - rows_trained
    seconds += evaluated * mean_tokens / forward_per_s
    if data.teacher:  # reads what the student learns from, and is judged beside it
        teacher_folder, info = resolve_model(data.teacher.model), data.teacher.info
        seen = draw_sample(data.train, ReviewTokenizer(teacher_folder, info.max_length, info.long_text))
        tokens = (data.train.num_rows + evaluated) * float(seen.seen_tokens_N.mean())
        seconds += tokens / _scoring_rate(teacher_folder, seen)
    if len(config.training.seeds) > 1:
        page.say(f"{len(config.training.seeds)} seeds, one after the other: each is a training of its own")
        seconds *= len(config.training.seeds)
    _show_forecast(page, config, seconds, basis, without_ray(config.workers, data.num_rows, ranks=True))


def _optimization(
    config: TrainConfig,
    data: LabelledData,
    choice: Choice | None,
    folder: Path,
    sample: Sample,
    page: _Page,
) -> tuple[float, str]:
    """Seconds of a method that takes optimizer steps, folds of a cross-validation included, and what they rest on."""
    num_classes, num_rows = len(data.labels.names), data.train.num_rows
    recipe = choice.recipe if choice else config.training.method
    tokens_a_row = float(sample.first_sequences[s.N_TOKENS].to_numpy().mean())
    folds, told = 0, ""
    if choice and not choice.is_stated and not data.validation:
        # By all rows, as `train` counts: with folds all are learned from.
        passes = _passes(config, recipe, Task.of(num_rows, num_classes, folder))
        tokens, tested = passes * tokens_a_row * encoder_size(folder), data.test is not None
        folds = folds_for(num_rows, tokens, tested=tested)
        judged = "choice and calibration" if tested else "figures"
        rows_of = f"{folds} of {NUM_FOLDS} folds of a cross-validation" if folds else _HELD_OUT
        told = f"{judged} from {rows_of}"
    task = Task.of(num_rows if folds else int(_rows_left(config, data)), num_classes, folder)
    if recipe == "contrast":
        page.say(f"{_contrast_steps(config, task)} optimizer steps of {contrast.BATCH_SIZE} rows of balanced classes")
    else:
        schedule = task.schedule(config)
        page.say(f"about {in_words(config, schedule)}")
        for finding in judge_steps(config, schedule):
            page.say(f"{finding.severity}: {finding.sentence}")
    if told:
        page.say(told)
    tokens_per_s = _training_rate(task.numbers(config), folder, sample, data.labels.names)
    seconds = _passes(config, recipe, task) * tokens_a_row / tokens_per_s
    seconds *= 1 + folds * (1 - 1 / NUM_FOLDS)
    return seconds, f"{tokens_per_s:,.0f} tokens/s of training measured here"


def _rows_left(config: TrainConfig, data: LabelledData) -> float:
    """Rows to learn from, where no cross-validation leaves all of them."""
    return data.train.num_rows * (1.0 if data.validation else 1 - config.data.validation_fraction)


def _contrast_steps(config: TrainConfig, task: Task) -> int:
    return config.training.steps or contrast.steps_for(task.num_rows)


def _passes(config: TrainConfig, recipe: str, task: Task) -> float:
    """Rows that go through the encoder forwards and backwards, over all steps."""
    if recipe != "contrast":
        return task.schedule(config).epochs * task.num_rows
    return _contrast_steps(config, task) * min(contrast.BATCH_SIZE, task.num_rows)


def _scoring_rate(folder: Path, sample: Sample, precision: ScoringPrecision = "auto") -> float:
    """Tokens a second of a classifier over some sampled reviews."""
    from bertray.model.predictor import Predictor

    predictor = Predictor(folder, precision=precision)
    return _rate(predictor.logits, sample)  # unlike `probs`, it computes again what it has seen


def _training_rate(config: TrainConfig, folder: Path, sample: Sample, labels: tuple[str, ...]) -> float:
    """Tokens a second of optimizer steps over some sampled reviews, taken by the loop that `train` runs."""
    tokens = sample.first_sequences.slice(0, TIMED_ROWS)
    rows = np.arange(tokens.num_rows)
    label_ids_N = (rows % len(labels)).astype(np.int32)
    settings = settings_of(TrainingSettings, config.training)
    if config.workers.use_gpu:
        settings = replace(settings, precision="auto")
    step = np.resize(rows, min(settings.batch_size, max(len(rows), TIMED_ROWS)))
    loop = LoopSettings(labels, settings, config.seed, "plan", None)
    is_distilled = config.training.method == "distill"
    with tempfile.TemporaryDirectory() as name:
        if config.training.keep_layers is not None:
            write_shallow(folder, Path(name), config.training.keep_layers, seed=config.seed)
            folder = Path(name)
        shard = Path(name) / "sample.arrow"
        write_examples(shard, tokens, [labels[label] for label in label_ids_N])
        examples = Examples(
            TokenShards([shard]),
            label_ids_N,
            train=rows,
            validation=rows[:1],
            soft_NC=np.zeros((len(rows), len(labels)), np.float32) if is_distilled else None,
        )
        pad_id = ReviewTokenizer(folder, 16).pad_id
        objective = Distillation if is_distilled else Classification
        _, *seconds = step_seconds(examples, folder, pad_id, loop, [step] * (1 + TIMED_STEPS), objective=objective)
    return len(seconds) * float(examples.shards.lens_N[step].sum()) / sum(seconds)


def _forward_rate(folder: Path, sample: Sample) -> float:
    """Tokens a second of the engine over some sampled reviews, as `train` evaluates and embeds them."""
    from bertray.model.engine import Engine
    from bertray.model.pooling import PooledReadout

    engine = Engine(folder, readout=PooledReadout())
    return _rate(engine.logits, sample)


def _rate(compute: Callable[[Sequences], object], sample: Sample) -> float:
    """Tokens a second of a forward pass over some sampled reviews, the second time."""
    timed = sequences(sample.tokens.slice(0, TIMED_ROWS))
    compute(timed)
    started = time.monotonic()
    compute(timed)
    return float(timed.lens_S.sum()) / (time.monotonic() - started)


def draw_sample(inputs: Inputs, tokenizer: ReviewTokenizer) -> Sample:
    """Tokenize about SAMPLE_ROWS reviews, spread over the files."""
    work = inputs.work_units(max(1, SAMPLE_ROWS // max(1, min(len(inputs.files), 8))))
    picked = [work[i] for i in np.unique(np.linspace(0, len(work) - 1, num=min(8, len(work)), dtype=int))]
    batches = [read_shard(shard, inputs.spec) for unit in picked for shard in unit]
    texts = [batch.kept[s.TEXT].combine_chunks() for batch in batches]
    pairs = [batch.kept[s.TEXT_PAIR].combine_chunks() for batch in batches if s.TEXT_PAIR in batch.kept.column_names]
    tokens = [
        tokenizer.encode(text, pairs[number] if pairs else None) for number, text in enumerate(texts) if len(text)
    ]
    readings = [reading_of(pa.table(tokenizer.coverage(text))) for text in texts if len(text)]
    rows = sum(batch.rows_in for batch in batches)
    if not tokens:
        raise DataRefused(
            f"none of {counted(rows, 'sampled row')} can be used; first: {batches[0].refused[s.REASON][0].as_py()}.",
            "Look at the file, and at `columns.text`.",
        )
    return Sample(
        pa.concat_tables(tokens), rows, sum(batch.refused.num_rows for batch in batches), add_readings(readings)
    )


def _show_files(page: _Page, tonight: Tonight) -> None:
    counts = Counter(decision.verdict for decision in tonight.decisions)
    going_in = {file.path for rewrite in tonight.rewrites for file in rewrite.files}
    going_in |= {file.path for file in tonight.new_files}
    rows = [
        [
            d.file.path,
            "in" if d.file.path in going_in else "out",
            "?" if d.file.num_rows is None else f"{d.file.num_rows:,}",
            d.why,
        ]
        for d in tonight.decisions
    ]
    if len(rows) > MAX_LINES:
        rest = Counter((place, why) for _, place, _, why in rows[MAX_LINES:])
        rows = rows[:MAX_LINES]
        rows += [
            [f"... and {counted(count, 'more file')}", place, "", why] for (place, why), count in rest.most_common()
        ]
    page.files = tuple(
        PlannedFile(d.file.path, d.file.path in going_in, d.file.num_rows, d.why) for d in tonight.decisions
    )
    page.table("files", ["path", "tonight", "rows", "why"], rows)
    page.say(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "no files")


def _show_sample(page: _Page, sample: Sample, num_rows: int, max_length: int) -> None:
    n_tokens_N = sample.tokens[s.N_TOKENS].to_numpy()
    p50, p90, p99 = np.percentile(n_tokens_N, [50, 90, 99])
    page.say(
        f"tokens of {len(n_tokens_N):,} sampled reviews: median {p50:.0f}, 90 % below {p90:.0f}, 99 % below {p99:.0f}, "
        f"longest {n_tokens_N.max()}; {percent((n_tokens_N > max_length).mean())} longer than max_length={max_length}"
    )
    if sample.rows_refused:
        share = sample.rows_refused / sample.rows_read
        page.say(
            f"of {counted(sample.rows_read, 'sampled row')} {sample.rows_refused:,} would be quarantined "
            f"({percent(share)}), without those of repeated ids"
        )


def _show_forecast(page: _Page, config: Common, seconds: float, basis: str, alone: Resources | None) -> None:
    if alone is not None:
        page.say(f"in one process of {alone.threads} threads: so few reviews need no Ray")
        _show_time(page, config, LOADING_S, seconds, basis)
        return
    resources = resources_without_start(config.workers)
    on_gpu = config.workers.use_gpu
    page.say(
        f"{counted(resources.num_workers, 'worker')} of "
        + ("1 GPU" if on_gpu else f"{resources.threads} threads")
        + f", {resources.cpus_per_worker:g} CPU each"
    )
    if on_gpu:
        page.say(f"no forecast for GPUs ({basis}, on the CPU: {duration(seconds)})")
        return
    share = resources.num_workers if inside_cluster() else 1
    _show_time(page, config, START_UP_S, seconds / share, basis)


def _show_time(page: _Page, config: Common, start_s: float, work_s: float, basis: str) -> None:
    page.seconds = total = start_s + work_s
    page.say(f"about {duration(total)} ({basis}; {start_s:.0f} s of it to start)")
    if config.price_per_hour is not None:
        page.say(f"about {total / 3600 * config.price_per_hour:.2f} at {config.price_per_hour:g} an hour")
