"""Cleaned rows of a training run: kept by the tasks that tokenize, for all that needs a text again afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bertray.config import TrainConfig
from bertray.execution.executor import Executor, Progress, Task
from bertray.io.store import Store
from bertray.reviews.corpus import Inputs
from bertray.reviews.fetch import fetch_texts
from bertray.reviews.kept_rows import Keep, KeepRule, KeptRows, draw
from bertray.reviews.ngrams import MAX_TEXTS
from bertray.reviews.rows import ROWS_PER_SHARD
from bertray.runs.fit.labelled_data import LATER, MANIFEST, TOKENS, LabelledData
from bertray.runs.fit.scheduled import stated_keys
from bertray.scoring.read_unit import ReadAndKeep, name_of
from bertray.training.examples import Examples
from bertray.training.tokenized_data import TokenizedData


def rows_to_keep(config: TrainConfig, data: LabelledData) -> dict[str, KeepRule]:
    """By split, the rows of which a run needs more than their tokens.

    Rows that the model is judged by, where they stand in no test file; rows that a teacher or the terms of a stack
    read, too; of others enough for the samples of the baseline and of seen n-grams.
    """
    method = config.training.method
    may_stack = method == "stack" or (method == "auto" and not stated_keys(config))
    keep: dict[str, KeepRule] = {}
    if data.test is None or data.test_is_later:
        keep["test" if data.test else "validation" if data.validation else "train"] = KeepRule()
    if data.teacher is not None or may_stack:
        keep["train"] = KeepRule()
    if data.validation is not None and may_stack:
        keep["validation"] = KeepRule()
    num_sampled = max(MAX_TEXTS, config.report.baseline_rows if config.report.baselines else 0)
    keep.setdefault("train", KeepRule.for_sample(data.train.num_rows, num_sampled, config.seed))
    return keep


def kept_rows(store: Store, token_keys: Sequence[str]) -> KeptRows:
    """Rows that were kept beside some token shards, of one input."""
    folder = token_keys[0].rpartition("/")[0]
    refused = json.loads(store.get(f"{folder}/{MANIFEST}"))["refused"]
    return replace(KeptRows.in_folder(store, folder), refused=refused)


def judged_rows(
    data: LabelledData,
    tokenized: TokenizedData,
    examples: Examples,
    members: np.ndarray,
    store: Store,
    executor: Executor,
) -> KeptRows:
    """Rows that the model is judged by: all of the test split, else of validation. Only test files are read for it.

    Args:
        members: examples that it is judged by without such a split.
    """
    if data.test is not None:
        folder = f"{TOKENS}/test"
        if data.test_is_later:
            folder = tokenized.train_keys[0].rpartition("/")[0] + LATER
        else:
            _read_and_keep(data.test, folder, store, executor)
        return KeptRows.in_folder(store, folder).of(data.test.num_rows)
    if tokenized.validation_keys is not None:
        return kept_rows(store, tokenized.validation_keys)
    shards = examples.shards
    kept = kept_rows(store, tokenized.train_keys)
    return kept.only(shards.file_no_N[members], shards.row_no_N[members])


def _read_and_keep(inputs: Inputs, folder: str, store: Store, executor: Executor) -> None:
    work = inputs.work_units(ROWS_PER_SHARD)
    stages = [Task(ReadAndKeep(inputs.spec, Keep(store.root, folder)))]
    list(executor.for_rows(inputs.num_rows).run(work, stages, Progress("reading", "shard", name_of)))


def sampled(data: LabelledData, examples: Examples, max_rows: int, seed: int) -> np.ndarray:
    """Train examples, ascending, at most so many: a random sample of those whose texts are kept for it.

    The draw of a row depends on its file, its number and the seed alone, so that it is the same on any number of tasks.
    """
    shards, train = examples.shards, examples.train
    draw_M = draw(shards.file_no_N[train], shards.row_no_N[train], seed)
    rule = KeepRule.for_sample(data.train.num_rows, max_rows, seed)
    order = np.argsort(draw_M, kind="stable")[:max_rows]
    return np.sort(train[order[rule.keeps(draw_M[order])]])


def texts_of(kept: KeptRows, examples: Examples, members: np.ndarray, executor: Executor) -> list[str]:
    """Cleaned texts of some examples, all of them kept; a pair as one."""
    shards = examples.shards
    return fetch_texts(executor, kept.units, shards.file_no_N[members], shards.row_no_N[members])
