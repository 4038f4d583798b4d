"""`training.method=features`: embeddings of a frozen encoder, computed once, and a linear head on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Literal

import numpy as np
import pyarrow as pa

from bertray.execution.executor import Executor, Progress, actors
from bertray.io.digests import cache_key
from bertray.io.store import Store, open_store
from bertray.io.tables import from_ipc, to_ipc
from bertray.model.bundle import HeadForm, resolve_model
from bertray.model.heads import LinearHead, fit_head, fit_linear, normalized
from bertray.model.tokenization import sequences
from bertray.schema import FEATURES, INPUT_IDS, SEQ_LENS, TERM_LOGITS
from bertray.settings import ClassWeights, HeadKind, Pooling
from bertray.training.examples import Examples
from bertray.training.token_shards import load_rows

log = logging.getLogger(__name__)

FOLDER = "control/features"
FEW_VALIDATION_ROWS = 100  # validation rows below which they choose no better than a fixed strength
STRENGTH = 4.0  # that one, of logistic regression on vectors of length 1


@dataclass(frozen=True)
class HeadRows:
    """Examples that a head is fitted on and chosen by.

    Args:
        train: example numbers, ascending; of each class at least one.
        validation: of the validation split, likewise.
    """

    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Embedded(HeadRows):
    """Examples with embeddings of the frozen encoder.

    Args:
        train_ND, validation_VD: float32; of width 0 where the head leaves the encoder out.
    """

    train_ND: np.ndarray
    validation_VD: np.ndarray


@dataclass(frozen=True)
class FrozenEncoder:
    """A model with frozen weights, and its output that is kept.

    Args:
        model: as `resolve_model` takes it.
        digest: of its weights.
        pooling: of its last hidden states; `classes`: the logits of a bundle instead.
    """

    model: str
    digest: str
    pooling: Pooling | Literal["classes"]


@dataclass(frozen=True)
class HeadSettings:
    """Settings of a linear head.

    Args:
        head: kind of the classifier.
        max_feature_rows: train rows at most that it is fitted on, a random sample.
        class_weights: `balanced` weighs each class by the inverse of its frequency.
    """

    head: HeadKind = "logreg"
    max_feature_rows: int = 200_000
    class_weights: ClassWeights = "none"


@dataclass(frozen=True)
class FittedHead:
    """A linear head, and how it came about.

    Args:
        form: input that the head takes.
        validation_VC: its logits of the validation examples.
    """

    head: LinearHead
    form: HeadForm
    validation_VC: np.ndarray


def draw_rows(examples: Examples, max_rows: int, seed: int) -> HeadRows:
    """A random sample of each split, at most `max_rows` of it."""
    label_ids_N, splits = examples.label_ids_N, (examples.train, examples.validation)
    return HeadRows(*(_sample(members, label_ids_N, max_rows, seed) for members in splits))


def embed_examples(
    encoder: FrozenEncoder, token_keys: Sequence[str], rows: HeadRows, store: Store, executor: Executor
) -> Embedded:
    """Embed the examples of a head; arguments as of `embed_token_shards`."""
    wanted_W = np.union1d(rows.train, rows.validation)
    vectors_WD = embed_token_shards(encoder, token_keys, wanted_W, store, executor)
    train_ND, validation_VD = (vectors_WD[np.searchsorted(wanted_W, of)] for of in (rows.train, rows.validation))
    return Embedded(rows.train, rows.validation, train_ND, validation_VD)


def without_encoder(rows: HeadRows) -> Embedded:
    """Some examples with nothing of the encoder."""
    train_ND, validation_VD = (np.empty((len(of), 0), np.float32) for of in (rows.train, rows.validation))
    return Embedded(rows.train, rows.validation, train_ND, validation_VD)


def fit_on_features(
    embedded: Embedded, label_ids_N: np.ndarray, pooling: Pooling, settings: HeadSettings, seed: int
) -> FittedHead:
    """A head on embeddings of the train split.

    Its regularisation is chosen on the validation split. With fewer than FEW_VALIDATION_ROWS rows there, which choose
    no better than chance, logistic regression has a fixed one, on embeddings of length 1.

    Args:
        embedded: examples.
        label_ids_N: of all examples.
        pooling: by which they are embedded.
        settings: of the head.
    """
    num_classes, balanced = int(label_ids_N.max()) + 1, settings.class_weights == "balanced"
    train_labels, validation_labels = label_ids_N[embedded.train], label_ids_N[embedded.validation]
    if settings.head == "logreg" and len(embedded.validation) < FEW_VALIDATION_ROWS:
        form = HeadForm(pooling, normalized=True)
        train_ND = normalized(embedded.train_ND)
        head = fit_linear(train_ND, train_labels, num_classes, STRENGTH, balanced=balanced, seed=seed)
        return FittedHead(head, form, head.logits(normalized(embedded.validation_VD)))
    head = fit_head(
        embedded.train_ND,
        train_labels,
        embedded.validation_VD,
        validation_labels,
        num_classes,
        settings.head,
        balanced=balanced,
        seed=seed,
    )
    return FittedHead(head, HeadForm(pooling), head.logits(embedded.validation_VD))


def _sample(members: np.ndarray, label_ids_N: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of some examples, ascending; of each class that they have at least one."""
    if len(members) <= most:
        return members
    order = np.random.default_rng(seed).permutation(members)
    _, first_of_each = np.unique(label_ids_N[order], return_index=True)
    rest = np.delete(order, first_of_each)
    return np.sort(np.concatenate([order[first_of_each], rest[: max(most - len(first_of_each), 0)]]))


def embed_token_shards(
    encoder: FrozenEncoder, token_keys: Sequence[str], wanted_W: np.ndarray, store: Store, executor: Executor
) -> np.ndarray:
    """Embeddings float32 [W, D] of some examples of some token shards; those of every example are kept in the output.

    Args:
        wanted_W: numbers of examples, ascending; they count through the shards in the order of `token_keys`.
    """
    return load_rows(store, compute_rows(encoder, token_keys, store, executor), wanted_W)


def compute_rows(encoder: FrozenEncoder, token_keys: Sequence[str], store: Store, executor: Executor) -> list[str]:
    """Model outputs for every example of some token shards, kept in the output; returns a key for each shard."""
    identity = {"base": encoder.digest, "pooling": encoder.pooling, "tokens": list(token_keys)}
    folder = f"{FOLDER}/{cache_key(identity)}"
    keys = [f"{folder}/{number:06d}.arrow" for number in range(len(token_keys))]
    there = set(store.keys(folder))
    missing = [number for number, key in enumerate(keys) if key not in there]
    if missing:
        from bertray.console import Ticker  # a machine that only trains has no rich

        work = [(token_keys[number], keys[number]) for number in missing]
        resources = executor.resources
        factory = partial(_EmbedTokenShard, encoder, store.root, resources.device, resources.threads)
        embed = actors(factory, resources)
        with Ticker("embedding", len(work), "shards") as ticker:
            for done, _ in enumerate(
                executor.run(work, [embed], Progress("embedding", "shard", itemgetter(0))), start=1
            ):
                ticker.update(done)
    return keys


class _EmbedTokenShard:
    """An actor that holds the encoder: (key of a token shard, key of its embeddings) in, the embeddings written."""

    def __init__(self, encoder: FrozenEncoder, output: str, device: str, threads: int) -> None:
        import torch

        from bertray.model.engine import Engine
        from bertray.model.pooling import PooledReadout, readout_of

        if device == "cpu":
            torch.set_num_threads(threads)
        folder = resolve_model(encoder.model)
        readout = readout_of(folder) if encoder.pooling == "classes" else PooledReadout(encoder.pooling)
        self._engine = Engine(folder, device=device, readout=readout)
        self._store = open_store(output)

    def __call__(self, keys: tuple[str, str]) -> None:
        from bertray.model.predictor import plus_terms, within_memory

        source, target = keys
        tokens = from_ipc(self._store.get(source))
        seqs = sequences(one_sequence_each(tokens))
        vectors_ND = within_memory(self._engine, self._engine.logits, seqs)
        if TERM_LOGITS in tokens.column_names:
            vectors_ND = plus_terms(vectors_ND, seqs, tokens)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
        self._store.put(target, to_ipc(pa.table({FEATURES: values})))


def one_sequence_each(tokens: pa.Table) -> pa.Table:
    """Tokens with the column of sequence lengths that the engine reads: one sequence a review."""
    lens = tokens[INPUT_IDS].combine_chunks().value_lengths()
    offsets = pa.array(np.arange(len(lens) + 1, dtype=np.int32))
    return tokens.append_column(SEQ_LENS, pa.ListArray.from_arrays(offsets, lens.cast(pa.int32())))


def in_words(fitted: FittedHead, kind: str) -> dict[str, str]:
    """Facts for the report."""
    head, form = fitted.head, fitted.form
    tried = ", ".join(f"{strength:g}: {loss:.4f}" for strength, loss in head.losses.items())
    name = "logistic regression" if kind == "logreg" else "linear SVM"
    pooled = "the mean of the tokens" if form.pooling == "mean" else "the first token"
    return {
        "head": f"{name} on {pooled}{', scaled to length 1' if form.normalized else ''}, encoder frozen",
        "regularisation": f"{head.strength:g} was best of (validation log loss) {tried}"
        if tried
        else f"C = {head.strength:g}; {FEW_VALIDATION_ROWS} validation rows would be needed to choose it",
    }
