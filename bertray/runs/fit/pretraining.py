"""Pretraining: reviews without labels → an encoder that has learned to fill the gaps in them.

reviews → (new: word pieces → random encoder) → token shards → masked language modelling → model/ + report
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bertray
from bertray import schema as s
from bertray.config import PretrainConfig, identity_of, to_yaml
from bertray.errors import ConfigError, DataRefused
from bertray.evaluation.validation_profile import check_reading
from bertray.execution.executor import Executor, Progress, Task
from bertray.execution.on_demand import Executors, executors_of
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import parquet_bytes
from bertray.model.bundle import resolve_model, weights_digest
from bertray.model.new_encoder import EncoderShape, VocabularySettings, learn_vocabulary, write_new_encoder
from bertray.model.pretrained.tokenizer import check_tokenizer, save_tokenizer
from bertray.model.pretrained.weights import has_masked_lm, load_config, load_for_training
from bertray.outputs.claims import (
    claimed_output,
    finished_run,
    mark_finished,
    put_folder,
    remove_folder,
    told_when_finished,
)
from bertray.reports.html import created_now, data_title, model_title
from bertray.reports.pretraining import PretrainingReport
from bertray.reviews.clean import Cleaning
from bertray.reviews.corpus import Inputs, open_inputs, read_spec
from bertray.reviews.reader import read_shard
from bertray.reviews.rows import ROWS_PER_SHARD, ReadSpec, WorkUnit
from bertray.runs.fit.labelled_data import TOKENS, token_shards
from bertray.runs.fit.training_workers import history_table, run_workers
from bertray.runs.results import PretrainResult
from bertray.schema import SCHEMA_VERSION
from bertray.scoring.models import check_length
from bertray.scoring.read_unit import ReadSettings, name_of
from bertray.settings import settings_of
from bertray.training import checkpoint as checkpoints
from bertray.training.examples import Examples, LoopSettings, PretrainingSettings
from bertray.training.loop import Outcome
from bertray.training.masked_language import MaskedLanguage
from bertray.training.masking import Vocabulary, places_to_score
from bertray.training.rank import PROGRESS, TrainJob
from bertray.training.tokenized_data import TokenizedData
from bertray.wording import counted, duration, percent

log = logging.getLogger(__name__)

IMPORTS = ("ray.data", "ray.train.torch", "transformers")
BASE = "control/base"  # a new encoder before its first step
HISTORY = (  # of epoch 0: before the first step
    *("learning_rate", "tokens_per_s", "seconds", "train_loss"),
    *("loss", "accuracy", "perplexity", "perplexity_low", "perplexity_high"),
)


@dataclass(frozen=True)
class _Base:
    """The model that learning starts from."""

    model: str  # for `resolve_model`, on every machine
    folder: Path
    digest: str


def pretrain(config: PretrainConfig, executors: Executors | None = None) -> PretrainResult:
    """Learn; the same run again resumes, or gives back what it had found."""
    with executors_of(config.workers, executors, ranks=True, imports=IMPORTS) as opened:
        return _run(config, opened)


def _run(config: PretrainConfig, executors: Executors) -> PretrainResult:
    started = time.monotonic()
    given = None if config.from_scratch else _given(config)
    spec = read_spec(config, settings_of(Cleaning, config.cleaning), config.max_chars, wants_label=False)
    inputs = open_inputs("input", config.input, config, spec, executors.for_bytes)
    identity = identity_of(config, ["training.checkpoint_every_s", "training.max_failures"])
    run_key = cache_key({"config": identity, "data": inputs.identity, "base": given and given.digest})
    store = open_store(config.output)
    if finished_run(store, "pretrain", run_key):
        _clean_up(store)  # where a run ended between its last write and this
        return _result(store, already_done=True)
    with claimed_output(store, "pretrain", run_key, to_yaml(config), checkpoints.FOLDER):
        inputs.keep_scan(store)
        with executors.session(inputs.num_rows) as executor:
            base = given or _new(config, inputs, store, executor)
            settings = ReadSettings(spec, base.model, config.max_length, config.long_text)
            keys = token_shards(inputs, settings, base.digest, store, executor, "input")
            data = TokenizedData(store.root, keys, None, None, config.held_out_fraction, config.seed)
            examples = data.examples()
            _check(examples, inputs, base)
            if given is not None:
                check_reading(examples, config.model)
            training = settings_of(PretrainingSettings, config.training)
            loop = LoopSettings((), training, config.seed, run_key, executor.resources.threads)
            job = TrainJob(data, base.model, loop, MaskedLanguage, config.training.max_failures)
            outcome = run_workers(job, examples, store, executor)
        new_weights = _write_model(config, base, outcome, run_key, store)
        report = _report(config, examples, outcome, new_weights, time.monotonic() - started)
        store.put("history.parquet", parquet_bytes(history_table(outcome.history, HISTORY)))
        store.put("metrics.json", json.dumps(_metrics(report), indent=1).encode())
        store.put("report.html", report.to_html().encode())
        mark_finished(store, {"headline": report.headline, "notes": list(report.notes)})
        _clean_up(store)
        log.info("pretrained in %s", duration(time.monotonic() - started))
    return _result(store, already_done=False)


def _result(store: Store, *, already_done: bool) -> PretrainResult:
    told = told_when_finished(store)
    return PretrainResult(
        store.root,
        tuple(told.get("notes", ())),
        sentence=told.get("headline", ""),
        metrics=json.loads(store.get("metrics.json")),
        already_done=already_done,
    )


def _clean_up(store: Store) -> None:
    """Removes files that only a resume would need, once the run is complete."""
    for folder in (checkpoints.FOLDER, TOKENS, BASE, "control/ray_train"):
        remove_folder(store, folder)
    store.delete(PROGRESS)


# --- what learning starts from ---------------------------------------------------------------------------------------


def _given(config: PretrainConfig) -> _Base:
    """A pretrained encoder, checked for what it is to do.

    Raises:
        ConfigError: it does not exist, sees fewer tokens, or is of a kind that does not guess masked tokens.
    """
    folder = resolve_model(config.model)
    check_length(config.max_length, config.model, folder)
    check_tokenizer(folder, config.model)
    if not has_masked_lm(folder):
        kind = load_config(folder).model_type
        raise ConfigError(
            f"model={config.model}: transformers has no masked language model of type {kind}.",
            "Give a BERT-family encoder.",
        )
    Vocabulary.of(folder)
    return _Base(config.model, folder, weights_digest(folder))


def _new(config: PretrainConfig, inputs: Inputs, store: Store, executor: Executor) -> _Base:
    """A new encoder and its word pieces, made once and kept in the output until the run is done."""
    if not store.exists(f"{BASE}/config.json"):
        wanted = settings_of(VocabularySettings, config.vocabulary)
        tokenizer = learn_vocabulary(_sample(config, inputs, executor), wanted)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shape = settings_of(EncoderShape, config.encoder)
            write_new_encoder(folder, tokenizer, shape, max_length=config.max_length, seed=config.seed)
            put_folder(store, folder, BASE)
        log.info("a new encoder: %d word pieces, %d layers", len(tokenizer), config.encoder.num_layers)
    folder = resolve_model(store.uri(BASE))
    return _Base(store.uri(BASE), folder, weights_digest(folder))


def _sample(config: PretrainConfig, inputs: Inputs, executor: Executor) -> list[str]:
    """Texts of random work units, as many as word pieces are learned from."""
    work = inputs.work_units(ROWS_PER_SHARD)
    chosen, num_rows = [], 0
    for number in np.random.default_rng(config.seed).permutation(len(work)):
        if num_rows >= config.vocabulary.sample_rows:
            break
        chosen.append(work[number])
        num_rows += sum(shard.hi - shard.lo for shard in work[number])
    progress = Progress("reading texts", "shard", name_of)
    texts = [text for some in executor.run(chosen, [Task(partial(_texts_of, inputs.spec))], progress) for text in some]
    if not texts:
        raise DataRefused(f"input: none of {counted(inputs.num_rows, 'row')} is usable.", "Look at the file.")
    texts.sort()  # whatever order they came in
    chosen_texts = np.random.default_rng(config.seed).permutation(len(texts))[: config.vocabulary.sample_rows]
    return [texts[number] for number in np.sort(chosen_texts)]


def _texts_of(spec: ReadSpec, unit: WorkUnit) -> list[str]:
    return [text for shard in unit for text in read_shard(shard, spec).kept[s.TEXT].to_pylist()]


def _check(examples: Examples, inputs: Inputs, base: _Base) -> None:
    """Raises:
    DataRefused: there is nothing to learn from, or nothing to judge by.
    """
    if not len(examples.train) or not len(examples.validation):
        raise DataRefused(
            f"input: {inputs.num_rows} rows, of which {len(examples.train)} texts to learn from and "
            f"{len(examples.validation)} held out; both need one at least, and equal texts stay together.",
            "Give reviews with more different texts, or another held_out_fraction.",
        )
    vocabulary = Vocabulary.of(base.folder)
    for what, members in (("to learn from", examples.train), ("held out", examples.validation)):
        known, _ = places_to_score(examples.shards.sequences(members[:1000]), vocabulary, most=2, seed=0)
        if len(known) < 2:
            raise DataRefused(
                f"input: of the texts {what} the tokenizer knows {len(known)} tokens; two are needed.",
                "Give a model of their language, or more text.",
            )


# --- what comes of it ------------------------------------------------------------------------------------------------


def _write_model(config: PretrainConfig, base: _Base, outcome: Outcome, run_key: str, store: Store) -> list[str]:
    """The best epoch as a model of `transformers`; returns names of the weights that the base did not have."""
    checkpoint = checkpoints.load_best(store, outcome.best_step, run_key)
    model, new_weights = load_for_training("MaskedLM", base.folder)
    checkpoints.load_model_tensors(model, checkpoint.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        _keep_pooler(base.folder, folder, model.base_model_prefix)
        save_tokenizer(base.folder, folder)
        (folder / "README.md").write_text(_card(config, outcome), encoding="utf-8")
        put_folder(store, folder, "model")
    return [] if config.from_scratch else new_weights


def _keep_pooler(base: Path, target: Path, prefix: str) -> None:
    """A masked language model has no pooler; that of the base stays, for who trains a classifier on the encoder."""
    from safetensors.torch import load_file, save_file

    pooler = {
        f"{prefix}.pooler.{name.partition('pooler.')[2]}": tensor
        for file in sorted(base.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
        if "pooler." in name
    }
    if pooler and (target / "model.safetensors").is_file():
        weights = load_file(target / "model.safetensors") | pooler
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _card(config: PretrainConfig, outcome: Outcome) -> str:
    start = "A new encoder" if config.from_scratch else f"`{config.model}`"
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [bertray]
---
# Encoder

{start}, pretrained on reviews by masked language modelling with bertray {bertray.__version__}: best after step
{outcome.best_step} of {outcome.num_steps}; seed {config.seed}. How well it fills gaps: `report.html` beside it.

`bertray train model=<this folder>` makes a classifier of it.
"""


def _report(
    config: PretrainConfig, examples: Examples, outcome: Outcome, new_weights: list[str], seconds: float
) -> PretrainingReport:
    evals = [row for row in outcome.history if row["kind"] == "eval"]
    notes = []
    if new_weights:
        notes.append(
            "The base model came without the head that guesses tokens, so the figure before is that of an untrained "
            f"head on a trained encoder ({len(new_weights)} new weights)."
        )
    notes += outcome.notes
    lens_N = examples.shards.lens_N
    base = "a new encoder" if config.from_scratch else model_title(config.model)
    return PretrainingReport(
        title=f"Pretraining of {base} on {data_title(config.input)}",
        before=evals[0],
        after=next(row for row in evals if row["step"] == outcome.best_step),
        history=outcome.history,
        num_tokens=len(outcome.validation_VK),
        notes=notes,
        facts={
            "base model": _shape(config) if config.from_scratch else config.model,
            "texts to learn from": f"{len(examples.train):,}",
            "texts held out": f"{len(examples.validation):,}",
            "tokens an epoch": f"{int(lens_N[examples.train].sum()):,}",
            "reviews longer than max_length": percent((examples.shards.n_tokens_N > config.max_length).mean()),
            "steps": f"{outcome.num_steps:,}, best after {outcome.best_step:,}",
            "training time": duration(outcome.seconds),
            "time from start to report": duration(seconds),
            "bertray": bertray.__version__,
        },
        config=to_yaml(config),
        created=created_now(),
    )


def _shape(config: PretrainConfig) -> str:
    shape = config.encoder
    return (
        f"new: {shape.num_layers} layers, {shape.hidden_size} numbers a token, {shape.num_heads} heads; "
        f"{config.vocabulary.size:,} word pieces"
    )


def _metrics(report: PretrainingReport) -> dict[str, Any]:
    figures = report.figures
    for row in figures.values():  # JSON has no infinity: no interval where all tokens are of one text
        row["perplexity"] = {name: value if math.isfinite(value) else None for name, value in row["perplexity"].items()}
    return {"schema_version": SCHEMA_VERSION, "held_out_tokens": report.num_tokens, **figures}
