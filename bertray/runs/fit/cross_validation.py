"""Cross-validation of a training recipe: logits of every row by a model that has not learned from it.

Shape letters: N examples, M those that are judged, V those of one fold, C classes.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bertray.evaluation.baselines import MAJORITY, TFIDF_LOGREG, fit_tfidf_logreg, majority
from bertray.io.digests import cache_key
from bertray.io.store import Store
from bertray.model.calibration import probs_of_rows
from bertray.runs.evaluated import EvaluatedRows
from bertray.runs.fit.baselines import Baselines
from bertray.runs.fit.cleaned_rows import kept_rows, texts_of
from bertray.runs.fit.methods import Method, OutOfFold, TrainingRun
from bertray.training.examples import Examples
from bertray.training.token_shards import TokenShards
from bertray.training.tokenized_data import NUM_FOLDS, TokenizedData
from bertray.wording import counted

log = logging.getLogger(__name__)

FOLDER = "control/folds"
CROSS_VALIDATION = "cross-validation"


def out_of_fold(
    method: Callable[[TrainingRun], Method],
    run: TrainingRun,
    tokenized: TokenizedData,
    examples: Examples,
    folds: int,
) -> OutOfFold:
    """Learn without each of some folds in turn; what a killed run had learned is kept in the output.

    Args:
        method: to learn by.
        run: of the whole.
        tokenized, examples: its rows.
        folds: how many of NUM_FOLDS are held out, one after the other.
    """
    parts = []
    for fold in range(folds):
        training = run.config.training
        settings = {"method": training.method, "encoder_weight": training.encoder_weight}
        key = f"{FOLDER}/{cache_key({'run': run.run_key, **settings, 'fold': fold})}.npz"
        if not run.store.exists(key):
            without = replace(tokenized, fold=fold)
            split = without.split(examples)
            if not len(split.validation):
                continue
            log.info("%s: cross-validation, fold %d of %d", run.config.training.method, fold + 1, folds)
            learned = method(replace(run, fold=fold)).learn(without, split)
            content = io.BytesIO()
            np.savez(content, members=learned.members, logits=learned.logits_VC)
            run.store.put(key, content.getvalue())
        parts.append(_stored(run.store, key))
    members = np.concatenate([members_V for members_V, _ in parts])
    order = np.argsort(members, kind="stable")
    return OutOfFold(members[order], np.concatenate([logits_VC for _, logits_VC in parts])[order], folds)


def _stored(store: Store, key: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(store.get(key)), allow_pickle=False) as stored:
        return stored["members"], stored["logits"]


def with_logits(rows: EvaluatedRows, examples: Examples, judged: OutOfFold, temperature: float) -> EvaluatedRows:
    """The evaluated rows with out-of-fold probabilities in place of those of the model that learned from them all."""
    found = _positions(_places(rows, slice(None)), _places(examples.shards, judged.members))
    return replace(rows, probs_NC=probs_of_rows(judged.logits_MC[found] / temperature).astype(np.float32))


def _places(rows: EvaluatedRows | TokenShards, members: np.ndarray | slice) -> list[tuple[int, int]]:
    """File and row of some rows."""
    return list(zip(rows.file_no_N[members].tolist(), rows.row_no_N[members].tolist(), strict=True))


def _positions(wanted: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]]) -> np.ndarray:
    """Position of each place among those that are there."""
    at = {place: number for number, place in enumerate(there)}
    return np.array([at[place] for place in wanted], np.int64)


def cross_validated_baselines(
    run: TrainingRun, tokenized: TokenizedData, examples: Examples, rows: EvaluatedRows, folds: int
) -> Baselines:
    """The baselines on the evaluated rows, each row by one that was fitted without its fold."""
    num_classes, labels_N, places = rows.probs_NC.shape[1], examples.label_ids_N, _places(rows, slice(None))
    kept = kept_rows(run.store, tokenized.train_keys)
    texts = dict(zip(examples.train.tolist(), texts_of(kept, examples, examples.train, run.executor), strict=True))
    probs = {name: np.empty((rows.num_rows, num_classes)) for name in (MAJORITY, TFIDF_LOGREG)}
    for fold in range(folds):
        split = replace(tokenized, fold=fold).split(examples)
        if not len(split.validation):
            continue
        tfidf = fit_tfidf_logreg(
            [texts[number] for number in split.train], labels_N[split.train], num_classes, run.config.seed
        )
        found = _positions(_places(examples.shards, split.validation), places)
        probs[TFIDF_LOGREG][found] = tfidf.probs([texts[number] for number in split.validation])
        probs[MAJORITY][found] = majority(labels_N[split.train], num_classes, len(found))
    return Baselines(probs, len(examples.train), len(examples.train))


def in_words(out: OutOfFold, num_rows: int) -> str:
    """Sentence on the rows that the figures of a report are of."""
    said = f"each of {len(out.members):,} rows was judged by a model that learned from the other folds"
    if out.folds < NUM_FOLDS:
        said += f" ({out.folds} of {NUM_FOLDS} folds: all of them would take long)"
    elif len(out.members) < num_rows:
        said += f"; {counted(num_rows - len(out.members), 'row')} of classes with a single text could not be judged"
    return (
        f"No data.test was given: figures by {NUM_FOLDS}-fold cross-validation, {said}. The model that is kept learned "
        f"from all {num_rows:,} rows, so it is likely a little better."
    )
